"""Every driver's errors as ours, once. The database's own first line is passed on; passwords and statements are not."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded

from ingest.errors import (
    AccessDenied,
    BadResponse,
    ConnectionLost,
    FetchError,
    FetchTimeout,
    MissingExtra,
    NotFound,
    OriginUnavailable,
    SnapshotLost,
)
from workers.fetchers.base import Context
from workers.fetchers.sql.databases.moments import MomentPast

#: What brings a driver: by the name of its module, or else.
EXTRAS, EXTRA = {"pymysql": "ingest[mysql]"}, "ingest[sql]"

#: SQLSTATE (or its class, the first two characters) → error; the longer one wins. PostgreSQL documentation, appendix A.
_STATES: dict[str, type[FetchError]] = {
    "08": ConnectionLost,
    "28": AccessDenied,
    "42501": AccessDenied,
    "3D": NotFound,
    "3F": NotFound,
    "42P01": NotFound,
    "42S02": NotFound,
    "42S22": NotFound,
    "42703": NotFound,
    "57014": FetchTimeout,
    "57": OriginUnavailable,
    "53": OriginUnavailable,
    "40": OriginUnavailable,
    "55P03": OriginUnavailable,
    "58": OriginUnavailable,
}
#: MySQL and MariaDB error numbers; the state is HY000 for most of them.
_NUMBERS: dict[int, type[FetchError]] = {
    **dict.fromkeys((1044, 1045, 1142, 1143, 1227, 1370, 1698), AccessDenied),
    **dict.fromkeys((1158, 1159, 1160, 1161, 1927, 2002, 2003, 2005, 2006, 2013, 2055), ConnectionLost),
    **dict.fromkeys((1049, 1051, 1054, 1109, 1146), NotFound),
    **dict.fromkeys((1021, 1040, 1053, 1114, 1203, 1205, 1213, 1412), OriginUnavailable),
    **dict.fromkeys((1317, 1969, 3024), FetchTimeout),
}
#: Where there is no code, the words; the first that is found decides. libpq, SQLite and a few others.
_WORDS: tuple[tuple[str, type[FetchError]], ...] = (
    (r"statement timeout|interrupted|timeout expired|timed out", FetchTimeout),
    (
        r"password authentication failed|no pg_hba\.conf|authentication failed|no password supplied|access denied",
        AccessDenied,
    ),
    (r"role .* does not exist|permission denied|not authorized", AccessDenied),
    (
        r"database .* does not exist|no such (table|column|view)|unable to open database file|unknown (column|table)",
        NotFound,
    ),
    (
        r"too many (clients|connections)|starting up|shutting down|is locked|is busy|recovery mode|disk is full"
        r"|no space left|deadlock detected|could not serialize|canceling statement|administrator command",
        OriginUnavailable,
    ),
    (
        r"connection refused|could not translate host|name or service|server closed|connection reset|broken pipe",
        ConnectionLost,
    ),
    (
        r"no such file or directory|failed to connect|could not connect|terminating connection|network|eof detected",
        ConnectionLost,
    ),
)
_SERVER_LINE = re.compile(r"(?:ERROR|FATAL|PANIC):\s+(.+)")
_PREFIX = re.compile(
    r"^(?:[A-Z_]+: )?(?:\[(?:libpq|SQLite)\] )?(?:Failed to \w+(?: \w+)?: )?(?:failed to open '[^']*': )?"
)


class Refused(Exception):
    """What no driver says: rows that a file could not hold as they are. The text names the column and what to do."""


@contextmanager
def edge(uri: str, context: Context) -> Iterator[None]:
    """Around every call of a driver, and nothing else."""
    try:
        yield
    except (FetchError, SoftTimeLimitExceeded):
        raise
    except Exception as error:  # each driver has a tree of its own, and Arrow's streams raise OSError
        raise translate(uri, error, context) from error


def translate(uri: str, error: BaseException, context: Context) -> FetchError:
    if isinstance(error, MomentPast):
        return SnapshotLost(uri, _clean(_first_line(str(error)), context))
    if isinstance(error, ImportError) or type(error).__name__ == "NoSuchModuleError":
        return MissingExtra(uri, EXTRAS.get(getattr(error, "name", None) or "", EXTRA))
    original = getattr(error, "orig", None) or error  # SQLAlchemy wraps the driver's
    text = _text(original)
    line = _clean(_first_line(text), context)
    found = _class_of(original, text)
    if found is FetchTimeout:
        limit_s = context.settings.limits.soft_s
        return FetchTimeout(uri, f"{line} (the limit is {limit_s:g} s; ask for more partitions)")
    if found is AccessDenied:
        name = context.connection.name if context.connection else "NAME"
        return AccessDenied(uri, f"{line}; check user and password in [connections.{name}] on the data node")
    return found(uri, line)


def _class_of(error: BaseException, text: str) -> type[FetchError]:
    if isinstance(error, Refused):
        return BadResponse
    if (number := _number(error)) in _NUMBERS:  # before the state, which is HY000 for most of them
        return _NUMBERS[number]
    state = getattr(error, "sqlstate", None) or getattr(error, "pgcode", None)
    if isinstance(state, str) and state.strip("\0") and state != "HY000":
        return _STATES.get(state) or _STATES.get(state[:2]) or BadResponse
    for words, found in _WORDS:
        if re.search(words, text, re.IGNORECASE):
            return found
    return BadResponse


def _text(error: BaseException) -> str:
    """PyMySQL's errors are a number and a text."""
    return str(error.args[1]) if _number(error) and len(error.args) > 1 else str(error)


def _number(error: Any) -> int:
    args = getattr(error, "args", ())
    return args[0] if args and isinstance(args[0], int) else 0


def _first_line(text: str) -> str:
    """The line in which the database says what is wrong, without what the drivers put around it."""
    if said := _SERVER_LINE.search(text):
        return said[1].strip()
    return _PREFIX.sub("", text.strip()).splitlines()[0][:300] if text.strip() else "the driver gave no reason"


def _clean(line: str, context: Context) -> str:
    """Without any secret of the profile, should a driver ever quote its connection string."""
    line = re.sub(r"(://[^:/@\s]*):[^@\s]*@", r"\1:***@", line)
    password = str(context.value("password") or "")
    return line.replace(password, "***") if len(password) > 3 else line
