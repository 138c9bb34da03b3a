"""A data node without its ledger, for tests of what an origin does to a file: its way into a store, what is left."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest import errors
from ingest.model import FileRecord, FileSpec, JobOptions
from ingest.sections import Limits, StoreLimits
from ingest.settings import Settings
from ingest.store import Store
from workers.node import Node
from workers.transfer import Transfer

DATA = hashlib.shake_128(b"data").digest(300_000)
#: Time limits for those who wait to see one pass.
QUICK = Limits(connect_s=0.5, stall_s=1.0)
#: Rows of the table in docs/sources.md that are tests of their own → the error that they end in.
ROWS: dict[str, type[errors.FetchError] | None] = {}


def row(what: str, error: type[errors.FetchError] | None = None) -> Callable[[Any], Any]:
    """Marks a test of what is more than one answer of one server."""
    ROWS[what] = error
    return lambda test: test


class Quiet:
    """A control that never interrupts."""

    def advance(self, size_bytes: int) -> None: ...

    def resumed(self, size_bytes: int) -> None: ...


class Rig:
    """A data node without its ledger: one file's way into a store, tried as often as a case says."""

    def __init__(self, root: Path, *, max_bytes: int = 4 << 20, fresh_s: float = 0, **settings: Any) -> None:
        limits = StoreLimits(root=root / "store", fresh_s=fresh_s, fsync=False, min_free_bytes=0)
        self.store = Store.open(limits)
        node = Node(Settings(store=limits, **settings), self.store, "w")
        self.transfer = Transfer(node, JobOptions(max_bytes=max_bytes), Quiet())  # type: ignore[arg-type]

    def fetch(self, url: str, attempts: int = 1, **fields: Any) -> FileRecord:
        spec = self.transfer.resolve(FileSpec(0, 0, url, **fields))
        for _ in range(attempts - 1):
            try:
                return self._one(spec)
            except errors.TransientFetchError:
                continue
        return self._one(spec)

    def _one(self, spec: FileSpec) -> FileRecord:
        (record,) = self.transfer.fetch(spec)
        return record

    def bytes_of(self, record: FileRecord) -> bytes:
        return self.store.path_of(record.path).read_bytes()

    def left(self, folder: str) -> list[str]:
        return [path.name for path in (self.store.root / folder).rglob("*") if path.is_file()]

    def fails(self, kind: type[errors.FetchError], url: str, says: str = "", attempts: int = 1, **fields: Any) -> Any:
        """The error, which is just of that kind, names the source, and has left nothing behind."""
        with pytest.raises(errors.FetchError) as caught:
            self.fetch(url, attempts, **fields)
        assert type(caught.value) is kind, caught.value
        assert caught.value.uri == url and re.search(says, caught.value.reason), caught.value.reason
        assert self.left("data") == []
        return caught.value

    def gets(self, data: bytes, url: str, attempts: int = 1, **fields: Any) -> FileRecord:
        """The exact bytes, and nothing but them."""
        record = self.fetch(url, attempts, **fields)
        assert self.bytes_of(record) == data
        assert (record.size, record.digest) == (len(data), "sha256:" + hashlib.sha256(data).hexdigest())
        assert self.left("scratch") == [] and len(self.left("data")) == 2
        return record
