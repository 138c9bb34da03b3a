"""Where things lie in a store, and the record beside every file. Paths only; nothing here fetches or decides.

STORE_ID                                   the store's identity, a UUID
data/<kk>/<key>/<version>/<name>           a published file; <key> is made by Store.key, <kk> its first two digits
data/<kk>/<key>/<version>/.<name>.index    where the samples of a tar are
data/<kk>/<key>/<version>/.<name>.checked  that it was compared with its digest, and on which machine
data/<kk>/<key>/<version>.json             its record; its mtime is when the origin last confirmed it
manifests/<job>/<n>.json                   the lasting record of a shard
scratch/                                   files in the making; partial ones have a journal beside them
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.errors import StoreError
from ingest.record import Record


@dataclass(frozen=True)
class Piece:
    """One file on disk; ``path`` is relative to the store's root. A packed one ``covers`` runs of (first, last) places
    in the list that was packed."""

    path: str
    size: int
    digest: str
    samples: int | None = None
    covers: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class Stored(Record):
    """The record of one version of one source: ``size`` and ``digest`` are of what came from the origin.

    ``path`` (relative to the store's root) and ``samples`` are of the file that it is; a source that became several
    files, or others than came, has ``pieces`` instead. ``mirrors`` are where bytes of it came from beside ``uri``.
    ``validated`` is not written but read from the record's mtime (seconds since 1970).
    """

    uri: str
    path: str
    size: int
    digest: str
    version: str
    connection: str | None = None
    validator: str | None = None
    samples: int | None = None
    digests: tuple[str, ...] = ()
    pieces: tuple[Mapping[str, Any], ...] = ()
    mirrors: tuple[str, ...] = ()
    validated: float = 0.0

    @property
    def outputs(self) -> list[Piece]:
        """The files on disk."""
        if self.path:
            return [Piece(self.path, self.size, self.digest, self.samples)]
        return [Piece(**piece) for piece in self.pieces]

    def has_digest(self, digest: str) -> bool:
        return digest == self.digest or digest in self.digests


def version_dir(version: str) -> str:
    """A version (ETag, version id, digest) as a directory name."""
    return hashlib.sha256(version.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def source_dir(root: Path, key: str) -> Path:
    return Path(f"{root}/data/{key[:2]}/{key}")


def folder_of(root: Path, path: str) -> Path:
    """Where the version lies that a file (by its path relative to the root) is of."""
    return Path(f"{root}/{'/'.join(path.split('/', 4)[:4])}")


def name_of(path: str) -> str:
    """What a file (by its path relative to the root) is called, below the folder of its version."""
    return path.split("/", 4)[4]


def scan(directory: Path) -> list[Path]:
    """What is in a folder, in any order; nothing where there is none."""
    try:
        return [Path(entry.path) for entry in os.scandir(directory)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def write_atomic(path: Path, data: bytes, *, scratch: Path, fsync: bool) -> None:
    """Replace ``path`` by ``data`` in one step; two writers at once leave one of the two, whole. ``scratch`` is where a
    writer that is killed leaves its half: a folder that is swept, of the same filesystem."""
    temporary = scratch / f"{path.name}.{os.getpid()}.{os.urandom(4).hex()}"
    try:
        with open(temporary, "wb") as f:
            f.write(data)
            if fsync:
                f.flush()
                os.fsync(f.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise


def sync_path(path: Path) -> None:
    """Make a file, or the names in a directory, durable, where the filesystem can."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_filesystem(path: Path) -> bool:
    """Make all durable that was written to the filesystem of ``path`` (syncfs(2)). False where there is no such call.
    Raises OSError where something could not be written."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    if function is None:
        return False
    fd = os.open(path, os.O_RDONLY)
    try:
        if function(fd) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
    finally:
        os.close(fd)
    return True


def read_record(path: Path | str) -> Stored | None:
    """A record, or None where it is damaged or gone: then the file counts as not there, and is fetched again."""
    try:
        with open(path, "rb") as f:
            data: dict[str, Any] = json.loads(f.read())
            validated = os.fstat(f.fileno()).st_mtime
        found = Stored.from_json({**data, "validated": validated})
        outputs = found.outputs
    except (OSError, ValueError, TypeError):
        return None
    texts = [found.uri, found.digest, found.version]
    sizes = [found.size]
    for piece in outputs:
        texts += [piece.path, piece.digest]
        sizes.append(piece.size)
    good = all(isinstance(t, str) for t in texts) and all(isinstance(n, int) for n in sizes)
    return found if good and outputs else None


def inside(root: Path, relative: str) -> Path:
    """``root / relative``, refusing what would leave the root: a path from the ledger is not to be trusted.

    Raises :class:`StoreError`.
    """
    parts = relative.split("/")
    if relative.startswith("/") or ".." in parts or not set(parts) - {"", "."}:
        raise StoreError(relative, "is not a path inside a store")
    at = str(root)
    for part in parts:
        at = f"{at}/{part}"
        # The data directory holds real files only; a link that somebody put there could lead anywhere.
        if os.path.islink(at):
            if not os.path.realpath(root / relative).startswith(os.path.realpath(root) + os.sep):
                raise StoreError(relative, f"leads out of the store {root}")
            break
    return root / relative
