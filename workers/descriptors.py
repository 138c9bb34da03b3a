"""A process that may open no more files: whatever a client library then says of an origin, it is the node's fault.

Libraries hide it: a host "does not resolve", a database file "cannot be opened", a connection "failed".
"""

from __future__ import annotations

import errno
import os

from ingest.errors import DigestMismatch, FetchError, NodeUnfit, SnapshotLost, SourceChanged, TooLarge
from ingest.store.disk import in_words

_OUT = (errno.EMFILE, errno.ENFILE)
#: So many files a library may want to have open for one thing (SQLite: four); when it says that it cannot, it has
#: closed those that it had.
_AT_ONCE = 8
#: These say what the bytes are, or were: nothing that could not be opened leads to them.
_OF_BYTES = (DigestMismatch, NodeUnfit, SnapshotLost, SourceChanged, TooLarge)


def own_fault(error: FetchError) -> NodeUnfit | None:
    """The error that it is, where this process could open nothing when it came up, or can open next to nothing now."""
    if isinstance(error, _OF_BYTES):
        return None
    number = _named(error) or _tried()
    return NodeUnfit(error.uri, in_words(OSError(number, ""))) if number else None


def raise_own_fault(error: FetchError) -> None:
    """Raise :func:`own_fault`, if it is one."""
    if (found := own_fault(error)) is not None:
        raise found from error


def _named(error: BaseException) -> int | None:
    """The number of such an error among all that this one was made from."""
    pending: list[object] = [error]
    seen = set()
    while pending:
        one = pending.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, OSError) and one.errno in _OUT:
            return one.errno
        if os.strerror(errno.EMFILE) in str(one):  # libraries in Rust have no number to give
            return errno.EMFILE
        pending += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return None


def _tried() -> int | None:
    opened: list[int] = []
    try:
        for _ in range(_AT_ONCE):
            opened.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno if error.errno in _OUT else None
    finally:
        for one in opened:
            os.close(one)
    return None
