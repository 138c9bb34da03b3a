"""Parquet: a sample a row, as a dict of Python values. A row group is decoded batch by batch, so memory stays flat
however large it is. Read forwards, it is decoded once; in whatever order, a few times: then it is kept on disk."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ingest.dataset.formats.base import Format, damaged, no_column
from ingest.dataset.formats.mapped import Mapped, Starts
from ingest.dataset.formats.streams import naming
from ingest.dataset.formats.tables import Recent, Table, arrow, select
from ingest.errors import DataError

_BATCH_BYTES = 512 << 10
_BATCH_ROWS = 8192
_READ_BYTES = 1 << 20  # of a column at once: without it, a column of a row group is read as a whole
_FORWARD_BYTES = 4 << 20  # kept of what was decoded, while it is read forwards only
_GROUP_BYTES = 16 << 20  # and kept of one row group after that
_KEPT_BYTES = 24 << 20  # of all of them


class Parquet(Table):
    """``columns`` selects (``"a"``, or ``"a.b"`` inside a struct); None reads all of them."""

    def __init__(self, path: Path, source: str, columns: Sequence[str] | None) -> None:
        pa = arrow("Parquet")
        with naming(path, source):
            try:
                # One thread, here and below: DataLoader workers are the parallelism.
                file = pa.parquet.ParquetFile(path, memory_map=False, buffer_size=_READ_BYTES)
            except pa.ArrowException as error:
                raise damaged(path, source, "footer", error) from error
        try:
            self._file, self._columns = file, list(columns) if columns is not None else None
            _check(path, source, columns, file.schema_arrow.names)
            meta = file.metadata
            self._starts = Starts(meta.row_group(group).num_rows for group in range(meta.num_row_groups))
            self._groups = Recent[int, _Group](0, lambda group: group.size)
            self._seen: set[int] = set()
            self._on_disk: dict[int, _Group] = {}
            self._ahead = 0  # nothing was read yet from that row on
            super().__init__(path, source, self._starts.rows, self._row_bytes(0))
        except BaseException:
            file.close()
            raise

    def find(self, number: int) -> tuple[int, Any]:
        group = self._starts.batch_of(number)
        start = self._starts[group]
        if start < number < self._ahead:
            self._groups.most = _KEPT_BYTES  # they come in any order; from the start of a group it may be another epoch
        found = self._on_disk.get(group) or self._groups.get(group, self._group)
        first, batch = found.find(number - start, self._groups.most > 0)
        if found.on_disk:
            self._on_disk[group] = found
        self._ahead = start + first
        return start + first, batch

    def close(self) -> None:
        self._groups.clear()
        self._on_disk.clear()
        self._file.close()

    def _group(self, group: int) -> _Group:
        rows = self._starts[group + 1] - self._starts[group]
        made = _Group(self.path, self.source, rows, lambda: self._decoded(group))
        if self._groups.most:
            if group in self._seen:
                made.to_disk()
            self._seen.add(group)
        return made

    def _decoded(self, group: int) -> Iterator[Any]:
        """The batches of a row group, as many rows as its footer says."""
        rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // max(1, self._row_bytes(group))))
        left = self._starts[group + 1] - self._starts[group]
        errors = arrow("Parquet").ArrowException, OSError, ValueError
        try:
            yield from self._batches(group, rows, left)
        except errors as error:
            raise damaged(self.path, self.source, f"row group {group}", error) from error

    def _batches(self, group: int, rows: int, left: int) -> Iterator[Any]:
        for batch in self._file.iter_batches(rows, row_groups=[group], columns=self._columns, use_threads=False):
            left -= batch.num_rows
            yield batch
        if left:
            raise ValueError(f"{left} rows are missing, or too many if negative")

    def _row_bytes(self, group: int) -> int:
        """About how large a row is before it is decoded, of the columns that are read."""
        if group >= self._file.metadata.num_row_groups:
            return 0
        meta = self._file.metadata.row_group(group)
        wanted = None if self._columns is None else {column.partition(".")[0] for column in self._columns}
        leaves = (meta.column(at) for at in range(meta.num_columns))
        sizes = (
            leaf.total_uncompressed_size
            for leaf in leaves
            if wanted is None or leaf.path_in_schema.partition(".")[0] in wanted
        )
        return int(sum(sizes) // max(1, meta.num_rows))


class _Group:
    """One row group as it is decoded: what came last is kept, ``size`` bytes of it. What is asked for and not kept any
    more is decoded a second time, and then all of the group is kept: in memory, or in a file without a name."""

    def __init__(self, path: Path, source: str, rows: int, decode: Callable[[], Iterator[Any]]) -> None:
        self._path, self._source, self._rows, self._decode = path, source, rows, decode
        self._mapped: Mapped | None = None
        self._error: Exception | None = None  # behind what is decoded, there is nothing more to be had
        self._begin()

    def _begin(self) -> None:
        self._coming = self._decode()
        self._firsts: list[int] = []
        self._batches: list[Any] = []
        self._decoded = self._bytes = self.size = 0

    def find(self, row: int, keep: bool) -> tuple[int, Any]:
        """``keep``: rows before this one may be asked for, too."""
        if self._mapped is None and self._firsts and row < self._firsts[0]:
            large = self._bytes * self._rows > _GROUP_BYTES * self._decoded
            self._begin()
            if large:
                self.to_disk()
        if self._mapped is not None:
            return self._mapped.find(row)
        while row >= self._decoded:
            self._advance(_GROUP_BYTES if keep else _FORWARD_BYTES)
        at = bisect_right(self._firsts, row) - 1
        return self._firsts[at], self._batches[at]

    @property
    def on_disk(self) -> bool:
        return self._mapped is not None

    def to_disk(self) -> None:
        """All of it, decoded, to where it takes no memory."""
        self._mapped = Mapped(self._path, self._source, self._decode())

    def _advance(self, most: int) -> None:
        if self._error is not None:
            raise self._error
        try:
            batch = next(self._coming)
        except DataError as error:
            self._error = error
            raise
        self._firsts.append(self._decoded)
        self._batches.append(batch)
        self._decoded += batch.num_rows
        self._bytes += batch.nbytes
        self.size += batch.nbytes
        if self._decoded == self._rows:
            self._coming = iter(())  # what the decoder holds is not needed any more
        while self.size > most and len(self._batches) > 1:
            self.size -= self._batches[0].nbytes
            del self._firsts[0], self._batches[0]


def _check(path: Path, source: str, columns: Sequence[str] | None, names: Sequence[str]) -> None:
    """pyarrow leaves a column that is not there out without a word."""
    for column in columns or ():
        if column not in names and column.partition(".")[0] not in names:
            raise no_column(path, source, column, set(names))
    outer = None if columns is None else [c if c in names else c.partition(".")[0] for c in columns]
    select(path, source, outer, names)


def count(path: Path) -> int:
    pa = arrow("Parquet")
    with naming(path, path.name):
        try:
            return int(pa.parquet.read_metadata(path, memory_map=False).num_rows)
        except pa.ArrowException as error:
            raise damaged(path, path.name, "footer", error) from error


FORMAT = Format("parquet", (".parquet", ".pq"), Parquet, count)
