"""A private Redis for one test or one session: ``with redis_server(tmp_path) as redis: redis.url``; and a Sentinel."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest.embedded import RedisServer
from ingest.embedded.ports import LOOPBACK, free_port
from ingest.embedded.redis import find_redis_server


@contextmanager
def redis_server(data: Path, *, append_only: bool = False) -> Iterator[RedisServer]:
    """A Redis on a free port of loopback, with its files in ``data``; ended with the block.

    ``.url``, ``.port`` and ``.process`` are what a test needs; kill or stop the process and ``.start()`` it again
    at the same port. Without ``append_only`` it forgets everything then.
    """
    with RedisServer(data, append_only=append_only) as server:
        yield server


@contextmanager
def sentinel(root: Path, primary: RedisServer, replica: RedisServer, name: str = "mymaster") -> Iterator[str]:
    """A Sentinel that watches ``primary`` and moves to ``replica`` within about two seconds of its death. Gives the
    URL for ``INGEST_REDIS_URL``."""
    port = free_port()
    config = root / "sentinel.conf"  # it writes what it learns into it
    config.write_text(
        f"bind {LOOPBACK}\nport {port}\ndir {root}\n"
        f"sentinel monitor {name} {LOOPBACK} {primary.port} 1\n"
        # Which it would ask the primary for only every ten seconds.
        f"sentinel known-replica {name} {LOOPBACK} {replica.port}\n"
        f"sentinel down-after-milliseconds {name} 700\nsentinel failover-timeout {name} 4000\n"
    )
    with (root / "sentinel.log").open("wb") as log:
        process = subprocess.Popen([find_redis_server(), config, "--sentinel"], stdout=log, stderr=subprocess.STDOUT)
    try:
        yield f"sentinel://{LOOPBACK}:1;sentinel://{LOOPBACK}:{port}/0?master={name}"
    finally:
        process.kill()
        process.wait()
