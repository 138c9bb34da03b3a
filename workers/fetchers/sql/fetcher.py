"""SQL: a table or query as Parquet, one file per partition of the key range, streamed from the driver into the scratch.

Statements and bounds are made in ``parts``, drivers are driven in ``databases``.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ingest.errors import BadResponse, MissingExtra, Unsupported
from ingest.model import FileSpec
from ingest.sources import AnySource, Sql
from ingest.store.scratch import Scratch
from workers.fetchers.base import Context, Fetched, Known
from workers.fetchers.sql import parts

if TYPE_CHECKING:
    import pyarrow as pa

    from workers.fetchers.sql.databases import Database

#: A row group is closed at this size whatever its rows, so that wide rows do not fill the memory.
ROW_GROUP_BYTES = 32 << 20


class SqlFetcher:
    """``sql://connection/table``. A database has no validator: what is asked for is always read."""

    def fetch(self, spec: FileSpec, scratch: Scratch, known: Known | None, context: Context) -> Fetched:
        """One partition, as Parquet (zstd). ``samples`` is its number of rows."""
        if spec.request is None:
            raise BadResponse(spec.uri, "is no partition of a query; submit it as ingest.Sql")
        part = spec.request
        opened, edge = _databases(spec.uri)
        scratch.restart()
        with opened(spec.uri, context) as database:
            with edge(spec.uri, context):
                schema, batches = database.stream(parts.select(database, part), part.get("types"))
            rows = _write(schema, _guarded(batches, lambda: edge(spec.uri, context)), scratch, part["row_group_rows"])
        return Fetched(samples=rows)

    def expand(self, source: AnySource, context: Context) -> Iterator[FileSpec]:
        """One FileSpec per partition, by ascending key. Raises what the database says of the query or the key."""
        if not isinstance(source, Sql):
            raise Unsupported(str(getattr(source, "uri", source)), "a database is asked with ingest.Sql")
        if bool(source.table) == bool(source.query):
            raise BadResponse(source.uri, "needs a table or a query, and not both")
        if source.row_group_rows < 1 or source.partitions < 1:
            raise BadResponse(source.uri, "partitions and row_group_rows must be at least 1")
        opened, edge = _databases(source.uri)
        with opened(source.uri, context) as database, edge(source.uri, context):
            parts = _partitions(source, database)
        base = re.sub(r"[^\w.-]", "_", source.uri.rpartition("/")[2])
        many = len(parts) > 1
        for number, part in enumerate(parts):
            yield FileSpec(
                source=0, part=number, connection=source.connection, request=part,
                uri=f"{source.uri}?partition={number}/{len(parts)}" if many else source.uri,
                name=f"{base}-{number:05}-of-{len(parts):05}.parquet" if many else f"{base}.parquet",
            )  # fmt: skip


def _databases(uri: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    try:
        from workers.fetchers.sql.databases import opened
        from workers.fetchers.sql.databases.errors import edge
    except ImportError as error:
        raise MissingExtra(uri, "ingest[sql]") from error
    return opened, edge


def _partitions(source: Sql, database: Database) -> list[dict[str, Any]]:
    part = parts.whole(source)
    if types := database.describe(part, parts.select(database, part)):
        part["types"] = types
    key = source.partition_on
    if not key or source.partitions == 1:
        return [part]
    keys = parts.key_select(database, part, key)
    found = database.key_range(keys, key)
    if found is None:
        return [part]
    if parts.can_be_cut(*found):
        bounds = [parts.to_bound(cut) for cut in parts.cuts(*found, source.partitions)]
    else:
        sampled = database.quantiles(keys, key, source.partitions)
        bounds = [list(bound) for n, bound in enumerate(sampled) if n and bound != sampled[n - 1]]
    return parts.split(part, key, bounds)


def _guarded(batches: Iterator[pa.RecordBatch], edge: Callable[[], Any]) -> Iterator[pa.RecordBatch]:
    """Only what the driver raises is translated, not what writing the rows may raise."""
    while True:
        with edge():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


class _Sink(io.RawIOBase):
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


def _write(schema: pa.Schema, batches: Iterator[pa.RecordBatch], scratch: Scratch, group_rows: int) -> int:
    """The batches as one Parquet file in row groups of ``group_rows`` rows; gives the number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = _Sink(scratch)
    writer = pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd")
    rows = 0
    try:
        for group in _groups(schema, batches, group_rows):
            writer.write_table(group, row_group_size=group_rows)
            rows += group.num_rows
        if not rows:
            writer.write_table(schema.empty_table())
        writer.close()
    finally:
        sink.leave()
    return rows


def _groups(schema: pa.Schema, batches: Iterator[pa.RecordBatch], group_rows: int) -> Iterator[pa.Table]:
    """Batches gathered into tables of ``group_rows`` rows, or of fewer when those are large."""
    import pyarrow as pa

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
