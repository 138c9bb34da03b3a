"""A data node in a test: a Redis, ``celery -A workers worker`` as its own process, a store and a client of both."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ingest import Client
from ingest.embedded import RedisServer
from ingest.settings import Settings, load
from tests.servers.redis import redis_server

T = TypeVar("T")


def until(condition: Callable[[], T], what: str, within_s: float = 30.0) -> T:
    """What ``condition`` gives once it is true. Raises AssertionError naming ``what`` when it does not become so in
    time."""
    end = time.monotonic() + within_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"not within {within_s:g} s: {what}")
        time.sleep(0.02)


@dataclass
class Worker:
    """One ``celery worker``. ``log`` is where its lines go."""

    process: subprocess.Popen[bytes]
    log: Path

    def kill(self) -> None:
        """kill -9 of the main process; its children follow it by themselves."""
        self.process.kill()
        self.process.wait(10)

    def end(self) -> None:
        """All of it, at once: there are tests of how it ends well, which takes seconds."""
        if self.process.poll() is None:
            for agent in self.agents():
                os.kill(agent, signal.SIGKILL)
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM, and wait for the end. Returns the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def children(self) -> list[int]:
        """The pool's processes (not the agent)."""
        found = []
        for pid in _children_of(self.process.pid):
            if "workers.agent" not in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
                found.append(pid)
        return found

    def agents(self) -> list[int]:
        return [p for p in _children_of(self.process.pid) if p not in self.children()]


def _children_of(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@dataclass
class Service:
    """Everything a test needs of a running service. ``env`` is what a process that uses it has in its environment."""

    root: Path
    redis_url: str
    env: dict[str, str]
    redis_server: RedisServer
    workers: list[Worker] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        return load(self.env)

    def client(self) -> Client:
        return Client(settings=self.settings)

    def start_worker(self, node: str = "n1", *flags: str, ready: bool = True, **env: str) -> Worker:
        """One more data node, ``flags`` for its command line; waits until the ledger has heard of it."""
        log = self.root / f"worker-{len(self.workers)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "workers", "worker", *flags],
                env={**self.env, "INGEST_NODE": node, **env},
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self.root,
                start_new_session=True,
            )
        worker = Worker(process, log)
        self.workers.append(worker)
        if ready:
            self.await_ready(worker)
        return worker

    def await_ready(self, worker: Worker) -> None:
        client = self.client()

        def up() -> bool:
            if worker.process.poll() is not None:
                raise AssertionError(f"the worker ended: {worker.log.read_text()[-2000:]}")
            return any(w.pid == worker.process.pid for w in client.workers())

        until(up, "the worker is ready")

    def run(self, *args: str, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
        """``ingest ARGS`` as a user's process."""
        return subprocess.run(
            [sys.executable, "-c", "from ingest.cli import main; main()", *args],
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.root,
        )

    def python(self, code: str, timeout: float = 60, **env: str) -> subprocess.CompletedProcess[str]:
        """``python -c CODE`` as a user's process."""
        return subprocess.run(
            [sys.executable, "-c", code],
            env={**self.env, **env},
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.root,
        )

    def scratch(self) -> list[Path]:
        return list((self.root / "store" / "scratch").iterdir())


@contextmanager
def running_service(
    root: Path, *, config: str = "", workers: int = 1, append_only: bool = False, **more: str
) -> Iterator[Service]:
    """A Redis and ``workers`` data nodes (n1, n2, … sharing one store); ``config`` is the text of their ingest.toml."""
    (root / "ingest.toml").write_text(config)
    with redis_server(root / "redis", append_only=append_only) as redis:
        env = {k: v for k, v in os.environ.items() if not k.startswith("INGEST_")}
        project = str(Path(__file__).parents[2])
        env |= {
            "PYTHONPATH": os.pathsep.join(filter(None, [project, env.get("PYTHONPATH")])),
            "INGEST_REDIS_URL": redis.url,
            "INGEST_STORE": str(root / "store"),
            "INGEST_CONFIG": str(root / "ingest.toml"),
            "INGEST_NODE": "n1",
            "INGEST_LOG_FORMAT": "json",
            **more,
        }
        service = Service(root, redis.url, env, redis)
        try:
            for n in range(workers):
                service.start_worker(f"n{n + 1}")
            yield service
        finally:
            for worker in service.workers:
                worker.end()
