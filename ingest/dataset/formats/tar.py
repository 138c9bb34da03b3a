"""Tar in the WebDataset layout: consecutive members with one path up to the first dot of the base name are a sample.

Whatever is not a regular file, or has no extension, is passed over, as WebDataset does. How headers are read is in
``headers``, where the samples are is in ``index``.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

from ingest.dataset.formats.base import Format, Reader, damaged, no_columns, runs
from ingest.dataset.formats.content import Content, opening
from ingest.dataset.formats.headers import Broken, Members
from ingest.dataset.formats.index import Index, split
from ingest.dataset.formats.streams import is_on_disk, naming, open_plain

_PIECE_BYTES = 256 << 10  # read at once, neighbouring samples together: larger ones leave the processor's cache
_INDEXED_BYTES = 1 << 30  # an archive of so many bytes has an index of 60 MB at the most
_LARGE_BYTES = 32 << 10  # a sample beyond this is read field by field, without another copy


class Tar(Reader):
    """``{"__key__": key, "__url__": source, extension: bytes, …}``, extensions in lower case."""

    def __init__(self, content: Content, index: Index) -> None:
        super().__init__(content.path, content.source)
        self._content, self._index = content, index

    def __len__(self) -> int:
        return len(self._index)

    def take(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        for first, last in runs(numbers, len(self)):
            while first < last:
                end = self._fit(first, last)
                if end > first:
                    yield from self._piece(first, end)
                else:
                    yield self._large(first)
                first = max(end, first + 1)

    def kind(self, field: str) -> str | None:
        return field.rpartition(".")[2]

    def close(self) -> None:
        self._content.close()

    def _fit(self, first: int, last: int) -> int:
        """Samples ``first`` to here are read as one piece; ``first`` itself where it is too large for that."""
        index = self._index
        field, behind = index.first[first], index.first[last]
        start = index.offset[field]
        if self._end(first) - start > _LARGE_BYTES:
            return first
        if last == first + 1:
            return last
        whole = bisect_right(index.offset, start + _PIECE_BYTES, field, behind)
        end = bisect_right(index.first, whole, first + 1, last + 1) - 1
        while end > first + 1 and self._end(end - 1) - start > _PIECE_BYTES:
            end -= 1
        return end

    def _end(self, number: int) -> int:
        """Where the sample's last byte is, and one more."""
        field = self._index.first[number + 1] - 1
        return self._index.offset[field] + self._index.size[field]

    def _piece(self, first: int, last: int) -> Iterator[dict[str, Any]]:
        index, source = self._index, self.source
        field, behind = index.first[first], index.first[last]
        start = index.offset[field]
        data = self._content.read(start, self._end(last - 1) - start)
        begins = [offset - start for offset in index.offset[field:behind]]
        parts = zip(begins, index.size[field:behind], strict=True)
        for number in range(first, last):
            sample: dict[str, Any] = {"__key__": index.key(number), "__url__": source}
            # Names come first: zip takes one more of the first of its two than it gives.
            for name, (begin, size) in zip(index.shapes[index.shape[number]], parts, strict=False):
                sample[name] = data[begin : begin + size]
            yield sample

    def _large(self, number: int) -> dict[str, Any]:
        index = self._index
        sample: dict[str, Any] = {"__key__": index.key(number), "__url__": self.source}
        for field, name in enumerate(index.shapes[index.shape[number]], index.first[number]):
            sample[name] = self._content.read(index.offset[field], index.size[field])
        return sample


def open_tar(path: Path, source: str, columns: Sequence[str] | None = None, index: Path | None = None) -> Tar:
    """With ``index``, the index that lies there is used if it is this archive's; else it is written there.

    Where a header is damaged, all of the archive is: no sample of it is given. DataError says after which.
    """
    no_columns(source, columns)
    with opening(path, source) as content:
        return Tar(content, Index.kept(content, index))


def count(path: Path, index: Path | None = None) -> int:
    """In flat memory. With ``index``, the index is kept there where it takes little memory, so that it is there before
    anybody reads."""
    with naming(path, path.name), open_plain(path) as file:
        if index is not None and is_on_disk(file) and path.stat().st_size <= _INDEXED_BYTES:
            with closing(open_tar(path, path.name, None, index)) as samples:
                return len(samples)
        try:
            keys = (place[0] for name, _ in Members(file) if (place := split(name)))
            return sum(1 for _ in groupby(keys))
        except Broken as error:
            raise damaged(path, path.name, "headers", error) from error


FORMAT = Format("tar", (".tar", ".tar.gz", ".tgz", ".tar.zst"), open_tar, count, open_tar, count)
