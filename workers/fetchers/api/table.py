"""From JSON Lines to Parquet, in two passes and flat memory: what the values of each field are, then the file.

Nothing is cast that would lose something: numbers that a double cannot hold become decimals, and what has no one type
is an error that names field and record.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.errors import BadResponse
from workers.fetchers.api.records import Number, kind

#: A row group ends at either: 65,536 rows is what a DataLoader reads well, the bytes bound the memory.
GROUP_ROWS, GROUP_BYTES = 65_536, 32 << 20
#: Rows are Python objects until they are Arrow's, at ten times the size: so few bytes of them at once.
_BATCH_ROWS, _BATCH_BYTES = 8192, 2 << 20
#: Objects with more keys than these in all have data for keys.
_MOST_FIELDS = 10_000
_INT64 = (-(1 << 63), (1 << 63) - 1)
#: Whole numbers up to here are themselves as a double.
_EXACT_DOUBLE = 1 << 53
_WHOLE = re.compile(r"-?\d+")
#: The most that decimal256 holds.
_DIGITS = 76
CURE = "ask for format='jsonl', which keeps it as it is"


def write(source: Path, target: Path, uri: str, tick: Callable[[], None]) -> int:
    """Write the JSON objects of ``source``, one a line, as Parquet (zstd) to ``target``; returns how many. ``tick`` is
    called now and then, and may raise to stop. Raises :class:`BadResponse` for what has no place in a table."""
    shape = Shape(uri)
    try:
        for number, record in _records(source, tick):
            if not isinstance(record, dict):
                raise BadResponse(uri, f"record {number} is {kind(record)}, and a row must be an object; {CURE}")
            shape.see(record, (), number)
        schema = shape.schema()
    except RecursionError:
        raise BadResponse(uri, f"a record is nested too deeply for a table; {CURE}") from None
    rows = 0
    with pq.ParquetWriter(target, schema, compression="zstd") as out:
        for table in _groups(_records(source, tick), shape, schema):
            out.write_table(table, row_group_size=GROUP_ROWS)
            rows += table.num_rows
    return rows


def _records(source: Path, tick: Callable[[], None]) -> Iterator[tuple[int, Any]]:
    decoder = json.JSONDecoder(parse_int=Number, parse_float=Number)
    with open(source, encoding="utf-8", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            if number % 1000 == 1:
                tick()
            yield number, decoder.decode(line)


def _groups(records: Iterator[tuple[int, Any]], shape: Shape, schema: pa.Schema) -> Iterator[pa.Table]:
    group: list[pa.RecordBatch] = []
    for batch in batches(records, shape, schema):
        group.append(batch)
        if sum(map(len, group)) >= GROUP_ROWS or sum(one.nbytes for one in group) >= GROUP_BYTES:
            yield pa.Table.from_batches(group, schema)
            group = []
    if group:
        yield pa.Table.from_batches(group, schema)


def batches(records: Iterator[tuple[int, Any]], shape: Shape, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    rows: list[Any] = []
    held = 0
    struct = pa.struct(list(schema))
    for _, record in records:
        rows.append(shape.value(record))
        held += _weight(record)
        if len(rows) >= _BATCH_ROWS or held >= _BATCH_BYTES:
            yield pa.RecordBatch.from_struct_array(pa.array(rows, struct))
            rows, held = [], 0
    if rows:
        yield pa.RecordBatch.from_struct_array(pa.array(rows, struct))


def _weight(value: Any) -> int:
    """About the bytes of a value as JSON."""
    if isinstance(value, str):
        return len(value) + 8
    if isinstance(value, dict):
        return 16 + sum(len(key) + _weight(one) for key, one in value.items())
    if isinstance(value, list):
        return 16 + sum(map(_weight, value))
    return 8


class Shape:
    """What all values of one field have in common."""

    def __init__(self, uri: str, counter: list[int] | None = None, cure: str = CURE) -> None:
        self.uri, self.cure = uri, cure
        self.kind = ""
        self.first = 0  # the record in which the field was first seen with a value
        self.fields: dict[str, Shape] = {}
        self.items: Shape | None = None
        #: Of numbers: whether some have a fraction, whether a double holds them all, digits before and after the point.
        self.fraction, self.double = False, True
        self.before, self.after = 1, 0
        self.low = self.high = 0
        self._counter = counter if counter is not None else [0]
        self._type: Any = None

    def see(self, value: Any, way: tuple[str, ...], record: int) -> None:
        if value is None:
            return
        found = kind(value)
        if found != self.kind:
            if self.kind:
                raise BadResponse(
                    self.uri,
                    f"field {'.'.join(way)!r} is {self.kind} in record {self.first} and {found} in record {record}; "
                    + self.cure,
                )
            self.kind, self.first = found, record
        if isinstance(value, Number):
            self._number(value, way, record)
        elif isinstance(value, str):
            if not value.isascii():
                _check_text(self, value, way, record)
        elif isinstance(value, dict):
            for key, one in value.items():
                field = self.fields.get(key)
                if field is None:
                    field = self._add(key, way, record)
                field.see(one, (*way, key), record)
        elif isinstance(value, list):
            self.items = self.items or Shape(self.uri, self._counter, self.cure)
            for one in value:
                self.items.see(one, (*way, "[]"), record)

    def _add(self, key: str, way: tuple[str, ...], record: int) -> Shape:
        self._counter[0] += 1
        if self._counter[0] > _MOST_FIELDS:
            where = ".".join(way) or "the record"
            raise BadResponse(
                self.uri, f"more than {_MOST_FIELDS} fields by record {record}: {where} has data for keys; {self.cure}"
            )
        _check_text(self, key, (*way, key), record)
        made = self.fields[key] = Shape(self.uri, self._counter, self.cure)
        return made

    def _number(self, text: Number, way: tuple[str, ...], record: int) -> None:
        if _WHOLE.fullmatch(text):
            digits = len(text.lstrip("-"))
            if digits < 19:
                number = int(text)
                self.low, self.high = min(self.low, number), max(self.high, number)
                self.double = self.double and -_EXACT_DOUBLE <= number <= _EXACT_DOUBLE
            else:
                self.double = False
                if digits <= _DIGITS:
                    self.low, self.high = min(self.low, int(text)), max(self.high, int(text))
            before, after = digits, 0
        else:
            self.fraction = True
            try:
                exact = Decimal(text)
            except InvalidOperation:  # an exponent that fits no machine word
                raise self._too_many(way, record) from None
            self.double = self.double and Decimal(repr(float(text))) == exact
            _, figures, exponent = exact.as_tuple()
            assert isinstance(exponent, int)
            before, after = (max(1, len(figures) + exponent) if exact else 1), max(0, -exponent)
        self.before, self.after = max(self.before, before), max(self.after, after)
        if not self.double and (self.before + self.after > _DIGITS):
            raise self._too_many(way, record)

    def _too_many(self, way: tuple[str, ...], record: int) -> BadResponse:
        name = ".".join(way)
        return BadResponse(
            self.uri,
            f"field {name!r} needs more than {_DIGITS} digits as of record {record}: no column has them; {self.cure}",
        )

    def schema(self) -> pa.Schema:
        if not self.fields and self.kind:
            raise BadResponse(self.uri, f"the records have no fields; {self.cure}")
        return pa.schema([pa.field(name, one.type()) for name, one in self.fields.items()])

    def type(self) -> Any:
        self._type = self._make_type()
        return self._type

    def _make_type(self) -> Any:
        if self.kind == "a number":
            if self.fraction and self.double:
                return pa.float64()
            if not self.fraction and _INT64[0] <= self.low and self.high <= _INT64[1] and self.before < 20:
                return pa.int64()
            digits = self.before + self.after
            return pa.decimal128(digits, self.after) if digits <= 38 else pa.decimal256(digits, self.after)
        if self.kind == "an object":
            if not self.fields:  # Parquet has no struct without fields
                return pa.map_(pa.string(), pa.string())
            return pa.struct([pa.field(name, one.type()) for name, one in self.fields.items()])
        if self.kind == "a list":
            assert self.items is not None
            return pa.list_(self.items.type())
        return {"": pa.null(), "text": pa.string(), "true or false": pa.bool_()}[self.kind]

    def value(self, value: Any) -> Any:
        """A value of the field as what pyarrow takes for its type."""
        if isinstance(value, Number):
            if self._type == pa.int64():
                return int(value)
            return float(value) if self._type == pa.float64() else Decimal(value) or Decimal(0)
        if isinstance(value, dict):
            return {key: self.fields[key].value(one) for key, one in value.items()}
        if isinstance(value, list):
            assert self.items is not None
            return [self.items.value(one) for one in value]
        return value


def _check_text(shape: Shape, text: str, way: tuple[str, ...], record: int) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadResponse(
            shape.uri, f"field {'.'.join(way)!r} has half a character in record {record}; {shape.cure}"
        ) from None
