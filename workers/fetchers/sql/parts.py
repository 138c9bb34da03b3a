"""SQL text and partition bounds, as pure functions: no connection is opened here.

A partition travels as a JSON mapping: ``table`` or ``query``, ``columns``, ``where``, ``key``, ``lo``, ``hi``,
``types``, ``row_group_rows``. ``lo`` is inclusive and ``hi`` exclusive; None means unbounded on that side, and the
partition without ``lo`` also has the rows whose key is NULL: no row is lost, also none inserted since the planning.
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
    return ["str", str(value)]


_PARSE: dict[str, Callable[[str], Any]] = {
    "int": int,
    "float": float,
    "decimal": Decimal,
    "date": date.fromisoformat,
    "timestamp": datetime.fromisoformat,
    "str": str,
}


def from_bound(bound: Bound) -> Any:
    return _PARSE[bound[0]](bound[1])


def can_be_cut(lo: Any, hi: Any) -> bool:
    """True when values between the two can be computed."""
    if isinstance(lo, bool) or isinstance(hi, bool):
        return False
    if isinstance(lo, float | Decimal) or isinstance(hi, float | Decimal):
        return all(isinstance(v, int | float | Decimal) and Decimal(v).is_finite() for v in (lo, hi))
    return type(lo) is type(hi) and isinstance(lo, int | date)


def cuts(lo: Any, hi: Any, parts: int) -> list[Any]:
    """The inner bounds that cut [lo, hi] into up to ``parts`` equal ranges: ascending, each above ``lo``, none twice.

    >>> cuts(0, 99, 4)
    [25, 50, 75]
    """
    found: list[Any] = []
    for n in range(1, parts):
        cut = _between(lo, hi, n, parts)
        if cut > (found[-1] if found else lo):
            found.append(cut)
    return found


def _between(lo: Any, hi: Any, n: int, parts: int) -> Any:
    if isinstance(lo, int) and isinstance(hi, int):
        return lo + (hi - lo + 1) * n // parts
    if isinstance(lo, date) and not isinstance(lo, datetime):
        return date.fromordinal(lo.toordinal() + (hi.toordinal() - lo.toordinal() + 1) * n // parts)
    if isinstance(lo, float) or isinstance(hi, float):
        return float(lo) * (1 - n / parts) + float(hi) * (n / parts)  # no overflow between the two ends of the range
    return lo + (hi - lo) * n / parts


def whole(sql: Sql) -> dict[str, Any]:
    """All of the table or query as one partition."""
    part: dict[str, Any] = {"row_group_rows": sql.row_group_rows}
    for name in ("table", "query", "where"):
        if value := getattr(sql, name):
            part[name] = value
    if sql.columns:
        part["columns"] = list(sql.columns)
    return part


def split(part: Mapping[str, Any], key: str, bounds: Sequence[Bound]) -> list[dict[str, Any]]:
    """``len(bounds) + 1`` partitions that together are ``part``."""
    edges = [None, *bounds, None]
    return [{**part, "key": key, "lo": lo, "hi": hi} for lo, hi in pairwise(edges)]


def select(dialect: Dialect, part: Mapping[str, Any]) -> str:
    """The statement for one partition. Names are quoted; ``query`` and ``where`` are the submitter's SQL."""
    columns = ", ".join(dialect.quote(name) for name in part.get("columns") or ()) or "*"
    conditions = [f"(\n{part['where']}\n)"] if part.get("where") else []
    if part.get("key"):
        conditions += _range(dialect, part)
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {columns} FROM {origin(dialect, part)}{where}"


def key_select(dialect: Dialect, part: Mapping[str, Any], key: str) -> str:
    """The key column of all rows, for a look at its range."""
    return select(dialect, {**part, "columns": [key]})


def origin(dialect: Dialect, part: Mapping[str, Any]) -> str:
    if part.get("table"):
        return ".".join(dialect.quote(name) for name in part["table"].split("."))
    query = re.sub(r"[;\s]+$", "", part["query"])
    return f"(\n{query}\n) AS ingest_query"  # the line breaks: a comment at its end must not swallow what follows


def _range(dialect: Dialect, part: Mapping[str, Any]) -> list[str]:
    key, lo, hi = dialect.quote(part["key"]), part.get("lo"), part.get("hi")
    above = [f"{key} >= {dialect.literal(lo)}"] if lo is not None else []
    if hi is None:
        return above
    below = f"{key} < {dialect.literal(hi)}"
    return [*above, below] if above else [f"({below} OR {key} IS NULL)"]


def quoted(name: str) -> str:
    """An identifier in standard SQL."""
    return '"' + name.replace('"', '""') + '"'


def text_literal(value: str) -> str:
    """A string in standard SQL (no backslash escapes)."""
    return "'" + value.replace("'", "''") + "'"
