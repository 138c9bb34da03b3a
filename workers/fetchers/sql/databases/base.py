"""What a database is to us, and the names of the column types that travel with a partition."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa

from workers.fetchers.sql.databases.errors import Refused
from workers.fetchers.sql.parts import Bound

#: A batch in flight: large enough for columnar speed, small beside the 300 MB that a worker may have.
BATCH_BYTES = 1 << 20

#: Rows of the first batch, and of any, where a cursor is to be asked for a number of rows.
_FIRST_ROWS, _MOST_ROWS = 64, 8192

#: What to do about a value that a file cannot hold.
CAST = "cast it to text in a query, or leave it out with where="

_DECIMAL = re.compile(r"decimal\((\d+),(\d+)\)")
#: Decimal digits of the widest decimal that every reader of Parquet knows. DuckDB reads a wider one as a double.
_MOST_DIGITS = 38

_TYPES = {
    **{f"{sign}int{bits}": getattr(pa, f"{sign}int{bits}")() for sign in ("", "u") for bits in (8, 16, 32, 64)},
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

    def describe(self, part: Mapping[str, Any], several: bool) -> dict[str, Any]:
        """What all partitions, if there are to be ``several``, are to share, so that their files have one schema:
        entries for the part."""
        ...

    def bounds(self, part: Mapping[str, Any], key: str, parts: int) -> list[Bound]:
        """Up to ``parts - 1`` keys, ascending in the database's own order, with about as many rows between each and
        the next, below the first and above the last. The same at each call as long as the rows are the same."""
        ...

    def pages(self, part: Mapping[str, Any]) -> int | None:
        """How many pages a table has whose rows can be read by the page on which they lie, else None."""
        ...

    def primary_key(self, part: Mapping[str, Any]) -> str | None:
        """The table's primary key, if it is one column that can be ordered."""
        ...

    def stream(self, part: Mapping[str, Any]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        """The rows, in bounded memory. The schema is that of the file."""
        ...

    def join(self, moment: str) -> None:
        """Read at that moment, from now on. Before any other call. Raises ``MomentPast``, as the rows may later."""
        ...

    def moment(self) -> str | None:
        """The moment that it is at now, where one can be recognised."""
        ...

    def greatest(self, column: str) -> str:
        """The expression for the greatest value of a column, such that it comes without loss."""
        ...

    def ask(self, statement: str) -> Sequence[Any]:
        """The one row that a statement gives."""
        ...

    def close(self) -> None: ...


def decimal_type(precision: int, scale: int) -> pa.DataType | None:
    """The Arrow type that holds such decimals exactly, and that every reader of Parquet knows; None beyond 38
    digits."""
    if scale < 0:  # PostgreSQL rounds such a column left of the point
        precision, scale = precision - scale, 0
    precision = max(precision, scale)
    return pa.decimal128(precision, scale) if precision <= _MOST_DIGITS else None


def arrow_type(tag: str) -> pa.DataType:
    """``"int64"``, ``"decimal(12,3)"`` … → Arrow type; a string where the tag is of a newer version or too wide."""
    if decimal := _DECIMAL.fullmatch(tag):
        return decimal_type(int(decimal[1]), int(decimal[2])) or pa.string()
    return _TYPES.get(tag, pa.string())


def arrow_schema(types: Sequence[Sequence[str]]) -> pa.Schema:
    return pa.schema([pa.field(name, arrow_type(tag)) for name, tag in types])


def check_names(names: Sequence[str]) -> None:
    """Raises :class:`Refused` for two columns of one name, which Parquet's readers could not tell apart, or none."""
    if not names:
        raise Refused("it has no columns")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise Refused(f"two columns are named {name!r}: give one an alias")
        seen.add(name)


def same(planned: Iterable[Sequence[str]], found: Iterable[Sequence[str]]) -> None:
    """Raises :class:`Refused` if a column is not what it was: the files of one table are to have one schema."""
    before, now = {c[0]: c[1] for c in planned}, {c[0]: c[1] for c in found}
    for name in [*before, *now]:
        if before.get(name) != now.get(name):
            was, is_now = before.get(name, "not there"), now.get(name, "not there")
            raise Refused(f"column {name!r} was {was} when the partitions were planned, and is {is_now}: submit again")


def paced(
    fetch: Callable[[int], Sequence[Any]], batch_of: Callable[[Sequence[Any]], pa.RecordBatch]
) -> Iterator[pa.RecordBatch]:
    """Batches of rows that a cursor gives: as many rows at a time as make about BATCH_BYTES, as those before did."""
    rows = _FIRST_ROWS
    while found := fetch(rows):
        batch = batch_of(found)
        yield batch
        rows = max(1, min(_MOST_ROWS, 4 * rows, BATCH_BYTES * len(found) // max(1, batch.nbytes)))


def exactly(column: pa.Array, field: pa.Field) -> pa.Array:
    """The column as the field's type. Raises :class:`Refused` rather than lose a digit, or hand on text that is not
    UTF-8."""
    try:
        made = column if column.type == field.type else column.cast(field.type)
        made.validate(full=True)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise Refused(f"column {field.name!r} holds what {field.type} cannot: {error}; {CAST}") from error
    return made
