"""Task events of units, as they go out for dashboards."""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest.app import app_for
from ingest.ledger import WorkLedger
from ingest.settings import Settings
from tests.servers.node import until
from tests.unit.ledgers import claim, submit
from workers import events

MANY = 40


@pytest.fixture
def ledger(url: str, tmp_path: Path) -> Iterator[WorkLedger]:
    made = WorkLedger(Settings(url, url, url, url))
    made.redis.flushdb()
    yield made
    made.close()


@pytest.fixture
def heard(ledger: WorkLedger, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[dict[str, Any]]]]:
    """Every message that has come so far; each call of ``until`` looks again."""
    monkeypatch.setattr(events, "_sender", None)  # as in a process that has just been forked
    with ledger.redis.pubsub(ignore_subscribe_messages=True) as listener:
        listener.psubscribe("*celeryev*")
        listener.get_message(timeout=5)

        class Heard(list[list[dict[str, Any]]]):
            def listen(self) -> int:
                while message := listener.get_message():
                    found = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
                    self.append(found if isinstance(found, list) else [found])
                return sum(map(len, self))

        yield Heard()
        if events._sender is not None:
            events._sender.close()


def test_they_come_in_order_and_many_in_a_message(ledger: WorkLedger, heard: Any) -> None:
    app, job = app_for(ledger.settings), submit(ledger, MANY)
    for n in range(MANY):
        events.Events(app, "ingest@n1", claim(ledger, pid=f"{n}:1")).ended("done", "1 files", 0.1)
    until(lambda: heard.listen() == 3 * MANY, "all of them")
    seen = defaultdict(list)
    for event in (event for message in heard for event in message):
        seen[event["uuid"]].append(event["type"])
        assert event["hostname"] == "ingest@n1" and event["timestamp"] > 0
    assert dict(seen) == {f"{job}.{n}": ["task-received", "task-started", "task-succeeded"] for n in range(MANY)}
    assert len(heard) < MANY


def test_a_process_that_ends_says_what_is_left(ledger: WorkLedger, heard: Any) -> None:
    submit(ledger, 1)
    events.Events(app_for(ledger.settings), "ingest@n1", claim(ledger)).ended("failed", "why", 0.1)
    events._end()
    until(lambda: heard.listen() == 3, "all of them")
    assert [event["type"] for event in heard[-1]][-1] == "task-failed"
