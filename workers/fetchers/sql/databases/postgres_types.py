"""PostgreSQL's types in Arrow: what each column is asked for as, and how what comes is made what the file has.

Connections and statements are in ``postgres``. ADBC reads an array of any dimensions as one flat list, and a time that
Arrow cannot hold as another time: both are found out here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from workers.fetchers.sql.databases.base import CAST, check_names, decimal_type, exactly
from workers.fetchers.sql.databases.errors import Refused
from workers.fetchers.sql.parts import quoted, text_literal

#: Types whose meaning ADBC drops → the type to ask for instead. A numeric it decodes slowly, the server does not.
_ASK = {
    **dict.fromkeys(("numeric", "money", "xid", "cid", "uuid", "interval", "record"), "text"),
    **{f"_{name}": "text[]" for name in ("numeric", "money", "uuid", "interval", "record", "json", "jsonb")},
    "oid": "bigint",
    "_oid": "bigint[]",
}
#: What a type with a cast to real[] is asked for as: no array itself, and a name that regtype never gives.
_VECTOR = "float4[]"
#: What has its meaning, though its Arrow type is an extension.
_KNOWN = {"json", "jsonb", *_ASK}
#: What is before all times that PostgreSQL has (4714 BC) did not fit: ADBC adds 30 years to infinity, and it wraps.
_FIRST_DAY, _FIRST_MICROSECOND = -2_440_590, -2_440_590 * 86_400_000_000

#: What ADBC calls a type that is not among those that every PostgreSQL has.
_UNNAMED = re.compile(r"unnamed<oid:(\d+)>")
#: Types that ADBC hands over as bytes: some have a cast to real[], as pgvector's have; others are arrays of domains,
#: which may be of further domains.
_CATALOGUE = """
    SELECT n.name, t.typname::text, CASE
        WHEN EXISTS (SELECT FROM pg_cast AS c WHERE c.castsource = t.oid AND c.casttarget = 'real[]'::regtype)
            THEN 'float4[]'
        WHEN t.typoutput <> 'array_out'::regproc THEN 'text'
        ELSE coalesce((
            WITH RECURSIVE element(oid, base) AS (
                SELECT e.oid, e.typbasetype FROM pg_type AS e WHERE e.oid = t.typelem
                UNION ALL SELECT b.oid, b.typbasetype FROM element JOIN pg_type AS b ON b.oid = element.base
            )
            SELECT oid::regtype::text || '[]' FROM element WHERE oid = ANY (
                '{{int2,int4,int8,float4,float8,bool,date,time,timestamp,timestamptz,bytea}}'::regtype[])
        ), 'text[]') END
    FROM (VALUES {types}) AS n(name, oid) JOIN pg_type AS t ON t.oid = n.oid"""


@dataclass(frozen=True)
class Column:
    """``type``: as the server says it. ``ask``: the type to ask for instead of its own, or None. ``kind``: the type in
    the file where it is not that of what comes. ``dims``: of an array."""

    name: str
    type: str
    ask: str | None = None
    kind: pa.DataType | None = None
    array: bool = False
    dims: int = 1

    @property
    def item(self) -> str:
        return f"{quoted(self.name)}::{self.ask} AS {quoted(self.name)}" if self.ask else quoted(self.name)


def tags(found: Sequence[Column]) -> list[list[str]]:
    """``[[column, type], …]``: what must be the same for all partitions."""
    return [[column.name, column.type] for column in found]


def columns(schema: pa.Schema, rows: Callable[[str], list[tuple[Any, ...]]], dims: Mapping[str, int]) -> list[Column]:
    """How to ask for each column of a prepared statement. ``rows`` runs a statement on the catalogue."""
    check_names(schema.names)
    names = sorted({_name(field) for field in schema if _is_foreign(field.type) and _name(field) not in _KNOWN})
    asked = ", ".join(f"({text_literal(name)}, {_oid(name)})" for name in names)
    known = {row[0]: row[1:] for row in rows(_CATALOGUE.format(types=asked))} if names else {}
    found = []
    for field in schema:
        name, ask = known.get(_name(field), (_name(field), None))
        found.append(_column(field, name, ask, dims.get(field.name, 1)))
    return found


def _oid(name: str) -> str:
    """The expression for the number of a type. Others may have made one with the name of PostgreSQL's own."""
    unnamed = _UNNAMED.fullmatch(name)
    return f"{unnamed[1]}::oid" if unnamed else f"to_regtype({text_literal(f'pg_catalog.{quoted(name)}')})::oid"


def _is_foreign(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.BaseExtensionType)


def _column(field: pa.Field, name: str, ask: str | None, dims: int) -> Column:
    kind, said = field.type, f"{name} {_modifier(field)}".removesuffix(" -1")
    ask = ask or _ASK.get(_name(field))
    if ask is None and pa.types.is_list(kind):
        ask = "text[]" if _is_foreign(kind.value_type) else None
    elif ask is None and _is_foreign(kind) and _name(field) not in _KNOWN:
        ask = "text"
    array = pa.types.is_list(kind) or (ask is not None and ask.endswith("[]") and ask != _VECTOR)
    decimal = _decimal(field) if _name(field) == "numeric" else None
    return Column(field.name, said, ask, decimal, array, dims if array else 1)


