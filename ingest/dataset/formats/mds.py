"""MDS: the shards that MosaicML's streaming writes, each by itself, with no ``index.json`` and none of its code.

A shard is a number of samples (uint32), where each of them begins and the last one ends (uint32 each), a JSON object
that says what the columns are, and the samples: the sizes of the columns that have none of their own, and the columns.
All numbers are little endian. What the bytes of a column mean is in ``mdsvalues``.
"""

from __future__ import annotations

import json
import struct
import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import le
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ingest.dataset.formats.base import Format, Reader, damaged, no_column, runs
from ingest.dataset.formats.content import Content, opening
from ingest.dataset.formats.mdsvalues import Value, value_of
from ingest.dataset.formats.streams import naming, open_plain

_U32 = struct.Struct("<I")
_VERSION = 2
_PIECE_BYTES = 256 << 10
_MOST_HEADER_BYTES = 64 << 20  # of the JSON: columns, not data


class _Column(NamedTuple):
    """``size`` in bytes, or None where each sample says it. Not read without a ``value``."""

    name: str
    size: int | None
    value: Value | None


class Mds(Reader):
    """A dict a row, with the values that MosaicML's own reader gives; but images stay bytes, to be decoded where
    ``decode=`` says so. ``columns`` selects."""

    def __init__(self, content: Content, columns: Sequence[str] | None) -> None:
        super().__init__(content.path, content.source)
        self._content = content
        self._offsets = self._find()
        self._columns = self._read_columns(columns)
        # Bytes go by the name of their column, as in a tar by that of their file.
        values = [(column.name, column.value) for column in self._columns if column.value is not None]
        self._kinds = {name: name.rpartition(".")[2] if v.kind is None else v.kind for name, v in values}
        self._sizes = struct.Struct(f"<{sum(column.size is None for column in self._columns)}I")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def take(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        offsets = self._offsets
        for first, last in runs(numbers, len(self)):
            while first < last:
                start = offsets[first]
                end = bisect_right(offsets, start + _PIECE_BYTES, first + 1, last + 1) - 1
                end = max(end, first + 1)
                data = self._content.read(start, offsets[end] - start)
                for number in range(first, end):
                    yield self._sample(number, data[offsets[number] - start : offsets[number + 1] - start])
                first = end

    def kind(self, field: str) -> str | None:
        return self._kinds.get(field)

    def close(self) -> None:
        self._content.close()

    def _find(self) -> array[int]:
        """Where the samples are, from the head of the file."""
        content = self._content
        size = _U32.unpack(content.read(0, 4))[0] if content.size >= 4 else 0
        head = 4 + 4 * (size + 1)
        if head > content.size:
            raise self._damaged("its head", f"no MDS file, or one cut off: {content.size} bytes")
        offsets = array("I")
        offsets.frombytes(content.read(4, head - 4))
        if sys.byteorder == "big":
            offsets.byteswap()
        if offsets[0] < head or not all(map(le, offsets, islice(offsets, 1, None))):
            raise self._damaged("its head", "no MDS file, or a damaged one: its samples overlap")
        if offsets[-1] > content.size:
            reason = f"cut off: {content.size} bytes where its samples take {offsets[-1]}"
            raise self._damaged("its head", reason)
        if offsets[0] - head > _MOST_HEADER_BYTES:
            raise self._damaged("its head", f"no MDS file: {offsets[0] - head} bytes that describe columns")
        return offsets

    def _read_columns(self, wanted: Sequence[str] | None) -> list[_Column]:
        head = 4 + 4 * len(self._offsets)
        try:
            config = json.loads(self._content.read(head, self._offsets[0] - head))
            if (config["format"], config["version"]) != ("mds", _VERSION):
                raise ValueError(f"version {config['version']!r} of {config['format']!r}, not {_VERSION} of 'mds'")
            names, encodings, sizes = (config[f"column_{what}"] for what in ("names", "encodings", "sizes"))
            if not isinstance(names, list) or not all(isinstance(each, str) for each in (*names, *encodings)):
                raise ValueError("names and encodings of columns are no lists of texts")
            if not all(size is None or (isinstance(size, int) and size >= 0) for size in sizes):
                raise ValueError(f"sizes of columns: {sizes}")
            columns = list(zip(names, encodings, sizes, strict=True))
        except (ValueError, TypeError, KeyError) as error:
            raise self._damaged("its description of the columns", error) from error
        for name in wanted or ():
            if name not in names:
                raise no_column(self.path, self.source, name, names)
        out = []
        for name, encoding, size in columns:
            try:
                value = value_of(encoding) if wanted is None or name in wanted else None
            except ValueError as error:
                raise self._damaged(f"column {name!r}", error) from error
            out.append(_Column(name, size or None, value))
        return out

    def _sample(self, number: int, data: bytes) -> dict[str, Any]:
        sample: dict[str, Any] = {}
        name = ""
        try:
            sizes = iter(self._sizes.unpack_from(data))
            at = self._sizes.size
            for name, size, value in self._columns:
                end = at + (next(sizes) if size is None else size)
                if value is not None:
                    sample[name] = value.of(data[at:end])
                at = end
            if at != len(data):
                raise ValueError(f"its columns take {at} bytes, and it has {len(data)}")
        except (ValueError, ArithmeticError, LookupError, struct.error) as error:
            raise self._damaged(f"sample {number}" + (f", column {name!r}" if name else ""), error) from error
        return sample

    def _damaged(self, where: str, reason: object) -> Exception:
        return damaged(self.path, self.source, where, reason)


def open_mds(path: Path, source: str, columns: Sequence[str] | None = None) -> Mds:
    with opening(path, source) as content:
        return Mds(content, columns)


def count(path: Path) -> int:
    """What its head says, if so many samples are in it."""
    with naming(path, path.name), open_plain(path) as file:
        size = _U32.unpack(head)[0] if len(head := file.read(4)) == 4 else 0
        _skip(path, file, 4 * size)
        behind = _U32.unpack(end)[0] if len(end := file.read(4)) == 4 else 0
        if behind < 4 * (size + 2):
            raise damaged(path, path.name, "its head", "no MDS file, or one cut off")
        _skip(path, file, behind - 4 * (size + 2))
        return int(size)


def _skip(path: Path, file: BinaryIO, left: int) -> None:
    while left:
        piece = file.read(min(left, _PIECE_BYTES))
        if not piece:
            raise damaged(path, path.name, "its samples", f"cut off: {left} bytes are missing")
        left -= len(piece)


FORMAT = Format("mds", (".mds", ".mds.zstd", ".mds.zst", ".mds.gz"), open_mds, count)
