"""Parquet: a sample a row, as a dict of Python values; one row group at a time, in batches, so memory stays flat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ingest.dataset.formats.base import Format, damaged
from ingest.dataset.formats.streams import naming

_BATCH_ROWS = 1024


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("reading Parquet needs pyarrow: pip install pyarrow") from error
    return pyarrow, pyarrow.parquet


def read(path: Path, source: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """``columns`` selects (``"a"``, or ``"a.b"`` inside a struct); None reads all of them."""
    pa, pq = _pyarrow()
    with naming(path, source):
        try:
            file = pq.ParquetFile(path, memory_map=False)
        except pa.ArrowException as error:
            raise damaged(path, source, "footer", error) from error
        with file:
            _check(path, source, columns, file)
            for group in range(file.num_row_groups):
                yield from _rows(pa, path, source, columns, file, group)


def _check(path: Path, source: str, columns: Sequence[str] | None, file: Any) -> None:
    """pyarrow leaves a column that is not there out without a word."""
    names = set(file.schema_arrow.names)
    for column in columns or ():
        if column not in names and column.partition(".")[0] not in names:
            raise damaged(path, source, f"column {column!r}", f"not there; it has {', '.join(sorted(names))}")


def _rows(
    pa: Any, path: Path, source: str, columns: Sequence[str] | None, file: Any, group: int
) -> Iterator[dict[str, Any]]:
    # One thread: DataLoader workers are the parallelism, and Arrow's pool would be started in each of them.
    wanted = list(columns) if columns is not None else None
    batches = file.iter_batches(batch_size=_BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False)
    row = 0
    while True:
        try:
            batch = next(batches, None)
            rows = batch.to_pylist() if batch is not None else []
        except (pa.ArrowException, OSError, ValueError) as error:
            raise damaged(path, source, f"row group {group}, row {row} or after", error) from error
        if batch is None:
            return
        row += len(rows)
        yield from rows


def count(path: Path) -> int:
    pa, pq = _pyarrow()
    with naming(path, path.name):
        try:
            return int(pq.read_metadata(path, memory_map=False).num_rows)
        except pa.ArrowException as error:
            raise damaged(path, path.name, "footer", error) from error


FORMAT = Format("parquet", (".parquet", ".pq"), read, count)
