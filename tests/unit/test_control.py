"""What stops a download between two chunks: the real ledger is asked, and a clock."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from ingest.ledger import Claim, WorkLedger
from ingest.settings import Settings
from tests.servers.node import until
from tests.servers.redis import redis_server
from tests.unit.ledgers import QUEUE, claim, connect, expire, submit
from workers.control import Control
from workers.fetchers.base import Interrupted


def control(
    ledger: WorkLedger, work: Claim, *, slice_s: float = 60, every_s: float = 0.0, stop: bool = False
) -> Control:
    return Control(ledger, work, slice_s=slice_s, every_s=every_s, stopping=lambda: stop)


def test_it_says_how_far_it_is_and_renews(ledger: WorkLedger) -> None:
    job = submit(ledger, 1)
    work = claim(ledger)
    ledger.redis.zadd(ledger.key("leases"), {work.unit: 5})
    mine = control(ledger, work)
    for _ in range(3):
        mine.advance(10)
    assert mine.bytes == 30 and ledger.live_bytes(job) == 30 and mine.why == ""
    assert ledger.redis.zscore(ledger.key("leases"), work.unit) > ledger.now_ms()


def test_it_asks_no_more_often_than_it_was_told(ledger: WorkLedger) -> None:
    job = submit(ledger, 1)
    mine = control(ledger, claim(ledger), every_s=3600)
    for _ in range(1000):
        mine.advance(1)
    assert mine.bytes == 1000 and ledger.live_bytes(job) == 0


@pytest.mark.parametrize("why", ["lost", "cancelled", "slice", "stopping"])
def test_each_reason_to_stop_and_it_stays(ledger: WorkLedger, why: str) -> None:
    job = submit(ledger, 1)
    work = claim(ledger)
    mine = control(ledger, work, slice_s=0 if why == "slice" else 60, stop=why == "stopping")
    if why == "lost":
        expire(ledger, work.unit)
        claim(ledger, "w2")
    elif why == "cancelled":
        ledger.sweep("cancel", job)
    for _ in range(2):
        with pytest.raises(Interrupted) as raised:
            mine.advance(1)
        assert raised.value.why == mine.why == why
    mine.interrupt("another reason")
    assert mine.why == why


def test_a_cancelled_job_goes_on_while_another_wants_the_same(ledger: WorkLedger) -> None:
    submit(ledger, 1), submit(ledger, 1)
    mine, theirs = claim(ledger), claim(ledger, "w2")
    ledger.takeoff(mine, ["k"])
    ledger.takeoff(theirs, ["k"])
    watch = control(ledger, mine)
    watch.flights = ["k"]
    ledger.sweep("cancel", mine.job)
    watch.advance(1)
    ledger.sweep("cancel", theirs.job)
    with pytest.raises(Interrupted, match="cancelled"):
        watch.advance(1)


def test_a_ledger_that_is_away_stops_nothing(tmp_path: Path) -> None:
    with redis_server(tmp_path) as server:
        ledger, impatient = connect(server.url), WorkLedger(Settings(ledger_url=server.url), retries=0)
        submit(ledger, 1)
        mine = control(impatient, claim(ledger))
        server.stop()
        for _ in range(3):
            mine.advance(1)
        assert (mine.bytes, mine.why) == (3, "")
        ledger.close()
        impatient.close()


def test_one_threads_question_does_not_hold_up_the_others(ledger: WorkLedger) -> None:
    """Redis stands still for a while: one thread waits for its answer, and the bytes of the others go on."""
    submit(ledger, 1)
    mine = control(ledger, claim(ledger))
    other = WorkLedger(ledger.settings)
    other.redis.client_pause(1500)
    asking = threading.Thread(target=mine.check)
    begun = time.monotonic()
    asking.start()
    until(mine._asking.locked, "a thread asks")
    for _ in range(100):
        mine.advance(1)
    assert mine.bytes == 100 and asking.is_alive() and time.monotonic() - begun < 1.4
    asking.join(10)
    assert mine.why == ""
    other.close()


def test_every_thread_of_a_shard_is_stopped(ledger: WorkLedger) -> None:
    job = submit(ledger, 1)
    mine = control(ledger, claim(ledger), every_s=0.01)
    stopped: list[str] = []

    def download() -> None:
        try:
            while True:
                mine.advance(1)
                time.sleep(0.001)
        except Interrupted as stop:
            stopped.append(stop.why)

    threads = [threading.Thread(target=download) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: ledger.live_bytes(job) > 0, "bytes are told")
    ledger.sweep("cancel", job)
    for thread in threads:
        thread.join(10)
    assert stopped == ["cancelled"] * 4 and ledger.due_count(QUEUE) == 0
