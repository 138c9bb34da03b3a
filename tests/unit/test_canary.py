"""A worker's ability to work, as its agent judges it: messages in a real Redis, which the tests answer or leave."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.app import app_for
from ingest.embedded.ports import free_port
from ingest.errors import FetchTimeout, LedgerUnavailable
from ingest.ledger import Result, WorkLedger
from ingest.model import JobOptions
from ingest.queues import canary_queue
from ingest.sections import Limits, StoreLimits
from ingest.settings import Settings
from ingest.store import Store
from tests.servers.node import until
from tests.servers.redis import redis_server
from tests.unit.ledgers import QUEUE, claim, ripen, state, submit
from workers import holding, tasks
from workers.agent import Agent
from workers.canary import MISSED, Canary
from workers.node import Node, started

LIMITS = Limits(canary_s=20.0, restart_s=120.0)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def settings(url: str, tmp_path: Path) -> Settings:
    store = StoreLimits(root=tmp_path / "store", min_free_bytes=0)
    return Settings(url, url, url, url, node="n1", limits=LIMITS, store=store)


@pytest.fixture
def ledger(settings: Settings) -> Iterator[WorkLedger]:
    made = WorkLedger(settings, retries=0)
    made.redis.flushdb()
    yield made
    made.close()


def canary(settings: Settings, ledger: WorkLedger, slots: int = 2) -> Canary:
    return Canary(app_for(settings), ledger, settings, "w1", slots)


def lying(ledger: WorkLedger) -> int:
    return int(ledger.redis.llen(f"ingest:celery:{canary_queue('n1')}"))


def take(ledger: WorkLedger) -> None:
    """What a worker does that is well."""
    assert ledger.redis.lpop(f"ingest:celery:{canary_queue('n1')}") is not None
    ledger.able("w1")


def test_messages_that_are_answered_and_then_are_not(settings: Settings, ledger: WorkLedger) -> None:
    asked = canary(settings, ledger)
    for _ in range(2 * MISSED):
        asked.step()
        take(ledger)
    assert asked.unable == ""
    asked.step()  # sees the last answer
    for _ in range(MISSED - 1):
        asked.step()
        assert asked.unable == ""
    asked.step()
    assert "60 s, with 2 processes free" in asked.unable and not asked.is_stuck
    assert lying(ledger) == 1, "they do not pile up"
    asked.leave()
    assert lying(ledger) == 0, "and none stays behind"
    while not asked.is_stuck:
        asked.step()
    assert "140 s" in asked.unable, "120 s of patience after the first that was missed"
    take(ledger)
    asked.step()
    assert asked.unable == "" and not asked.is_stuck


def test_a_message_that_a_flushed_broker_lost_is_sent_again(settings: Settings, ledger: WorkLedger) -> None:
    asked = canary(settings, ledger)
    asked.step()
    ledger.redis.flushdb()
    asked.step()
    assert lying(ledger) == 1


def test_no_patience_is_lost_while_redis_is_away_or_the_worker_stops(settings: Settings, ledger: WorkLedger) -> None:
    asked = canary(settings, ledger)
    for _ in range(MISSED + 1):
        asked.step()
    assert asked.unable
    ledger.redis.config_set("maxmemory", "1")  # reads go on, and no message can be sent
    try:
        with pytest.raises(LedgerUnavailable):
            asked.step()
    finally:
        ledger.redis.config_set("maxmemory", "0")
    assert asked.unable == ""
    nobody = f"redis://127.0.0.1:{free_port()}/0"
    away = dataclasses.replace(settings, broker_url=nobody, ledger_url=nobody, result_url=nobody)
    other = canary(away, WorkLedger(away, retries=0))
    for _ in range(MISSED + 1):
        with pytest.raises(LedgerUnavailable):
            other.step()
    assert other.unable == ""
    for _ in range(20):
        asked.step()
    assert asked.is_stuck
    asked.is_stopping = True
    assert not asked.is_stuck and asked.unable == "it is shutting down"


def test_no_patience_at_all_means_never(settings: Settings, ledger: WorkLedger) -> None:
    never = dataclasses.replace(settings, limits=dataclasses.replace(LIMITS, restart_s=0))
    asked = canary(never, ledger)
    for _ in range(20):
        asked.step()
    assert asked.unable and not asked.is_stuck


def test_of_a_worker_whose_processes_are_all_at_work_the_work_is_looked_at(
    settings: Settings, ledger: WorkLedger
) -> None:
    submit(ledger, 2)
    work = [claim(ledger, pid=f"{n}:1") for n in (1, 2)]
    asked = canary(settings, ledger)
    for size in range(2 * MISSED):
        ledger.redis.delete(ledger.key("able", "w1"))
        ledger.progress(work[0], size)
        asked.step()
        assert bool(ledger.able_at("w1")) == (size > 0), "it is noted each time that the work has got further"
    last = ledger.able_at("w1")
    for _ in range(2 * MISSED):
        asked.step()
    assert ledger.able_at("w1") == last and asked.unable == "", "an origin that stalls is no fault of the worker"
    ledger.back(work[1], 0, False, "", None, ())
    for _ in range(MISSED):
        asked.step()
    assert "1 processes free" in asked.unable


def test_an_unfit_worker_is_given_nothing_and_a_fit_one_is(settings: Settings, ledger: WorkLedger) -> None:
    submit(ledger, 2)
    ledger.beat("w1", info(unfit="its disk is full"), [], [])
    assert ledger.claim("w1", "1:1", 9, (QUEUE,)) is None and ledger.due_count(QUEUE) == 2
    (told,) = ledger.workers()
    assert told.trouble == "unfit: its disk is full"
    work = claim(ledger, "w2")
    ledger.beat("w2", info(unfit="its disk is full"), [(work.unit, work.fence)], [])
    again = claim(ledger, "w2")
    assert again.unit == work.unit, "what it holds already is its own"
    ledger.beat("w1", info(), [], [])
    assert claim(ledger).unit != work.unit


def info(**more: str) -> dict[str, object]:
    base = {"node": "n1", "store": "s", "slots": 2, "connections": [], "version": "1", "free_bytes": 1, "pid": 1}
    return base | more


def test_an_error_of_the_disk_that_nobody_foresaw_is_no_defect(settings: Settings, ledger: WorkLedger) -> None:
    job = submit(ledger, 2)
    node = Node(settings, Store.open(settings.store), "w1")
    work = claim(ledger)
    settled = tasks._unforeseen(node, ledger, work, OSError(5, "Input/output error"))
    (record,) = ledger.units(job, [work.number])
    assert settled.ok and record is not None
    assert (record.state, record.attempts, record.deaths) == ("due", 0, 0) and "NodeUnfit" in record.reason
    other = claim(ledger)
    tasks._unforeseen(node, ledger, other, OSError("a library's own words"))
    assert state(ledger, other.unit) == "failed"


@pytest.mark.parametrize("over", ["its time", "its attempts"])
def test_what_nobody_foresaw_ends_with_its_jobs_deadline_or_its_attempts(
    settings: Settings, ledger: WorkLedger, over: str
) -> None:
    job = submit(ledger, 1, options=JobOptions(deadline_s=60, attempts=2))
    node = Node(settings, Store.open(settings.store), "w1")
    work = claim(ledger)
    if over == "its time":
        foreign = NotADirectoryError(errno.ENOTDIR, "Not a directory", str(node.store.root / "data" / "ab" / "key"))
        (node.store.root / "data" / "ab").write_text("not ours")
        tasks._unforeseen(node, ledger, dataclasses.replace(work, age_s=60.1), foreign)
    else:
        late = FetchTimeout("https://host", "not handed back in time")
        tasks._ended(node, ledger, work, late)
        assert state(ledger, work.unit) == "due"
        ripen(ledger, work.unit)
        tasks._ended(node, ledger, claim(ledger), late)
    assert state(ledger, work.unit) == "failed"
    (packed,) = ledger.results(job, [work.number])
    (failure,) = Result.unpacked(packed).failures
    assert failure.error == ("NodeUnfit" if over == "its time" else "FetchTimeout")
    assert over != "its time" or f"{node.store.root}/data/ab is in the way" in failure.reason


def test_what_hangs_in_a_store_that_does_not_answer_goes_to_others_uncounted(
    settings: Settings, ledger: WorkLedger
) -> None:
    store = Store.open(settings.store)
    job = submit(ledger, 1)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as process:
        work = claim(ledger, pid=f"{process.pid}:{started(process.pid)}")
        os.pwrite(holding.table(), f"{process.pid} {work.unit} {work.fence}".encode(), holding._offset(process.pid))
        quick = dataclasses.replace(settings, limits=Limits(renew_s=0.01))
        agent = Agent("w1", os.getpid(), 2, holding.table(), store.id, grace_s=1, stuck_s=0.2, settings=quick)
        try:
            agent.beat()
            assert state(ledger, work.unit) == "leased"
            (store.root / "STORE_ID").unlink()
            os.mkfifo(store.root / "STORE_ID")
            threading.Thread(target=agent.fitness.look, daemon=True).start()
            until(lambda: agent.beat() or state(ledger, work.unit) == "due", "it is given back")
            (record,) = ledger.units(job, [work.number])
            assert record is not None and (record.deaths, record.attempts) == (0, 0)
            assert "does not answer" in record.reason and process.wait(10) == -signal.SIGKILL
            assert ledger.progress(work, 1) == "lost"
        finally:
            process.kill()
            (store.root / "STORE_ID").write_text(store.id)


def test_what_a_process_has_and_knows_nothing_of_is_no_death_of_its(settings: Settings, ledger: WorkLedger) -> None:
    """As when Redis was away at the commit: however often that is, it is not the shard that kills its workers."""
    store = Store.open(settings.store)
    job = submit(ledger, 1)
    agent = Agent("w1", os.getppid(), 2, holding.table(), store.id, grace_s=1, settings=settings)
    for n in range(settings.retry.deliveries + 1):
        work = claim(ledger, pid=f"{os.getpid()}:{started(os.getpid())}")
        assert work.record.reclaimed == bool(n), "so that it looks whether its files are there, and ends their flights"
        agent.beat()
        assert state(ledger, work.unit) == "leased", "perhaps it has only just claimed"
        agent.beat()
        (record,) = ledger.units(job, [work.number])
        assert record is not None and (record.state, record.deaths, record.attempts) == ("due", 0, 0)
    first, lost = (claim(ledger, pid=f"{os.getpid()}:{started(os.getpid())}") for _ in range(2))
    assert first.fence == lost.fence and lost.record.reclaimed, "the answer to the first may not have come"


DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


def test_a_worker_that_is_stuck_and_deaf_to_sigterm_is_killed_after_its_grace(
    settings: Settings, ledger: WorkLedger
) -> None:
    store = Store.open(settings.store)
    with subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"deaf\n"
        agent = Agent("w1", process.pid, 2, holding.table(), store.id, grace_s=0.5, stuck_s=0, settings=settings)
        agent.beat()
        assert ledger.workers()[0].unable == "" and process.poll() is None, "one that is well is left alone"
        while not agent.canary.is_stuck:
            agent.canary.step()
        agent.beat()
        assert process.poll() is None and ledger.workers()[0].unable
        until(lambda: agent.beat() or process.poll() is not None, "it is killed")
        assert process.returncode == -signal.SIGKILL
