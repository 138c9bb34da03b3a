"""Files as they land, each once: whatever the ledger has forgotten, and said again. In a real Redis."""

from __future__ import annotations

from ingest.client.follow import LOST, EventStream
from ingest.client.job import Job
from ingest.ledger import Result, WorkLedger
from tests.unit.ledgers import claim, done, failed, file, submit


def finish(ledger: WorkLedger) -> None:
    at = claim(ledger)
    ledger.commit(at, "done", Result((file(int(at.number)),)), ())


def saved(ledger: WorkLedger) -> dict[bytes, bytes]:
    return {key: ledger.redis.dump(key) for key in ledger.redis.keys("*")}


def restore(ledger: WorkLedger, before: dict[bytes, bytes]) -> None:
    ledger.redis.flushdb()
    for key, data in before.items():
        ledger.redis.restore(key, 0, data)


def test_who_follows_hears_that_redis_went_back_whatever_has_happened_since(ledger: WorkLedger) -> None:
    """Else a reader that was told that a shard is fetched again, which is forgotten, waits for it in vain."""
    stream = EventStream(ledger, submit(ledger, 2), None)
    finish(ledger)
    before = saved(ledger)
    assert ledger.need(stream.job, "r1", [0], gone={0: 0}).queues
    assert stream.poll(1)[-1]["k"] == "gone"
    restore(ledger, before)
    finish(ledger)
    assert stream.poll(1) == [LOST]
    assert [event["k"] for event in stream.poll(1)].count("shard") == 2 and stream.ended == "done"


def test_what_redis_forgot_and_is_done_again_comes_once(ledger: WorkLedger) -> None:
    """A Redis that is killed forgets its last second. By the time that the reader asks for the next file, more has
    happened than that."""
    files = Job(submit(ledger, 2), ledger.settings, ledger, None).as_completed(timeout=30)
    held = claim(ledger)
    before = saved(ledger)
    ledger.commit(held, "done", Result((file(0),)), ())
    assert next(files).source == "https://host/0"
    restore(ledger, before)
    ledger.let_go(held.unit, held.fence, "its process could not tell the ledger what became of it")
    finish(ledger)
    finish(ledger)
    assert [each.source for each in files] == ["https://host/1"]


def test_what_is_made_anew_by_a_retry_comes_again(ledger: WorkLedger) -> None:
    """A packed shard may be done without every one of its samples."""
    job = Job(submit(ledger, 2), ledger.settings, ledger, None)
    files = job.as_completed(timeout=30)
    held = claim(ledger)
    ledger.commit(held, "done", Result(done().files, failed(held.unit).failures), ())
    assert next(files).source == "https://host/0"
    job.retry()
    finish(ledger)
    finish(ledger)
    assert sorted(each.source for each in files) == ["https://host/0", "https://host/1"]
