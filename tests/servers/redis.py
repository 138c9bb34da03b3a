"""A private Redis for one test or one session: ``with redis_server(tmp_path) as redis: redis.url``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest.embedded import RedisServer


@contextmanager
def redis_server(data: Path, *, append_only: bool = False) -> Iterator[RedisServer]:
    """A Redis on a free port of loopback, with its files in ``data``; ended with the block.

    ``.url``, ``.port`` and ``.process`` are what a test needs; kill or stop the process and ``.start()`` it again
    at the same port. Without ``append_only`` it forgets everything then.
    """
    with RedisServer(data, append_only=append_only) as server:
        yield server
