"""What a store holds and whether it is whole: for ``ingest store ls | du | verify``, and the sweeping of what
attempts left."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ingest.errors import StoreError
from ingest.store.layout import Stored, inside, read_record
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
    for bucket in _scan(store.root / "data"):
        for source in _scan(bucket):
            for path in _scan(source):
                if path.suffix == ".json" and (record := read_record(path)) is not None:
                    yield path, record


def usage(store: Store) -> Usage:
    files = total = 0
    for _, record in records(store):
        files, total = files + 1, total + record.size
    scratch = 0
    for path in _scan(store.root / "scratch"):
        with suppress(FileNotFoundError):
            scratch += path.stat().st_size
    return Usage(files, total, scratch, store.free_bytes())


def verify(store: Store, *, remove: bool) -> Iterator[Damage]:
    """Read every file again and compare size and sha256 with its record. ``remove`` takes what is damaged out of the
    store, so that it is fetched again when next asked for."""
    for record_path, record in records(store):
        reason = _examine(store, record)
        if reason is None:
            continue
        if remove:
            # The record first: without it the file is not there for anybody.
            with suppress(FileNotFoundError):
                record_path.unlink()
            with suppress(FileNotFoundError, StoreError):
                inside(store.root, record.path).unlink()
        yield Damage(record.path, record.uri, reason)


def _examine(store: Store, record: Stored) -> str | None:
    try:
        path = inside(store.root, record.path)
        size = path.stat().st_size
        if size != record.size:
            return f"has {size} bytes, not {record.size}"
        with open(path, "rb") as f:
            found = f"sha256:{hashlib.file_digest(f, 'sha256').hexdigest()}"
        return None if found == record.digest else f"has digest {found}, not {record.digest}"
    except FileNotFoundError:
        return "is missing"
    except (OSError, StoreError) as error:
        return f"cannot be read: {error}"


def sweep_scratch(store: Store) -> int:
    """Remove scratch files that nobody touched for ``scratch_ttl_s``. Returns how many went."""
    limit = time.time() - store.limits.scratch_ttl_s
    gone = 0
    for path in _scan(store.root / "scratch"):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime < limit:
                path.unlink()
                gone += 1
    return gone


def _scan(directory: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(directory)]
    except (FileNotFoundError, NotADirectoryError):
        return []
