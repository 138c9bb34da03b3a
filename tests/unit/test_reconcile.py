"""What an agent makes good, in a real Redis: much at once, queues that nobody serves, and results while the result
backend hangs."""

from __future__ import annotations

import dataclasses
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.app import app_for
from ingest.doorbell import waiting
from ingest.ledger import WorkLedger
from ingest.model import JobOptions
from ingest.sections import StoreLimits
from ingest.settings import Settings
from ingest.store import Store
from tests.servers.redis import redis_server
from tests.unit.ledgers import QUEUE, claim, done, shards, submit
from workers import report
from workers.reconcile import Reconciler

INFO = {"node": "n2", "store": "s2", "slots": 5, "connections": [], "version": "1", "free_bytes": 1, "pid": 1}
DEAD = f"{QUEUE}.n1"


@pytest.fixture
def settings(url: str, tmp_path: Path) -> Settings:
    store = StoreLimits(root=tmp_path / "store", min_free_bytes=0)
    return Settings(url, url, url, url, node="n1", store=store)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[WorkLedger]:
    made = WorkLedger(settings, retries=0)
    made.redis.flushdb()
    made.beat("w1", INFO | {"node": "n1", "store": "s1"}, [], [])
    made.bye("w1")
    made.beat("w2", INFO, [], [])
    yield made
    made.close()


def reconciler(settings: Settings, ledger: WorkLedger) -> Reconciler:
    return Reconciler(app_for(settings), ledger, Store.open(settings.store), 0)


def test_what_a_dead_node_held_is_taken_back_in_one_round(settings: Settings, ledger: WorkLedger) -> None:
    submit(ledger, 1200)
    held = [claim(ledger, pid=f"{n}:1", most=2000).unit for n in range(1200)]
    ledger.tick(0, 900)  # the ledger was not away
    ledger.redis.zadd(ledger.key("leases"), dict.fromkeys(held, 1))
    reconciler(settings, ledger).step()
    assert ledger.due_count(QUEUE) == 1200


def test_what_was_spread_to_a_node_that_is_gone_is_anybodys(settings: Settings, ledger: WorkLedger) -> None:
    submit(ledger, 700, queue=DEAD, options=JobOptions(placement="node:n1"))
    submit(ledger, 900, queue=DEAD, options=JobOptions(placement="spread"))
    step = reconciler(settings, ledger).step
    step()
    assert (ledger.due_count(DEAD), ledger.due_count(QUEUE)) == (700, 900), "what must land there waits for it"
    ledger.beat("w3", INFO | {"node": "n3", "store": "s1"}, [], [])
    step()
    assert (ledger.due_count(DEAD), ledger.due_count(f"{QUEUE}.n3")) == (0, 700), "its store is there again"


def test_a_job_that_lua_cannot_read_keeps_no_other_from_its_bells(settings: Settings, ledger: WorkLedger) -> None:
    """A name from a shell that speaks no UTF-8, a folder of such a name; and what somebody wrote over options."""
    submit(ledger, 3, queue=DEAD, options=JobOptions(name="caf\udce9", placement="spread", into="/d/\\ud800\udce9"))
    damaged = submit(ledger, 2, queue=DEAD, options=JobOptions(placement="spread"))
    ledger.redis.hset(ledger.key("job", damaged), "options", "?")
    submit(ledger, 4)
    reconciler(settings, ledger).step()
    assert (ledger.due_count(DEAD), ledger.due_count(QUEUE)) == (2, 7)
    with app_for(settings).connection_for_read() as connection:
        assert waiting(connection.default_channel, QUEUE) >= 7


def test_what_a_node_says_in_no_unicode_is_heard(ledger: WorkLedger) -> None:
    """A store in a folder whose name is not UTF-8, and full."""
    submit(ledger, 1)
    ledger.beat("w2", INFO | {"unfit": "the store at /d/\udce9 failed"}, [], [])
    assert ledger.claim("w2", "1:1", 10, [QUEUE]) is None
    ledger.beat("w2", INFO, [], [])
    assert claim(ledger, "w2")


