"""JSON Lines as Arrow batches, twice over: what the values of each field are, and then the values.

How the type of a field is found, so that no number loses a digit, is as for the records of an API.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from workers.convert.tables import MOST_ROW_BYTES, Wanted, cast, type_of
from workers.fetchers.api.records import Number, kind
from workers.fetchers.api.table import Shape, batches

_TICK_ROWS = 1000
#: Arrow holds some blocks at once, and each line in one of them: as large as that takes, and no larger.
_BLOCK_BYTES, _ROWS_A_BLOCK = 1 << 20, 4
_CURE = "types={column: 'string'} keeps a column as text"


def read(path: Path, wanted: Wanted) -> tuple[Any, Iterator[pa.RecordBatch]]:
    """(schema, batches). Raises :class:`BadResponse` naming row and column."""
    shape = Shape(wanted.uri, None, f"{_CURE} ({wanted.name})")
    rows = 0
    try:
        for number, record in _records(path, wanted):
            shape.see(record, (), number)
            rows += 1
    except RecursionError:
        raise wanted.error("a record is nested too deeply for a table") from None
    if not shape.fields:
        raise wanted.error("there are no records with a field, and so no columns")
    chosen = wanted.choose(list(shape.fields))
    shape.fields = {name: shape.fields[name] for name in chosen}
    texts = shape.schema()
    kinds = [type_of(wanted.types[f.name]) if f.name in wanted.types else f.type for f in texts]
    schema = pa.schema([pa.field(f.name, to) for f, to in zip(texts, kinds, strict=True)])
    if not wanted.types and all(map(_reads_well, kinds)):
        return schema, _quickly(path, schema, rows, wanted)
    return schema, _typed(batches(_records(path, wanted), shape, texts), schema, wanted)


def _reads_well(kind: Any) -> bool:
    """Whether Arrow's own reader, told the type, gives just the value that is written."""
    if pa.types.is_struct(kind):
        return all(_reads_well(field.type) for field in kind)
    if pa.types.is_list(kind):
        return _reads_well(kind.value_type)
    return kind in (pa.int64(), pa.float64(), pa.string(), pa.bool_())


def _quickly(path: Path, schema: Any, rows: int, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """What has been read through once, and is known to be JSON of that schema, many times faster."""
    from pyarrow import json as arrow

    options = arrow.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    with open(path, "rb") as file:
        longest = max(map(len, file))
    block = max(_BLOCK_BYTES, _ROWS_A_BLOCK * longest)
    with arrow.open_json(path, arrow.ReadOptions(use_threads=False, block_size=block), options) as opened:
        for batch in opened:
            wanted.tick()
            rows -= batch.num_rows
            yield batch
    if rows:
        raise wanted.error(f"two readers count {rows} rows more and less")


def _typed(found: Iterator[pa.RecordBatch], schema: Any, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    before = 0
    for batch in found:
        made = [
            cast(values.cast(pa.string()), field.type, field.name, before, wanted)
            if field.name in wanted.types
            else values
            for field, values in zip(schema, batch.columns, strict=True)
        ]
        yield pa.RecordBatch.from_arrays(made, schema=schema)
        before += batch.num_rows


def _records(path: Path, wanted: Wanted) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line, record): the columns that are wanted, those with a type of the user's as text."""
    decode = _decoder(wanted)
    for number, line in _lines(path, wanted):
        try:
            record = decode(line)
        except (ValueError, RecursionError) as error:
            what = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
            raise wanted.error(f"line {number} is not JSON: {what}") from error
        if not isinstance(record, dict):
            raise wanted.error(f"line {number} is {kind(record)}, and a row must be an object")
        if wanted.columns:
            record = {name: record[name] for name in wanted.columns if name in record}
        for name in wanted.types:
            if record.get(name) is not None:
                record[name] = _text(record[name])
        yield number, record


def _lines(path: Path, wanted: Wanted) -> Iterator[tuple[int, str]]:
    number = 0
    with open(path, "rb") as file:
        while line := file.readline(MOST_ROW_BYTES):
            number += 1
            if number % _TICK_ROWS == 1:
                wanted.tick()
            if len(line) == MOST_ROW_BYTES:
                raise wanted.error(f"line {number} is longer than {MOST_ROW_BYTES} bytes")
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise wanted.error(f"line {number} is not UTF-8: {error.reason}") from error
            if not text.isspace():
                yield number, text


def _decoder(wanted: Wanted) -> Callable[[str], Any]:
    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            raise ValueError("a key is twice in one object")
        return made

    def constant(text: str) -> Any:
        raise ValueError(f"{text} is no number of JSON")

    return json.JSONDecoder(
        parse_int=Number, parse_float=Number, parse_constant=constant, object_pairs_hook=once
    ).decode


def _text(value: Any) -> str:
    """A value as JSON, numbers as they were written; a text as it is."""
    return str(value) if isinstance(value, str) else _json(value)


def _json(value: Any) -> str:
    if isinstance(value, Number):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{_json(key)}:{_json(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ",".join(map(_json, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
