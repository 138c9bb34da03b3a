"""A submission while something fails: the broker hangs, or its own process stands still for too long. There is no
worker; the ledger believes that there is one."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ingest
from ingest.client.request import Request
from ingest.errors import LedgerUnavailable, NoDataNode, WaitTimeout
from ingest.ledger import WorkLedger
from ingest.sections import StoreLimits
from ingest.settings import Settings
from tests.servers.redis import redis_server

INFO = {"node": "n1", "store": "s1", "slots": 5, "connections": [], "version": "1", "free_bytes": 1, "pid": 1}
URLS = [f"http://127.0.0.1:9/{n}" for n in range(4000)]


@pytest.fixture
def settings(url: str, tmp_path: Path) -> Settings:
    return Settings(url, url, url, url, store=StoreLimits(root=tmp_path / "store"))


@pytest.fixture
def ledger(settings: Settings) -> Iterator[WorkLedger]:
    made = WorkLedger(settings)
    made.redis.flushdb()
    made.beat("w1", INFO, [], [])
    yield made
    made.close()


def seconds_of_submitting(client: ingest.Client) -> float:
    begun = time.monotonic()
    job = client.submit(URLS, shard_files=1)
    assert job.status().shards == {"due": len(URLS)}
    return time.monotonic() - begun


def test_a_broker_that_hangs_is_waited_for_once(settings: Settings, ledger: WorkLedger, tmp_path: Path) -> None:
    with redis_server(tmp_path / "broker") as broker:
        client = ingest.Client(settings=dataclasses.replace(settings, broker_url=broker.url))
        well = seconds_of_submitting(client)
        os.kill(broker.process.pid, signal.SIGSTOP)
        hung = seconds_of_submitting(client)
        assert hung < 2 * well + 5, f"{hung:.1f} s instead of {well:.1f} s: less than a second for each of ten batches"
        ledger.beat("w1", INFO, [], [])
        begun = time.monotonic()
        with pytest.raises(WaitTimeout):
            client.fetch(URLS[0], timeout=2)
        assert time.monotonic() - begun < 2 + 5
        client.close()


@pytest.mark.parametrize("stops", ["_write_once", "submit"])
def test_a_redis_that_stops_while_it_is_submitted_to(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stops: str
) -> None:
    with redis_server(tmp_path / "redis") as server:
        client, ledger = ingest.Client(server.url), WorkLedger(dataclasses.replace(settings, ledger_url=server.url))
        ledger.beat("w1", INFO, [], [])
        plain = getattr(Request, stops)

        def stop(request: Request, *given: Any) -> Any:
            os.kill(server.process.pid, signal.SIGSTOP)
            return plain(request, *given)

        monkeypatch.setattr(Request, stops, stop)
        begun = time.monotonic()
        with pytest.raises(LedgerUnavailable):
            client.fetch(URLS[0], timeout=2)
        assert time.monotonic() - begun < 2 + 5
        os.kill(server.process.pid, signal.SIGCONT)
        client.close()
        ledger.close()


def test_a_fetch_without_a_node_is_answered_in_its_time(settings: Settings, ledger: WorkLedger) -> None:
    ledger.bye("w1")
    client, begun = ingest.Client(settings=settings), time.monotonic()
    with pytest.raises(NoDataNode):
        client.fetch(URLS[0], timeout=0.5)
    assert time.monotonic() - begun < 0.5 + 3 < settings.limits.node_grace_s
    client.close()


@pytest.mark.parametrize("key", [None, "a key"])
def test_who_was_given_up_for_standing_still_begins_again(settings: Settings, ledger: WorkLedger, key: str) -> None:
    client, added = ingest.Client(settings=settings), []
    plain = client.ledger.run

    def run(script: str, job: str, *args: Any) -> Any:
        """The second batch comes too late, as no test can wait for."""
        if script in {"begin", "add"}:
            if len(added) == 1:
                tick = ledger.tick(0, 0)
                assert tick and tick.abandoned == [job]
                ledger.seal(job, "it was given up")
            added.append(job)
        return plain(script, job, *args)

    client.ledger.run = run  # type: ignore[method-assign]
    job = client.submit(URLS[:1000], shard_files=1, key=key)
    assert job.id == added[-1] != added[0] and added == [added[0]] * 2 + [job.id] * 3
    assert job.status().shards == {"due": 1000} and job.status().state == "running"
    assert client.job(added[0]).status().shards == {"due": 400}, "which end by themselves"
    assert key is None or client.submit(URLS[:1000], shard_files=1, key=key).id == job.id
    client.close()
