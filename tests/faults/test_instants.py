"""kill -9 at the instants that matter: found by what can be seen on disk and in the ledger, and made wide enough by an
origin that keeps its last byte, or a Redis that is paused."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ingest import Job
from tests.faults import journal
from tests.faults.load import exactly
from tests.faults.origins import Paced
from tests.faults.rig import SHORT_LEASES, Rig, all_processes, send
from tests.servers.node import Worker, until
from tests.servers.redis import redis_server

Rigs = Callable[..., Rig]
MB = 1 << 20
#: The ledger is not asked between chunks: a paused one holds up the commit, and nothing before it.
QUIET = SHORT_LEASES + "progress_s = 30\n"
WHOM = pytest.mark.parametrize("whom", ["a pool child", "a worker"])


def held_back(rig: Rig, name: str, size: int = 2 * MB) -> tuple[Job, Paced, threading.Event]:
    """A job for a file whose last byte does not come; returns once the rest is there."""
    go = threading.Event()
    paced = Paced(name, size, rate=8e6, hold=go)
    job = rig.client().submit(rig.origin.on(f"/{name}.bin", paced), placement="any")
    rig.load.follow(job, [exactly(name, size)])
    until(lambda: paced.sent >= size - 1 and rig.held_by(job.id), "all but its last byte is there")
    return job, paced, go


def holder(rig: Rig, job: Job) -> tuple[Worker, int]:
    """The worker that has a job's one shard, and which of its processes."""
    (pid,) = rig.held_by(job.id)
    return next(w for w in rig.alive() if pid in w.children()), pid


def kill(rig: Rig, whom: str, worker: Worker, pid: int) -> None:
    if whom == "a worker":
        worker.kill()
        rig.restart(worker)
    else:
        send([pid], signal.SIGKILL)


def published(rig: Rig, name: str) -> list[Path]:
    return list((rig.service.root / "store" / "data").glob(f"*/*/*/{name}.bin"))


@WHOM
def test_mid_download(rigs: Rigs, whom: str) -> None:
    rig = rigs(config=SHORT_LEASES)
    rig.load.start()
    job, paced, go = held_back(rig, "mid", 6 * MB)
    worker, pid = holder(rig, job)
    with rig.fault(f"kill -9 of {whom}: mid-download", worker, child=None if whom == "a worker" else pid):
        kill(rig, whom, worker, pid)
    go.set()
    rig.settle()
    assert paced.starts[0] == 0 and min(paced.starts[1:]) >= 3 * MB, "the next attempt went on where this one stopped"


@WHOM
@pytest.mark.parametrize("when", ["rename", "record"])
def test_after_rename_before_commit(rigs: Rigs, whom: str, when: str) -> None:
    rig = rigs(config=QUIET)
    job, paced, go = held_back(rig, "late")
    worker, pid = holder(rig, job)
    redis = rig.client().ledger.redis
    with rig.fault(
        f"kill -9 of {whom}: after rename, before commit", worker, child=None if whom == "a worker" else pid
    ):
        redis.execute_command("CLIENT", "PAUSE", 20_000, "WRITE")
        try:
            go.set()
            (path,) = until(lambda: published(rig, "late"), "it is renamed into place")
            if when == "record":
                until(path.parent.with_suffix(".json").exists, "and its record is written")
            assert rig.record(f"{job.id}.0")["s"] == "leased"
            kill_first = [pid] if whom == "a pool child" else [worker.process.pid]
            send(kill_first, signal.SIGKILL)
        finally:
            redis.execute_command("CLIENT", "UNPAUSE")
    if whom == "a worker":
        worker.process.wait(10)
        rig.restart(worker)
    rig.settle()
    assert len(paced.starts) <= 2 and (when == "rename" or len(paced.starts) == 1), "it is used as it lies there"
    assert published(rig, "late") == [path]


