"""Ports of the loopback interface, and what answers on them. Starts nothing."""

from __future__ import annotations

import contextlib
import socket

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError

from ingest.errors import ServiceFailed
from ingest.sentinels import open_client
from ingest.settings import redact

LOOPBACK = "127.0.0.1"
_ANSWER_S = 2.0  # a Redis on the same machine answers in well under a millisecond


def free_port() -> int:
    """A port that was free a moment ago. Whoever uses it must be ready to find it taken."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def is_taken(port: int) -> bool:
    """Whether another process listens on that port of loopback."""
    with socket.socket() as probe:
        # As servers do it: connections of a server that has just ended (TIME_WAIT) do not count as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return True
    return False


def connect(url: str, timeout_s: float = _ANSWER_S) -> redis.Redis:
    """A client that tries each command once. Opens its connection with the first command."""
    client: redis.Redis = open_client(
        url, socket_connect_timeout=timeout_s, socket_timeout=timeout_s, retry=Retry(NoBackoff(), 0)
    )
    return client


def answers(url: str) -> bool:
    """Whether a Redis that we may use is at ``url``; False when nothing listens there.

    Raises :class:`ServiceFailed` when something is there that is no Redis, or that refuses us.
    """
    with contextlib.closing(connect(url)) as client:
        try:
            client.ping()
        except (redis.exceptions.AuthenticationError, redis.exceptions.NoPermissionError) as error:
            reason = "a Redis is there, but it refuses us: put the right user and password into INGEST_REDIS_URL"
            raise ServiceFailed("redis", f"{redact(url)}: {reason}") from error
        except redis.exceptions.BusyLoadingError:
            return True
        except MasterNotFoundError as error:
            raise ServiceFailed("redis", f"{redact(url)}: no Sentinel knows a primary of that name now") from error
        except redis.exceptions.ConnectionError as error:
            if _refused(error):
                return False
            raise ServiceFailed("redis", f"{redact(url)}: {_STRANGER}") from error
        except redis.exceptions.RedisError as error:
            raise ServiceFailed("redis", f"{redact(url)}: {_STRANGER}") from error
    return True


_STRANGER = "something is there that does not answer like a Redis; stop it, or choose another port"


def _refused(error: BaseException | None) -> bool:
    """Whether nobody listens; redis-py keeps the system's error as the cause or the context of its own."""
    while error is not None:
        if isinstance(error, ConnectionRefusedError | FileNotFoundError):
            return True
        error = error.__cause__ or error.__context__
    return False
