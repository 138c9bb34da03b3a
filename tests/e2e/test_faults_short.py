"""What a user meets on the first bad day: workers killed at work, stopped in order, stuck, or away."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
from pathlib import Path

import pytest

import ingest
from ingest.model import TERMINAL_JOB
from tests.servers.http import Handler, Origin, file, silent
from tests.servers.node import Service, running_service, until

DATA = hashlib.sha256(b"fault").digest() * 250_000  # 8 MB


class Gate:
    """An origin's file that stops in the middle until it is opened, and honours ranges."""

    def __init__(self, data: bytes) -> None:
        self.data, self.open = data, threading.Event()

    def __call__(self, to: Handler) -> None:
        if self.open.is_set():
            whole = file(self.data, etag='"v1"')
            return whole(to)
        to.head(200, {"Content-Length": str(len(self.data)), "ETag": '"v1"', "Accept-Ranges": "bytes"})
        half = len(self.data) // 2
        to.send(self.data[:half])
        if self.open.wait(60):
            to.send(self.data[half:])


def test_kill_9_of_the_worker_mid_download_and_a_new_one_finishes(own_service: Service, origin: Origin) -> None:
    gate = Gate(DATA)
    origin.on("/big.bin", gate)
    job = own_service.client().submit([origin.url("/big.bin"), origin.put("/small.bin", b"s")])
    until(lambda: job.status().bytes > len(DATA) // 4, "the download is under way")
    pids = [*own_service.workers[0].children(), *own_service.workers[0].agents()]
    own_service.workers[0].kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "children and agent follow the worker")
    gate.open.set()
    own_service.start_worker("n1")
    files = job.files(timeout=40)
    assert [f.path.read_bytes() for f in files] == [DATA, b"s"]
    resumed = origin.asked("/big.bin")[-1].headers.get("Range")
    assert resumed is not None, "the second attempt went on where the first one stopped"
    until(lambda: own_service.scratch() == [], "nothing is left in scratch")


def test_kill_9_of_a_child_is_noticed_in_seconds(own_service: Service, origin: Origin) -> None:
    gate = Gate(DATA)
    origin.on("/big.bin", gate)
    job = own_service.client().submit(origin.url("/big.bin"))
    until(lambda: job.status().bytes > 0, "the download is under way")
    held = own_service.client().ledger.redis
    worker = own_service.client().workers()[0].id
    prefix = own_service.client().ledger.prefix
    (value,) = held.hgetall(f"{prefix}held:{worker}").values()
    os.kill(int(value.split(b":")[0]), signal.SIGKILL)
    gate.open.set()
    (got,) = job.files(timeout=12)
    assert got.path.read_bytes() == DATA


def test_sigterm_lets_short_work_finish(own_service: Service, origin: Origin) -> None:
    gate = Gate(DATA)
    origin.on("/big.bin", gate)
    job = own_service.client().submit(origin.url("/big.bin"))
    until(lambda: job.status().bytes > 0, "the download is under way")
    own_service.workers[0].process.send_signal(signal.SIGTERM)
    gate.open.set()
    assert job.files(timeout=20)[0].path.read_bytes() == DATA
    assert own_service.workers[0].process.wait(30) == 0
    assert own_service.client().workers() == []


def test_sigterm_hands_long_work_back_and_another_node_goes_on(own_service: Service, origin: Origin) -> None:
    gate = Gate(DATA)

    def slow(to: Handler) -> None:
        """Comes without end in sight, a little every tenth of a second, until the gate is opened."""
        if gate.open.is_set():
            return file(DATA, etag='"v1"')(to)
        to.head(200, {"Content-Length": str(len(DATA)), "ETag": '"v1"', "Accept-Ranges": "bytes"})
        for at in range(0, len(DATA), 10_000):
            to.send(DATA[at : at + 10_000])
            gate.open.wait(0.1)

    origin.on("/big.bin", slow)
    job = own_service.client().submit(origin.url("/big.bin"))
    until(lambda: job.status().bytes > 0, "the download is under way")
    own_service.start_worker("n2")
    assert own_service.workers[0].stop() == 0
    gate.open.set()
    (got,) = job.files(timeout=40)
    assert got.path.read_bytes() == DATA and got.node == "n2" and job.status().retries == 0
    assert origin.asked("/big.bin")[-1].headers.get("Range") is not None


