"""What becomes of Redis and of the way to it while a service works, and how soon its workers work again. When, how long
and how often is for the tests to say."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis

from ingest.embedded import RedisServer
from tests.faults import journal
from tests.faults.rig import Rig
from tests.servers.node import until

#: After an outage of T seconds workers work again within min(T, 30) + so many seconds, at default settings.
AGAIN_S = 10.0
PASSWORD = "pa55-word"


def again(rig: Rig, name: str, ended: float, outage_s: float, found_s: float = 0.0, **more: Any) -> float:
    """Each node has done a new job of its own: how many seconds after ``ended`` the last of them had, into the journal.
    Raises AssertionError if that is more than the bound, and ``found_s`` for finding out that there is an outage."""
    nodes = [f"n{n + 1}" for n in range(len(rig.service.workers))]
    probes = [rig.probe(f"node:{node}") for node in nodes]
    until(lambda: all(probe.waited for probe in probes), f"every node works again after {name}", 120)
    took = time.monotonic() - ended
    journal.happened(name, rig.run, took, outage=round(outage_s, 3), at=round(time.time(), 1), **more)
    bound = min(outage_s, 30) + AGAIN_S + found_s
    assert took < bound, f"{name}: work again after {took:.1f} s, and the outage was {outage_s:.1f} s"
    return took


def unharmed(rig: Rig) -> None:
    """No worker had to be started again, and none thinks that it was stuck."""
    for worker in rig.service.workers:
        assert worker.process.poll() is None, worker.log.read_text()[-3000:]


@contextmanager
def admin(server: RedisServer, **how: Any) -> Iterator[Any]:
    """A connection of the operator's, who has no proxy in between."""
    with contextlib.closing(redis.Redis(port=server.port, socket_timeout=10, **how)) as made:
        yield made


def configure(server: RedisServer, **values: object) -> None:
    with admin(server) as operator:
        for name, value in values.items():
            operator.config_set(name.replace("_", "-"), value)


def pass_time(rig: Rig, seconds: float) -> None:
    """The load goes on; the time itself is the fault."""
    rig.load.pause(seconds)


# Each of these begins, and is over with the block.


@contextmanager
def down(server: RedisServer) -> Iterator[None]:
    """kill -9, and started again."""
    server.process.kill()
    server.process.wait()
    yield
    server.start()


@contextmanager
def stopped(server: RedisServer) -> Iterator[None]:
    os.kill(server.process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.process.pid, signal.SIGCONT)


@contextmanager
def out_of_memory(server: RedisServer, spare: int) -> Iterator[None]:
    """It has ``spare`` bytes left, and gives none away."""
    with admin(server) as operator:
        operator.config_set("maxmemory", operator.info("memory")["used_memory"] + spare)
        yield
        operator.config_set("maxmemory", 0)


@contextmanager
def disk_full(server: RedisServer, spare: int) -> Iterator[None]:
    """Its append-only file can grow by ``spare`` bytes. No disk is filled: the limit is of the process, which ignores
    the signal that comes with it (Python's start-up, from which the server is started, sees to that)."""
    size = max(path.stat().st_size for path in server.data.rglob("*") if path.is_file())
    pid = server.process.pid
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size + spare, hard))
    yield
    if server.process.poll() is None:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard, hard))


@contextmanager
def no_connection_left(server: RedisServer) -> Iterator[None]:
    with admin(server) as operator:
        before = operator.config_get("maxclients")["maxclients"]
        operator.config_set("maxclients", 1)
        operator.client_kill_filter(_type="normal", skipme=True)
        yield
        operator.config_set("maxclients", before)


@contextmanager
def wrong_password(server: RedisServer) -> Iterator[None]:
    with admin(server) as operator:
        operator.config_set("requirepass", PASSWORD)
        operator.client_kill_filter(_type="normal", skipme=True)
    yield
    with admin(server, password=PASSWORD) as operator:
        operator.config_set("requirepass", "")


@contextmanager
def read_only(server: RedisServer) -> Iterator[None]:
    """A replica of nobody; what it has it keeps."""
    with admin(server) as operator:
        operator.replicaof("127.0.0.1", 1)
        yield
        operator.replicaof("NO", "ONE")


def said_of(log: Path, *words: str) -> bool:
    """Whether a worker's log has all of these words."""
    text = log.read_text(errors="replace")
    return all(word in text for word in words)
