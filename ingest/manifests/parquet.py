"""Parquet manifests as rows of values, only the columns that are asked for. What the values mean is in ``rows``."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ingest.errors import BadResponse, MissingExtra
from ingest.manifests.marks import Mark, Marks
from ingest.manifests.rows import Row, columns_of, found_columns
from ingest.sources import Manifest

#: Rows in memory at once.
BATCH_ROWS = 8192


def parquet_rows(path: Path, source: Manifest, marks: Marks, after: Mark | None) -> Iterator[Row]:
    """(number from 1, values in the order of ``columns_of``) of each row behind a mark, which is a row group."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtra(source.uri, "ingest[sql]") from error
    row, group = after or (0, 0)
    try:
        # Unbuffered, a whole column chunk would be in memory: with one row group, that is the file.
        with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            names = list(file.schema_arrow.names)
            places = found_columns(source, names)
            columns = [name for name, place in zip(columns_of(source), places, strict=True) if place is not None]
            _check_type(file.schema_arrow, source)
            for at in range(group, file.num_row_groups):
                marks.add(row, at)
                for batch in file.iter_batches(BATCH_ROWS, row_groups=[at], columns=columns, use_threads=False):
                    for values in _values(batch, source):
                        row += 1
                        yield row, values
    except pa.ArrowException as error:
        raise BadResponse(source.uri, f"not a readable parquet manifest: {error}") from None


def _check_type(schema: Any, source: Manifest) -> None:
    kind = str(schema.field(source.uri_column).type)
    if not any(word in kind for word in ("string", "binary")):
        raise BadResponse(source.uri, f"the column {source.uri_column!r} is {kind}, which holds no URIs")


def _values(batch: Any, source: Manifest) -> Iterator[tuple[Any, ...]]:
    """The rows of a batch; a column that the file does not have is None throughout."""
    there = {name: batch.column(name).to_pylist() for name in batch.schema.names}
    nothing = [None] * batch.num_rows
    return zip(*(there.get(name, nothing) for name in columns_of(source)), strict=True)
