"""How a wait for a job's end ends: in a real Redis, whatever happens at that very moment."""

from __future__ import annotations

import time
from typing import Any

import pytest

from ingest.client.job import Job
from ingest.errors import LedgerUnavailable, WaitTimeout
from ingest.ledger import Result, WorkLedger
from ingest.ledger.jobs import AT_ONCE
from tests.unit.ledgers import claim, file, submit


def ended(ledger: WorkLedger, events: int) -> Job:
    """A job of one file that is done, with so many events, of which its end is the last."""
    job = submit(ledger, 1)
    ledger.commit(claim(ledger), "done", Result((file(0),)), ())
    key = ledger.key("job", job, "events")
    ((last, end),) = ledger.redis.xrevrange(key, count=1)
    ledger.redis.xdel(key, last)
    while ledger.redis.xlen(key) < events - 1:
        ledger.redis.xadd(key, {"k": "part", "n": "0", "s": ""})
    ledger.redis.xadd(key, end)
    return Job(job, ledger.settings, ledger, None)


@pytest.mark.parametrize("events", [AT_ONCE - 1, AT_ONCE, AT_ONCE + 1, 2 * AT_ONCE])
def test_an_end_among_many_events_is_seen_at_once(ledger: WorkLedger, events: int) -> None:
    job = ended(ledger, events)
    assert job.wait(timeout=30).state == "done"
    assert [each.source for each in job.as_completed(timeout=30)] == ["https://host/0"]
    assert job.outcome(timeout=30).state == "done"


@pytest.mark.parametrize("ask", ["wait", "as_completed"])
def test_the_deadline_holds_where_the_ledger_goes_away_behind_the_end(
    ledger: WorkLedger, monkeypatch: pytest.MonkeyPatch, ask: str
) -> None:
    job, follow, asked = ended(ledger, AT_ONCE), ledger.follow, 0

    def once(*args: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked > 1:
            raise LedgerUnavailable("redis://gone", "away")
        return follow(*args)

    monkeypatch.setattr(ledger, "follow", once)
    begun = time.monotonic()
    with pytest.raises(WaitTimeout):
        list(getattr(job, ask)(timeout=0.5) if ask == "as_completed" else [job.wait(timeout=0.5)])
    assert time.monotonic() - begun < 5 and asked < 100


def test_what_is_tried_again_between_its_end_and_the_answer_is_not_over(
    ledger: WorkLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, meta = submit(ledger, 2), ledger.meta
    for end in ("done", "failed"):
        ledger.commit(claim(ledger), end, Result((file(0),)), ())
    asked = []

    def tried_again(name: str) -> dict[str, str]:
        if not asked:
            ledger.sweep("retry", name)
        asked.append(name)
        return meta(name)

    monkeypatch.setattr(ledger, "meta", tried_again)
    with pytest.raises(WaitTimeout):
        Job(job, ledger.settings, ledger, None).outcome(timeout=0.5)
    ledger.commit(claim(ledger), "done", Result((file(1),)), ())
    outcome = Job(job, ledger.settings, ledger, None).outcome(timeout=30)
    assert outcome.state == "done" and len(outcome.files) == 2
