"""The ledger's clock, whatever becomes of Redis's; and absences, in which nobody could renew anything. With leases of
two seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ingest.ledger import WorkLedger
from ingest.model import JobOptions
from ingest.sections import Limits
from ingest.settings import Settings
from tests.servers.clocks import MovableClock
from tests.servers.node import until
from tests.servers.redis import redis_server
from tests.unit.ledgers import QUEUE, check, claim, state, submit

INFO = {"node": "n1", "store": "s1", "slots": 5, "connections": [], "version": "1", "free_bytes": 1, "pid": 1}
LIMITS = Limits(lease_s=2.0, renew_s=0.5)
TWO_HOURS = 7200


@pytest.fixture
def clock(tmp_path: Path) -> MovableClock:
    return MovableClock(tmp_path / "ahead")


@pytest.fixture
def moved(clock: MovableClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[WorkLedger]:
    """A ledger in a Redis that goes by ``clock``."""
    for name, value in clock.env.items():
        monkeypatch.setenv(name, value)
    with (
        redis_server(tmp_path / "redis") as server,
        closing(WorkLedger(Settings(ledger_url=server.url, limits=LIMITS))) as ledger,
    ):
        yield ledger


def test_redis_clock_goes_back_and_everything_goes_on(clock: MovableClock, moved: WorkLedger) -> None:
    job, left = submit(moved, 2), moved.create(JobOptions(), None).job
    held, later = claim(moved, pid="1:1"), claim(moved, pid="2:1")
    moved.back(later, 0.5, True, "busy", None, ())
    moved.beat("w1", INFO, [(held.unit, held.fence)], [])
    moved.read("r1", [job], 0.5)
    assert moved.turn("s1", "dead", 0.5).answer == "ok"
    moved.tick(0, 900)
    before = moved.now_ms()
    clock.move(-TWO_HOURS)
    assert moved.redis.time()[0] < before / 1000 - TWO_HOURS / 2, "so it did"
    assert before - 1000 <= moved.now_ms() < before + 60_000, "its last reading is kept once a second"
    tick = until(lambda: (t := moved.tick(0, 1.0)) and moved.due_count(QUEUE) == 2 and t, "all is due", 10)
    assert state(moved, held.unit) == "due" and tick.abandoned == [left], "a lease, a delay and a patience end"
    assert until(lambda: moved.turn("s1", "next", 5).answer != "busy", "a turn ends", 10)
    assert moved.workers() == [] and not [h for h in moved.holders(0) if "process" in h.why], "who is silent is gone"
    moved.beat("w2", INFO | {"time": time.time() - TWO_HOURS}, [], [])
    (worker,) = moved.workers()
    assert worker.id == "w2" and worker.age_s < 60 and abs(worker.skew_s) < 60, "its clock is still that of Redis"
    again = claim(moved, "w2", pid="3:1")
    assert moved.redis.zscore(moved.key("leases"), again.unit) <= moved.now_ms() + 2000
    check(moved, job, left)
    clock.move(0)  # whoever set it back has seen it
    moved.tick(0, 900)
    assert moved.clock().ahead_ms == 0 and abs(moved.now_ms() / 1000 - time.time()) < 60
    assert state(moved, again.unit) == "leased"


def test_redis_clock_goes_ahead_and_nobody_is_taken_for_dead(clock: MovableClock, moved: WorkLedger) -> None:
    submit(moved, 3)
    moved.create(JobOptions(), None)
    living, dead = claim(moved, "w1"), claim(moved, "w2")
    moved.tick(0, 900)
    for worker in ("w1", "w2"):
        moved.beat(worker, INFO, [], [])
    clock.move(TWO_HOURS)
    tick = moved.tick(0, 900)
    assert tick and tick.due == {QUEUE: 1} and tick.abandoned == [] and len(moved.workers()) == 2
    assert claim(moved, "w1", pid="2:1").age_s < 60, "no deadline is nearer for it"
    assert state(moved, living.unit) == state(moved, dead.unit) == "leased"

    def beat() -> bool:
        moved.beat("w1", INFO, [(living.unit, living.fence)], [])
        return moved.tick(0, 900) is not None and state(moved, dead.unit) == "due"

    until(beat, "who is dead is found out", 20)
    assert state(moved, living.unit) == "leased" and [w.id for w in moved.workers()] == ["w1"]


def test_ticks_that_are_late_one_after_another_keep_nothing_for_the_dead(url: str) -> None:
    with closing(WorkLedger(Settings(ledger_url=url, limits=LIMITS))) as ledger:
        ledger.redis.flushdb()
        submit(ledger, 2)
        living, dead = claim(ledger, "w1"), claim(ledger, "w2")

        def late() -> bool:
            ledger.beat("w1", INFO, [(living.unit, living.fence)], [])
            ledger.redis.set(ledger.key("tick"), ledger.now_ms() - 60_000)
            return ledger.tick(0, 900) is not None and state(ledger, dead.unit) == "due"

        assert not late() and not late(), "one term more"
        until(late, "and no other", 20)
        assert state(ledger, living.unit) == "leased"
