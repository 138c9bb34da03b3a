"""The moment that a database is read at: how each kind lets partitions that are read apart see one and the same.

``held``: a transaction that stays open exports its snapshot, and every partition imports it. ``file``: the state of the
file can be recognised, and a partition that finds another one says so. Who asks for moments: ``workers.snapshots``.
"""

from __future__ import annotations

import os

#: SQLAlchemy's name of a database → how. With any other, partitions that are read apart are of different moments.
KINDS = {"postgresql": "held", "sqlite": "file"}

#: Where SQLite keeps what changes with every transaction (sqlite.org/fileformat2.html §1.3, walformat.html §2.1): the
#: change counter and size in the file's header, and the first copy of the header of the index of its write-ahead log.
_COUNTERS, _LOG_INDEX = slice(24, 32), slice(0, 48)


class MomentPast(Exception):
    """What was to be read at a certain moment cannot be any more. The text says why."""


class FileState:
    """What tells this state of an SQLite file from every other; two that differ may still have the same rows.

    What it has opened stays open until it is closed, after all connections: as soon as a process closes any descriptor
    of a file, it loses every lock that it has on it (fcntl(2), POSIX), and others may write what is just being read.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._open: dict[str, int] = {}

    def now(self) -> str:
        """With a write-ahead log it needs a connection to be open, which keeps the log's index beside the file. Raises
        OSError."""
        header, log = self._read("", 100), self._read("-shm", _LOG_INDEX.stop)
        size = os.fstat(self._open[""]).st_size
        return f"{header[_COUNTERS].hex()}-{size}-{log.hex() if log.strip(bytes(1)) else ''}"

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    def _read(self, suffix: str, size: int) -> bytes:
        if suffix not in self._open:
            try:
                self._open[suffix] = os.open(self._path + suffix, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                if suffix:
                    return b""
                raise
        return os.pread(self._open[suffix], size, 0)
