"""PostgreSQL through ADBC: ``COPY`` in binary, straight into Arrow. Its types are in ``postgres_types``.

Partitions are cut at quantiles of the key, exact ones for a small table, else those of a sample of its pages; or, where
there is no key, by the pages themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa
from adbc_driver_postgresql import StatementOptions
from sqlalchemy.engine import URL

from ingest.sections import Limits
from workers.fetchers.sql import parts
from workers.fetchers.sql.databases import postgres_types as types
from workers.fetchers.sql.databases.base import BATCH_BYTES, same
from workers.fetchers.sql.databases.errors import Refused
from workers.fetchers.sql.databases.libpq import DRIVER, begin, import_snapshot, libpq_uri
from workers.fetchers.sql.databases.moments import MomentPast
from workers.fetchers.sql.parts import Bound, quoted, text_literal

#: Pages of a sample, at least, and for each partition: the width of a partition is then right to about a tenth.
_SAMPLE_PAGES, _SAMPLE_PAGES_EACH = 2048, 128
#: Rows of a query whose keys are sorted, at most; of more a random part. Rows that say how an array is.
_SAMPLE_ROWS, _PROBE_ROWS = 500_000, 1000
#: Keys that a sample must have for each partition, or all rows are looked at.
_KEYS_EACH = 50


class PostgresDatabase:
    """One transaction, read-only, of one snapshot."""

    def __init__(self, url: URL, limits: Limits) -> None:
        self._cursor: adbc.Cursor | None = None
        self._connection = adbc.connect(libpq_uri(url, limits), DRIVER)
        try:
            for setting in begin(limits, int(self._connection.adbc_get_info()["vendor_version"])):
                self._rows(setting)
        except BaseException:
            self.close()
            raise

    def join(self, moment: str) -> None:
        try:
            self._rows(import_snapshot(moment.rpartition("/")[2]))
        except adbc.Error as error:
            # Anything but a connection that broke: the snapshot is not there, or is of another database.
            if (error.sqlstate or "08")[:2] in {"08", "53", "57", "58"}:
                raise
            raise MomentPast(str(error)) from error

    def moment(self) -> None:
        """None: its moment is a transaction's, which somebody must hold (``workers.snapshots``)."""

    def greatest(self, column: str) -> str:
        return f"max({column})::text"

    def ask(self, statement: str) -> Sequence[Any]:
        return self._rows(statement)[0]

    def quote(self, name: str) -> str:
        return quoted(name)

    def literal(self, bound: Bound) -> str:
        return text_literal(bound[1])  # PostgreSQL gives an untyped literal the type of what it is compared with

    def describe(self, part: Mapping[str, Any], several: bool) -> dict[str, Any]:
        statement = parts.select(self, parts.unordered(part))
        schema = self._schema(statement)
        columns = types.columns(schema, self._rows, {})
        found: dict[str, Any] = {"types": types.tags(columns)} if several else {}
        if arrays := [column.name for column in columns if column.array]:
            (most,) = self._rows(types.dims_query(statement, arrays, _PROBE_ROWS))
            found["dims"] = {name: dims for name, dims in zip(arrays, most, strict=True) if (dims or 1) > 1}
        if several and part.get("table") and part.get("consistent"):
            found["filenode"] = self._relation(part["table"])["filenode"]
        return found

    def pages(self, part: Mapping[str, Any]) -> int | None:
        """Of a table of the usual kind; the rows of a view, a foreign or a partitioned table have no one place."""
        if not part.get("table"):
            return None
        found = self._relation(part["table"])
        return found["pages"] if found["heap"] and not found["children"] and found["tid_scans"] else None

    def primary_key(self, part: Mapping[str, Any]) -> str | None:
        found = self._rows(
            "SELECT a.attname::text FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid "
            f"AND a.attnum = i.indkey[0] WHERE i.indrelid = {self._regclass(part['table'])} "
            "AND i.indisprimary AND i.indnatts = 1"
        )
        return found[0][0] if found else None

    def bounds(self, part: Mapping[str, Any], key: str, parts_: int) -> list[Bound]:
        for keys in self._samples(part, key, parts_):
            # A little more than n/parts: the first key of the next partition, not the last of the one before.
            fractions = ", ".join(f"{n / parts_ + 1e-9:.12f}" for n in range(parts_))
            disc = f"percentile_disc(ARRAY[{fractions}]::float8[]) WITHIN GROUP (ORDER BY {quoted(key)})"
            ((count, found),) = self._rows(f"SELECT count({quoted(key)}), {disc}::text[] FROM ({keys}) AS k")
            if count >= _KEYS_EACH * parts_:
                break
        return parts.inner([["str", value] for value in found or ()])

    def _samples(self, part: Mapping[str, Any], key: str, parts_: int) -> Iterator[str]:
        """Statements for keys to look at, the cheapest first, the last of them for all. Each finds the same again."""
        everything = parts.key_select(self, part, key)
        if part.get("table") and (pages := self._relation(part["table"])["sampled"]):
            percent = 100 * max(_SAMPLE_PAGES, _SAMPLE_PAGES_EACH * parts_) / pages
            if percent < 50:
                yield parts.key_select(self, part, key, f" TABLESAMPLE SYSTEM ({percent:.9f}) REPEATABLE (0)")
        else:
            (plan,) = json.loads(self._rows(f"EXPLAIN (FORMAT JSON) {everything}", copy=False)[0][0])
            fraction = max(_SAMPLE_ROWS, _KEYS_EACH * parts_) / max(1, plan["Plan"]["Plan Rows"])
            if fraction < 0.5:
                self._rows("SELECT setseed(0)::text")
                yield f"SELECT * FROM ({everything}) AS s WHERE random() < {fraction:.9f}"
        yield everything

    def _regclass(self, table: str) -> str:
        return f"{text_literal(parts.table_name(self, table))}::regclass"

    def _relation(self, table: str) -> dict[str, Any]:
        """``pages`` of the table itself; ``sampled``: with all its partitions, 0 if it cannot be sampled. The catalogue
        is read at our snapshot, but a function tells the ``filenode`` as it is now: ``rewritten``, if they differ."""
        names = ("heap", "children", "filenode", "rewritten", "tid_scans", "pages", "sampled")
        (row,) = self._rows(f"""
            SELECT c.relkind IN ('r', 'm') AND m.amname = 'heap', c.relhassubclass, pg_relation_filenode(c.oid)::bigint,
                c.relfilenode NOT IN (0, pg_relation_filenode(c.oid)),
                current_setting('server_version_num')::int >= 140000,
                pg_relation_size(c.oid) / current_setting('block_size')::bigint,
                CASE WHEN c.relkind IN ('r', 'm') THEN pg_relation_size(c.oid) WHEN c.relkind = 'p' THEN (
                    SELECT CASE WHEN bool_or(l.relkind = 'f') THEN 0 ELSE sum(pg_relation_size(l.oid)) END
                    FROM pg_partition_tree(c.oid) AS t JOIN pg_class AS l ON l.oid = t.relid
                )::bigint ELSE 0 END / current_setting('block_size')::bigint
            FROM pg_class AS c LEFT JOIN pg_am AS m ON m.oid = c.relam WHERE c.oid = {self._regclass(table)}""")
        return dict(zip(names, row, strict=True))

    def _check_plan(self, part: Mapping[str, Any], found: Sequence[types.Column]) -> None:
        """What was planned must still be so. Where all partitions are of one moment they are then planned anew."""
        try:
            if parts.is_share(part):
                same(part["types"], types.tags(found))
            if part.get("table") and part.get("consistent"):
                self._check_rewritten(part)
        except Refused as error:
            if part.get("moment"):
                raise MomentPast(str(error)) from error
            raise

    def _check_rewritten(self, part: Mapping[str, Any]) -> None:
        """TRUNCATE and the like do not wait for older snapshots: these see an empty table, or rows in other places."""
        relation = self._relation(part["table"])
        if relation["rewritten"] or relation["filenode"] != part.get("filenode", relation["filenode"]):
            raise Refused("the table was truncated or rewritten since the moment at which it is read: submit again")

    def stream(self, part: Mapping[str, Any]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        asked = self._schema(parts.select(self, part))  # and from now on nobody else may rewrite the table
        found = types.columns(asked, self._rows, part.get("dims") or {})
        self._check_plan(part, found)
        items = [*(column.item for column in found), *types.extra_items(found)]
        self._cursor = cursor = self._connection.cursor()  # kept: its end is the end of the stream
        cursor.adbc_statement.set_options(**{StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(BATCH_BYTES)})
        cursor.execute(parts.select(self, part, items))
        reader = cursor.fetch_record_batch()
        schema = types.file_schema(found, reader.schema)
        # The same reader, if the driver has it still: one whose errors have their SQLSTATE, in any language.
        telling = getattr(getattr(cursor, "_results", None), "reader", reader)
        return schema, (types.convert(batch, found, schema) for batch in telling)

    def close(self) -> None:
        if self._cursor is not None:
            self._cursor.close()
        self._connection.close()

    def _schema(self, statement: str) -> pa.Schema:
        with self._connection.cursor() as cursor:
            return cursor.adbc_execute_schema(statement)

    def _rows(self, statement: str, *, copy: bool = True) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.adbc_statement.set_options(**{StatementOptions.USE_COPY.value: str(copy).lower()})
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []
