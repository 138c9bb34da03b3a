"""What a database is to us, and the names of the column types that travel with a partition."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from workers.fetchers.sql.parts import Bound

#: A batch in flight: large enough for columnar speed, small beside the 300 MB that a worker may have.
BATCH_BYTES = 4 << 20

_DECIMAL = re.compile(r"decimal\((\d+),(\d+)\)")
#: Decimal digits that fit decimal128 and decimal256.
_DIGITS_128, _DIGITS_256 = 38, 76

_TYPES = {
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "string": pa.string(),
    "binary": pa.binary(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "time": pa.time64("us"),
    "timestamp": pa.timestamp("us"),
    "timestamptz": pa.timestamp("us", tz="UTC"),
}


class Database(Protocol):
    """One open, read-only connection, used by one thread. Errors are the driver's own; the caller translates."""

    def quote(self, name: str) -> str: ...
    def literal(self, bound: Bound) -> str: ...

    def describe(self, part: Mapping[str, Any], statement: str) -> list[list[str]] | None:
        """``[[column, type], …]`` of the whole, which all partitions then share; None where the stream tells it."""
        ...

    def key_range(self, statement: str, key: str) -> tuple[Any, Any] | None:
        """Least and greatest key that is not NULL; None when there is no such row. ``(None, None)`` for a type without
        arithmetic, which is then cut by :meth:`quantiles`."""
        ...

    def quantiles(self, statement: str, key: str, parts: int) -> list[Bound]:
        """``parts`` keys, ascending, the first of them the least, with about as many rows from each to the next."""
        ...

    def stream(
        self, statement: str, types: Sequence[Sequence[str]] | None
    ) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """The rows, in bounded memory."""
        ...

    def close(self) -> None: ...


def decimal_type(precision: int, scale: int) -> pa.DataType | None:
    """The Arrow type that holds such decimals exactly and that Parquet can say; None beyond 76 digits."""
    if scale < 0:  # PostgreSQL rounds such a column left of the point
        precision, scale = precision - scale, 0
    precision = max(precision, scale)
    if precision <= _DIGITS_128:
        return pa.decimal128(precision, scale)
    return pa.decimal256(precision, scale) if precision <= _DIGITS_256 else None


def arrow_type(tag: str) -> pa.DataType:
    """``"int64"``, ``"decimal(12,3)"`` … → Arrow type; a string where the tag is of a newer version or too wide."""
    if decimal := _DECIMAL.fullmatch(tag):
        return decimal_type(int(decimal[1]), int(decimal[2])) or pa.string()
    return _TYPES.get(tag, pa.string())


def arrow_schema(types: Sequence[Sequence[str]]) -> pa.Schema:
    return pa.schema([pa.field(name, arrow_type(tag)) for name, tag in types])


class RepeatedColumn(Exception):
    """Two columns of one name: Parquet's readers could not tell them apart."""


def check_names(names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise RepeatedColumn(f"two columns are named {name!r}: give one an alias")
        seen.add(name)


def exactly(column: pa.Array, field: pa.Field) -> pa.Array:
    """The column as the field's type. Raises ValueError, naming the column, rather than losing a digit."""
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type)
    except pa.ArrowInvalid as error:
        raise ValueError(f"column {field.name!r} holds what {field.type} cannot: {error}; cast it to text") from error
