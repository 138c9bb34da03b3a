"""Origins that do not answer: what a claim learns of them, and what the ledger makes of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.errors import ConnectionLost, FetchTimeout, NotFound, OriginUnavailable
from ingest.ledger import NewUnit, WorkLedger
from ingest.model import FileSpec
from tests.servers.redis import redis_server
from tests.unit.ledgers import OPTIONS, QUEUE, check, claim, connect, done, ripen, state, submit
from workers.origins import IN_A_ROW, NotAsked, Origins

DOWN = "https://host"


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as redis:
        yield redis.url


@pytest.fixture
def ledger(redis_url: str) -> Iterator[WorkLedger]:
    made = connect(redis_url)
    yield made
    made.close()


def elsewhere(ledger: WorkLedger) -> str:
    job = ledger.create(OPTIONS, None).job
    ledger.add(job, "", 0, 0, [NewUnit.shard([FileSpec(0, 0, "https://other/0")], QUEUE)])
    ledger.seal(job)
    return job


def lapse(ledger: WorkLedger, **times_ms: int) -> None:
    """Let the ledger believe that it is later: ``u`` until when nobody asks, ``s`` since when it is away."""
    key = ledger.key("origin", DOWN)
    for field, ms in times_ms.items():
        ledger.redis.hset(key, field, int(ledger.redis.hget(key, field)) - ms)


class TestLedger:
    def test_shards_of_an_origin_that_is_down_wait_uncounted_and_others_go_on(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 300)
        other = elsewhere(ledger)
        for _ in range(IN_A_ROW):
            ledger.origin(DOWN, 1, "refused")
        taken = None
        for _ in range(4):  # no claim goes through all of a long queue
            taken = taken or ledger.claim("w1", "1:1", 9, (QUEUE,))
        assert taken is not None and taken.job == other and taken.down == ""
        assert ledger.claim("w1", "2:2", 9, (QUEUE,)) is None
        waiting = list(ledger.all_units(job))
        assert {u.state for u in waiting} == {"due"} and {u.attempts for u in waiting} == {0}
        first = min(waiting, key=lambda unit: unit.part)  # of the last ones nobody has said so yet
        assert f"{DOWN} has not answered for 0 s; the last it said: refused" in first.reason
        check(ledger, job, other)

    def test_one_claim_at_a_time_looks_and_one_answer_ends_it(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 3)
        ledger.origin(DOWN, IN_A_ROW, "refused")
        assert ledger.claim("w1", "1:1", 9, (QUEUE,)) is None
        lapse(ledger, u=60_000)
        for n in range(3):
            ripen(ledger, f"{job}.{n}")
        looks = claim(ledger, pid="1:1")
        assert looks.down == "" and ledger.claim("w1", "2:2", 9, (QUEUE,)) is None
        ledger.commit(looks, "done", done(), ())
        ledger.origin(DOWN, 0)
        for n in range(3):
            ripen(ledger, f"{job}.{n}")
        assert {claim(ledger, pid=f"{n}:{n}").down for n in (2, 3)} == {""}
        check(ledger, job)

    def test_it_is_asked_less_and_less_often(self, ledger: WorkLedger) -> None:
        key, waits = ledger.key("origin", DOWN), []
        for _ in range(8):
            ledger.origin(DOWN, IN_A_ROW, "refused")
            ledger.origin(DOWN, IN_A_ROW, "refused")  # the same story, told by another
            waits.append(round((int(ledger.redis.hget(key, "u")) - ledger.now_ms()) / 1000))
            lapse(ledger, u=60_000)
        assert waits == [2, 4, 8, 16, 30, 30, 30, 30]

    def test_after_three_minutes_shards_are_handed_out_to_fail(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 2)
        ledger.origin(DOWN, IN_A_ROW, "refused")
        lapse(ledger, s=190_000)
        found = claim(ledger)
        assert found.down.startswith(f"{DOWN} has not answered for 190 s")
        assert state(ledger, found.unit) == "leased"
        check(ledger, job)

    def test_less_than_five_are_nothing_yet(self, ledger: WorkLedger) -> None:
        submit(ledger, 1)
        ledger.origin(DOWN, IN_A_ROW - 1, "refused")
        assert claim(ledger).down == ""


class TestClaim:
    @pytest.fixture
    def origins(self, ledger: WorkLedger) -> Origins:
        submit(ledger, 1)
        return Origins(claim(ledger))

    def test_the_rest_is_not_asked_and_not_counted(self, origins: Origins, ledger: WorkLedger) -> None:
        spec = FileSpec(0, 0, f"{DOWN}/a")
        for n in range(IN_A_ROW):
            origins.check(spec)
            origins.learned(spec, (ConnectionLost if n % 2 else FetchTimeout)(spec.uri, "refused"))
        with pytest.raises(NotAsked, match="5 times in a row; the last: FetchTimeout: refused") as stopped:
            origins.check(spec)
        assert stopped.value.progressed, "which is what an attempt that is not counted is"
        origins.check(FileSpec(0, 1, "https://other/b"))
        origins.tell(ledger)
        assert ledger.redis.hget(ledger.key("origin", DOWN), "f") == b"5"

    @pytest.mark.parametrize("answer", [None, NotFound(DOWN, "404"), OriginUnavailable(DOWN, "500")])
    def test_any_answer_is_one(self, answer: NotFound | None, origins: Origins, ledger: WorkLedger) -> None:
        spec = FileSpec(0, 0, f"{DOWN}/a")
        ledger.origin(DOWN, IN_A_ROW, "refused")
        for error in (*[ConnectionLost(DOWN, "reset")] * 4, answer, ConnectionLost(DOWN, "reset"), answer):
            origins.learned(spec, error)
        origins.check(spec)
        origins.tell(ledger)
        assert not ledger.redis.exists(ledger.key("origin", DOWN))

    def test_a_path_of_this_machine_is_no_origin(self, origins: Origins, ledger: WorkLedger, tmp_path: Path) -> None:
        spec = FileSpec(0, 0, f"file://{tmp_path}/a")
        for _ in range(IN_A_ROW + 1):
            origins.check(spec)
            origins.learned(spec, FetchTimeout(spec.uri, "slow"))
        origins.tell(ledger)
        assert not list(ledger.redis.scan_iter(ledger.key("origin", "*")))
