"""From a row of a manifest to a file: which columns mean what, and what their values may be. No I/O here."""

from __future__ import annotations

import datetime
import decimal
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ingest.errors import BadResponse, UsageError
from ingest.model import FileSpec
from ingest.sources import DIGEST_BY_LENGTH, DIGEST_HEX, Manifest, check_source_text, parse_digest

#: The largest file that any filesystem here could hold.
_MOST_BYTES = (1 << 63) - 1

#: A row's number, and its values in the order of ``columns_of``.
Row = tuple[int, Sequence[Any]]
#: Told of a row that cannot be right: its number, and why.
OnBad = Callable[[int, Exception], None]
#: Makes the file of a row.
RowMaker = Callable[[int, Sequence[Any]], FileSpec]


def columns_of(source: Manifest) -> tuple[str, ...]:
    """Every column that is asked for: URI, digest, size, key, and then the metadata."""
    return (source.uri_column, source.digest_column, source.size_column, source.key_column, *source.metadata)


def required_columns(source: Manifest) -> set[str]:
    """Those that may not be missing: the URI's, and what was asked for by name."""
    plain = Manifest("")
    optional = {plain.digest_column, plain.size_column, plain.key_column}
    return {name for name in columns_of(source) if name not in optional} | {source.uri_column, *source.metadata}


def found_columns(source: Manifest, there: Sequence[str]) -> list[int | None]:
    """Where each of ``columns_of`` is among the columns that a file has; None for one that may be missing, and is.

    Raises :class:`BadResponse` for one that was asked for and is missing, or is there twice.
    """
    shown = ", ".join(repr(name) for name in there[:20]) + ", …" * (len(there) > 20)
    required = required_columns(source)
    found: list[int | None] = []
    for name in columns_of(source):
        count = there.count(name)
        if count > 1:
            raise BadResponse(source.uri, f"the column {name!r} is there {count} times; its columns: {shown}")
        if not count and name in required:
            cure = "; name the column with Manifest(uri_column=…)" if name == source.uri_column else ""
            raise BadResponse(source.uri, f"no column {name!r}; its columns: {shown}{cure}")
        found.append(there.index(name) if count else None)
    return found


def row_maker(source: Manifest, index: int) -> RowMaker:
    """``maker(row, values)`` gives the file of a row; it raises :class:`UsageError` or ValueError for one that cannot
    be right."""
    named = _algorithm_named(source.digest_column)
    connection, metadata = source.connection, source.metadata

    def make(row: int, values: Sequence[Any]) -> FileSpec:
        uri, digest, size, key = values[:4]
        if isinstance(uri, bytes):
            uri = uri.decode()
        if not isinstance(uri, str) or not uri:
            raise UsageError(f"no {source.uri_column!r}; name the column with Manifest(uri_column=…)")
        _check_text(uri)
        check_source_text(uri)
        more: Mapping[str, Any] | None = None
        if metadata:
            more = {name: _plain(name, value) for name, value in zip(metadata, values[4:], strict=True)}
        return FileSpec(
            index,
            row,
            uri,
            None if digest is None else _digest(digest, named),
            None if size is None else _size(size),
            connection,
            key=None if key is None else _key(key),
            metadata=more,
        )

    return make


def _algorithm_named(column: str) -> str | None:
    """The algorithm that a column is named after, as in ``sha256`` or ``MD5``."""
    name = column.lower().replace("-", "").replace("_", "")
    return name if name in DIGEST_HEX else None


def _digest(value: Any, named: str | None) -> str | None:
    if _missing(value):
        return None
    text = (value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)).strip()
    if ":" not in text:
        algorithm = named or DIGEST_BY_LENGTH.get(len(text))
        if algorithm is None:
            raise UsageError(f"digest {text[:150]!r}: write it as ALGORITHM:HEX, with one of {', '.join(DIGEST_HEX)}")
        text = f"{algorithm}:{text}"
    return ":".join(parse_digest(text))


def _size(value: Any) -> int | None:
    """A whole number, however it is written: pandas writes a column with gaps as ``10.0``."""
    if _missing(value):
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        number = decimal.Decimal(value)
    else:
        try:
            number = decimal.Decimal(str(value).strip())
        except decimal.InvalidOperation:
            raise UsageError(f"a size of {str(value)[:50]!r} is no number of bytes") from None
    if number.is_nan():
        return None
    if not 0 <= number <= _MOST_BYTES or number != int(number):
        raise UsageError(f"a size of {str(value)[:50]} bytes cannot be")
    return int(number)


def _key(value: Any) -> str | None:
    if _missing(value):
        return None
    key = value.decode() if isinstance(value, bytes) else str(value)
    _check_text(key)
    return key


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UsageError("it is not UTF-8 text") from None


def _missing(value: Any) -> bool:
    """What stands for no value: nothing, an empty text, and what is not a number (the gaps of pandas)."""
    return value is None or value in ("", b"") or (isinstance(value, float) and math.isnan(value))


def _plain(name: str, value: Any) -> Any:
    """A metadata value as JSON has it."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        _check_text(value)
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, decimal.Decimal):
        return str(value)
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(k): _plain(name, v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, v) for v in value]
    raise UsageError(
        f"the metadata column {name!r} holds {type(value).__name__}, which is not text, a number or a list"
    )
