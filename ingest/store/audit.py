"""What a store holds and whether it is whole: for ``ingest store ls | du | verify``, and the sweeping of what
attempts left."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ingest.errors import StoreError
from ingest.store.evict import now_ns, records_of
from ingest.store.layout import Piece, Stored, folder_of, inside, read_record, scan
from ingest.store.store import Store


@dataclass(frozen=True)
class Usage:
    """``files`` and ``bytes`` are published ones; ``scratch_bytes`` is in the making; ``free_bytes`` is the
    filesystem's."""

    files: int
    bytes: int
    scratch_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Damage:
    """A file that is not what its record says."""

    path: str
    uri: str
    reason: str


def records(store: Store) -> Iterator[tuple[Path, Stored]]:
    """Every record of the store with its path, in no particular order."""
    for bucket in scan(store.root / "data"):
        for source in scan(bucket):
            for path in scan(source):
                if path.suffix == ".json" and (record := read_record(path)) is not None:
                    yield path, record


def usage(store: Store) -> Usage:
    files = total = 0
    for _, record in records(store):
        outputs = record.outputs
        files, total = files + len(outputs), total + sum(piece.size for piece in outputs)
    scratch = 0
    for path in scan(store.root / "scratch"):
        with suppress(FileNotFoundError):
            scratch += path.stat().st_size
    return Usage(files, total, scratch, store.free_bytes())


def verify(store: Store, *, remove: bool) -> Iterator[Damage]:
    """Read every file again and compare size and sha256 with its record. ``remove`` takes what is damaged out of the
    store, so that it is fetched again when next asked for."""
    for record_path, record in records(store):
        damaged = [(piece, reason) for piece in record.outputs if (reason := _examine(store, piece)) is not None]
        if damaged and remove:
            # The record first: without it the file is not there for anybody.
            with suppress(FileNotFoundError):
                record_path.unlink()
            for piece, _ in damaged:
                with suppress(FileNotFoundError, StoreError):
                    inside(store.root, piece.path).unlink()
        yield from (Damage(piece.path, record.uri, reason) for piece, reason in damaged)


def check(store: Store, path: str, size: int, digest: str) -> None:
    """Read a published file (``path`` relative to the root) and compare it with its digest, if nobody has on this
    machine since it was written: that is noted beside it. Raises :class:`StoreError` for one that is damaged, which is
    in the store no more then."""
    file = inside(store.root, path)
    note = file.with_name(f".{file.name}.checked")
    seen = ""
    with suppress(OSError):
        seen = _sight(file)
        if note.read_text() == seen:
            return
    try:
        reason = _compare(store, Piece(path, size, digest))
    except OSError as error:  # no word on the file: too many are open, the mount hangs, it is not this user's
        raise StoreError(str(file), f"cannot be read: {error}") from error
    if reason is None:
        with suppress(OSError):
            note.write_text(seen)
        return
    with suppress(OSError):
        if _sight(file) != seen:  # another reader found it damaged, too, and was sooner: this is the new one
            raise StoreError(str(file), f"{reason}, and was replaced meanwhile")
    # The record first: without it the file is not there for anybody.
    with suppress(OSError):
        for record in records_of(store, folder_of(store.root, path)):
            record.unlink()
        file.unlink()
    raise StoreError(str(file), f"{reason}; it was taken out of the store")


def _sight(file: Path) -> str:
    """What is another if the file was written since, or by another machine."""
    found = file.stat()
    return f"{platform.node()} {found.st_size} {found.st_mtime_ns} {found.st_ino}"


def _examine(store: Store, piece: Piece) -> str | None:
    try:
        return _compare(store, piece)
    except (OSError, StoreError) as error:
        return f"cannot be read: {error}"


def _compare(store: Store, piece: Piece) -> str | None:
    """Raises OSError or :class:`StoreError` where it cannot be read."""
    try:
        path = inside(store.root, piece.path)
        size = path.stat().st_size
        if size != piece.size:
            return f"has {size} bytes, not {piece.size}"
        with open(path, "rb") as f:
            found = f"sha256:{hashlib.file_digest(f, 'sha256').hexdigest()}"
        return None if found == piece.digest else f"has digest {found}, not {piece.digest}"
    except FileNotFoundError:
        return "is missing"


def sweep_scratch(store: Store) -> int:
    """Remove scratch files that nobody touched for ``scratch_ttl_s``, by the filesystem's own clock: that of this
    machine may be hours ahead of who writes them. Returns how many went. Raises OSError where the store cannot be
    written."""
    limit = now_ns(store) - store.limits.scratch_ttl_s * 1e9
    gone = 0
    for path in scan(store.root / "scratch"):
        with suppress(OSError):  # what cannot go keeps nothing else
            if path.stat().st_mtime_ns < limit:
                path.unlink()
                gone += 1
    return gone
