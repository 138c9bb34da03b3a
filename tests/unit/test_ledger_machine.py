"""Two clients and three workers do whatever they may to a ledger, in any order; what must hold at any time holds
after each step."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ingest.ledger import Claim, Result, WorkLedger
from ingest.model import TERMINAL_JOB, TERMINAL_SHARD, JobOptions
from tests.servers.redis import redis_server
from tests.unit.ledgers import PLANS, QUEUE, check, connect, done, expire, failed, plan, ripen, shards, state

WORKERS = ("w1", "w2", "w3")
QUEUES = (f"{QUEUE}.n1", QUEUE)
INFO = {"node": "n1", "store": "s1", "slots": 2, "connections": [], "version": "1", "free_bytes": 1, "pid": 1}
ANY = st.integers(0, 1 << 16)
KEYS = ("k", "l")


class LedgerMachine(RuleBasedStateMachine):
    """``claims`` are all that were ever given, so that also those of the dead and the late speak up; ``last`` is the
    only one of a unit that may do anything."""

    url: str
    steps = 0  # of all that were made

    def __init__(self) -> None:
        super().__init__()
        self.ledger: WorkLedger = connect(self.url)
        self.other = WorkLedger(self.ledger.settings)  # the second client; it has a connection of its own
        self.jobs: list[str] = []
        self.open: list[str] = []
        self.claims: list[Claim] = []
        self.last: dict[str, Claim] = {}
        self.ended: dict[str, str] = {}
        self.planned: dict[str, int] = {}
        self.names = 0

    def teardown(self) -> None:
        self.ledger.close()
        self.other.close()

    def _is_last(self, work: Claim) -> bool:
        return self.last.get(work.unit) is work

    # Clients

    @initialize()
    def begin(self) -> None:
        """Two jobs with work, so that no example is spent on getting to some."""
        for queue in QUEUES:
            job = self.ledger.create(JobOptions(), None, self._name()).job
            self.ledger.add(job, "", 0, 0, shards(0, 2, queue=queue))
            self.ledger.seal(job)
            self.jobs.append(job)

    def _name(self) -> str:
        """Units that are equally good are claimed by their names: the same steps are to do the same."""
        self.names += 1
        return f"j{self.names}"

    @precondition(lambda self: len(self.jobs) < 3)
    @rule(key=st.sampled_from(["", "a", "b"]), second=st.booleans())
    def create(self, key: str, second: bool) -> None:
        job, fresh, *_ = (self.other if second else self.ledger).create(JobOptions(), key or None, self._name())
        if job not in self.jobs:
            assert fresh
            self.jobs.append(job)
            self.open.append(job)

    @precondition(lambda self: self.open)
    @rule(
        which=ANY,
        count=st.integers(1, 5),
        back=st.integers(0, 3),
        queue=st.sampled_from(QUEUES),
        planning=st.booleans(),
    )
    def add(self, which: int, count: int, back: int, queue: str, planning: bool) -> None:
        """Up to ``back`` of them are there already: a submission that was taken up again."""
        job = self.open[which % len(self.open)]
        meta = self.ledger.meta(job)
        if planning:
            self.ledger.add(job, "p", int(meta["plan_next"]), 0, [plan()])
        elif int(meta["plan_next"]) == 0:  # else its numbers are the planners'
            start = max(0, int(meta["next"]) - back)
            answer = self.ledger.add(job, "", start, 0, shards(start, start + count, queue=queue))
            assert answer == ("cancelled" if meta.get("cancelled") == "1" or "error" in meta else "ok")

    @precondition(lambda self: self.open)
    @rule(which=ANY, why=st.sampled_from(["", "", "given up"]))
    def seal(self, which: int, why: str) -> None:
        job = self.open.pop(which % len(self.open))
        before = self.ledger.meta(job)
        self.ledger.seal(job, why)
        if why and before["sealed"] == "0":
            late = self.other.add(job, "", int(before["sent"]), 0, shards(0, 1))
            assert late == self.other.seal(job) == "given up"
            again, fresh, *_ = self.other.create(JobOptions(), before["key"] or None, self._name())
            assert fresh and again != job, "its key begins anew"
            self.jobs.append(again)
            self.open.append(again)

    @precondition(lambda self: self.jobs)
    @rule(which=ANY, verb=st.sampled_from(["cancel", "retry", "retry"]), second=st.booleans())
    def sweep(self, which: int, verb: str, second: bool) -> None:
        job = self.jobs[which % len(self.jobs)]
        before = {r.unit: r.state for r in self.ledger.all_units(job)}
        (self.other if second else self.ledger).sweep(verb, job)
        for record in self.ledger.all_units(job):
            if verb == "retry" and before[record.unit] in {"failed", "quarantined", "cancelled"}:
                assert record.state == "due"
                self.last.pop(record.unit, None)  # who held it has nothing to say any more
                self.ended.pop(record.unit, None)
            elif verb == "cancel" and before[record.unit] == "due":
                assert record.state == "cancelled" or self.ledger.meta(job).get("cancelled") != "1"
            else:
                assert record.state == before[record.unit]

    @precondition(lambda self: self.jobs)
    @rule(which=ANY)
    def forget(self, which: int) -> None:
        """A job that is not over stays, and one that is read, or of which something is fetched again."""
        job = self.jobs[which % len(self.jobs)]
        meta = self.ledger.meta(job)
        read = (self.ledger.redis.zscore(self.ledger.key("reading"), job) or 0) > self.ledger.now_ms()
        over = meta["state"] in TERMINAL_JOB and not read and meta.get("gone", "0") == "0"
        self.ledger.forget(job)
        assert bool(self.ledger.redis.exists(self.ledger.key("job", job))) != over
        if over:
            self.jobs.remove(job)
            self.open = [o for o in self.open if o != job]

    # Readers

    @precondition(lambda self: self.jobs)
    @rule(
        which=ANY,
        reader=st.sampled_from(["r1", "r2"]),
        window=st.lists(st.integers(0, 3), max_size=4, unique=True),
        holds=st.sampled_from(["window", "window", "all", ""]),
        gone=st.sets(st.integers(0, 3)),
        late=st.booleans(),
    )
    def need(self, which: int, reader: str, window: list[int], holds: str, gone: set[int], late: bool) -> None:
        """Files of what is in ``gone`` are not there any more; ``late``: what the reader knows of it is old."""
        job = self.jobs[which % len(self.jobs)]
        before = {r.unit: r for r in self.ledger.all_units(job)}
        known = {n: before[f"{job}.{n}"].again - late for n in gone if f"{job}.{n}" in before}
        needed = self.ledger.need(job, reader, window, holds=holds, gone=known)
        assert set(needed.loose) <= set(window)
        for unit, record in before.items():
            n, now = int(record.number.lstrip("p")), state(self.ledger, unit)
            if now != record.state:
                assert (record.state, now) == ("done", "due") and n in set(window) & gone and not late
                assert not record.is_plan and self.ledger.meta(job).get("cancelled") != "1"
                self.last.pop(unit, None)
                self.ended.pop(unit, None)

    @rule(worker=st.sampled_from(WORKERS), again=st.sampled_from(WORKERS))
    def lose(self, worker: str, again: str) -> None:
        """A shard arrives and is evicted, a reader finds out, and somebody takes what there is."""
        self.claim(worker, f"{len(self.claims)}:8", planning=False)
        work = self.claims[-1] if self.claims else None
        if work is None or work.unit in self.ended or not self.ledger.commit(work, "done", done(), KEYS).ok:
            return
        self.ended[work.unit] = state(self.ledger, work.unit)
        if self.ended[work.unit] != "done" or work.is_plan:  # its job is being cancelled
            return
        n = int(work.number)
        self.need(self.jobs.index(work.job), "r1", [n], "window", {n}, late=False)
        self.claim(again, f"{len(self.claims)}:8", planning=False)

    @precondition(lambda self: self.jobs)
    @rule(reader=st.sampled_from(["r1", "r2"]))
    def leave(self, reader: str) -> None:
        self.other.read(reader, self.jobs, 0)

    # Workers

    @precondition(lambda self: self.claims)
    @rule(which=ANY, size=st.sampled_from([10, 400, 900]), used=st.sampled_from([None, 0, 950]))
    def reserve(self, which: int, size: int, used: int | None) -> None:
        """Space in a store of 1000 bytes, of which somebody may have counted anew how many are used."""
        work = self._some(which)
        if used is not None:
            self.ledger.counted("s1", used, 1 << 40, [])
        grant = self.ledger.reserve(work.unit, work.fence, "s1", size, most=1000)
        assert self._is_last(work) or grant.answer == "lost"
        if grant.answer == "full" and which % 3:
            self.ledger.back(work, 60, False, "NoRoom: waits", None, ())

    @rule(worker=st.sampled_from(WORKERS), pid=st.sampled_from(["1:1", "2:1"]), planning=st.booleans())
    def claim(self, worker: str, pid: str, planning: bool) -> None:
        held = {p: (u, f) for u, (p, f) in self.ledger.held(worker).items()}
        found = self.ledger.claim(worker, pid, 9, [PLANS] if planning else QUEUES)
        if pid in held:
            assert found and (found.unit, found.fence) == held[pid], "it has one already, and is given that again"
        elif found is not None:
            assert state(self.ledger, found.unit) == "leased" and found.unit not in self.ended
            assert found.fence not in {c.fence for c in self.claims}, "a token is issued once"
            self.claims.append(found)
            self.last[found.unit] = found

    def _some(self, which: int) -> Claim:
        """Mostly one that can do something; else one whose unit another has now, or any that there ever was."""
        able = [c for c in self.last.values() if c.unit not in self.ended]
        late = [c for c in self.claims if c.unit in self.last and not self._is_last(c)]
        some = (able, able, late, self.claims)[which % 4] or self.claims
        return some[which // 4 % len(some)]

    @precondition(lambda self: self.claims)
    @rule(which=ANY, end=st.sampled_from(["done", "done", "failed", "cancelled"]), files=st.integers(0, 3))
    def commit(self, which: int, end: str, files: int) -> None:
        work = self._some(which)
        before = state(self.ledger, work.unit)
        result = failed(work.unit) if end == "failed" else done(files)
        settled = self.ledger.commit(work, end, result, KEYS)
        if not self._is_last(work):
            assert not settled.ok, "an old token did something"
        if settled.ok and before not in TERMINAL_SHARD and state(self.ledger, work.unit) != "due":
            self.ended[work.unit] = end
            assert self.ledger.results(work.job, [work.number]) == [result.packed()]

    @precondition(lambda self: self.claims)
    @rule(which=ANY, delay=st.sampled_from([0, 60]), counted=st.booleans(), files=st.none() | st.integers(0, 3))
    def back(self, which: int, delay: int, counted: bool, files: int | None) -> None:
        work = self._some(which)
        settled = self.ledger.back(work, delay, counted, "why", None if files is None else done(files), KEYS)
        assert self._is_last(work) or not settled.ok, "an old token did something"

    @precondition(lambda self: self.claims)
    @rule(which=ANY, size=st.integers(0, 99))
    def progress(self, which: int, size: int) -> None:
        work = self._some(which)
        answer = self.ledger.progress(work, size)
        assert (answer == "lost") == (state(self.ledger, work.unit) != "leased" or not self._is_last(work))

    @precondition(lambda self: self.claims)
    @rule(which=ANY)
    def takeoff(self, which: int) -> None:
        work = self._some(which)
        answer = self.ledger.takeoff(work, KEYS)
        assert answer is None or self._is_last(work)

    @precondition(lambda self: any(c.is_plan for c in self.claims))
    @rule(which=ANY, count=st.integers(0, 3), again=st.booleans())
    def plan(self, which: int, count: int, again: bool) -> None:
        plans = [c for c in self.claims if c.is_plan]
        work = plans[-1 - which % min(len(plans), 4)]
        before = self.ledger.meta(work.job)["next"] if work.job in self.jobs else "0"
        cursor = self.planned.get(work.unit, 0) + (not again)
        answer = self.ledger.add_planned(work, str(cursor), shards(int(before), int(before) + count))
        if answer == "ok":
            assert self._is_last(work)
            added = int(self.ledger.meta(work.job)["next"]) - int(before)
            assert added == (0 if cursor == self.planned.get(work.unit) else count)
            self.planned[work.unit] = cursor

    @precondition(lambda self: self.last)
    @rule(which=ANY, worker=st.sampled_from(WORKERS))
    def take_over(self, which: int, worker: str) -> None:
        """A holder goes silent, and somebody takes what there is."""
        expire(self.ledger, [*self.last][which % len(self.last)])
        self.claim(worker, f"{len(self.claims)}:9", planning=bool(which % 2))

    @precondition(lambda self: self.jobs)
    @rule(which=ANY)
    def change_of_mind(self, which: int) -> None:
        self.sweep(which, "cancel", second=False)
        self.sweep(which, "retry", second=True)

    @precondition(lambda self: self.claims)
    @rule(which=ANY, how=st.sampled_from(["expire", "dead", "ripen", "alive"]))
    def time_passes(self, which: int, how: str) -> None:
        work = self._some(which)
        if how == "expire":
            expire(self.ledger, work.unit)
        elif how == "ripen":
            ripen(self.ledger, work.unit)
        else:
            pair = [(work.unit, work.fence)]
            stop = self.ledger.beat("w1", INFO, *((pair, []) if how == "alive" else ([], pair)))
            assert how == "dead" or self._is_last(work) or stop == [work.unit]

    @rule(back=st.booleans())
    def move(self, back: bool) -> None:
        origin, target = QUEUES[::-1] if back else QUEUES
        before = [self.ledger.due_count(q) for q in (origin, target)]
        assert self.ledger.move(origin, target, "spread") == 0, "no job has that placement"
        assert self.ledger.move(origin, target) == before[0], "all that are due there are units"
        assert [self.ledger.due_count(q) for q in (origin, target)] == [0, sum(before)]

    # What holds

    @invariant()
    def all_is_consistent(self) -> None:
        type(self).steps += 1
        check(self.ledger, *self.jobs)

    @invariant()
    def what_ended_stays_ended(self) -> None:
        for unit, end in self.ended.items():
            assert state(self.ledger, unit) in {end, "gone"}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


def _run(url: str, examples: int, steps: int, seed: int | None = None) -> type[LedgerMachine]:
    machine = type("Machine", (LedgerMachine,), {"url": url})
    kept = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=seed is None,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=[*HealthCheck],
    )
    if seed is not None:
        machine = hypothesis.seed(seed)(machine)
    run_state_machine_as_test(machine, settings=kept)
    return machine


@pytest.mark.parametrize("examples", [4, pytest.param(30, marks=pytest.mark.long)])
def test_whatever_clients_and_workers_do(url: str, examples: int) -> None:
    _run(url, examples, 50)


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_ten_thousand_steps(url: str) -> None:
    seed = int(os.environ.get("INGEST_FAULTS_SEED") or "1")
    steps = 0
    while steps < 10_000:
        steps += _run(url, 20, 100, seed + steps).steps
    print(f"{steps} steps from seed {seed}")


def test_everything_ends_if_somebody_works(url: str) -> None:
    """From a ledger in disorder, workers that just do their work end every job."""
    machine = type("Machine", (LedgerMachine,), {"url": url})()
    ledger = machine.ledger
    for key in ("a", "b", ""):
        job = ledger.create(JobOptions(), key or None).job
        ledger.add(job, "", 0, 0, shards(0, 6, queue=QUEUES[len(key)]))
        ledger.add(job, "p", 0, 0, [plan()])
        ledger.seal(job)
        machine.jobs.append(job)
    work = [ledger.claim(w, f"{n}:1", 9, [PLANS, *QUEUES]) for w in WORKERS for n in range(4)]
    assert all(work)
    for n, found in enumerate(work):
        assert found is not None
        ledger.takeoff(found, KEYS)
        [
            lambda c: expire(ledger, c.unit),
            lambda c: ledger.back(c, 60, True, "x", done(1), KEYS),
            lambda c: ledger.back(c, 60, False, "waits", None, KEYS),
            lambda c: None,
        ][n % 4](found)
    ledger.sweep("cancel", machine.jobs[0])
    ledger.sweep("retry", machine.jobs[0])
    for turn in range(200):
        for unit in map(bytes.decode, ledger.redis.zrange(ledger.key("delayed"), 0, -1)):
            ripen(ledger, unit)
        found = ledger.claim("w1", f"a{turn}:1", 99, [PLANS, *QUEUES])
        if found is None:
            for unit in map(bytes.decode, ledger.redis.zrange(ledger.key("leases"), 0, -1)):
                expire(ledger, unit)
            continue
        assert ledger.commit(found, "done", Result() if found.is_plan else done(), KEYS).ok
        check(ledger, *machine.jobs)
    assert [ledger.meta(job)["state"] for job in machine.jobs] == ["done"] * 3
    machine.teardown()
