"""One ``ingest up`` per data directory: who has it, and where its Redis and its dashboard are."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path

from ingest.errors import ServiceFailed

_FILE = "up.json"


@contextlib.contextmanager
def claimed(data: Path, **facts: str) -> Iterator[None]:
    """Have ``data`` for the length of the block; ``facts`` are what the next one to try is told.

    Raises :class:`ServiceFailed` when another process has it. The kernel ends a claim with its process, so none is
    ever stale. A lock is enough, although some network filesystems grant it to everybody: what it guards best is a
    plain mistake, and two services on one port find each other in any case.
    """
    try:
        data.mkdir(parents=True, exist_ok=True)
        file = (data / _FILE).open("ab", buffering=0)
    except OSError as error:
        raise _unwritable(data, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ServiceFailed("up", _running(data)) from error
        try:
            if file.tell():  # what was left by one that was killed
                file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), **facts}).encode())
        except OSError as error:
            raise _unwritable(data, error) from error
        yield
        file.truncate(0)


def holder(data: Path) -> str | None:
    """What to say of the process that has ``data``; None when nobody has."""
    try:
        with (data / _FILE).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return None
    except OSError:
        return _running(data)
    return None


def _unwritable(data: Path, error: OSError) -> ServiceFailed:
    return ServiceFailed("up", f"cannot write to {data}: {error.strerror}; give another directory with --data")


def _running(data: Path) -> str:
    """A sentence for the user who started a second one."""
    try:
        facts = json.loads((data / _FILE).read_text())
        told = ", ".join(f"{key} {value}" for key, value in facts.items())
    except (OSError, ValueError):
        told = "it is just starting"
    return f"it is running already with {data} ({told}); use that one, or stop it first"
