"""SQLite through ADBC, with types that hold for the whole table.

SQLite types values, not columns, and ADBC takes a column's type from the first batch. So the planner asks once which
kinds of value each column has, every partition is read as that, and a first row of typed values tells ADBC. Numbers and
text in one column become text, anything beside a blob becomes a blob; a declared ``DECIMAL(p,s)`` becomes a decimal if
its values have no more digits than that.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import Any
from urllib.parse import quote as percent_encoded

import adbc_driver_sqlite.dbapi as adbc
import pyarrow as pa
from adbc_driver_sqlite import StatementOptions
from sqlalchemy.engine import URL

from ingest.sections import Limits
from workers.fetchers.sql import parts
from workers.fetchers.sql.databases.base import arrow_schema, check_names, decimal_type, exactly
from workers.fetchers.sql.databases.moments import FileState, MomentPast
from workers.fetchers.sql.parts import Bound, quoted, text_literal, to_bound

#: SQLite bounds the columns of a result (2000 by default); five are asked for each.
_COLUMNS_AT_ONCE = 300
#: Rows per batch; SQLite's rows are mostly narrow, and ADBC's own 1024 costs a third of the speed.
_BATCH_ROWS = 8192
#: Keys that are sorted to cut by, at most (for each partition at least), and how the rows of a sample are chosen: by
#: multiples of the golden ratio (Knuth, The Art of Computer Programming, 6.4).
_SAMPLE_ROWS, _KEYS_EACH = 200_000, 50
_SCATTER, _ALL = 2_654_435_761, (1 << 32) - 1
#: Integers beyond this are not all doubles.
_EXACT_DOUBLE = 1 << 53

_DECIMAL = re.compile(r"(?:decimal|numeric)\s*\(\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)", re.IGNORECASE)
#: The words of a declared type → its affinity, in SQLite's order (sqlite.org/datatype3.html §3.1).
_AFFINITIES = (("INT", "int64"), ("CHAR", "string"), ("CLOB", "string"), ("TEXT", "string"), ("BLOB", "binary"),
               ("REAL", "float64"), ("FLOA", "float64"), ("DOUB", "float64"))  # fmt: skip
_FIRST_ROW = {"int64": "0", "float64": "0.0", "string": "''", "binary": "x''"}

#: By device and inode, which thread of this process reads a file. Python's SQLite and ADBC's do not know of each other,
#: and all locks of a process on a file are one (fcntl(2)): what either lets go, the other has lost too.
_readers: defaultdict[tuple[int, int], threading.Lock] = defaultdict(threading.Lock)
#: SQLite's instructions between two looks at the clock: a millisecond or so.
_STEPS = 100_000


class SqliteDatabase:
    """One thread of a process reads a file at a time. Once ``_bulk`` reads, ``_plain`` is asked nothing any more."""

    def __init__(self, url: URL, limits: Limits) -> None:
        path = url.database or ""
        if path in {"", ":memory:"} or path.startswith("file:"):
            raise ValueError("write the path of the database's file: sqlite:////absolute/path/to/file.db")
        self._state, self._joined = FileState(path), ""
        self._uri = f"file:{percent_encoded(path)}?mode=ro"
        self._limits = limits
        self._bulk: adbc.Connection | None = None
        self._cursor: adbc.Cursor | None = None
        self._reader = _reader(path)
        self._reader.acquire()
        try:
            self._plain = sqlite3.connect(self._uri, uri=True, timeout=limits.connect_s)
        except BaseException:
            self._reader.release()
            raise
        until = time.monotonic() + limits.soft_s
        self._plain.set_progress_handler(lambda: time.monotonic() > until, _STEPS)

    def join(self, moment: str) -> None:
        self._joined = moment
        self.moment()
        self._check()

    def moment(self) -> str:
        self._plain.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # a write-ahead log has an index now
        return self._state.now()

    def _check(self) -> None:
        if self._joined and self._state.now() != self._joined:
            raise MomentPast("the file was written to since its partitions were planned")

    def greatest(self, column: str) -> str:
        return f"max({column})"

    def ask(self, statement: str) -> Sequence[Any]:
        with closing(self._plain.execute(statement)) as cursor:
            row: Sequence[Any] = cursor.fetchone()
            return row

    def quote(self, name: str) -> str:
        return quoted(name)

    def literal(self, bound: Bound) -> str:
        kind, text = bound
        if kind == "bytes":
            return f"x'{text}'"
        if kind == "float" and "inf" in text:
            return text.replace("inf", "9e999")
        return text if kind in {"int", "float"} else text_literal(text)

    def describe(self, part: Mapping[str, Any], several: bool) -> dict[str, Any]:
        statement = parts.select(self, parts.unordered(part))
        with closing(self._plain.execute(f"SELECT * FROM ({statement}) LIMIT 0")) as cursor:
            names = [column[0] for column in cursor.description]
        check_names(names)
        declared = self._declared(statement)
        types = []
        for start in range(0, len(names), _COLUMNS_AT_ONCE):
            some = names[start : start + _COLUMNS_AT_ONCE]
            (row,) = self._plain.execute(
                f"SELECT {', '.join(_kinds(name, declared[name]) for name in some)} FROM ({statement})"
            )
            types += [[name, _tag(declared[name], row[n * 5 : n * 5 + 5])] for n, name in enumerate(some)]
        return {"types": types}

    def _declared(self, statement: str) -> dict[str, str]:
        """Column → declared type; a temporary view is how SQLite tells them for a query too."""
        self._plain.execute(f"CREATE TEMP VIEW ingest_view AS {statement}")
        try:
            return {row[1]: row[2] for row in self._plain.execute("PRAGMA temp.table_info(ingest_view)")}
        finally:
            self._plain.execute("DROP VIEW temp.ingest_view")

    def pages(self, part: Mapping[str, Any]) -> None:
        """None: where a row lies is its key."""

    def primary_key(self, part: Mapping[str, Any]) -> str | None:
        *schema, table = parts.names_of(part["table"])
        of = f"{quoted(schema[0])}." if schema else ""
        keys = [row[1] for row in self._plain.execute(f"PRAGMA {of}table_info({quoted(table)})") if row[5]]
        return keys[0] if len(keys) == 1 else None

    def bounds(self, part: Mapping[str, Any], key: str, parts_: int) -> list[Bound]:
        name, keys = quoted(key), parts.key_select(self, part, key)
        (count,) = self._plain.execute(f"SELECT count({name}) FROM ({keys})").fetchone()
        if count > (most := max(_SAMPLE_ROWS, _KEYS_EACH * parts_)):
            # Scattered as by chance, and the same again; every so many rows could meet a pattern in the table.
            chance = f"(row_number() OVER () * {_SCATTER} & {_ALL}) < {most * (_ALL + 1) // count}"
            keys = f"SELECT {name} FROM (SELECT {name}, {chance} AS ingest_chosen FROM ({keys})) WHERE ingest_chosen"
            (count,) = self._plain.execute(f"SELECT count({name}) FROM ({keys})").fetchone()
        if not count:
            return []
        found = self._plain.execute(parts.quantiles(name, keys, count, parts_)).fetchall()
        return parts.inner([to_bound(row[0]) for row in found])

    def stream(self, part: Mapping[str, Any]) -> tuple[pa.Schema, Iterator[pa.RecordBatch]]:
        statement, types = parts.select(self, part), part["types"]
        schema = arrow_schema(types)
        columns = [(quoted(name), _physical(tag), tag) for name, tag in types]
        first = ", ".join(f"{_FIRST_ROW[physical]} AS {name}" for name, physical, _ in columns)
        rest = ", ".join(_read_as(name, physical, tag) for name, physical, tag in columns)
        self._bulk = adbc.connect(self._uri)
        self._cursor = cursor = self._bulk.cursor()  # kept: its end is the end of the stream
        cursor.execute(f"PRAGMA busy_timeout = {int(self._limits.connect_s * 1000)}")
        cursor.adbc_statement.set_options(**{StatementOptions.BATCH_ROWS.value: str(_BATCH_ROWS)})
        cursor.execute(f"SELECT {first} UNION ALL SELECT {rest} FROM ({statement})")
        batches = cursor.fetch_record_batch()
        self._check()  # again, now that the transaction has begun: what it sees is what was there between the two
        return schema, self._batches(batches, schema)

    def _batches(self, reader: pa.RecordBatchReader, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        skip = 1
        for batch in reader:
            columns = [exactly(column.slice(skip), field) for column, field in zip(batch.columns, schema, strict=True)]
            skip = 0
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def close(self) -> None:
        with ExitStack() as last_first:
            last_first.callback(self._reader.release)
            last_first.callback(self._state.close)
            last_first.callback(self._plain.close)
            for opened in (self._bulk, self._cursor):
                if opened is not None:
                    last_first.callback(opened.close)


def _reader(path: str) -> threading.Lock:
    try:
        found = os.stat(path)
    except OSError:
        return threading.Lock()  # SQLite says what is wrong
    return _readers[found.st_dev, found.st_ino]


def _kinds(name: str, declared: str) -> str:
    """Five columns: the type of the least and of the greatest value; whether any is a real, an integer, loses digits.

    SQLite orders numbers before text before blobs, so the ends say what else there is. ``typeof`` of every value costs
    more than all the rest, and is asked only where the declared type leaves it open.
    """
    column, affinity = quoted(name), _affinity(declared)
    real = f"max(typeof({column}) = 'real')" if affinity not in {"float64", "string"} else "NULL"
    integer = f"max(typeof({column}) = 'integer')" if affinity is None else "NULL"
    lost = f"max(typeof({column}) = 'integer' AND ({column} > {_EXACT_DOUBLE} OR {column} < -{_EXACT_DOUBLE}))"
    if decimal := _scale(declared):
        precision, scale = decimal
        # From 1e15 on, a real is no longer the decimal that was written.
        digits = f"({column} <> round({column}, {scale}) OR abs({column}) >= 1e{15 - scale})"
        wide = f"{column} >= 1e{precision - scale} OR {column} <= -1e{precision - scale}"
        lost = f"max({wide} OR typeof({column}) = 'real' AND {digits})"
    elif affinity in {"float64", "string"}:
        lost = "NULL"
    return f"typeof(min({column})), typeof(max({column})), {real}, {integer}, {lost}"


def _affinity(declared: str) -> str | None:
    return next((tag for word, tag in _AFFINITIES if word in (declared or "").upper()), None)


def _scale(declared: str) -> tuple[int, int] | None:
    """(precision, scale) of a declared decimal that a decimal column can hold."""
    found = _DECIMAL.search(declared or "")
    if not found:
        return None
    precision, scale = int(found[1]), int(found[2] or 0)
    return (precision, scale) if 0 < precision >= scale and decimal_type(precision, scale) else None


def _tag(declared: str, kinds: Sequence[Any]) -> str:
    """The type that holds all values of a column, from what :func:`_kinds` found."""
    least, greatest, real, integer, lossy = kinds
    number = {"integer", "real"}
    if greatest == "null":
        decimal = _scale(declared)
        return _affinity(declared) or (f"decimal({decimal[0]},{decimal[1]})" if decimal else "string")
    if greatest == "blob":
        return "binary"
    if greatest == "text":
        return "string"
    if (decimal := _scale(declared)) and not lossy:
        return f"decimal({decimal[0]},{decimal[1]})"
    if not real and number.isdisjoint({least, greatest} - {"integer"}):
        return "int64"
    mixed = integer or "integer" in {least, greatest}
    return "string" if mixed and lossy and not decimal else "float64"


def _physical(tag: str) -> str:
    """What SQLite hands over for a type: decimals come as text."""
    return tag if tag in _FIRST_ROW else "string"


def _read_as(name: str, physical: str, tag: str) -> str:
    """The column as that type. What was written since the types were looked up, and is something else as that type, is
    handed on as text, which then does not fit."""
    real, text = f"typeof({name}) = 'real'", f"CAST({name} AS TEXT)"
    if tag.startswith("decimal"):
        scale = int(tag.rstrip(")").rpartition(",")[2])
        exact = f"{name} = round({name}, {scale}) AND abs({name}) < 1e{15 - scale}"
        item = f"CASE WHEN {real} AND {exact} THEN printf('%.{scale}f', {name}) ELSE {text} END"
    elif physical == "float64":
        exact = f"typeof({name}) = 'integer' AND {name} BETWEEN -{_EXACT_DOUBLE} AND {_EXACT_DOUBLE}"
        other = f"typeof({name}) || ' ' || substr({text}, 1, 100)"
        item = f"CASE WHEN {real} OR {exact} OR {name} IS NULL THEN CAST({name} AS REAL) ELSE {other} END"
    else:
        cast = {"string": "TEXT", "binary": "BLOB"}.get(physical)
        item = f"CAST({name} AS {cast})" if cast else name
    return f"{item} AS {name}"
