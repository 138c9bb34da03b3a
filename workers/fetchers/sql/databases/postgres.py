"""PostgreSQL through ADBC: ``COPY`` in binary, straight into Arrow.

Types that ADBC does not map keep their value exactly: ``numeric(p,s)`` becomes a decimal of that width; ``numeric``
without one (also what ``sum`` and ``avg`` give) its digits as text, since no width of decimal holds them all; ``uuid``,
``json``, ``interval``, ``money``, enums, ranges, ``inet`` and the like PostgreSQL's own text. Zoned times are UTC.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import date, datetime
from decimal import Decimal
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pyarrow as pa
from adbc_driver_postgresql import StatementOptions
from sqlalchemy.engine import URL

from ingest.settings import Limits
from workers.fetchers.sql.databases.base import BATCH_BYTES, check_names, decimal_type, exactly
from workers.fetchers.sql.parts import Bound, quoted, text_literal, to_bound

#: PostgreSQL type → how its text is read, for the types with arithmetic.
_KEYS: dict[str, Any] = {
    **dict.fromkeys(("int2", "int4", "int8"), int),
    **dict.fromkeys(("float4", "float8"), float),
    **dict.fromkeys(("timestamp", "timestamptz"), datetime.fromisoformat),
    "numeric": Decimal,
    "date": date.fromisoformat,
}
#: Types that ADBC gives as a number without its meaning → the type to ask for instead.
_ASK_AS = {"money": "text", "oid": "bigint", "xid": "text", "cid": "text"}


class PostgresDatabase:
    """One transaction, read-only, of one snapshot."""

    def __init__(self, url: URL, limits: Limits) -> None:
        self._cursor: adbc.Cursor | None = None
        self._connection = adbc.connect(_libpq_uri(url, limits))
        # LOCAL to the transaction, so that a pooler between us and the server hands no setting on to somebody else.
        settings = (
            "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
            f"SET LOCAL statement_timeout = {int(limits.soft_s * 1000)}",
            "SET LOCAL timezone = 'UTC'",
            "SET LOCAL datestyle = 'ISO'",
            "SET LOCAL intervalstyle = 'postgres'",
        )
        try:
            for setting in settings:
                self._rows(setting)
        except BaseException:
            self.close()
            raise

    def quote(self, name: str) -> str:
        return quoted(name)

    def literal(self, bound: Bound) -> str:
        return text_literal(bound[1])  # PostgreSQL gives an untyped literal the type of what it is compared with

    def describe(self, part: object, statement: str) -> None:
        """Nothing: a prepared statement tells its types."""

    def key_range(self, statement: str, key: str) -> tuple[Any, Any] | None:
        kind = (self._schema(statement).field(0).metadata or {}).get(b"POSTGRESQL:type", b"").decode()
        if kind not in _KEYS:
            return None, None
        lo, hi = self._rows(f"SELECT min({quoted(key)})::text, max({quoted(key)})::text FROM ({statement}) AS k")[0]
        if lo is None:
            return None
        try:
            return _KEYS[kind](lo), _KEYS[kind](hi)
        except ValueError:  # infinity, or a year that Python does not have
            return None, None

    def quantiles(self, statement: str, key: str, parts: int) -> list[Bound]:
        fractions = ", ".join(repr(n / parts) for n in range(parts))
        disc = f"percentile_disc(ARRAY[{fractions}]::float8[]) WITHIN GROUP (ORDER BY {quoted(key)})"
        rows = self._rows(f"SELECT unnest({disc})::text FROM ({statement}) AS k")
        return [to_bound(row[0]) for row in rows if row[0] is not None]

    def stream(
        self, statement: str, types: Sequence[Sequence[str]] | None
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        asked = self._schema(statement)
        check_names(asked.names)
        if any(_cast_of(field) for field in asked):
            statement = f"SELECT {', '.join(map(_ask, asked))} FROM ({statement}) AS ingest_rows"
        self._cursor = cursor = self._connection.cursor()  # kept: its end is the end of the stream
        cursor.adbc_statement.set_options(**{StatementOptions.BATCH_SIZE_HINT_BYTES.value: str(BATCH_BYTES)})
        cursor.execute(statement)
        reader = cursor.fetch_record_batch()
        schema = pa.schema([pa.field(field.name, _written_as(field)) for field in reader.schema])
        return schema, (_convert(batch, schema) for batch in reader)

    def close(self) -> None:
        if self._cursor is not None:
            self._cursor.close()
        self._connection.close()

    def _schema(self, statement: str) -> pa.Schema:
        with self._connection.cursor() as cursor:
            return cursor.adbc_execute_schema(statement)

    def _rows(self, statement: str) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


def _libpq_uri(url: URL, limits: Limits) -> str:
    """libpq's own form of a SQLAlchemy URL, with limits for a peer that has gone (libpq documentation, 32.1.2)."""
    defaults = {
        "connect_timeout": str(max(2, round(limits.connect_s))),
        "tcp_user_timeout": str(int(limits.stall_s * 1000)),
        "keepalives_idle": str(max(1, int(limits.stall_s / 2))),
        "application_name": "ingest",
    }
    query = {**defaults, **url.query}
    return url.set(drivername="postgresql", query=query).render_as_string(hide_password=False)


def _cast_of(field: pa.Field) -> str | None:
    """The PostgreSQL type to ask for instead of the column's own, or None where ADBC maps it well."""
    name = (field.metadata or {}).get(b"POSTGRESQL:type", b"").decode()
    kind = field.type
    if name in _ASK_AS:
        return _ASK_AS[name]
    if pa.types.is_list(kind):
        inner = kind.value_type
        return None if not isinstance(inner, pa.BaseExtensionType) or _is_numeric(inner) else "text[]"
    if isinstance(kind, pa.BaseExtensionType):
        return None if _is_numeric(kind) else "text"
    return "text" if pa.types.is_interval(kind) else None


def _is_numeric(kind: pa.DataType) -> bool:
    return getattr(kind, "type_name", "") == "numeric"


def _ask(field: pa.Field) -> str:
    cast = _cast_of(field)
    return f"{quoted(field.name)}::{cast} AS {quoted(field.name)}" if cast else quoted(field.name)


def _written_as(field: pa.Field) -> pa.DataType:
    """The type in the file. ``numeric(p,s)`` has p and s in its type modifier (PostgreSQL ``numeric.c``)."""
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType):
        modifier = int((field.metadata or {}).get(b"POSTGRESQL:typmod", b"-1"))
        if modifier < 4:
            return pa.string()
        scale = ((modifier - 4) & 0x7FF ^ 1024) - 1024  # eleven bits, signed
        return decimal_type((modifier - 4) >> 16 & 0xFFFF, scale) or pa.string()
    if pa.types.is_list(kind) and isinstance(kind.value_type, pa.BaseExtensionType):
        return pa.list_(pa.string())
    return kind


def _convert(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    columns = []
    for column, field in zip(batch.columns, schema, strict=True):
        plain = column.storage if isinstance(column, pa.ExtensionArray) else column
        columns.append(exactly(plain, field))
    return pa.RecordBatch.from_arrays(columns, schema=schema)
