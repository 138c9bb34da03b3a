"""Arrow: files (also Feather version 2) and streams of record batches, mapped into memory: a row a sample, as a dict.

What is compressed inside (lz4, zstd) is decoded a batch at a time; what is not is read where it lies.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ingest.dataset.formats.base import Format, damaged
from ingest.dataset.formats.mapped import Mapped, Starts, map_file
from ingest.dataset.formats.streams import naming
from ingest.dataset.formats.tables import Recent, Table, arrow, select

_MAGIC = b"ARROW1\0\0"  # a file is this, a stream, and where its batches are (Arrow columnar format, "IPC File Format")
_KEPT_BYTES = 32 << 20  # of batches that were decoded; a larger one goes into a file without a name


class _Batch(NamedTuple):
    rows: int
    compressed: bool


class Arrow(Table):
    """``columns`` selects. A batch is looked over before it is read: what is damaged is an error, and no crash."""

    def __init__(self, path: Path, source: str, columns: Sequence[str] | None) -> None:
        pa = arrow("Arrow")
        buffer = _mapped(path, source)
        self._found = _walk(path, source, buffer)
        self._starts = Starts(batch.rows for batch in self._found)
        super().__init__(path, source, self._starts.rows, buffer.size // max(1, self._starts.rows))
        self._checked: set[int] = set()
        self._large: dict[int, Mapped] = {}
        self._recent = Recent[int, Any](_KEPT_BYTES, lambda batch: int(batch.nbytes))
        try:
            names = _opened(buffer, None).schema.names
            self._columns = select(path, source, columns, names)
            fields = None if columns is None else [names.index(column) for column in self._columns]
            self._reader: Any = _opened(buffer, fields)
            if not _is_file(buffer):
                self._reader = self._of_stream()
        except pa.ArrowException as error:
            raise damaged(path, source, "its schema", error) from error

    def find(self, number: int) -> tuple[int, Any]:
        at = self._starts.batch_of(number)
        start = self._starts[at]
        if isinstance(self._reader, Mapped):
            return self._reader.find(number)
        if at in self._large:
            return start, self._large[at].find(0)[1]
        batch = self._recent.get(at, self._batch)
        if self._found[at].compressed and batch.nbytes > _KEPT_BYTES:
            self._large[at] = Mapped(self.path, self.source, [batch])
            self._recent.clear()
        return start, batch

    def close(self) -> None:
        self._recent.clear()
        self._large.clear()
        self._reader = None

    def _of_stream(self) -> Any:
        """A stream can be read from its start only: what lies there plain is pointed at, else all is written so."""
        batches = self._checked_batches()
        if any(batch.compressed for batch in self._found):
            return Mapped(self.path, self.source, batches)
        return list(batches)

    def _checked_batches(self) -> Iterator[Any]:
        for at in range(len(self._found)):
            yield self._check(at, self._reader.read_next_batch)

    def _batch(self, at: int) -> Any:
        if isinstance(self._reader, list):
            return self._reader[at]
        return self._check(at, lambda: self._reader.get_batch(at))

    def _check(self, at: int, read: Any) -> Any:
        try:
            batch = read()
            if at not in self._checked:
                batch.validate(full=True)
                self._checked.add(at)
            if batch.num_rows != self._found[at].rows:
                raise ValueError(f"{batch.num_rows} rows where there should be {self._found[at].rows}")
        except (arrow("Arrow").ArrowException, OSError, ValueError) as error:
            raise damaged(self.path, self.source, f"record batch {at}", error) from error
        return batch.select(self._columns)


def _mapped(path: Path, source: str) -> Any:
    with naming(path, source), open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise damaged(path, source, "its start", "an empty file")
        return map_file(file)


def _is_file(buffer: Any) -> bool:
    return bool(buffer.slice(0, len(_MAGIC)).to_pybytes() == _MAGIC)


def _opened(buffer: Any, fields: list[int] | None) -> Any:
    ipc = arrow("Arrow").ipc
    options = ipc.IpcReadOptions(use_threads=False, included_fields=fields)
    return (ipc.open_file if _is_file(buffer) else ipc.open_stream)(buffer, options=options)


def _walk(path: Path, source: str, buffer: Any) -> list[_Batch]:
    """The record batches of a file or stream, from what is said of them: none is read."""
    pa = arrow("Arrow")
    found: list[_Batch] = []
    try:
        # A file has as many as its end says: nothing need stand between them and that.
        most = _opened(buffer, None).num_record_batches if _is_file(buffer) else None
        messages = pa.BufferReader(buffer.slice(len(_MAGIC) if _is_file(buffer) else 0))
        while most is None or len(found) < most:
            message = pa.ipc.read_message(messages)
            if message.type == "record batch":
                found.append(_described(message.metadata.to_pybytes()))
    except EOFError:
        if most is not None:
            raise damaged(
                path, source, f"record batch {len(found)}", f"there are no more, and it says {most}"
            ) from None
    except (pa.ArrowException, OSError, ValueError, struct.error) as error:
        raise damaged(path, source, f"record batch {len(found)}", error) from error
    return found


def _described(message: bytes) -> _Batch:
    """Of Message its field 2, the RecordBatch, and of that fields 0 and 3 (format/Message.fbs)."""
    (root,) = struct.unpack_from("<I", message)
    at = _field(message, root, 2)
    batch = at + struct.unpack_from("<I", message, at)[0]
    length = _field(message, batch, 0)
    return _Batch(struct.unpack_from("<q", message, length)[0] if length else 0, bool(_field(message, batch, 3)))


def _field(data: bytes, table: int, number: int) -> int:
    """Where a field of a FlatBuffers table is; 0 where it is left out."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    slot = 4 + 2 * number
    if slot >= struct.unpack_from("<H", data, vtable)[0]:
        return 0
    offset = struct.unpack_from("<H", data, vtable + slot)[0]
    return table + int(offset) if offset else 0


def count(path: Path) -> int:
    return sum(batch.rows for batch in _walk(path, path.name, _mapped(path, path.name)))


FORMAT = Format("arrow", (".arrow", ".feather", ".ipc"), Arrow, count)