def test_a_queue_that_its_living_node_does_not_consume(settings: Settings, ledger: WorkLedger) -> None:
    """``-Q ingest.fetch`` on both: neither has a queue of its own."""
    for worker, node in (("w1", "n1"), ("w2", "n2")):
        ledger.beat(worker, INFO | {"node": node, "queues": [QUEUE]}, [], [])
    submit(ledger, 2, queue=DEAD, options=JobOptions(placement="node:n1"))
    submit(ledger, 3, queue=DEAD, options=JobOptions(placement="spread"))
    reconciler(settings, ledger).step()
    assert (ledger.due_count(DEAD), ledger.due_count(QUEUE), ledger.due_count(f"{QUEUE}.n2")) == (2, 3, 0)


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")
def test_a_result_backend_that_hangs_holds_up_one_result(settings: Settings, tmp_path: Path) -> None:
    with redis_server(tmp_path / "results") as results:
        settings = dataclasses.replace(settings, result_url=results.url)
        app, store, ledger = app_for(settings), Store.open(settings.store), WorkLedger(settings, retries=0)
        ledger.redis.flushdb()
        job = submit(ledger, 40)
        units = [claim(ledger, pid=f"{n}:1") for n in range(40)]
        os.kill(results.process.pid, signal.SIGSTOP)
        begun = time.monotonic()
        for work in units:
            assert ledger.commit(work, "done", done(), ()).ok
            report.report(app, ledger, store, work.unit)
        assert time.monotonic() - begun < 30, "a process of the pool tries once, and does its work"
        assert set(map(bytes.decode, ledger.redis.zrange(ledger.key("outbox"), 0, -1))) == {u.unit for u in units}
        ledger.redis.zadd(ledger.key("outbox"), {work.unit: 1 for work in units})
        begun = time.monotonic()
        reconciler(settings, ledger).step()
        assert time.monotonic() - begun < 2, "a round does not wait for results"
        outbox = report.Outbox(app, ledger, store)
        outbox.step()
        assert time.monotonic() - begun < 30 and ledger.redis.zcard(ledger.key("outbox")) == 40
        os.kill(results.process.pid, signal.SIGCONT)
        ledger.redis.zadd(ledger.key("outbox"), {work.unit: 1 for work in units})
        outbox.step()
        assert ledger.redis.zcard(ledger.key("outbox")) == 0
        for n in range(40):
            assert app.AsyncResult(f"{job}.{n}").get(timeout=5)["paths"]
        ledger.close()


@pytest.mark.filterwarnings("ignore:Call to deprecated setex")
def test_a_result_that_the_disk_refuses_holds_up_no_other(settings: Settings, ledger: WorkLedger) -> None:
    """That of a whole job of many files is a manifest; and of those that are tried again together, it is the first."""
    app, store = app_for(settings), Store.open(settings.store)
    whole = ledger.create(JobOptions(reply=True), None, "a").job
    ledger.add(whole, "", 0, 0, shards(0, 1))
    ledger.seal(whole)
    ledger.commit(claim(ledger), "done", done(report.MOST_PATHS + 1), ())
    other = submit(ledger, 1)
    ledger.commit(claim(ledger), "done", done(), ())
    store.manifest_path(whole, "all").parent.touch()  # a file, in the way of a folder
    for _ in range(2):
        ledger.redis.zadd(ledger.key("outbox"), dict.fromkeys((whole, f"{whole}.0", f"{other}.0"), 1))
        report.Outbox(app, ledger, store).step()
    assert app.AsyncResult(f"{other}.0").get(timeout=1)["paths"]
    store.manifest_path(whole, "all").parent.unlink()
    ledger.redis.zadd(ledger.key("outbox"), {whole: 1})
    report.Outbox(app, ledger, store).step()
    assert app.AsyncResult(whole).get(timeout=5)["count"] == report.MOST_PATHS + 1
