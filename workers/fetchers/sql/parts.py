"""SQL text and partitions, as pure functions: no connection is opened here.

A partition travels as a JSON mapping: ``table`` or ``query``, ``columns``, ``where``, ``order_by``, and its share:
``key`` with ``lo`` and ``hi``, or ``pages``; beside them what the planner found (``types`` and the like) and how to
write it (``row_group_rows``, ``file_bytes``). ``lo`` is inclusive and ``hi`` exclusive; None means unbounded on that
side, and the partition without ``lo`` also has the rows whose key is NULL: no row is lost, also none inserted since the
planning, none whose key is NaN or infinity.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime
from decimal import Decimal
from itertools import pairwise
from typing import Any, Protocol

from ingest.sources import Sql

#: A bound as it travels: a type tag and the value as text.
Bound = Sequence[str]

#: What a query is called inside our statement, and the place of a key among all.
QUERY = "ingest_query"
_RANK = "ingest_rank"

#: The parts of ``schema.table``; one in double quotes may hold a dot.
_NAME = re.compile(r'(?:"(?:[^"]|"")*"|[^.])+')
_ORDER = re.compile(r"(.*\S)\s+(asc|desc)", re.IGNORECASE | re.DOTALL)


class Dialect(Protocol):
    """How a database writes names and values."""

    def quote(self, name: str) -> str: ...
    def literal(self, bound: Bound) -> str: ...


def to_bound(value: Any) -> list[str]:
    """A key value as JSON. What is neither a number nor a time is compared as its text."""
    if isinstance(value, datetime):
        return ["timestamp", value.isoformat(sep=" ")]
    if isinstance(value, date):
        return ["date", value.isoformat()]
    if isinstance(value, float):
        return ["float", repr(value)]
    if isinstance(value, Decimal):
        return ["decimal", format(value, "f")]
    if isinstance(value, int) and not isinstance(value, bool):
        return ["int", str(value)]
    if isinstance(value, bytes):
        return ["bytes", value.hex()]
    return ["str", str(value)]


_PARSE: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "decimal": Decimal,
    "date": date.fromisoformat,
    "timestamp": datetime.fromisoformat,
    "bytes": bytes.fromhex,
    "str": str,
}


def from_bound(bound: Bound) -> Any:
    return _PARSE[bound[0]](bound[1])


def inner(quantiles: Sequence[Bound]) -> list[Bound]:
    """The bounds between partitions from ascending quantiles, the first of which is the least key: none of them the
    least, none twice. A key that many rows have gives fewer bounds."""
    return [list(bound) for before, bound in pairwise(quantiles) if list(bound) != list(before)]


def ranks(count: int, parts: int) -> list[int]:
    """Which of ``count`` keys in ascending order (from 1) begin a partition: ascending, none twice, the first is 1.

    >>> ranks(1000, 4)
    [1, 251, 501, 751]
    """
    return sorted({count * n // parts + 1 for n in range(parts)}) if count else []


def quantiles(name: str, keys: str, count: int, parts: int) -> str:
    """The statement for those keys, ascending: of the ``count`` that are not NULL in the quoted column ``name``, which
    the statement ``keys`` gives. Our own name beside it must be none that a column has."""
    ranked = f"SELECT {name}, row_number() OVER (ORDER BY {name}) AS {_RANK} FROM ({keys}) k WHERE {name} IS NOT NULL"
    wanted = ", ".join(map(str, ranks(count, parts)))
    return f"SELECT {name} FROM ({ranked}) k WHERE {_RANK} IN ({wanted}) ORDER BY {_RANK}"


def whole(sql: Sql) -> dict[str, Any]:
    """All of the table or query as one partition."""
    part: dict[str, Any] = {
        "row_group_rows": sql.row_group_rows, "file_bytes": sql.file_bytes, "consistent": sql.consistent,
    }  # fmt: skip
    for name in ("table", "query", "where"):
        if value := getattr(sql, name):
            part[name] = value
    for name in ("columns", "order_by"):
        if value := getattr(sql, name):
            part[name] = list(value)
    return part


def key_of(sql: Sql) -> str | None:
    """The column that the source says to cut by: ``partition_on``, else the first that ``order_by`` sorts ascending,
    for then the files one after the other are in that order."""
    if sql.partition_on or not sql.order_by:
        return sql.partition_on
    name, descending = order(sql.order_by[0])
    return None if descending else name


def split(part: Mapping[str, Any], key: str, bounds: Sequence[Bound]) -> list[dict[str, Any]]:
    """``len(bounds) + 1`` partitions that together are ``part``."""
    edges = [None, *bounds, None]
    return [{**part, "key": key, "lo": lo, "hi": hi} for lo, hi in pairwise(edges)]


def split_pages(part: Mapping[str, Any], pages: int, parts: int) -> list[dict[str, Any]]:
    """Up to ``parts`` partitions by the table's pages (``ctid``); the last has also those that are added later."""
    count = max(1, min(pages, parts))
    edges = [pages * n // count for n in range(count)]
    return [{**part, "pages": [lo, hi]} for lo, hi in pairwise([*edges, None])]


def is_share(part: Mapping[str, Any]) -> bool:
    """Whether there are other partitions, which must fit to it."""
    return "key" in part or "pages" in part


def select(dialect: Dialect, part: Mapping[str, Any], items: Sequence[str] = (), sample: str = "") -> str:
    """The statement for one partition; ``items`` are SQL expressions instead of its columns, ``sample`` is said of the
    table. Names are quoted; ``query`` and ``where`` are the submitter's SQL."""
    columns = ", ".join(items or [dialect.quote(name) for name in part.get("columns") or ()]) or "*"
    conditions = [f"(\n{part['where']}\n)"] if part.get("where") else []
    conditions += _range(dialect, part) + _pages(dialect, part)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {columns} FROM {origin(dialect, part)}{sample}{where}{_order_by(dialect, part)}"


def key_select(dialect: Dialect, part: Mapping[str, Any], key: str, sample: str = "") -> str:
    """The key column of all rows or of a sample, for a look at its values."""
    return select(dialect, unordered(part), [dialect.quote(key)], sample)


def unordered(part: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in part.items() if name != "order_by"}


def origin(dialect: Dialect, part: Mapping[str, Any]) -> str:
    if part.get("table"):
        return table_name(dialect, part["table"])
    query = re.sub(r"[;\s]+$", "", part["query"])
    return f"(\n{query}\n) {QUERY}"  # the line breaks: a comment at its end must not swallow what follows


def names_of(table: str) -> list[str]:
    """``schema.table`` as a list; a name in double quotes may hold dots."""
    found = _NAME.findall(table)
    return [n[1:-1].replace('""', '"') if n[0] == n[-1] == '"' and len(n) > 2 else n for n in found]


def table_name(dialect: Dialect, table: str) -> str:
    return ".".join(map(dialect.quote, names_of(table)))


def order(item: str) -> tuple[str, bool]:
    """``"name"`` or ``"name DESC"`` → the column, and whether it is descending."""
    found = _ORDER.fullmatch(item)
    return (found[1], found[2].lower() == "desc") if found else (item, False)


def _column(dialect: Dialect, part: Mapping[str, Any], name: str) -> str:
    """With its table: a name of our select list must not hide the column itself."""
    table = table_name(dialect, part["table"]) if part.get("table") else QUERY
    return f"{table}.{dialect.quote(name)}"


def _order_by(dialect: Dialect, part: Mapping[str, Any]) -> str:
    items = [order(item) for item in part.get("order_by") or ()]
    said = [f"{_column(dialect, part, name)}{' DESC' if descending else ''}" for name, descending in items]
    return f" ORDER BY {', '.join(said)}" if said else ""


def _range(dialect: Dialect, part: Mapping[str, Any]) -> list[str]:
    if not part.get("key"):
        return []
    key, lo, hi = _column(dialect, part, part["key"]), part.get("lo"), part.get("hi")
    above = [f"{key} >= {dialect.literal(lo)}"] if lo is not None else []
    if hi is None:
        return above
    below = f"{key} < {dialect.literal(hi)}"
    return [*above, below] if above else [f"({below} OR {key} IS NULL)"]


def _pages(dialect: Dialect, part: Mapping[str, Any]) -> list[str]:
    if not part.get("pages"):
        return []
    (lo, hi), ctid = part["pages"], f"{table_name(dialect, part['table'])}.ctid"
    below = [f"{ctid} < '({hi},0)'::tid"] if hi is not None else []
    return [f"{ctid} >= '({lo},0)'::tid", *below]


def quoted(name: str) -> str:
    """An identifier in standard SQL."""
    return '"' + name.replace('"', '""') + '"'


def text_literal(value: str) -> str:
    """A string in standard SQL (no backslash escapes)."""
    return "'" + value.replace("'", "''") + "'"
