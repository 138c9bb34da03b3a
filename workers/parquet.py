"""Arrow batches to Parquet files in scratch, in flat memory: row groups by rows and bytes, another file when one is
full.

What the rows are is not known here.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import PurePath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.errors import TooLarge
from ingest.store.scratch import Scratch

#: A column of more bytes for each row has neither dictionary nor least and greatest value: they would be of no use, and
#: take as much memory again.
_WIDE_BYTES = 1024
#: A row group is closed at this size whatever its rows, so that wide rows do not fill the memory.
ROW_GROUP_BYTES = 32 << 20
#: Files that one may go on in: each is an entry of the job's result.
MOST_FILES = 20_000


class Sink(io.RawIOBase):
    """What pyarrow writes to: the scratch, which counts and hashes on the way and may interrupt us."""

    def __init__(self, scratch: Scratch) -> None:
        super().__init__()
        self._scratch: Scratch | None = scratch

    def leave(self) -> None:
        """Nothing reaches the scratch any more: an interrupted writer still writes a footer when it is collected."""
        self._scratch = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        view = memoryview(data)
        if self._scratch is not None:
            self._scratch.write(view)
        return view.nbytes


class _File:
    """One Parquet file in the making; ``scratch.samples`` is its number of rows. ``first`` is what will be written
    first."""

    def __init__(self, schema: pa.Schema, scratch: Scratch, group_rows: int, first: pa.Table) -> None:
        self.scratch, self._group_rows, self._sink = scratch, group_rows, Sink(scratch)
        narrow = [field for field in schema if first[field.name].nbytes <= _WIDE_BYTES * first.num_rows]
        self._writer = pq.ParquetWriter(
            pa.PythonFile(self._sink, mode="w"), schema, compression="zstd",
            use_dictionary=_leaves(field for field in narrow if _is_worded(field.type)),
            write_statistics=_leaves(narrow),
        )  # fmt: skip
        scratch.samples = 0

    def write(self, group: pa.Table) -> None:
        self._writer.write_table(group, row_group_size=self._group_rows)
        self.scratch.samples = (self.scratch.samples or 0) + group.num_rows

    def close(self) -> None:
        self._writer.close()
        self.leave()

    def leave(self) -> None:
        self._sink.leave()


def write(
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    scratch: Scratch,
    *,
    name: str,
    group_rows: int,
    file_bytes: int,
) -> None:
    """The batches as one Parquet file called ``name``, and as further ones each time a file has reached ``file_bytes``.

    Every file has at least one row group, so that an empty result has its schema. A group is written by another thread
    while the next one is read: the one waits for the database, the other compresses. Raises :class:`TooLarge` for more
    than MOST_FILES files.
    """
    files: list[_File] = []
    pending: Future[None] | None = None
    try:
        with ThreadPoolExecutor(1, "parquet") as other:
            for group in _groups(schema, batches, group_rows):
                if pending:
                    pending.result()  # where it was interrupted, or the disk is full
                if not files:
                    files.append(_File(schema, scratch, group_rows, group))
                elif files[-1].scratch.size >= file_bytes:
                    if len(files) >= MOST_FILES:
                        raise TooLarge(scratch.uri, f"more than {MOST_FILES} files of {file_bytes} bytes each")
                    files[-1].close()
                    piece = scratch.piece(_numbered(name, len(files)))
                    files.append(_File(schema, piece, group_rows, group))
                pending = other.submit(files[-1].write, group)
                if group.nbytes > ROW_GROUP_BYTES:
                    pending.result()  # rather than hold another one of this size
                del group
        if pending:
            pending.result()
        else:
            files.append(_File(schema, scratch, group_rows, schema.empty_table()))
            files[-1].write(schema.empty_table())
        files[-1].close()
    finally:
        for file in files:
            file.leave()


def _leaves(fields: Iterable[pa.Field]) -> list[str]:
    """The paths of Parquet's own columns."""
    found = []
    for field in fields:
        path, kind = field.name, field.type
        while pa.types.is_list(kind):
            path, kind = f"{path}.list.element", kind.value_type
        found.append(path)
    return found


def _is_worded(kind: pa.DataType) -> bool:
    """Whether a dictionary may be worth it. One of numbers or times costs time, and makes them larger."""
    while pa.types.is_list(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_decimal(kind))


def _numbered(name: str, number: int) -> str:
    path = PurePath(name)
    return f"{path.stem}.{number:03}{path.suffix}"


def _groups(schema: pa.Schema, batches: Iterator[pa.RecordBatch], group_rows: int) -> Iterator[pa.Table]:
    """Batches gathered into tables of ``group_rows`` rows, or of fewer when those are large."""
    held: list[pa.RecordBatch] = []
    rows = size = 0
    for batch in batches:
        while batch.num_rows:
            taken = batch.slice(0, group_rows - rows)
            batch = batch.slice(taken.num_rows)
            held.append(taken)
            rows, size = rows + taken.num_rows, size + taken.nbytes
            if rows >= group_rows or size >= ROW_GROUP_BYTES:
                yield pa.Table.from_batches(held, schema)
                held, rows, size = [], 0, 0
    if held:
        yield pa.Table.from_batches(held, schema)