@WHOM
def test_after_commit_before_its_result(rigs: Rigs, whom: str, tmp_path: Path) -> None:
    """The message was acknowledged when it came; what is left to do after the commit is the Celery result."""
    with redis_server(tmp_path / "results") as results:
        rig = rigs(config=SHORT_LEASES, INGEST_RESULT_URL=results.url)
        job, _, go = held_back(rig, "told")
        worker, pid = holder(rig, job)
        os.kill(results.process.pid, signal.SIGSTOP)
        with rig.fault(f"kill -9 of {whom}: after commit, before ack", worker, child=pid) as hurt:
            try:
                go.set()
                until(lambda: rig.record(f"{job.id}.0")["s"] == "done", "it is committed")
                hurt.units.clear()
                kill(rig, whom, worker, pid)
            finally:
                os.kill(results.process.pid, signal.SIGCONT)
        assert rig.result_of(f"{job.id}.0", 40) == {"paths": [str(job.paths()[0])]}
        rig.settle()
        verdict = rig.judge()
        assert not verdict.complaints, verdict.complaints


def test_between_the_pop_of_a_message_and_its_bookkeeping(rigs: Rigs) -> None:
    """The worker is stopped while it waits for messages; Redis gives it one, which nobody else knows of any more."""
    rig = rigs(workers=1, config=SHORT_LEASES)
    broker = rig.client().ledger.redis
    for round_ in range(3):
        (worker,) = rig.alive()
        bells = f"{rig.service.settings.prefix}celery:ingest.fetch"
        numbers = itertools.count()

        def popped() -> Job | None:
            """A job whose bell Redis gave to the worker that stands still; not so if it waited no more by then."""
            name = f"pop{round_}-{next(numbers)}"  # noqa: B023
            send([worker.process.pid], signal.SIGSTOP)  # noqa: B023
            if any(c["cmd"] == "brpop" and "b" in c["flags"] for c in broker.client_list()):
                job = rig.client().submit(rig.load.http(name, 100_000), placement="any")
                rig.load.follow(job, [exactly(name, 100_000)])
                if broker.llen(bells) == 0:  # noqa: B023
                    return job
            send([worker.process.pid], signal.SIGCONT)  # noqa: B023
            return None

        with rig.meddler.still():  # or it might be who has it
            job = until(popped, "a bell is out of Redis")
        with rig.fault("kill -9 of a worker: between pop and bookkeeping", worker):
            assert rig.record(f"{job.id}.0")["s"] == "due"
            worker.kill()
        rig.restart(worker, ready=True)
        until(lambda: rig.load.open == 0, "all is done", 60)


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("what", ["a worker", "a whole node"])
def test_another_worker_has_it_within_15_seconds_at_default_settings(rigs: Rigs, number: int, what: str) -> None:
    """Of a worker, its agent is left, and hands its shards back at once; of a machine, nothing is."""
    # A lease of 12 s and two ticks, of 2 s each at the most, are the bound already: a bell that is lost after the first
    # of them would be rung again by a third.
    rig = rigs(workers=2, meddle=what != "a whole node")
    size = 12 * MB
    paced = Paced(f"big{number}", size, rate=1.5e6)
    job = rig.client().submit(rig.origin.on("/big.bin", paced), placement="any")
    rig.load.follow(job, [exactly(f"big{number}", size)])
    until(lambda: paced.sent > (3 + number) * MB, "it is under way")
    worker, _ = holder(rig, job)
    unit, fence = next(iter(rig.units_of(worker).items()))
    begun = time.monotonic()
    if what == "a whole node":
        send(all_processes(worker)[::-1], signal.SIGKILL)
    worker.kill()

    def taken() -> bool:
        record = rig.record(unit)
        return record["s"] == "leased" and record["f"] != fence

    until(taken, "another worker has its shard", 40)
    took = time.monotonic() - begun
    until(lambda: len(paced.starts) == 2, "and asks for it")
    journal.happened(f"kill -9 of {what}: default settings, until claimed again", rig.run, took)
    assert took < 15
    assert paced.starts[1] > 2 * MB, "it resumes the partial file"
