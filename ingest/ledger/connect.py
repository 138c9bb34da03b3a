"""Connections to the ledger's Redis that give up in time: within a call's own budget, and within the deadline of
whoever waits for it. What is said over them is in ``redis``."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from redis.backoff import AbstractBackoff
from redis.exceptions import ConnectionError, TimeoutError
from redis.retry import Retry

from ingest.sentinels import open_client
from ingest.settings import Settings

# Below the lease, so that a renewal that hangs on a dead connection leaves time for another one.
SOCKET_TIMEOUT_S = 3.0
CONNECT_TIMEOUT_S = 3.0
#: A call with all its attempts, whatever the number of connections that each of them tries to make.
CALL_S = 10.0
#: A connection that was idle for so long is asked whether its other end is still there, and has so long to answer.
IDLE_S, PING_S = 2, 1.0
#: What any answer may take, also when the deadline is over: a read of a Redis that is well.
LEAST_S = 0.25

#: Of our own: in a training process the numbers of ``random`` are the user's, who seeded them.
_chance = random.Random()
_until: ContextVar[float | None] = ContextVar("ingest_ledger_until", default=None)


@contextmanager
def until(monotonic: float) -> Iterator[None]:
    """Calls in this block give up at that time of :func:`time.monotonic`, or as early as they would anyway."""
    outer = _until.get()
    token = _until.set(monotonic if outer is None else min(outer, monotonic))
    try:
        yield
    finally:
        _until.reset(token)


def left_s() -> float:
    """Until calls in this block give up; infinite outside of :func:`until`."""
    end = _until.get()
    return math.inf if end is None else max(0.0, end - time.monotonic())


def _left(most: float) -> float:
    end = _until.get()
    return most if end is None else max(LEAST_S, min(most, end - time.monotonic()))


class _Backoff(AbstractBackoff):
    """Exponential, with jitter: below 0.1, 0.2, … 1 s."""

    def compute(self, failures: int) -> float:
        return min(1.0, _chance.random() * 0.05 * 2.0**failures)


class _Budget(Retry):
    """Retries that end with the time, too: making a connection is retried within a call that is retried."""

    def call_with_retry(self, do: Any, fail: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        def failed(error: Exception, *count: Any) -> None:
            fail(error, *count)
            end = _until.get()
            if end is not None and time.monotonic() >= end:
                raise error

        with until(time.monotonic() + CALL_S):
            return super().call_with_retry(do, failed, *args, **kwargs)


class _Timed:
    """Mixed into a connection: its timeouts are never longer than what is left."""

    _sock: Any

    @property
    def socket_timeout(self) -> float:
        return _left(super().socket_timeout or SOCKET_TIMEOUT_S)  # type: ignore[misc]

    @socket_timeout.setter
    def socket_timeout(self, value: float | None) -> None:
        self._socket_timeout = value

    @property
    def socket_connect_timeout(self) -> float:
        return _left(super().socket_connect_timeout or CONNECT_TIMEOUT_S)  # type: ignore[misc]

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, value: float | None) -> None:
        self._socket_connect_timeout = value

    def check_health(self) -> None:
        # Of a network that forgot it no word comes: without this, whoever is first to need it loses SOCKET_TIMEOUT_S.
        with until(time.monotonic() + PING_S):
            super().check_health()  # type: ignore[misc]
        if self._sock is not None:
            self._sock.settimeout(self.socket_timeout)

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        if self._sock is not None:
            self._sock.settimeout(self.socket_timeout)
        super().send_packed_command(command, check_health)  # type: ignore[misc]


def open_redis(settings: Settings, retries: int) -> Any:
    """A client of the ledger's Redis, of the primary where Sentinels watch it. Connects with its first command."""
    how: dict[str, Any] = {
        # RESP2 reads the same from every Redis since 5 and from Valkey. Any, because redis-py's types leave open
        # whether an answer is bytes or text, of RESP2 or RESP3; which it is, is said here.
        "protocol": 2,
        "socket_timeout": SOCKET_TIMEOUT_S,
        "socket_connect_timeout": CONNECT_TIMEOUT_S,
        "socket_keepalive": True,
        "health_check_interval": IDLE_S,
        "retry": _Budget(_Backoff(), retries),
        "retry_on_error": [ConnectionError, TimeoutError],
    }
    client = open_client(settings.ledger_url, **how)
    pool = client.connection_pool
    pool.connection_class = type("Timed", (_Timed, pool.connection_class), {})
    return client
