"""What both formats of a table share: what was asked for, the types that a column may be made to, and their errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from ingest.errors import BadResponse

#: A row, or a line, is held whole; so is a block of them.
MOST_ROW_BYTES = 8 << 20
_TRUE, _FALSE = ("true", "True", "TRUE"), ("false", "False", "FALSE")
BOOLS = pa.array([*_TRUE, *_FALSE])
_WHOLE = r"^[+-]?[0-9]+$"
_TYPES = {
    "string": pa.string(), "int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_(), "date": pa.date32(),
    "timestamp": pa.timestamp("us"), "timestamptz": pa.timestamp("us", "UTC"),
}  # fmt: skip


@dataclass(frozen=True)
class Wanted:
    """``columns`` selects and orders, ``types`` are those that the user names; ``tick`` is called now and then, and may
    raise to stop. ``name`` is the file's, for errors."""

    uri: str
    name: str
    columns: tuple[str, ...] | None
    types: Mapping[str, str]
    tick: Callable[[], None]

    def error(self, what: str) -> BadResponse:
        return BadResponse(self.uri, f"{self.name}: {what}")

    def choose(self, there: Sequence[str]) -> list[str]:
        """The columns that are wanted of those that there are. Raises :class:`BadResponse` for one that is not."""
        for name in (*(self.columns or ()), *self.types):
            if name not in there:
                shown = ", ".join(repr(one) for one in list(there)[:20])
                raise self.error(f"there is no column {name!r}; there are {shown}")
        return list(self.columns or there)


def type_of(text: str) -> Any:
    """The Arrow type of a name from ``ingest.steps.column_type``."""
    if text in _TYPES:
        return _TYPES[text]
    precision, scale = (int(part) for part in text[len("decimal(") : -1].split(","))
    return decimal(precision, scale)


def decimal(precision: int, scale: int) -> Any:
    return pa.decimal128(precision, scale) if precision <= 38 else pa.decimal256(precision, scale)


def cast(values: Any, kind: Any, column: str, before: int, wanted: Wanted) -> Any:
    """An array of text as one of that type; ``before`` rows came earlier. Raises :class:`BadResponse` naming column and
    row where a text is no value of the type, or would lose something in it."""
    if kind == pa.string():
        return values
    try:
        return _cast(values, kind)
    except pa.ArrowInvalid:
        low, high = 0, len(values) - 1  # the first that cannot be is in here
        while low < high:
            middle = (low + high) // 2
            try:
                _cast(values.slice(low, middle - low + 1), kind)
                low = middle + 1
            except pa.ArrowInvalid:
                high = middle
        raise wanted.error(
            f"column {column!r} holds {str(values[low])[:80]!r} in row {before + low + 1}, which is no {kind}; "
            f"types={{{column!r}: 'string'}} keeps it as text"
        ) from None


def _cast(values: Any, kind: Any) -> Any:
    if kind == pa.bool_():
        good = pc.is_in(values, value_set=BOOLS)
        if not pc.all(pc.or_(good, pc.is_null(values))).as_py():
            raise pa.ArrowInvalid("no bool")
        return pc.if_else(pc.is_valid(values), pc.is_in(values, value_set=BOOLS.slice(0, len(_TRUE))), None)
    if kind == pa.int64() and not pc.all(pc.match_substring_regex(values, _WHOLE)).as_py():
        raise pa.ArrowInvalid("no int64")  # Arrow takes hexadecimal, too
    if kind == pa.int64():
        values = pc.replace_substring_regex(values, r"^\+", "")
    return values.cast(kind)
