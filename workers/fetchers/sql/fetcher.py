"""SQL: a table or query as Parquet, one partition of the rows at a time, streamed from the driver into the scratch.

Statements are made in ``parts``, drivers are driven in ``databases``, files are written by :mod:`workers.parquet`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ingest.errors import BadResponse, MissingExtra, Unsupported
from ingest.model import FileSpec
from ingest.sources import AnySource, Sql
from ingest.store.scratch import Scratch
from workers.fetchers.base import Context, Fetched, Known
from workers.fetchers.sql import parts

if TYPE_CHECKING:
    import pyarrow as pa

    from workers.fetchers.sql.databases import Database


class SqlFetcher:
    """``sql://connection/table``. A database has no validator: what is asked for is always read."""

    def fetch(self, spec: FileSpec, scratch: Scratch, known: Known | None, context: Context) -> Fetched:
        """One partition, as Parquet (zstd), in further pieces of ``scratch`` where it is large. ``samples`` of each is
        its number of rows."""
        if spec.request is None:
            raise BadResponse(spec.uri, "is no partition of a query; submit it as ingest.Sql")
        if spec.request.get("picture") and not spec.request.get("moment"):
            raise BadResponse(spec.uri, "is to be read at the moment of its other partitions, and nobody said which")
        part, made = spec.request, _made(spec.uri)
        scratch.restart()
        context = dataclasses.replace(context, moment=part.get("moment"))
        with made.opened(spec.uri, context) as database:
            with made.edge(spec.uri, context):
                schema, batches = database.stream(part)
            made.write(
                schema, _guarded(batches, lambda: made.edge(spec.uri, context)), scratch,
                name=spec.name or "rows.parquet", group_rows=part["row_group_rows"], file_bytes=part["file_bytes"],
            )  # fmt: skip
        return Fetched(samples=scratch.samples)

    def expand(self, source: AnySource, context: Context) -> Iterator[FileSpec]:
        """One FileSpec per partition, by ascending key. Raises what the database says of the query or the key."""
        if not isinstance(source, Sql):
            raise Unsupported(str(getattr(source, "uri", source)), "a database is asked with ingest.Sql")
        if bool(source.table) == bool(source.query):
            raise BadResponse(source.uri, "needs a table or a query, and not both")
        if min(source.row_group_rows, source.partitions, source.file_bytes) < 1:
            raise BadResponse(source.uri, "partitions, row_group_rows and file_bytes must be at least 1")
        made = _made(source.uri)
        with made.opened(source.uri, context) as database, made.edge(source.uri, context):
            shares = _partitions(source, database)
        base = re.sub(r"[^\w.-]", "_", source.uri.rpartition("/")[2])
        many = len(shares) > 1
        for number, part in enumerate(shares):
            yield FileSpec(
                source=0, part=number, connection=source.connection, request=part,
                uri=f"{source.uri}?partition={number}/{len(shares)}" if many else source.uri,
                name=f"{base}-{number:05}-of-{len(shares):05}.parquet" if many else f"{base}.parquet",
            )  # fmt: skip


class _Made(NamedTuple):
    """What needs the libraries of the extra."""

    opened: Callable[..., Any]
    edge: Callable[..., Any]
    write: Callable[..., None]


def _made(uri: str) -> _Made:
    try:
        from workers.fetchers.sql.databases import opened
        from workers.fetchers.sql.databases.errors import edge
        from workers.parquet import write
    except ImportError as error:
        raise MissingExtra(uri, "ingest[sql]") from error
    return _Made(opened, edge, write)


def _partitions(source: Sql, database: Database) -> list[dict[str, Any]]:
    """By the key that was named; else by the pages of the table, which are read once and in order whatever the key;
    else by its primary key; else one."""
    part = parts.whole(source)
    part |= database.describe(part, source.partitions > 1)
    if source.partitions == 1:
        return [part]
    key = parts.key_of(source)
    # A row that is updated moves to another page: without one picture for all it could be missed, or come twice.
    if key is None and source.consistent and (pages := database.pages(part)) is not None:
        return parts.split_pages(part, pages, source.partitions)
    key = key or (database.primary_key(part) if source.table else None)
    if key is None:
        return [part]
    return parts.split(part, key, database.bounds(part, key, source.partitions))


def _guarded(batches: Iterator[pa.RecordBatch], edge: Callable[[], Any]) -> Iterator[pa.RecordBatch]:
    """Only what the driver raises is translated, not what writing the rows may raise."""
    while True:
        with edge():
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