HANGS = """
import time
from celery import signals
from ingest.app import defaults  # what makes this file the operator's

@signals.worker_shutdown.connect(weak=False)
def hang(**_):
    while True:
        time.sleep(1)
"""


@pytest.mark.long
def test_a_worker_that_hangs_in_its_own_shutdown_ends_all_the_same(own_service: Service, origin: Origin) -> None:
    """By a hook of the operator's, here. Of SIGTERM: a cold shutdown does not always come to Celery's hooks."""
    (own_service.root / "celeryconfig.py").write_text(HANGS)
    hanging = own_service.start_worker("n2")
    hanging.process.send_signal(signal.SIGTERM)
    until(lambda: hanging.process.poll() is not None, "it is gone", 60)
    assert hanging.process.returncode == -signal.SIGALRM
    assert own_service.client().fetch(origin.put("/a", b"a"), timeout=40)


def test_a_stuck_download_is_ended_by_the_stall_limit(tmp_path: Path, origin: Origin) -> None:
    origin.on("/silent.bin", silent())
    with running_service(
        tmp_path, config="[limits]\nconnect_s = 1\nstall_s = 2\n[retry]\nattempts = 2\nbase_s = 0.1\n"
    ) as service:
        job = service.client().submit(origin.url("/silent.bin"))
        assert job.wait(timeout=40).state == "failed"
        (failure,) = job.failures()
        assert failure.error == "FetchTimeout" and failure.attempts == 2 and "2 s" in failure.reason


@pytest.mark.long
def test_native_code_that_hangs_is_killed_by_the_hard_limit(tmp_path: Path) -> None:
    """SQLite computing without end inside one C call: no Python runs, so only SIGKILL ends it; then it is
    quarantined."""
    import sqlite3

    sqlite3.connect(tmp_path / "db.sqlite").close()
    config = f"""
[limits]
connect_s = 0.5
stall_s = 1
soft_s = 2
hard_s = 4
[retry]
deliveries = 1
[connections.db]
url = "sqlite:///{tmp_path}/db.sqlite"
"""
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x+1 FROM c) SELECT sum(x) AS s FROM c"
    with running_service(tmp_path, config=config) as service:
        job = service.client().submit(ingest.Sql("db", query=endless))
        assert job.wait(timeout=60).state == "failed"
        assert job.failures()[0].error in {"Quarantined", "FetchTimeout"}
        assert service.client().submit(ingest.Sql("db", query="SELECT 1 AS one")).wait(timeout=30).state == "done"


def test_work_of_a_dead_node_moves_to_another_with_the_same_store(own_service: Service, origin: Origin) -> None:
    client = own_service.client()
    own_service.workers[0].kill()
    urls = [origin.put(f"/moved{n}.bin", b"m") for n in range(5)]
    job = client.submit(urls, placement="n1", require_node=False)
    own_service.start_worker("n2")
    assert job.wait(timeout=60).state == "done" and {f.node for f in job.files()} == {"n2"}


def test_redis_goes_away_and_comes_back(tmp_path: Path, origin: Origin) -> None:
    with running_service(tmp_path, append_only=True) as service:
        gate = Gate(DATA)
        origin.on("/big.bin", gate)
        client = service.client()
        job = client.submit([origin.url("/big.bin"), origin.put("/s.bin", b"s")])
        until(lambda: job.status().bytes > 0, "the download is under way")
        redis = service.redis_server
        os.kill(redis.process.pid, signal.SIGSTOP)
        waited: list[object] = []
        waiter = threading.Thread(target=lambda: waited.append(client.job(job.id).wait(timeout=60)))
        gate.open.set()
        os.kill(redis.process.pid, signal.SIGCONT)
        waiter.start()
        redis.process.kill()
        redis.process.wait()
        redis.start()
        waiter.join(70)
        assert waited and waited[0].state == "done"  # type: ignore[attr-defined]
        assert client.fetch(origin.put("/after.bin", b"after"), timeout=60)[0].read_bytes() == b"after"


