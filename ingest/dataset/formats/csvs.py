"""CSV and TSV, plain or packed with gzip or zstd: a sample a row, as a dict by the header. The types are those that
pyarrow finds in the first block. The rows are written once into a file without a name, to be read in any order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ingest.dataset.formats.base import Format, damaged
from ingest.dataset.formats.mapped import Mapped
from ingest.dataset.formats.streams import naming, open_plain
from ingest.dataset.formats.tables import Table, arrow, select

_BLOCK_BYTES = 1 << 20  # what types are found in; some forty of them are in memory at once
_LONG_BYTES = 32 << 20  # where a row is longer than that


class _LongRow(Exception):
    """A row that is longer than a block."""


class Csv(Table):
    """``columns`` selects. A value that is not of its column's type is a DataError when the file is opened."""

    def __init__(self, path: Path, source: str, columns: Sequence[str] | None) -> None:
        try:
            self._mapped = Mapped(path, source, _batches(path, source, columns, _BLOCK_BYTES))
        except _LongRow:
            self._mapped = Mapped(path, source, _batches(path, source, columns, _LONG_BYTES))
        rows = self._mapped.starts.rows
        super().__init__(path, source, rows, self._mapped.size // max(1, rows))

    def find(self, number: int) -> tuple[int, Any]:
        return self._mapped.find(number)

    def close(self) -> None:
        self._mapped.close()


def _batches(path: Path, source: str, columns: Sequence[str] | None, block: int) -> Iterator[Any]:
    pa = arrow("CSV")
    with _opened(path, source, block) as reader:
        schema = reader.schema
    try:
        names = list(schema.names)
    except ValueError as error:
        raise damaged(path, source, "its header", error) from error
    chosen = select(path, source, columns, names)
    for name in chosen:
        if pa.types.is_binary(schema.field(name).type):
            raise damaged(path, source, f"column {name!r}", "it is not UTF-8")
    # A column with nothing in the first block may have anything later: text takes all of it.
    types = {name: pa.string() for name in chosen if pa.types.is_null(schema.field(name).type)}
    with _opened(path, source, block, include_columns=chosen or names[:1], column_types=types) as reader:
        while True:
            with _naming(path, source, "its rows", names, block):
                batch = next(reader, None)
            if batch is None:
                return
            yield batch.select(chosen)


@contextmanager
def _naming(path: Path, source: str, where: str, names: Sequence[str], block: int) -> Iterator[None]:
    try:
        yield
    except arrow("CSV").ArrowException as error:
        reason = str(error)
        for number, name in enumerate(names):  # pyarrow says a column by its place
            reason = reason.replace(f"CSV column #{number}:", f"column {name!r}:")
        if "straddling" in reason:
            if block < _LONG_BYTES:
                raise _LongRow from error
            reason = f"a row of more than {_LONG_BYTES >> 20} MiB, or a quote that is never closed"
        raise damaged(path, source, where, reason) from error


@contextmanager
def _opened(path: Path, source: str, block: int, header: bool = True, **convert: Any) -> Iterator[Any]:
    csv = arrow("CSV").csv
    plain = path.name.lower().removesuffix(".gz").removesuffix(".zst")
    with naming(path, source), open_plain(path) as file:
        with _naming(path, source, "its header or first block", (), block):
            reader = csv.open_csv(
                file,
                csv.ReadOptions(use_threads=False, block_size=block, autogenerate_column_names=not header),
                csv.ParseOptions(delimiter="\t" if plain.endswith(".tsv") else ",", newlines_in_values=True),
                csv.ConvertOptions(**convert),
            )
        with reader:
            yield reader


def count(path: Path) -> int:
    """By the rows that there are, whatever is in them; the first is the header."""
    try:
        return _count(path, _BLOCK_BYTES)
    except _LongRow:
        return _count(path, _LONG_BYTES)


def _count(path: Path, block: int) -> int:
    text = {"include_columns": ["f0"], "column_types": {"f0": arrow("CSV").binary()}}
    found = -1
    with _opened(path, path.name, block, header=False, **text) as reader:
        while True:
            with _naming(path, path.name, "its rows", ["first"], block):
                batch = next(reader, None)
            if batch is None:
                return found
            found += batch.num_rows


_PLAIN = (".csv", ".tsv")
FORMAT = Format("csv", (*_PLAIN, *(f"{s}.gz" for s in _PLAIN), *(f"{s}.zst" for s in _PLAIN)), Csv, count)
