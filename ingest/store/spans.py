"""Which bytes of a file are there, as ranges. Pure arithmetic: no file is touched here."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import pairwise

Span = tuple[int, int]


class Spans:
    """A set of bytes as disjoint ranges [start, end) in order; ranges that touch are one."""

    def __init__(self, given: Iterable[Span] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in given:
            self.add(start, end)

    def add(self, start: int, end: int) -> None:
        if start >= end:
            return
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last:
            start, end = min(start, self._starts[first]), max(end, self._ends[last - 1])
        self._starts[first:last], self._ends[first:last] = [start], [end]

    def cut(self, end: int) -> None:
        """Forget every byte from ``end`` on."""
        keep = bisect_left(self._starts, end)
        del self._starts[keep:], self._ends[keep:]
        if self._ends:
            self._ends[-1] = min(self._ends[-1], end)

    @property
    def prefix(self) -> int:
        """How many bytes are there from byte 0 on without a gap."""
        return self._ends[0] if self._starts and self._starts[0] == 0 else 0

    @property
    def total(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def gaps(self, length: int) -> list[Span]:
        """What is missing of a file of ``length`` bytes, in order."""
        edges = [(0, 0), *self, (length, length)]
        found = [(end, min(start, length)) for (_, end), (start, _) in pairwise(edges)]
        return [(start, end) for start, end in found if start < end]

    def __iter__(self) -> Iterator[Span]:
        return iter(list(zip(self._starts, self._ends, strict=True)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Spans) and list(self) == list(other)

    def __repr__(self) -> str:
        return f"Spans({list(self)})"
