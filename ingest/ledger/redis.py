"""The one connection to the ledger's Redis, and the scripts that run there. What the scripts mean is in ``jobs`` and
``work``."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

from redis.exceptions import AuthenticationError, NoPermissionError, NoScriptError, RedisError
from redis.sentinel import MasterNotFoundError

from ingest.errors import LedgerUnavailable
from ingest.ledger.connect import open_redis
from ingest.settings import Settings, redact

#: What Redis says when it is there and refuses, as it is within a longer sentence of a script that failed: why, and
#: what to do about it.
REFUSALS = (
    ("OOM ", "Redis is out of memory", "raise its maxmemory, or let old jobs expire sooner (keep_s)"),
    ("READONLY ", "this Redis is a read-only replica", "point INGEST_REDIS_URL at the primary"),
    ("MISCONF ", "Redis cannot write its files", "make room on its disk; its log says more"),
    ("NOREPLICAS ", "Redis has too few replicas to write", "bring them back, or lower min-replicas-to-write"),
    ("max number of clients", "Redis has no connection left for us", "raise its maxclients"),
    ("LOADING ", "Redis is still reading its files", "wait"),
    ("BUSY ", "Redis is busy with somebody's script", "see SCRIPT KILL, if it does not end"),
    ("NOPERM ", "this user may not use the ledger", "see the rights in docs/operations.md"),
)


#: What every script begins with, in this order: each builds on those before it.
SHARED = ("common", "due", "space", "units", "pictures", "submit")


@cache
def _source(name: str) -> str:
    here = files("ingest.ledger")
    return "".join((here / f"{part}.lua").read_text() for part in (*SHARED, name))


class Clock(NamedTuple):
    """The ledger's time in ms since 1970, which never goes back, and by how much it is ahead of Redis's, which did."""

    now_ms: int
    ahead_ms: int


class Ledger:
    """State in Redis. Every transition is one script, retried on a lost connection: each tells a repeated call from a
    new one.

    Raises :class:`LedgerUnavailable` when Redis cannot be reached, refuses the password, is out of memory, or is
    read-only.
    """

    def __init__(self, settings: Settings, *, retries: int = 3) -> None:
        self.settings = settings
        self.url = redact(settings.ledger_url)
        self.prefix = f"{settings.prefix}ledger:"
        self.redis = open_redis(settings, retries)
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
        except NoPermissionError as error:
            raise self._refused(error) from error
        except AuthenticationError as error:
            cure = "put the right ones into INGEST_REDIS_URL"
            raise LedgerUnavailable(self.url, f"it refuses the user or password ({error})", cure) from error
        except NoScriptError:
            raise
        except (RedisError, OSError) as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> LedgerUnavailable:
        if isinstance(error, MasterNotFoundError):  # redis-py's own words are a page of its internals
            return LedgerUnavailable(self.url, "no Sentinel knows a primary of that name now", "see SENTINEL MASTERS")
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        # redis-py takes the first word of an answer away where that word is an error of its own.
        whole = f"{_WORDS.get(type(error).__name__, '')}{said}"
        for mark, why, cure in REFUSALS:
            if mark in whole:
                if mark == "READONLY ":
                    # It was the primary when we connected: ask again who is. Those in use are other threads'.
                    self.redis.connection_pool.disconnect(inuse_connections=False)
                return LedgerUnavailable(self.url, f"{why} ({said})", cure)
        return LedgerUnavailable(self.url, said)

    def clock(self) -> Clock:
        """The only time that the ledger goes by; ``common.lua`` keeps it."""
        with self.translated():
            pipe = self.redis.pipeline(transaction=False)
            self.ask_clock(pipe)
            return clock_of(*pipe.execute())

    def ask_clock(self, pipe: Any) -> None:
        """The clock as two commands among others; :func:`clock_of` reads what they give."""
        pipe.time()
        pipe.get(self.key("clock"))

    def now_ms(self) -> int:
        return self.clock().now_ms

    def key(self, *parts: str) -> str:
        return self.prefix + ":".join(parts)

    def ping(self) -> None:
        with self.translated():
            self.redis.ping()

    def close(self) -> None:
        self.redis.close()


def clock_of(time: tuple[int, int], kept: bytes | None) -> Clock:
    """See :meth:`Ledger.ask_clock`."""
    last, ahead = map(int, (kept or b"0 0").split())
    return Clock(max(last, int(time[0]) * 1000 + int(time[1]) // 1000 + ahead), ahead)


_WORDS = {
    "OutOfMemoryError": "OOM ",
    "ReadOnlyError": "READONLY ",
    "BusyLoadingError": "LOADING ",
    "NoPermissionError": "NOPERM ",
}


def text(value: bytes | str | None) -> str:
    """A reply as text; what is missing is the empty string."""
    return value.decode() if isinstance(value, bytes) else (value or "")
