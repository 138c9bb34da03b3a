"""MySQL and MariaDB through PyMySQL: values come as the text that the server writes, and Arrow reads them by column.

So no value passes through a Python type that would round it, and a date of zeros is an error. ``FLOAT`` is asked for as
a double, because its text has six digits only. ``TIME`` is a span of up to 838 hours, and stays text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pymysql
from pymysql.constants import FIELD_TYPE, FLAG
from pymysql.converters import encoders
from pymysql.cursors import SSCursor
from sqlalchemy.engine import URL

from ingest.sections import Limits
from workers.fetchers.sql import parts
from workers.fetchers.sql.databases.base import arrow_schema, check_names, exactly, paced, same
from workers.fetchers.sql.databases.errors import Refused
from workers.fetchers.sql.parts import Bound

#: Keys that are sorted to cut by, at most; for each partition at least.
_SAMPLE_ROWS, _KEYS_EACH = 200_000, 50
#: The character set of bytes.
_BINARY = 63

_INTEGERS = {
    FIELD_TYPE.TINY: 8,
    FIELD_TYPE.SHORT: 16,
    FIELD_TYPE.INT24: 32,
    FIELD_TYPE.LONG: 32,
    FIELD_TYPE.LONGLONG: 64,
}
_TAGS = {
    FIELD_TYPE.FLOAT: "float32",
    FIELD_TYPE.DOUBLE: "float64",
    FIELD_TYPE.DATE: "date",
    FIELD_TYPE.NEWDATE: "date",
    FIELD_TYPE.DATETIME: "timestamp",
    FIELD_TYPE.TIMESTAMP: "timestamptz",
    FIELD_TYPE.TIME: "string",
    FIELD_TYPE.YEAR: "int16",
    FIELD_TYPE.BIT: "uint64",
    FIELD_TYPE.NULL: "string",
    FIELD_TYPE.JSON: "string",
}


class MysqlDatabase:
    """One transaction, read-only, of one snapshot (of tables that have such a thing: InnoDB's)."""

    def __init__(self, url: URL, limits: Limits) -> None:
        url = url.set(drivername="mysql+pymysql")
        options = url.get_dialect()().create_connect_args(url)[1]
        self._cursor: SSCursor | None = None
        # No decoders: text. No multi statements either, which is PyMySQL's default.
        self._connection = pymysql.connect(
            **{"charset": "utf8mb4", **options}, conv=encoders, cursorclass=SSCursor,
            connect_timeout=max(1, round(limits.connect_s)), write_timeout=limits.stall_s,
            read_timeout=limits.soft_s + max(10.0, limits.connect_s),  # the server ends a slow statement before
        )  # fmt: skip
        maria = "MariaDB" in self._connection.get_server_info()
        limit = (
            f"max_statement_time = {limits.soft_s:f}" if maria else f"max_execution_time = {limits.soft_s * 1000:.0f}"
        )
        try:
            for setting in (
                "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
                "SET SESSION time_zone = '+00:00'",
                f"SET SESSION net_write_timeout = {max(60, round(limits.stall_s))}",
                f"SET SESSION {limit}",
                "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY",
            ):
                self._rows(setting)
        except BaseException:
            self.close()
            raise

    def join(self, moment: str) -> None:
        """Nothing: a transaction here cannot see what another one sees."""

    def moment(self) -> None:
        """None: every transaction has its own."""

    def greatest(self, column: str) -> str:
        return f"max({column})"

    def ask(self, statement: str) -> Sequence[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            return [_value(*pair) for pair in zip(cursor.fetchone(), cursor._result.fields, strict=True)]

    def quote(self, name: str) -> str:
        return "`" + name.replace("`", "``") + "`"

    def literal(self, bound: Bound) -> str:
        kind, text = bound
        if kind == "str":  # as hexadecimal, because what a backslash is depends on the session
            return f"_utf8mb4 x'{text.encode().hex()}'"
        if kind in {"date", "timestamp"}:
            return f"'{text}'"
        return f"x'{text}'" if kind == "bytes" else text  # of a number: against text it would be compared as a double

    def describe(self, part: Mapping[str, Any], several: bool) -> dict[str, Any]:
        return {"types": self._types(parts.select(self, parts.unordered(part)))}

    def _types(self, statement: str) -> list[list[str]]:
        fields = self._fields(statement)
        check_names([field.name for field in fields])
        return [[field.name, _tag(field)] for field in fields]

    def _fields(self, statement: str) -> Sequence[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(f"{statement} LIMIT 0")
            return tuple(cursor._result.fields)  # the cursor's own description leaves out sign and character set

    def pages(self, part: Mapping[str, Any]) -> None:
        """None: InnoDB keeps rows by their primary key."""

    def primary_key(self, part: Mapping[str, Any]) -> str | None:
        with self._connection.cursor() as cursor:
            cursor.execute(f"SHOW KEYS FROM {parts.table_name(self, part['table'])} WHERE Key_name = 'PRIMARY'")
            column = [name for name, *_ in cursor.description].index("Column_name")
            keys = [row[column] for row in cursor.fetchall()]
        return keys[0] if len(keys) == 1 and _orderly(self._key_field(part, keys[0])) else None

    def _key_field(self, part: Mapping[str, Any], key: str) -> Any:
        return self._fields(parts.key_select(self, part, key))[0]

    def bounds(self, part: Mapping[str, Any], key: str, parts_: int) -> list[Bound]:
        name, keys, field = self.quote(key), parts.key_select(self, part, key), self._key_field(part, key)
        if not _orderly(field):
            raise Refused(f"column {key!r} is sorted by one order and compared by another: partition on another column")
        count = int(self._rows(f"SELECT count({name}) FROM ({keys}) k")[0][0])
        if count > (most := max(_SAMPLE_ROWS, _KEYS_EACH * parts_)):
            keys = f"SELECT {name} FROM ({keys}) k WHERE {name} IS NOT NULL AND rand(0) < {most / count:.9f}"
            count = int(self._rows(f"SELECT count(*) FROM ({keys}) k")[0][0])
        if not count:
            return []
        found = self._rows(parts.quantiles(name, keys, count, parts_))
        return parts.inner([_bound(row[0], field) for row in found])

    def stream(self, part: Mapping[str, Any]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        types = self._types(parts.select(self, parts.unordered(part)))
        if parts.is_share(part):
            same(part["types"], types)
        items = [f"{self.quote(n)} * 1e0 AS {self.quote(n)}" if t == "float32" else self.quote(n) for n, t in types]
        self._cursor = cursor = self._connection.cursor()
        cursor.execute(parts.select(self, part, items))
        schema = arrow_schema(types)
        return schema, paced(cursor.fetchmany, lambda rows: _batch(rows, schema, types))

    def close(self) -> None:
        """At once: without reading to its end what is still to come, as the cursor's own end would."""
        if self._cursor is not None and self._cursor._result is not None:
            self._cursor._result.unbuffered_active = False
        if self._connection.open:
            self._connection.close()

    def _rows(self, statement: str) -> Sequence[Sequence[Any]]:
        with self._connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


def _orderly(field: Any) -> bool:
    """Not so an enumeration and a set: ORDER BY knows their order, but they are compared as text. Nor bits."""
    return not field.flags & (FLAG.ENUM | FLAG.SET) and field.type_code not in {FIELD_TYPE.BIT, FIELD_TYPE.GEOMETRY}


def _tag(field: Any) -> str:
    unsigned = bool(field.flags & FLAG.UNSIGNED)
    if bits := _INTEGERS.get(field.type_code):
        return f"{'u' * unsigned}int{bits}"
    if field.type_code in {FIELD_TYPE.DECIMAL, FIELD_TYPE.NEWDECIMAL}:  # its length is that of its text
        return f"decimal({field.length - (field.scale > 0) - (not unsigned)},{field.scale})"
    if field.type_code == FIELD_TYPE.GEOMETRY:
        raise Refused(f"column {field.name!r} is a geometry: ask for ST_AsWKB or ST_AsText of it in a query")
    return _TAGS.get(field.type_code) or ("binary" if field.charsetnr == _BINARY else "string")


def _bound(value: Any, field: Any) -> list[str]:
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    if field.type_code in {FIELD_TYPE.DATE, FIELD_TYPE.DATETIME, FIELD_TYPE.TIMESTAMP, FIELD_TYPE.TIME}:
        return ["timestamp", value]
    number = _tag(field).startswith(("int", "uint", "float", "decimal"))
    return ["decimal" if number else "str", value]


def _value(value: Any, field: Any) -> Any:
    """One that tells its type, where it is a number."""
    tag = _tag(field)
    if value is None or tag == "binary":
        return value
    if tag == "float32":
        raise Refused(f"{field.name} is a FLOAT, whose values the server tells with six digits: use another column")
    if tag.startswith("decimal"):
        return Decimal(value)
    if tag == "float64":
        return float(value)
    return int(value) if "int" in tag and isinstance(value, str) else value


def _batch(rows: Sequence[Sequence[Any]], schema: pa.Schema, types: Sequence[Sequence[str]]) -> pa.RecordBatch:
    columns = [_array([row[n] for row in rows], tag) for n, (_, tag) in enumerate(types)]
    for n, (name, tag) in enumerate(types):
        if tag == "timestamptz":  # what the session's zone makes it: UTC
            columns[n] = exactly(columns[n], pa.field(name, pa.timestamp("us")))
    return pa.RecordBatch.from_arrays(list(map(exactly, columns, schema)), schema=schema)


def _array(values: list[Any], tag: str) -> pa.Array:
    if any(isinstance(value, bytes) for value in values):
        if tag == "uint64":  # bits
            return pa.array([None if v is None else int.from_bytes(v) for v in values], pa.uint64())
        return pa.array(values, pa.binary())
    return pa.array(values, pa.string())
