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

from ingest.sections import Limits
from workers.fetchers.sql import parts
from workers.fetchers.sql.databases.base import CAST, arrow_schema, check_names, paced
from workers.fetchers.sql.databases.errors import Refused
from workers.fetchers.sql.parts import Bound, from_bound, to_bound

#: Rows that a driver is asked for at once, and those whose values type the columns of a query.
_BUFFERED_ROWS, _TYPE_ROWS = 256, 8192

#: What makes a transaction read-only, where a statement does.
_SESSION = {
    "oracle": ("SET TRANSACTION READ ONLY",),
}


class AlchemyDatabase:
    def __init__(self, url: URL, limits: Limits) -> None:
        self._engine = sa.create_engine(url, poolclass=sa.NullPool)
        self._connection = self._engine.connect()
        for setting in _SESSION.get(self._engine.dialect.name, ()):
            self._connection.exec_driver_sql(setting)

    def join(self, moment: str) -> None:
        """Nothing: no transaction that SQLAlchemy knows of can see what another one sees."""

    def moment(self) -> None:
        """None: every transaction has its own."""

    def greatest(self, column: str) -> str:
        return f"max({column})"

    def ask(self, statement: str) -> Sequence[Any]:
        return self._rows(statement)[0]

    def quote(self, name: str) -> str:
        return self._engine.dialect.identifier_preparer.quote_identifier(name)

    def literal(self, bound: Bound) -> str:
        value = sa.literal(from_bound(bound))
        return str(value.compile(dialect=self._engine.dialect, compile_kwargs={"literal_binds": True}))

    def describe(self, part: Mapping[str, Any], several: bool) -> dict[str, Any]:
        """A table's declared types; those of a query's first rows."""
        if not part.get("table"):
            return {"types": self._inferred(parts.select(self, parts.unordered(part)))} if several else {}
        schema, table = self._place(part["table"])
        found = {c["name"]: c["type"] for c in sa.inspect(self._connection).get_columns(table, schema=schema)}
        return {"types": [[name, _tag(found[name])] for name in part.get("columns") or found if name in found]}

    @staticmethod
    def _place(name: str) -> tuple[str | None, str]:
        *schema, table = parts.names_of(name)
        return ".".join(schema) or None, table

    def pages(self, part: Mapping[str, Any]) -> None:
        """None: only PostgreSQL's rows have a place that can be asked for."""

    def primary_key(self, part: Mapping[str, Any]) -> str | None:
        schema, table = self._place(part["table"])
        inspector = sa.inspect(self._connection)
        keys = inspector.get_pk_constraint(table, schema=schema)["constrained_columns"]
        types = {c["name"]: c["type"] for c in inspector.get_columns(table, schema=schema)}
        # An enumeration is sorted by its order, but compared as text.
        orderly = len(keys) == 1 and not isinstance(types[keys[0]], sa.Enum)
        return keys[0] if orderly else None

    def bounds(self, part: Mapping[str, Any], key: str, parts_: int) -> list[Bound]:
        name, keys = self.quote(key), parts.key_select(self, part, key)
        ((count,),) = self._rows(f"SELECT count({name}) FROM ({keys}) k")
        if not count:
            return []
        found = self._rows(parts.quantiles(name, keys, count, parts_))
        return parts.inner([to_bound(row[0]) for row in found])

    def stream(self, part: Mapping[str, Any]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        statement, types = parts.select(self, part), part.get("types")
        result = self._execute(statement)
        names = list(result.keys())
        check_names(names)
        if types is None or [name for name, _ in types] != names:
            types = self._inferred(parts.select(self, parts.unordered(part)))
        schema = arrow_schema(types)
        return schema, paced(result.fetchmany, lambda rows: _batch(rows, schema))

    def _execute(self, statement: str) -> sa.CursorResult[Any]:
        options = {"stream_results": True, "max_row_buffer": _BUFFERED_ROWS}
        return self._connection.execution_options(**options).execute(sa.text(_escaped(statement)))

    def _inferred(self, statement: str) -> list[list[str]]:
        result = self._execute(statement)
        names, rows = list(result.keys()), result.fetchmany(_TYPE_ROWS)
        result.close()
        return [[name, _infer([row[n] for row in rows])] for n, name in enumerate(names)]

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
    for base, tag in ((sa.Date, "date"), (sa.Time, "time"), (sa.LargeBinary, "binary"), (sa.types._Binary, "binary")):
        if isinstance(kind, base):
            return tag
    return "string"


def _infer(values: Sequence[Any]) -> str:
    """The tag of the values of one column; text where they are mixed, unknown, or all NULL."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {int, float} and float in kinds:
        return "float64"
    if kinds == {Decimal} or kinds == {Decimal, int}:
        scale = max(-min(0, int(v.as_tuple().exponent)) for v in values if isinstance(v, Decimal) and v.is_finite())
        return f"decimal(38,{scale})" if scale <= 38 else "string"
    if kinds == {datetime}:
        return "timestamptz" if any(value.tzinfo for value in values if value is not None) else "timestamp"
    simple: dict[type, str] = {int: "int64", bool: "bool", bytes: "binary", date: "date", time: "time"}
    return simple.get(next(iter(kinds)), "string") if len(kinds) == 1 else "string"


def _batch(rows: Sequence[Sequence[Any]], schema: pa.Schema) -> pa.RecordBatch:
    columns = [_array([row[n] for row in rows], field) for n, field in enumerate(schema)]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _array(values: list[Any], field: pa.Field) -> pa.Array:
    if pa.types.is_string(field.type):
        values = [None if value is None else _text(value) for value in values]
    try:
        return pa.array(values, type=field.type)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise Refused(f"column {field.name!r} holds what {field.type} cannot: {error}; {CAST}") from error


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    say: Callable[[Any], str] = json.dumps if isinstance(value, dict | list) else str
    return format(value, "f") if isinstance(value, Decimal) else say(value)
