"""A source of one picture, while workers, keepers and a user do whatever they may, in any order: what is done is always
of one moment."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run

from ingest.ledger import Claim, Cursor, NewUnit, Picture, Result, Taken, Wish, WorkLedger
from ingest.model import TERMINAL_JOB, FileSpec, JobOptions
from ingest.sources import Sql
from tests.servers.redis import redis_server
from tests.unit.ledgers import PLANS, QUEUE, check, connect, expire, failed, file, ripen

SQL = Sql("pg", table="t", partition_on="id", partitions=4)
KEEPERS = ("k1", "k2")
ANY = st.integers(0, 1 << 16)


class PictureMachine(RuleBasedStateMachine):
    """``reading`` is what workers have claimed and at which moment they read; some of them are late, or dead."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        self.ledger: WorkLedger = connect(self.url)
        self.reading: list[tuple[Claim, str]] = []
        self.opening: list[tuple[str, Taken]] = []
        self.mine: dict[str, dict[str, int]] = {keeper: {} for keeper in KEEPERS}
        self.moments = 0

    def teardown(self) -> None:
        self.ledger.close()

    @initialize()
    def begin(self) -> None:
        self.job = self.ledger.create(JobOptions(), None).job
        self.ledger.add(self.job, "p", 0, 0, [NewUnit.plan(SQL, 0, PLANS)])
        self.ledger.seal(self.job)
        self.name = f"{self.job}.0"
        self.wish = Wish("held", "k1", "pg", SQL.uri, 3)
        self.claim(planning=True, pid="1:1")
        self.keep("k1", forgets=False, late=False)
        self.opened(0, good=True)
        self.claim(planning=True, pid="1:1")

    @rule(planning=st.sampled_from([False, False, True]), pid=st.sampled_from(["1:1", "2:1", "3:1"]))
    def claim(self, planning: bool, pid: str) -> None:
        """As workers do: a planner adds what is not there yet and ends; a shard waits, fails, or begins to read."""
        for unit in map(bytes.decode, self.ledger.redis.zrange(self.ledger.key("delayed"), 0, -1)):
            ripen(self.ledger, unit)
        work = self.ledger.claim(f"w{pid[0]}", pid, 9, [PLANS if planning else QUEUE])
        if work is None:
            return
        found = self.ledger.look(work, self.wish if work.is_plan else None)
        if not isinstance(found, Picture):
            if found == "cancelled":
                self.ledger.commit(work, "cancelled", Result(), ())
        elif found.state == "refused":
            self.ledger.commit(work, "failed", failed(work.unit), ())
        elif found.state != "held":
            self.ledger.back(work, 30, False, "waits", None, ())
        elif work.is_plan:
            self._plan(work, found)
        else:
            self.reading.append((work, found.moment))

    def _plan(self, work: Claim, found: Picture) -> None:
        self.ledger.remember(work, found.generation, b"plan", Cursor("k", "*", "v"))
        if not work.cursor:
            shards = [NewUnit.shard([FileSpec(0, n, f"sql://pg/t?{n}")], QUEUE) for n in range(4)]
            self.ledger.add_planned(work, "all", shards)
        self.ledger.commit(work, "done", Result(), ())

    @precondition(lambda self: self.reading)
    @rule(which=ANY, end=st.sampled_from(["done", "done", "done", "failed", "back", "lost", "dies"]))
    def finish(self, which: int, end: str) -> None:
        work, moment = self.reading[-1 - which % min(6, len(self.reading))]
        result = Result((dataclasses.replace(file(int(work.number)), uri=moment),))
        if end == "done":
            self.ledger.commit(work, "done", result, ())
        elif end == "failed":
            self.ledger.commit(work, "failed", failed(work.unit), ())
        elif end == "back":
            self.ledger.back(work, 0, True, "slow", result, ())
        elif end == "lost":
            picture = self.ledger.look(work)
            if isinstance(picture, Picture) and picture.moment == moment:
                self.ledger.anew(self.name, picture.generation, "its import failed")
        else:
            expire(self.ledger, work.unit)

    @rule(keeper=st.sampled_from(KEEPERS), forgets=st.sampled_from([False, False, False, True]), late=st.booleans())
    def keep(self, keeper: str, forgets: bool, late: bool) -> None:
        if late and self.ledger.redis.zscore(self.ledger.key("pictures"), self.name):
            self.ledger.redis.zadd(self.ledger.key("pictures"), {self.name: 1}, xx=True)
        if forgets:
            self.mine[keeper] = {}
        past, taken = self.ledger.hold(keeper, keeper, 12.0, 9, ["pg"], self.mine[keeper])
        for name in past:
            del self.mine[keeper][name]
        for one in taken:
            self.mine[keeper][one.name] = one.generation
            self.opening.append((keeper, one))

    @precondition(lambda self: self.opening)
    @rule(which=ANY, good=st.sampled_from([True, True, True, False]))
    def opened(self, which: int, good: bool) -> None:
        keeper, taken = self.opening[-1 - which % min(3, len(self.opening))]
        if good:
            self.moments += 1
            self.ledger.offer(taken.name, taken.generation, keeper, f"m{self.moments}", 12.0)
        else:
            self.ledger.refuse(taken, keeper, which % 3 == 0, 0.0, failed("u").failures[0].exception())

    @rule()
    def tick(self) -> None:
        self.ledger.tick(0, 900)

    @rule(verb=st.sampled_from(["retry", "retry", "retry", "cancel"]))
    def sweep(self, verb: str) -> None:
        self.ledger.sweep(verb, self.job)
        if verb == "cancel":  # nothing more would happen
            self.ledger.sweep("retry", self.job)

    @invariant()
    def what_is_done_is_of_one_moment(self) -> None:
        if not hasattr(self, "job"):
            return
        check(self.ledger, self.job)
        numbers = [str(n) for n in range(int(self.ledger.meta(self.job)["next"]))]
        files = [f for packed in self.ledger.results(self.job, numbers) for f in Result.unpacked(packed).files]
        assert len({f.uri for f in files}) <= 1, "two moments in one picture"
        done = [r for r in self.ledger.units(self.job, ["p0", *numbers]) if r and r.state == "done"]
        if numbers and len(done) == 5:
            assert self.ledger.meta(self.job)["state"] == "done" and self.ledger.cursor("k") == "v"

    @invariant()
    def it_is_held_while_somebody_may_read(self) -> None:
        if not hasattr(self, "job"):
            return
        over = self.ledger.meta(self.job)["state"] in TERMINAL_JOB
        held = {m for keeper in KEEPERS for m in self.ledger.redis.smembers(self.ledger.key("holds", keeper))}
        assert not (over and held), "the job is over, and somebody is to hold its moment"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.mark.parametrize("examples", [5, pytest.param(20, marks=pytest.mark.long)])
def test_whatever_happens_to_a_picture(url: str, examples: int) -> None:
    machine = type("Machine", (PictureMachine,), {"url": url})
    run(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=50,
            derandomize=True,
            phases=[Phase.generate],
            deadline=None,
            suppress_health_check=[*HealthCheck],
        ),
    )