@pytest.mark.parametrize("shards", [10_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_a_huge_job_leaves_few_messages_and_does_not_block_a_small_one(
    service: Service, origin: Origin, shards: int
) -> None:
    client = service.client()
    url = origin.put("/one.bin", b"1")
    client.fetch(url, timeout=30)
    huge = client.submit([url] * shards, shard_files=1)
    redis = client.ledger.redis
    lengths = []

    def messages() -> int:
        queues = [
            k
            for k in redis.scan_iter(f"{service.settings.prefix}celery:ingest.*", count=1000)
            if redis.type(k) == b"list"
        ]
        return sum(redis.llen(k) for k in queues)

    lengths.append(messages())
    begun = huge.status().files_done
    small = client.submit([origin.put(f"/small{n}.bin", b"s") for n in range(10)])
    small.wait(timeout=30)
    lengths.append(messages())
    assert max(lengths) <= 2000
    status = huge.status()
    assert status.state not in TERMINAL_JOB and status.files_done - begun < shards // 4
    huge.cancel()
    huge.wait(timeout=60)


def test_what_is_cut_off_is_continued_where_it_broke(service: Service, origin: Origin) -> None:
    whole = file(DATA, etag='"v1"')

    def cut(to: Handler) -> None:
        if "Range" in to.headers:
            return whole(to)
        to.head(200, {"Content-Length": str(len(DATA)), "ETag": '"v1"', "Accept-Ranges": "bytes"})
        to.send(DATA[: len(DATA) // 2])
        to.cut()

    origin.on("/cut.bin", cut)
    job = service.client().submit(origin.url("/cut.bin"))
    assert job.files(timeout=30)[0].path.read_bytes() == DATA
    first, second = origin.asked("/cut.bin")
    assert "Range" not in first.headers and second.headers["Range"] == f"bytes={len(DATA) // 2}-"


def test_time_slices(tmp_path: Path, origin: Origin) -> None:
    """What can be continued goes on from slice to slice, uncounted; what cannot is failed with the setting to raise."""

    def drip(to: Handler, headers: dict[str, str], first: int) -> None:
        to.head(206 if first else 200, {"Content-Length": str(len(DATA) - first), **headers})
        for at in range(first, len(DATA), len(DATA) // 40):
            to.send(DATA[at : at + len(DATA) // 40])
            if not to.wait(0.1):
                return

    def resumable(to: Handler) -> None:
        first = int(to.headers.get("Range", "bytes=0-")[6:-1])
        more = {"ETag": '"v1"', "Accept-Ranges": "bytes", "Content-Range": f"bytes {first}-{len(DATA) - 1}/{len(DATA)}"}
        drip(to, more, first)

    origin.on("/resumable.bin", resumable)
    origin.on("/anew.bin", lambda to: drip(to, {}, 0))
    config = "[limits]\nconnect_s = 0.5\nstall_s = 1\nsoft_s = 2\nhard_s = 20\n[retry]\nattempts = 2\nbase_s = 0.1\n"
    with running_service(tmp_path, config=config) as service:
        client = service.client()
        slow, hopeless = client.submit(origin.url("/resumable.bin")), client.submit(origin.url("/anew.bin"))
        assert slow.wait(timeout=60).state == "done", slow.failures()
        (got,) = slow.files()
        assert got.path.read_bytes() == DATA and slow.status().retries == 0 and origin.count("/resumable.bin") > 1
        assert hopeless.wait(timeout=60).state == "failed"
        (failure,) = hopeless.failures()
        assert (failure.error, failure.attempts) == ("FetchTimeout", 2) and "soft_s" in failure.reason
        assert service.scratch() == []