def _name(field: pa.Field) -> str:
    return str((field.metadata or {}).get(b"POSTGRESQL:type", b"").decode())


def _modifier(field: pa.Field) -> int:
    return int((field.metadata or {}).get(b"POSTGRESQL:typmod", b"-1"))


def _decimal(field: pa.Field) -> pa.DataType:
    """``numeric(p,s)`` has p and s in its type modifier (PostgreSQL ``numeric.c``); without one it has any digits."""
    modifier = _modifier(field)
    if modifier < 4:
        return pa.string()
    scale = ((modifier - 4) & 0x7FF ^ 1024) - 1024  # eleven bits, signed
    return decimal_type((modifier - 4) >> 16 & 0xFFFF, scale) or pa.string()


# -- what is asked beside the columns -----------------------------------------------------------------------------


def dims_query(statement: str, arrays: Sequence[str], rows: int) -> str:
    """The dimensions of each array, as the first rows have them."""
    most = ", ".join(f"max(array_ndims({quoted(name)}))" for name in arrays)
    return f"SELECT {most} FROM (SELECT {', '.join(map(quoted, arrays))} FROM ({statement}) AS s LIMIT {rows}) AS s"


def extra_items(found: Sequence[Column]) -> list[str]:
    """After the columns: the first array of one dimension that has more, then the dimensions of each of the others."""
    flat = [column.name for column in found if column.array and column.dims == 1]
    cases = " ".join(f"WHEN array_ndims({quoted(name)}) > 1 THEN {text_literal(name)}" for name in flat)
    items = [f"CASE {cases} END"] if flat else []
    for column in found:
        if column.array and column.dims > 1:
            lengths = [f"array_length({quoted(column.name)}, {n + 1})" for n in range(column.dims)]
            items.append(f"ARRAY[array_ndims({quoted(column.name)}), {', '.join(lengths)}]")
    return items


def file_schema(found: Sequence[Column], given: pa.Schema) -> pa.Schema:
    """The file's schema, from what the columns come as."""
    return pa.schema([pa.field(c.name, c.kind or _plain(given.field(n).type, c.dims)) for n, c in enumerate(found)])


def _plain(kind: pa.DataType, dims: int) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return kind.storage_type
    for _ in range(dims - 1):
        kind = pa.list_(kind)
    return kind


def convert(batch: pa.RecordBatch, found: Sequence[Column], schema: pa.Schema) -> pa.RecordBatch:
    """What came as what the file has. Raises :class:`Refused`, naming the column, for a value that cannot be in it."""
    extra = iter(batch.columns[len(found) :])
    if any(column.array and column.dims == 1 for column in found):
        guilty = next(extra).drop_null()
        if len(guilty):
            _wrong_dims(guilty[0].as_py(), 1)
    made = []
    for column, array, field in zip(found, batch.columns, schema, strict=False):
        plain = array.storage if isinstance(array, pa.ExtensionArray) else array
        if column.array and column.dims > 1:
            plain = _nested(plain, next(extra).to_pylist(), column)
        _check_times(plain, column.name)
        made.append(exactly(plain, field))
    return pa.RecordBatch.from_arrays(made, schema=schema)


def _wrong_dims(name: str, dims: int) -> None:
    raise Refused(
        f"column {name!r} holds an array of other than the {dims} dimension{'s' * (dims != 1)} of its first rows; "
        f"ask for to_json({name}) in a query"
    )


def _nested(flat: pa.ListArray, lengths: Sequence[Sequence[int | None]], column: Column) -> pa.Array:
    """The flat list of each row as lists within lists, by its dimensions. An empty array has none."""
    rows = [[n or 0 for n in row] for row in lengths]
    if any(row[0] not in {0, column.dims} for row in rows):
        _wrong_dims(column.name, column.dims)
    child, level = flat.flatten(), [row[1:] for row in rows]
    sizes: list[list[int]] = []
    for _ in range(column.dims):
        sizes.append([lengths[0] for lengths in level])
        level = [rest[1:] for rest in level for _ in range(rest[0])]
    for depth in range(column.dims - 1, 0, -1):
        child = pa.ListArray.from_arrays(_offsets(sizes[depth]), child)
    return pa.ListArray.from_arrays(_offsets(sizes[0]), child, mask=flat.is_null())


def _offsets(sizes: Iterable[int]) -> pa.Array:
    return pa.array(accumulate(sizes, initial=0), pa.int32())


def _check_times(array: pa.Array, name: str) -> None:
    while pa.types.is_list(array.type):
        array = array.flatten()
    if pa.types.is_date32(array.type):
        least, first = pc.min(array.view(pa.int32())).as_py(), _FIRST_DAY
    elif pa.types.is_timestamp(array.type):
        least, first = pc.min(array.view(pa.int64())).as_py(), _FIRST_MICROSECOND
    else:
        return
    if least is not None and least < first:
        raise Refused(f"column {name!r} holds infinity, or a time after the year 294246, which Arrow has not; {CAST}")
