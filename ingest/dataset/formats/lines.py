"""The lines of a text file by number: one pass finds them, and every few kilobytes one place is kept, so that what is
kept is a 256th of the file at most. What a line means is for the formats."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

from ingest.dataset.formats.base import Reader, runs
from ingest.dataset.formats.content import Content
from ingest.dataset.formats.streams import naming, open_plain

_PIECE_BYTES = 256 << 10  # more leaves the cache of a processor
_STRIDE_BYTES = 4 << 10
_INDENTED = re.compile(rb"\n\s")  # what a blank line begins with, if it is not the first


class Lines(Reader):
    """A sample a line. ``blank`` says whether blank lines (white space only) are samples, too."""

    blank: bool

    def __init__(self, content: Content) -> None:
        super().__init__(content.path, content.source)
        self._content = content
        #: Sample ``_numbers[k]`` is the first one at or after byte ``_offsets[k]``, where a line begins.
        self._offsets, self._numbers = array("Q"), array("Q")
        self._length = 0
        at = 0
        while at < content.size:
            at = self._find(at)

    def __len__(self) -> int:
        return self._length

    def close(self) -> None:
        self._content.close()

    def _find(self, at: int) -> int:
        """Find the lines of the piece that begins there. Returns where the next one begins."""
        piece = self._content.read(at, min(_PIECE_BYTES, self._content.size - at))
        end = piece.rfind(b"\n") + 1
        if at + len(piece) == self._content.size:
            end = len(piece)
        if not end:
            return self._long(at, piece)
        begin = 0
        some_blank = not self.blank and (piece[:1].isspace() or _INDENTED.search(piece, 0, end) is not None)
        while begin < end:
            behind = piece.find(b"\n", begin + _STRIDE_BYTES, end) + 1 or end
            if some_blank:
                found = sum(1 for line in piece[begin:behind].split(b"\n") if line and not line.isspace())
            else:
                found = piece.count(b"\n", begin, behind) + (piece[behind - 1] != ord("\n"))
            self._add(at + begin, found)
            begin = behind
        return at + end

    def _long(self, at: int, piece: bytes) -> int:
        """A line that is longer than a piece."""
        end, blank, size = at, True, 0
        while piece:
            size = piece.find(b"\n") + 1
            blank = blank and (piece[:size] if size else piece).isspace()
            end += size or len(piece)
            piece = b"" if size else self._content.read(end, min(_PIECE_BYTES, self._content.size - end))
        self._add(at, 1 if self.blank or not blank else 0)
        return end

    def _add(self, offset: int, found: int) -> None:
        if found:
            self._offsets.append(offset)
            self._numbers.append(self._length)
            self._length += found

    def lines(self, numbers: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        """Number and content of these samples' lines, without ``\\n``."""
        for first, last in runs(numbers, self._length):
            while first < last:
                begin, lines = self._piece(first, last)
                end = min(last, begin + len(lines))
                yield from zip(range(first, end), lines[first - begin : end - begin], strict=True)
                first = end

    def _piece(self, first: int, last: int) -> tuple[int, list[bytes]]:
        """Some lines from sample ``first`` on, or from before it, and the number of the first of them."""
        at = bisect_right(self._numbers, first) - 1
        offset = self._offsets[at]
        behind = bisect_right(self._offsets, offset + _PIECE_BYTES, at + 1)
        behind = max(at + 1, min(behind - 1, bisect_left(self._numbers, last, at + 1)))
        end = self._offsets[behind] if behind < len(self._offsets) else self._content.size
        until = self._numbers[behind] if behind < len(self._numbers) else self._length
        lines = self._content.read(offset, end - offset).split(b"\n")
        if not lines[-1]:
            lines.pop()
        begin = self._numbers[at]
        if not self.blank and len(lines) > until - begin:
            lines = [line for line in lines if line and not line.isspace()]
        return begin, lines[: until - begin]

    def line_number(self, number: int) -> int:
        """As an editor counts: from 1, blank ones too."""
        at = bisect_right(self._numbers, number) - 1
        offset, left = self._offsets[at], number - self._numbers[at]
        before = sum(
            self._content.read(place, min(_PIECE_BYTES, offset - place)).count(b"\n")
            for place in range(0, offset, _PIECE_BYTES)
        )
        end = self._offsets[at + 1] if at + 1 < len(self._offsets) else self._content.size
        for line in self._content.read(offset, end - offset).split(b"\n"):
            before += 1
            if self.blank or (line and not line.isspace()):
                if not left:
                    break
                left -= 1
        return before


def count_lines(path: Path, blank: bool) -> int:
    """In flat memory, whatever the length of a line."""
    found, empty, begun = 0, True, False
    with naming(path, path.name), open_plain(path) as file:
        while piece := file.readline(_PIECE_BYTES):
            begun, empty = True, empty and not piece.strip()
            if piece.endswith(b"\n"):
                found, empty, begun = found + (blank or not empty), True, False
    return found + (begun and (blank or not empty))
