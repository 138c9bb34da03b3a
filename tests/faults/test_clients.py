"""Producers and waiters that die, and results that nobody read in time (12 and 13 of the list)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from celery.exceptions import TimeoutError

from ingest.app import app_for
from ingest.errors import UnknownJob
from tests.faults import journal
from tests.faults.load import exactly
from tests.faults.origins import Paced
from tests.faults.rig import SHORT_LEASES, Rig
from tests.servers.node import until
from tests.servers.redis import redis_server

Rigs = Callable[..., Rig]
SUBMIT = """
import sys, ingest
job = ingest.Client().submit(sys.argv[2:], key=sys.argv[1] or None, placement="any", require_node=False, shard_files=1)
print(job.id, flush=True)
"""
WAIT = """
import sys, ingest
job = ingest.Client().job(sys.argv[1])
print("waits", flush=True)
print(len(job.files(timeout=120)), flush=True)
"""


def process(rig: Rig, code: str, *args: str) -> subprocess.Popen[str]:
    """A user's process, whose output can be read."""
    env = {**rig.service.env, "INGEST_STORE": str(rig.service.root / "store")}
    command = [sys.executable, "-c", code, *args]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, cwd=rig.service.root)


@pytest.mark.parametrize("key", ["", "mine"], ids=["without a key", "with a key"])
def test_a_producer_killed_between_ledger_write_and_publish(rigs: Rigs, tmp_path: Path, key: str) -> None:
    """The broker stands still, so that the producer hangs in its first ring: the ledger has its shards by then."""
    with redis_server(tmp_path / "broker") as broker:
        rig = rigs(workers=1, config=SHORT_LEASES, INGEST_BROKER_URL=broker.url, judged=False)
        names = [f"p{n}" for n in range(5)]
        urls = [rig.load.http(name, 10_000) for name in names]
        os.kill(broker.process.pid, signal.SIGSTOP)
        begun = time.monotonic()
        producer = process(rig, SUBMIT, key, *urls)
        (job_id,) = until(lambda: [j.id for j in rig.client().jobs()], "the ledger has it")
        until(lambda: int(rig.client().ledger.meta(job_id)["next"]) == 5, "and its shards")
        assert rig.client().ledger.meta(job_id)["sealed"] == "0"
        producer.kill()
        producer.communicate(timeout=10)
        os.kill(broker.process.pid, signal.SIGCONT)
        job = rig.client().job(job_id)
        until(lambda: job.status().files_done == 5, "nobody rang, and its shards are done all the same", 60)
        journal.happened("producer or waiter killed: before it rang", rig.run, time.monotonic() - begun)
        if key:  # its user submits again, and has the same job
            again = rig.client().submit(urls, key=key, placement="any", shard_files=1)
            assert again.id == job_id
            rig.load.follow(job, [exactly(name, 10_000) for name in names])
        else:  # after 15 minutes, which are over at once here, the reconciler ends it and says so
            ledger = rig.client().ledger
            ledger.redis.zadd(ledger.key("unsealed"), {job_id: 1}, xx=True)
            rig.load.follow(job, [exactly(name, 10_000) for name in names], ends=("failed",))
            until(lambda: job.status().state == "failed", "its waiters are told", 30)
            assert "interrupted" in job.failures()[-1].reason and len(job.files()) == 5
        verdict = rig.judge()
        assert not verdict.complaints, verdict.complaints
        assert all(rig.origin.count(f"/{name}.bin") == 1 for name in names)


def test_a_waiter_killed_and_another_attaching(rigs: Rigs) -> None:
    rig = rigs(workers=1, config=SHORT_LEASES)
    paced = Paced("long", 3_000_000, rate=1e6)
    job = rig.client().submit(rig.origin.on("/long.bin", paced), placement="any")
    for _ in range(3):
        waiter = process(rig, WAIT, job.id)
        assert waiter.stdout is not None and waiter.stdout.readline() == "waits\n"
        waiter.kill()
        waiter.wait(10)
        waiter.stdout.close()
    begun = time.monotonic()
    last = process(rig, WAIT, job.id)
    out, _ = last.communicate(timeout=100)
    journal.happened("producer or waiter killed: another attaches", rig.run, time.monotonic() - begun)
    assert out.split() == ["waits", "1"]
    rig.load.follow(job, [exactly("long", 3_000_000)])
    late = process(rig, WAIT, job.id)
    assert late.communicate(timeout=60)[0].split() == ["waits", "1"], "and one that comes after the end"
    assert len(paced.starts) == 1


def test_a_result_that_expired_before_it_was_read(rigs: Rigs) -> None:
    """The Celery result goes by its own clock; the job's handle still has all. When the job has gone as well, it says
    so at once, and what was fetched is used again."""
    rig = rigs(workers=1, config="keep_s = 6\n" + SHORT_LEASES)
    url = rig.load.http("old", 40_000)
    job = rig.client().submit(url, placement="any")
    (path,) = job.paths(timeout=60)
    redis = rig.client().ledger.redis
    app = app_for(rig.service.settings)
    (task,) = job.task_ids()
    until(lambda: app.AsyncResult(task).ready(), "its result is written")
    found = [key for key in redis.scan_iter("*celery-task-meta-*") if key.endswith(task.encode())]
    assert len(found) == 1 and redis.pexpire(found[0], 1)
    until(lambda: not redis.exists(found[0]), "it is gone")
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        rig.result_of(task, 1)
    assert job.paths(timeout=5) == [path], "the ledger has it"
    job.release()  # what is read does not expire

    def gone() -> bool:
        try:
            rig.client().job(job.id)
        except UnknownJob:
            return True
        return False

    until(gone, "the job has expired", 40)
    with pytest.raises(UnknownJob):
        job.wait(timeout=20)
    journal.happened("result expired before it was read", rig.run, time.monotonic() - begun)
    again = rig.client().submit(url, placement="any")
    rig.load.follow(again, [exactly("old", 40_000)])  # its waiter reads it: so it is there when the oracle looks
    assert again.paths(timeout=30) == [path] and rig.origin.count("/old.bin") == 1
