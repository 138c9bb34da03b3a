"""txt, csv, tsv and jsonl manifests as rows of values, a block of lines at a time. What values mean is in ``rows``."""

from __future__ import annotations

import codecs
import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ingest.errors import BadResponse, UsageError
from ingest.manifests.marks import Mark, Marks
from ingest.manifests.rows import OnBad, Row, columns_of, found_columns, required_columns
from ingest.sources import Manifest
from ingest.streams import open_plain

#: Read and decoded at once. Reading may begin again after any of them.
BLOCK_BYTES = 256 << 10
#: No source is that long: the file is something else, or its lines end in another way.
MOST_LINE_BYTES = 1 << 20

#: Whole lines, and the offset behind them.
_Block = tuple[list[str], int]


def text_rows(
    path: Path, source: Manifest, kind: str, marks: Marks, after: Mark | None, on_bad: OnBad
) -> Iterator[Row]:
    """(number, values in the order of ``columns_of``) of each row behind a mark. Numbers count lines from 1; those of
    csv count rows, the header being 1."""
    begin, offset = after or (0, 0)
    with open_plain(path) as file:
        blocks = _blocks(file, source, kind, offset)
        if kind == "txt":
            yield from _txt(blocks, source, begin, marks)
        elif kind == "jsonl":
            yield from _jsonl(blocks, source, begin, marks, on_bad)
        else:
            header = _header(path, source, kind) if after else None
            yield from _Csv(source, kind, marks, on_bad).rows(blocks, begin, header)


def _blocks(file: BinaryIO, source: Manifest, kind: str, offset: int) -> Iterator[_Block]:
    _skip(file, offset)
    rest = b""
    while True:
        data = file.read(BLOCK_BYTES)
        if not offset and not rest:
            if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                raise BadResponse(source.uri, f"not a readable {kind} manifest: it is UTF-16; save it as UTF-8")
            if data.startswith(codecs.BOM_UTF8):
                data, offset = data[3:], 3
        block = rest + data
        cut = block.rfind(b"\n") + 1 if data else len(block)
        rest = block[cut:]
        if len(rest) > MOST_LINE_BYTES:
            raise BadResponse(
                source.uri, f"not a readable {kind} manifest: a line is longer than {MOST_LINE_BYTES} bytes"
            )
        if cut:
            offset += cut
            yield _lines(block[:cut]), offset
        if not data:
            return


def _skip(file: BinaryIO, offset: int) -> None:
    """To an offset of the unpacked text, also where it can only be read."""
    if not offset or file.seekable():
        file.seek(offset) if offset else None
        return
    while offset and (data := file.read(min(offset, BLOCK_BYTES))):
        offset -= len(data)


def _lines(block: bytes) -> list[str]:
    """What is not UTF-8 becomes lone surrogates: then it is that row alone which is refused."""
    try:
        text = block.decode()
    except UnicodeDecodeError:
        text = block.decode(errors="surrogateescape")
    lines = text.split("\n")
    if not lines[-1]:
        lines.pop()
    return lines


def _txt(blocks: Iterator[_Block], source: Manifest, row: int, marks: Marks) -> Iterator[Row]:
    if source.metadata:
        raise BadResponse(source.uri, "a txt manifest has no columns; metadata= needs csv, tsv, jsonl or parquet")
    for lines, offset in blocks:
        for line in lines:
            row += 1
            text = line.strip()
            if text and text[0] != "#":
                yield row, (text, None, None, None)
        marks.add(row, offset)


def _jsonl(blocks: Iterator[_Block], source: Manifest, row: int, marks: Marks, on_bad: OnBad) -> Iterator[Row]:
    columns, required = columns_of(source), required_columns(source)
    for lines, offset in blocks:
        for line in lines:
            row += 1
            if line.isspace() or not line:
                continue
            try:
                values = json.loads(line)
                if not isinstance(values, dict):
                    raise UsageError("not a JSON object")
                if not required <= values.keys():
                    raise UsageError(_lacks(source, required - values.keys(), list(values)))
            except (ValueError, RecursionError) as error:
                bad = error if isinstance(error, UsageError) else f"not a readable jsonl manifest: {error}"
                on_bad(row, UsageError(str(bad)))
                continue
            get = values.get
            yield row, [get(name) for name in columns]
        marks.add(row, offset)


def _lacks(source: Manifest, missing: set[str], there: list[str]) -> str:
    try:
        found_columns(source, there)
    except BadResponse as error:
        return error.reason
    return f"no {sorted(missing)}"  # pragma: no cover - found_columns names it


class _Csv:
    """Rows of csv or tsv. A quoted value may hold line ends: a mark is where a block ends with a row."""

    def __init__(self, source: Manifest, kind: str, marks: Marks, on_bad: OnBad) -> None:
        self._source, self._kind, self._marks, self._on_bad = source, kind, marks, on_bad
        self._edge: int | None = None

    def rows(self, blocks: Iterator[_Block], row: int, header: list[str] | None) -> Iterator[Row]:
        # Strict, because a quote that is not closed would swallow the rows behind it without a word.
        reader = csv.reader(self._feed(blocks), delimiter="\t" if self._kind == "tsv" else ",", strict=True)
        if header is None:
            header, row = self._first(reader, row)
        places = found_columns(self._source, header) if header else []
        while True:
            try:
                record = next(reader, None)
            except csv.Error as error:
                row += 1
                self._on_bad(row, UsageError(f"not a readable {self._kind} row: {error}"))
                continue
            if record is None:
                return
            row += 1
            if len(record) == len(header):
                yield row, [record[place] if place is not None else None for place in places]
            elif record:
                what = f"{len(record)} values under {len(header)} columns; quote a value that holds the delimiter"
                self._on_bad(row, UsageError(what))
            if self._edge is not None:
                self._marks.add(row, self._edge)

    def _first(self, reader: Any, row: int) -> tuple[list[str], int]:
        try:
            for record in reader:
                row += 1
                if record:
                    return [name.strip() for name in record], row
        except csv.Error as error:
            raise BadResponse(self._source.uri, f"not a readable {self._kind} manifest: {error}") from None
        return [], row

    def _feed(self, blocks: Iterator[_Block]) -> Iterator[str]:
        for lines, offset in blocks:
            self._edge = None
            for line in lines[:-1]:
                yield line + "\n"
            self._edge = offset
            yield lines[-1] + "\n"


def _header(path: Path, source: Manifest, kind: str) -> list[str]:
    """The names of the columns, for who begins in the middle."""
    with open_plain(path) as file:
        blocks = _blocks(file, source, kind, 0)
        delimiter = "\t" if kind == "tsv" else ","
        records = csv.reader((f"{line}\n" for lines, _ in blocks for line in lines), delimiter=delimiter, strict=True)
        return [name.strip() for name in next(record for record in records if record)]
