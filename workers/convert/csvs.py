"""A CSV file as Arrow batches, three times over: whether it is one, what its columns are, and its values.

Arrow reads text fast and forgives much: a quote that is never closed swallows the rest of the file. So Python's own
reader, which does not, goes first, and says in which row something is wrong. Types are never guessed from a first
block: a column is what every one of its values is.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv as arrow

from workers.convert.tables import BOOLS, MOST_ROW_BYTES, Wanted, cast, decimal, type_of

#: Arrow holds some blocks at once, and each row in one of them: as large as that takes, and no larger.
_BLOCK_BYTES, _ROWS_A_BLOCK = 1 << 20, 4
_TICK_ROWS = 2000
_NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
#: So many characters of a number without an exponent are always told apart by a double (IEEE 754: 15 digits).
_SURE_CHARACTERS = 15
_INT64 = (-(1 << 63), (1 << 63) - 1)
_MOST_DIGITS = 76


def read(
    path: Path, wanted: Wanted, *, delimiter: str, header: bool, nulls: Sequence[str]
) -> tuple[Any, Iterator[pa.RecordBatch]]:
    """(schema, batches). Raises :class:`BadResponse` naming row and column."""
    names, rows, longest = _examine(path, wanted, delimiter, header)
    if not header and wanted.columns:
        if len(wanted.columns) != len(names):
            raise wanted.error(f"it has {len(names)} columns, and columns= names {len(wanted.columns)}")
        names = list(wanted.columns)
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise wanted.error(f"two columns have the name {twice!r}")
    block = max(_BLOCK_BYTES, _ROWS_A_BLOCK * longest)
    source = _Source(path, wanted, names, wanted.choose(names), rows, delimiter, header, nulls, block)
    columns = [_Column(name) for name in source.chosen]
    for _, batch in source.texts([column for column in columns if column.name not in wanted.types]):
        for column, values in batch:
            column.see(values)
    kinds = {c.name: type_of(wanted.types[c.name]) if c.name in wanted.types else c.type() for c in columns}
    schema = pa.schema([pa.field(name, kind) for name, kind in kinds.items()])
    return schema, _typed(source, columns, schema, wanted)


def _typed(source: _Source, columns: list[_Column], schema: Any, wanted: Wanted) -> Iterator[pa.RecordBatch]:
    for before, batch in source.texts(columns):
        made = [cast(values, schema.field(c.name).type, c.name, before, wanted) for c, values in batch]
        yield pa.RecordBatch.from_arrays(made, schema=schema)


def _examine(path: Path, wanted: Wanted, delimiter: str, header: bool) -> tuple[list[str], int, int]:
    """The names of the columns (numbers where there is no header), how many rows there are, and the bytes of the
    longest."""
    csv.field_size_limit(MOST_ROW_BYTES)
    rows = longest = 0
    with open(path, encoding="utf-8-sig", newline="") as file:
        lines = _Lines(file, wanted)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        try:
            first = next(reader, None)
            if not first:
                raise wanted.error("its first line is empty: there are no columns")
            rows = 0 if header else 1
            for row in reader:
                if lines.held > longest:
                    longest = lines.held
                lines.held = 0
                if row and len(row) != len(first):
                    raise wanted.error(
                        f"row {rows + 1} (line {reader.line_num}) has {len(row)} columns, the first {len(first)}"
                    )
                rows += bool(row) or len(first) == 1
                if rows % _TICK_ROWS == 0:
                    wanted.tick()
        except csv.Error as error:
            raise wanted.error(f"row {rows + 1} (line {reader.line_num}) is not CSV: {error}") from error
        except UnicodeDecodeError as error:
            raise wanted.error(f"it is not UTF-8 after row {rows}: {error.reason}") from error
    return (first if header else [f"f{number}" for number in range(len(first))]), rows, longest


class _Lines:
    """The lines of a file. ``held`` counts the bytes of those that the reader has taken since it was set to 0."""

    def __init__(self, file: TextIO, wanted: Wanted) -> None:
        self._file, self._wanted, self.held = file, wanted, 0

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._file.readline(MOST_ROW_BYTES)
        if not line:
            raise StopIteration
        self.held += len(line) if line.isascii() else len(line.encode())
        if self.held >= MOST_ROW_BYTES:
            raise self._wanted.error(f"a row of more than {MOST_ROW_BYTES} bytes")
        return line


class _Source:
    """The file as columns of text, as often as it is asked for."""

    def __init__(
        self, path: Path, wanted: Wanted, names: list[str], chosen: list[str], rows: int, delimiter: str, header: bool,
        nulls: Sequence[str], block_bytes: int,
    ) -> None:  # fmt: skip
        self.chosen = chosen
        self._path, self._wanted, self._rows = path, wanted, rows
        self._read = arrow.ReadOptions(
            use_threads=False, block_size=block_bytes, column_names=None if header else names
        )
        # A line without anything is a row where there is only one column, and none where there are more.
        self._parse = arrow.ParseOptions(
            delimiter=delimiter, newlines_in_values=True, ignore_empty_lines=len(names) > 1
        )
        self._nulls, self._names = list(nulls), names

    def texts(self, columns: Sequence[_Column]) -> Iterator[tuple[int, list[tuple[_Column, Any]]]]:
        """(rows before, the columns with their values) of each block."""
        if not columns or not self._rows:
            return
        options = arrow.ConvertOptions(
            column_types={name: pa.string() for name in self._names},
            include_columns=[column.name for column in columns],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            null_values=self._nulls,
        )
        before = 0
        try:
            with arrow.open_csv(self._path, self._read, self._parse, options) as opened:
                for batch in opened:
                    self._wanted.tick()
                    yield before, list(zip(columns, batch.columns, strict=True))
                    before += batch.num_rows
        except pa.ArrowInvalid as error:
            text = str(error).splitlines()[0][:200]
            if "straddling" in text:
                text = f"a row of more than {MOST_ROW_BYTES} bytes"
            raise self._wanted.error(text) from error
        if before != self._rows:
            raise self._wanted.error(f"it has {self._rows} rows by one reader and {before} by another")


class _Column:
    """What all values of one column have in common."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen = self.fraction = self.exponent = False
        self.boolean = self.number = self.double = self.int64 = True
        self.before, self.after = 1, 0

    def see(self, values: Any) -> None:
        values = values.drop_null()
        if not len(values) or not (self.boolean or self.number):
            return
        self.seen = True
        self.boolean = self.boolean and pc.all(pc.is_in(values, value_set=BOOLS)).as_py()
        self.number = self.number and pc.all(pc.match_substring_regex(values, _NUMBER)).as_py()
        if self.number:
            self._see_numbers(values)

    def _see_numbers(self, values: Any) -> None:
        length = pc.binary_length(values)
        dot = pc.find_substring(values, ".")
        exponent = pc.match_substring_regex(values, "[eE]")
        whole = pc.subtract(pc.if_else(pc.equal(dot, -1), length, dot), pc.cast(pc.starts_with(values, "-"), "int32"))
        after = pc.if_else(pc.equal(dot, -1), 0, pc.subtract(pc.subtract(length, dot), 1))
        self.before = max(self.before, pc.max(whole).as_py())
        self.after = max(self.after, pc.max(after).as_py())
        self.fraction = self.fraction or self.after > 0
        self.exponent = self.exponent or pc.any(exponent).as_py()
        if self.int64 and not (self.fraction or self.exponent) and self.before > 18:
            long = values.filter(pc.greater(whole, 18)).to_pylist()
            self.int64 = all(len(text) <= 20 and _INT64[0] <= int(text) <= _INT64[1] for text in long)
        if self.double:
            unsure = values.filter(pc.or_(exponent, pc.greater(length, _SURE_CHARACTERS)))
            again = unsure.cast(pa.float64()).cast(pa.string())  # as most are written
            self.double = all(_is_exact(text) for text in unsure.filter(pc.not_equal(again, unsure)).to_pylist())

    def type(self) -> Any:
        if not self.seen:
            return pa.string()
        if self.boolean:
            return pa.bool_()
        if not self.number:
            return pa.string()
        if not (self.fraction or self.exponent) and self.int64:
            return pa.int64()
        if self.double and (self.fraction or self.exponent):
            return pa.float64()
        if not self.exponent and self.before + self.after <= _MOST_DIGITS:
            return decimal(self.before + self.after, self.after)
        return pa.string()


def _is_exact(text: str) -> bool:
    """Whether the double next to the number is written as that number again."""
    shown = repr(float(text))
    return shown == text or (len(text) < 400 and shown not in {"inf", "-inf"} and Decimal(shown) == Decimal(text))
