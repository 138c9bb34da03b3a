"""The moment that a database is read at: how each kind lets partitions that are read apart see one and the same.

``held``: a transaction that stays open exports its snapshot, and every partition imports it. ``file``: the state of the
file can be recognised, and a partition that finds another one says so. Who asks for moments: ``workers.snapshots``.
"""

from __future__ import annotations

from pathlib import Path

#: SQLAlchemy's name of a database → how. With any other, partitions that are read apart are of different moments.
KINDS = {"postgresql": "held", "sqlite": "file"}

#: Where SQLite keeps what changes with every transaction (sqlite.org/fileformat2.html §1.3, walformat.html §2.1): the
#: change counter and size in the file's header, and the first copy of the header of the index of its write-ahead log.
_COUNTERS, _LOG_INDEX = slice(24, 32), slice(0, 48)


class MomentPast(Exception):
    """What was to be read at a certain moment cannot be any more. The text says why."""


def file_moment(path: str) -> str:
    """What tells this state of an SQLite file from every other; two that differ may still have the same rows.

    With a write-ahead log it needs a connection to be open, which keeps the log's index beside the file.
    """
    with open(path, "rb") as file:
        header = file.read(100)
    try:
        with open(f"{path}-shm", "rb") as file:
            log = file.read(_LOG_INDEX.stop)
    except FileNotFoundError:
        log = b""
    if log.strip(b"\0") == b"":
        log = b""
    return f"{header[_COUNTERS].hex()}-{Path(path).stat().st_size}-{log.hex()}"
