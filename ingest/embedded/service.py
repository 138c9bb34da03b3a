"""The embedded service for the length of a ``with`` block: a Redis and one worker, quiet, logging to files.

For ``ingest fetch``, ``ingest demo`` and tests; ``ingest up`` is the one for people to watch (see ``supervisor``).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ingest.embedded.bound import bound
from ingest.embedded.redis import RedisServer
from ingest.errors import ServiceFailed

WORKER = (sys.executable, "-m", "celery", "-A", "workers", "worker")

_READY_S = 30.0  # a worker is up in about two seconds; a cold disk and a loaded machine need several times that
_STOP_S = 20.0  # a warm shutdown hands back what is being fetched, between two chunks
_LOOK_S = 0.05


@dataclass(frozen=True)
class EmbeddedService:
    """What runs: where its Redis is, what a process that wants to use it has in its environment, and its logs."""

    redis_url: str
    env: Mapping[str, str] = field(repr=False)
    data: Path
    redis: RedisServer
    worker: subprocess.Popen[bytes]
    worker_log: Path


@contextlib.contextmanager
def embedded_service(
    ready: Callable[[EmbeddedService], bool],
    *,
    data: Path | None = None,
    env: Mapping[str, str] | None = None,
    worker: tuple[str, ...] = WORKER,
    ready_s: float = _READY_S,
) -> Iterator[EmbeddedService]:
    """Start a Redis on a free port and a worker on it, and end both at the end of the block, Redis last.

    ``ready`` is asked until it says that the worker takes work (the ledger knows). ``data``: directory for the
    append-only file and the logs; a temporary one by default. ``env``: variables for the worker beside our own
    environment. This process's environment is not changed. Raises :class:`ServiceFailed`, with the end of the log,
    when it is not ready after ``ready_s``.
    """
    with contextlib.ExitStack() as stack:
        if data is None:
            data = Path(tempfile.mkdtemp(prefix="ingest-"))
            stack.callback(shutil.rmtree, data, ignore_errors=True)
        redis = stack.enter_context(RedisServer(data))
        full_env = environment(redis.url, env or {})
        log = data / "worker.log"
        process = stack.enter_context(_running(worker, full_env, log))
        service = EmbeddedService(redis.url, full_env, data, redis, process, log)
        _await(ready, service, ready_s)
        yield service


def environment(redis_url: str | None, more: Mapping[str, str]) -> dict[str, str]:
    """Our own environment for a child process, in which everything is at that Redis (None: as it is configured).

    Handed on, never interpreted here.
    """
    names = ("INGEST_REDIS_URL", "INGEST_BROKER_URL", "INGEST_RESULT_URL", "INGEST_LEDGER_URL")
    urls = dict.fromkeys(names, redis_url) if redis_url else {}
    return {**os.environ, **urls, **more}


@contextlib.contextmanager
def _running(command: tuple[str, ...], env: Mapping[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own; at the end SIGTERM, then SIGKILL for it and all that it started."""
    with log.open("wb") as out:
        process = subprocess.Popen(
            bound(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            start_new_session=True,  # a Ctrl-C in the terminal is for us: we end it in order
        )
    try:
        yield process
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        with contextlib.suppress(ProcessLookupError):  # usually nobody is left of its session
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _await(ready: Callable[[EmbeddedService], bool], service: EmbeddedService, ready_s: float) -> None:
    deadline = time.monotonic() + ready_s
    while not ready(service):
        status = service.worker.poll()
        if status is not None:
            raise ServiceFailed("worker", f"it ended with status {status} at its start: {_log_end(service.worker_log)}")
        if time.monotonic() > deadline:
            raise ServiceFailed("worker", f"it is not ready after {ready_s:g} s: {_log_end(service.worker_log)}")
        time.sleep(_LOOK_S)


def _log_end(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return " / ".join(lines[-3:]) or "it said nothing"
