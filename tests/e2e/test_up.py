"""``ingest up`` as a person uses it: started, looked at, ended with Ctrl-C; and how it says that it cannot start."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from ingest.embedded import RedisServer
from ingest.embedded.ports import LOOPBACK, answers, free_port
from tests.servers.redis import redis_server

ROOT = Path(__file__).parents[2]
UP = [sys.executable, "-c", "from ingest.cli import main; main()", "up"]
START_S = 60.0  # the machine may be busy with the rest of the tests


class Up:
    """One running ``ingest up``, and what it has printed so far."""

    def __init__(self, data: Path, *options: str, **env: str) -> None:
        self.redis_port, self.flower_port = free_port(), free_port()
        self.url = f"redis://{LOOPBACK}:{self.redis_port}/0"
        ports = [f"--redis-port={self.redis_port}", f"--flower-port={self.flower_port}"]
        self.process = subprocess.Popen(
            [*UP, *ports, f"--data={data / 'up'}", "--concurrency=2", *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "INGEST_STORE": str(data / "store"), "INGEST_NODE": data.name, **env},
            start_new_session=True,  # a process group of its own, as a shell gives it: Ctrl-C is a signal to that group
        )
        self._out = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.family: set[int] = {self.process.pid}

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._out += line

    @property
    def out(self) -> str:
        return self._out.decode(errors="replace")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + START_S
        while not condition():
            assert self.process.poll() is None, f"ended while waiting for {what}:\n{self.out}"
            assert time.monotonic() < deadline, f"no {what} after {START_S:g} s:\n{self.out}"
            time.sleep(0.05)
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.family |= {child.pid for child in children}

    def until_working(self) -> None:
        self.until(lambda: " ready" in self.out, "worker")

    def ctrl_c(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def wait(self) -> int:
        status = self.process.wait(START_S)
        self._reader.join(5)
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def left(self) -> list[str]:
        """What of all that it started still runs."""
        found = []
        for pid in self.family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{pid} {process.cmdline()}")
        return found

    def child(self, word: str) -> psutil.Process:
        """The oldest process under it with ``word`` among its arguments."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        return min((c for c in children if word in c.cmdline()), key=lambda c: c.pid)


@contextlib.contextmanager
def up(data: Path, *options: str, **env: str) -> Iterator[Up]:
    running = Up(data, *options, **env)
    try:
        yield running
    finally:
        for pid in running.family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.wait()


def test_starts_all_of_it_and_ctrl_c_stops_all_of_it(tmp_path: Path) -> None:
    with up(tmp_path) as running:
        running.until_working()
        running.until(lambda: f"ingest@{tmp_path.name}" in _nodes(running.flower_port), "data node on the dashboard")
        assert answers(running.url)
        listening = {c.laddr.ip for c in _listening(running.family)}
        assert listening == {LOOPBACK}
        running.ctrl_c()
        assert running.wait() == 0, running.out
        assert running.left() == []
        assert not answers(running.url)
    for name in ("redis", "worker", "flower"):
        assert f" {name}" in running.out
    assert "Traceback" not in running.out
    assert "SIGKILL" not in running.out


@pytest.mark.long
def test_sigterm_is_as_good_as_ctrl_c(tmp_path: Path) -> None:
    with up(tmp_path, "--no-flower") as running:
        running.until_working()
        running.process.terminate()
        assert running.wait() == 0, running.out
        assert running.left() == []


def test_a_worker_that_dies_ends_all_and_is_named(tmp_path: Path) -> None:
    with up(tmp_path, "--no-flower") as running:
        running.until_working()
        running.child("worker").kill()
        assert running.wait() == 1
        assert "worker (status -9)" in running.out
        assert running.left() == []
        assert not answers(running.url)


@pytest.mark.long
def test_a_redis_that_dies_ends_all_and_is_named(tmp_path: Path) -> None:
    with up(tmp_path, "--no-flower") as running:
        running.until_working()
        next(p for p in map(psutil.Process, running.family) if p.name().endswith("-server")).kill()
        assert running.wait() == 1
        assert "ended by itself: redis" in running.out
        assert running.left() == []


def test_leaves_nothing_when_it_is_killed(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux can end a process with its parent")
    with up(tmp_path, "--no-flower") as running:
        running.until_working()
        running.process.kill()
        running.wait()
        deadline = time.monotonic() + START_S
        while running.left():
            assert time.monotonic() < deadline, running.left()
            time.sleep(0.05)


@pytest.mark.long
def test_a_redis_that_is_there_is_used_and_left_running(tmp_path: Path) -> None:
    with redis_server(tmp_path / "redis") as theirs:
        with up(tmp_path, "--no-flower", f"--redis-port={theirs.port}") as running:
            running.until_working()
            assert "found running" in running.out
            running.ctrl_c()
            assert running.wait() == 0, running.out
            assert running.left() == []
        assert answers(theirs.url)


def test_a_second_one_is_told_of_the_first(tmp_path: Path) -> None:
    with up(tmp_path, "--no-flower") as first:
        first.until_working()
        same_port = f"--redis-port={first.redis_port}"
        for data in (tmp_path / "up", tmp_path / "other"):
            status, out = _refused(same_port, "--no-flower", f"--data={data}")
            assert status == 1
            assert f"pid {first.process.pid}" in out
            assert "Traceback" not in out


def test_a_port_of_something_else_is_named(tmp_path: Path) -> None:
    with socket.create_server((LOOPBACK, 0)) as stranger:
        port = stranger.getsockname()[1]
        status, out = _refused(f"--redis-port={free_port()}", f"--flower-port={port}", f"--data={tmp_path}")
        assert (status, "Traceback" in out) == (1, False)
        assert f"port {port} is in use" in out
        status, out = _refused(f"--redis-port={port}", "--no-flower", f"--data={tmp_path}")
        assert (status, "Traceback" in out) == (1, False)
        assert f"{LOOPBACK}:{port}" in out


def test_a_redis_elsewhere_that_does_not_answer_is_not_replaced(tmp_path: Path) -> None:
    url = f"rediss://:hunter2@{LOOPBACK}:{free_port()}/0"
    status, out = _refused("--no-flower", f"--data={tmp_path}", INGEST_REDIS_URL=url)
    assert status == 1
    assert "nothing answers there" in out
    assert "hunter2" not in out


@pytest.mark.long
def test_the_ledger_survives(tmp_path: Path) -> None:
    with RedisServer(tmp_path / "up") as before, contextlib.closing(redis.Redis.from_url(before.url)) as connection:
        connection.set("kept", "yes")
    with up(tmp_path, "--no-flower") as running:
        running.until_working()
        with contextlib.closing(redis.Redis.from_url(running.url)) as connection:
            assert connection.get("kept") == b"yes"


def _refused(*options: str, **env: str) -> tuple[int, str]:
    """Exit status and output of one that cannot start."""
    done = subprocess.run(
        [*UP, *options],
        cwd=ROOT,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=START_S,
        check=False,
    )
    return done.returncode, done.stdout


def _nodes(port: int) -> list[str]:
    """The workers that Flower has heard of, by their events."""
    try:
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/workers?json=1", timeout=5) as response:
            return [worker["hostname"] for worker in json.load(response)["data"]]
    except OSError:
        return []


def _listening(pids: set[int]) -> Iterator[Any]:
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            yield from (c for c in psutil.Process(pid).net_connections("inet") if c.status == psutil.CONN_LISTEN)
