"""How far those who read a job have come: what the ledger keeps of it, and for how long. The ledger is in a real
Redis."""

from __future__ import annotations

from typing import Any

from ingest.ledger import WorkLedger
from tests.unit.ledgers import submit

AT = {"world": 2, "epoch": 1, "samples": 64, "step": 2, "samples_per_s": 9.5, "waited_s": 0.0, "host": "h", "pid": 7}


def come(rank: int, **more: Any) -> dict[str, Any]:
    return {"rank": rank, **AT, **more}


def test_what_was_said_last_counts(ledger: WorkLedger) -> None:
    job = submit(ledger, 1)
    for rank, samples in ((1, 32), (0, 64), (1, 64)):
        ledger.tell(job, f"c{rank}", come(rank, samples=samples))
    first, second = ledger.consumers(job)
    assert (first.rank, first.samples, second.rank, second.samples) == (0, 64, 1, 64)
    assert 0 <= second.age_s < 10
    assert {k: v for k, v in first.to_json().items() if k != "age_s"} == come(0)
    ledger.tell(job, "c0", None)
    assert [each.rank for each in ledger.consumers(job)] == [1]


def test_the_dead_are_forgotten(ledger: WorkLedger) -> None:
    job = submit(ledger, 1)
    for rank in (0, 1):
        ledger.tell(job, f"c{rank}", come(rank))
    ledger.redis.zadd(ledger.key("consuming", job), {"c0": ledger.now_ms() - 1})
    assert [each.rank for each in ledger.consumers(job)] == [1]
    ledger.tell(job, "c1", come(1))
    assert ledger.redis.hkeys(ledger.key("consumers", job)) == [b"c1"]
    assert 0 < ledger.redis.pttl(ledger.key("consumers", job)) <= 60_000, "nobody need tidy up after the last"


def test_what_another_version_says_is_passed_over(ledger: WorkLedger) -> None:
    job = submit(ledger, 1)
    ledger.tell(job, "new", come(0, mood="good"))
    ledger.tell(job, "old", {"rank": 1})
    ledger.tell(job, "ours", come(2))
    assert [each.rank for each in ledger.consumers(job)] == [2]
