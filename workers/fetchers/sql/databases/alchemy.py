"""Any other database, through SQLAlchemy's dialect and a server-side cursor, with an explicit conversion to Arrow.

A table's columns are typed by its declaration, a query's by the values of its first rows. A later value that does not
fit exactly is an error that names the column, never a rounded number.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy.engine import URL

from ingest.settings import Limits
from workers.fetchers.sql.databases.base import arrow_schema, check_names
from workers.fetchers.sql.parts import Bound, from_bound, to_bound

#: Rows per batch, and the rows whose values type the columns of a query.
_BATCH_ROWS = 8192

#: What makes a session read-only, and ends a statement in time ({ms}, {s}), where SQLAlchemy has no option for it.
_SESSION = {
    "mysql": ("SET SESSION TRANSACTION READ ONLY", "SET SESSION max_execution_time = {ms}"),
    "mariadb": ("SET SESSION TRANSACTION READ ONLY", "SET SESSION max_statement_time = {s}"),
    "oracle": ("SET TRANSACTION READ ONLY",),
}


class AlchemyDatabase:
    def __init__(self, url: URL, limits: Limits) -> None:
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)
        self._connection = self._engine.connect()
        name = "mariadb" if getattr(self._engine.dialect, "is_mariadb", False) else self._engine.dialect.name
        for setting in _SESSION.get(name, ()):
            self._connection.exec_driver_sql(setting.format(ms=int(limits.soft_s * 1000), s=int(limits.soft_s)))
        if name != "oracle":
            self._connection.commit()  # a session's setting holds from its next transaction

    def quote(self, name: str) -> str:
        return self._engine.dialect.identifier_preparer.quote_identifier(name)

    def literal(self, bound: Bound) -> str:
        value = sa.literal(from_bound(bound))
        return str(value.compile(dialect=self._engine.dialect, compile_kwargs={"literal_binds": True}))

    def describe(self, part: Mapping[str, Any], statement: str) -> list[list[str]] | None:
        if not part.get("table"):
            return None
        *schema, table = part["table"].split(".")
        found = {
            c["name"]: c["type"]
            for c in sa.inspect(self._connection).get_columns(table, schema=".".join(schema) or None)
        }
        return [[name, _tag(found[name])] for name in part.get("columns") or found if name in found]

    def key_range(self, statement: str, key: str) -> tuple[Any, Any] | None:
        name = self.quote(key)
        lo, hi = self._rows(f"SELECT min({name}), max({name}) FROM (\n{statement}\n) AS k")[0]
        return None if lo is None else (lo, hi)

    def quantiles(self, statement: str, key: str, parts: int) -> list[Bound]:
        name: sa.ColumnClause[Any] = sa.column(key)
        rows = sa.text(_escaped(statement)).columns(name).subquery("k")
        count = self._connection.execute(sa.select(sa.func.count(rows.c[key]))).scalar_one()
        ordered = sa.select(rows.c[key]).where(rows.c[key].is_not(None)).order_by(rows.c[key]).limit(1)
        found = [self._connection.execute(ordered.offset(count * n // parts)).scalar_one() for n in range(parts)]
        return [to_bound(value) for value in found]

    def stream(
        self, statement: str, types: Sequence[Sequence[str]] | None
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        options = {"stream_results": True, "yield_per": _BATCH_ROWS}
        result = self._connection.execution_options(**options).execute(sa.text(_escaped(statement)))
        names = list(result.keys())
        check_names(names)
        chunks = iter(result.partitions(_BATCH_ROWS))
        first = next(chunks, ())
        if types and [name for name, _ in types] == names:
            schema = arrow_schema(types)
        else:
            schema = pa.schema([pa.field(name, _infer([row[n] for row in first])) for n, name in enumerate(names)])
        return schema, self._batches(first, chunks, schema)

    def _batches(
        self, first: Sequence[Sequence[Any]], chunks: Iterator[Sequence[Sequence[Any]]], schema: pa.Schema
    ) -> Iterator[pa.RecordBatch]:
        while first:
            columns = [_array([row[n] for row in first], field) for n, field in enumerate(schema)]
            yield pa.RecordBatch.from_arrays(columns, schema=schema)
            first = next(chunks, ())

    def close(self) -> None:
        self._connection.close()  # rolls back
        self._engine.dispose()

    def _rows(self, statement: str) -> Sequence[Sequence[Any]]:
        return self._connection.execute(sa.text(_escaped(statement))).fetchall()


def _escaped(statement: str) -> str:
    """So that a colon in the submitter's SQL is no parameter of SQLAlchemy's."""
    return statement.replace(":", "\\:")


def _tag(kind: sa.types.TypeEngine[Any]) -> str:
    """A declared type → the tag of the column in the file."""
    if isinstance(kind, sa.Boolean):
        return "bool"
    if isinstance(kind, sa.Integer):
        return "uint64" if getattr(kind, "unsigned", False) else "int64"
    if isinstance(kind, sa.Float):  # a Numeric too, so it comes first
        return "float64"
    if isinstance(kind, sa.Numeric):
        return f"decimal({kind.precision},{kind.scale or 0})" if kind.precision else "string"
    if isinstance(kind, sa.DateTime):
        return "timestamptz" if kind.timezone else "timestamp"
    for base, tag in ((sa.Date, "date"), (sa.LargeBinary, "binary"), (sa.types._Binary, "binary")):
        if isinstance(kind, base):
            return tag
    return "string"


def _infer(values: Sequence[Any]) -> pa.DataType:
    """The Arrow type of the values of one column; text where they are mixed, unknown, or all NULL."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return pa.float64()
    if kinds == {Decimal} or kinds == {Decimal, int}:
        scale = max(-min(0, int(v.as_tuple().exponent)) for v in values if isinstance(v, Decimal) and v.is_finite())
        return pa.decimal128(38, scale) if scale <= 38 else pa.string()
    if kinds == {datetime}:
        zoned = any(value.tzinfo for value in values if value is not None)
        return pa.timestamp("us", tz="UTC") if zoned else pa.timestamp("us")
    simple = {int: pa.int64(), bool: pa.bool_(), bytes: pa.binary(), date: pa.date32(), time: pa.time64("us")}
    return simple.get(next(iter(kinds)), pa.string()) if len(kinds) == 1 else pa.string()


def _array(values: list[Any], field: pa.Field) -> pa.Array:
    if pa.types.is_string(field.type):
        values = [None if value is None else _text(value) for value in values]
    try:
        return pa.array(values, type=field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"column {field.name!r} holds what {field.type} cannot: {error}; cast it in the query"
        ) from error


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    say: Callable[[Any], str] = json.dumps if isinstance(value, dict | list) else str
    return format(value, "f") if isinstance(value, Decimal) else say(value)
