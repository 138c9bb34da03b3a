"""The one connection to the ledger's Redis, and the scripts that run there. What the scripts mean is in ``jobs`` and
``work``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any

import redis
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import AuthenticationError, ConnectionError, NoScriptError, RedisError, TimeoutError
from redis.retry import Retry

from ingest.errors import LedgerUnavailable
from ingest.settings import Settings, redact

# Below the lease, so that a renewal that hangs on a dead connection leaves time for another one.
SOCKET_TIMEOUT_S = 5.0
CONNECT_TIMEOUT_S = 3.0


@cache
def _source(name: str) -> str:
    here = files("ingest.ledger")
    return (here / "common.lua").read_text() + (here / f"{name}.lua").read_text()


class Ledger:
    """State in Redis. Every transition is one script, retried on a lost connection: each tells a repeated call from a
    new one.

    Raises :class:`LedgerUnavailable` when Redis cannot be reached, refuses the password, or is read-only.
    """

    def __init__(self, settings: Settings, *, retries: int = 3) -> None:
        self.settings = settings
        self.url = redact(settings.ledger_url)
        self.prefix = f"{settings.prefix}ledger:"
        # RESP2 reads the same from every Redis since 5 and from Valkey. Any, because redis-py's types leave open
        # whether an answer is bytes or text, of RESP2 or RESP3; which it is, is said here.
        self.redis: Any = redis.Redis.from_url(
            settings.ledger_url,
            protocol=2,
            socket_timeout=SOCKET_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            socket_keepalive=True,
            health_check_interval=30,
            retry=Retry(ExponentialWithJitterBackoff(base=0.05, cap=1.0), retries),
            retry_on_error=[ConnectionError, TimeoutError],
        )
        self._scripts: dict[str, Any] = {}

    def run(self, script: str, *args: Any) -> Any:
        """One transition. Numbers and text go in as they are; the answer comes as Redis gives it (bytes, int, list)."""
        with self.translated():
            if script not in self._scripts:
                self._scripts[script] = self.redis.register_script(_source(script))
            return self._scripts[script](args=(self.prefix, *args))

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Errors of redis-py as :class:`LedgerUnavailable`, with the URL less its password."""
        try:
            yield
        except AuthenticationError as error:
            raise LedgerUnavailable(self.url, f"it refuses the user or password ({error})") from error
        except NoScriptError:
            raise
        except (RedisError, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise LedgerUnavailable(self.url, reason) from error

    def key(self, *parts: str) -> str:
        return self.prefix + ":".join(parts)

    def ping(self) -> None:
        with self.translated():
            self.redis.ping()

    def close(self) -> None:
        self.redis.close()


def text(value: bytes | str | None) -> str:
    """A reply as text; what is missing is the empty string."""
    return value.decode() if isinstance(value, bytes) else (value or "")
