"""Permutations by seed: of a job's files in windows of the known order, and of a stream's samples in bounded blocks.

All are functions of the seed alone, on every version of Python: only ``Random.random()`` is promised never to change.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import Protocol

#: ``none``: the order of the sources. ``files``: their files. ``window``: files, and samples among their neighbours.
#: ``blocks``: files, and all samples of some whole files together.
KINDS = ("none", "files", "window", "blocks")

_FIRST_BLOCK = 64  # the first blocks are small, and each twice the one before: the first sample needs few files


class Extent(Protocol):
    """How many files of the job's order are known, and whether that is all."""

    @property
    def files(self) -> int: ...
    @property
    def complete(self) -> bool: ...


def permutation(count: int, seed: str) -> list[int]:
    """The numbers below ``count``, shuffled (Fisher and Yates)."""
    draw = Random(seed).random
    out = list(range(count))
    for last in range(count - 1, 0, -1):
        other = int(draw() * (last + 1))
        out[last], out[other] = out[other], out[last]
    return out


class Places:
    """The positions of all files in the order of reading: as they are without a seed, else shuffled within windows.

    ``extent(n)`` waits until n files are known or no more will be. A window is laid out as soon as its files are
    *known*, long before they have landed.
    """

    def __init__(self, extent: Callable[[int], Extent], window: int, seed: str | None) -> None:
        self._extent, self._window, self._seed = extent, window, seed
        self._laid: deque[int] = deque()
        self._start = 0  # of the next window

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        """The next position; waits until it is known."""
        if not self._laid:
            self._lay(self._extent(self._start + (self._window if self._seed is not None else 1)))
        if not self._laid:
            raise StopIteration
        return self._laid.popleft()

    def ahead(self, count: int) -> list[int]:
        """The next ones, as far as they are known by now: ``count`` at most."""
        while len(self._laid) < count:
            known = self._extent(0)
            if known.files - self._start < self._window and not (known.complete or self._seed is None):
                break
            if not self._lay(known):
                break
        return list(islice(self._laid, count))

    def _lay(self, known: Extent) -> int:
        count = max(0, min(known.files - self._start, self._window))
        order = range(count) if self._seed is None else permutation(count, f"{self._seed}/files/{self._start}")
        self._laid.extend(self._start + n for n in order)
        self._start += count
        return count


class Plain:
    """No shuffle of samples: the n-th of a stream is its n-th. The base of those that do."""

    def block(self, offset: int) -> tuple[int, Sequence[int]]:
        """Where a block of the stream that holds this place begins, and from which offset each sample in it comes."""
        return offset, (offset,)

    def floor(self, offset: int) -> int:
        """The least offset from which anything is still given at that place or later. Waits for nothing."""
        return offset


class _Layer:
    """Blocks of a stream, each permuted. ``around(offset)`` is where the block there begins and would end;
    ``length(wanted)`` is how many samples the stream has: at least so many, or all."""

    def __init__(self, seed: str, around: Callable[[int], tuple[int, int]], length: Callable[[int], int]) -> None:
        self._seed, self._around, self._length = seed, around, length
        self._kept: OrderedDict[int, list[int]] = OrderedDict()

    def __call__(self, offset: int) -> tuple[int, list[int]]:
        start, stop = self._around(offset)
        block = self._kept.get(start)
        if block is None:
            count = min(stop, self._length(stop)) - start
            block = self._kept[start] = [start + n for n in permutation(count, f"{self._seed}/{start}")]
            if len(self._kept) > 3:
                self._kept.popitem(last=False)
        return start, block


class Window(Plain):
    """Two layers of blocks of ``samples``, the second shifted by half a block, so that no block keeps to itself: a
    sample comes at most one and a half blocks from where it was."""

    def __init__(self, seed: str, samples: int, length: Callable[[int], int]) -> None:
        self._edges, size = [0], min(_FIRST_BLOCK, samples)
        while size < samples:
            self._edges.append(self._edges[-1] + size)
            size *= 2
        self._samples = samples
        self._lower = _Layer(f"{seed}/lower", self._straight, length)
        self._upper = _Layer(f"{seed}/upper", self._shifted, length)

    def block(self, offset: int) -> tuple[int, Sequence[int]]:
        start, block = self._upper(offset)
        out = []
        first = 0
        lower: Sequence[int] = ()
        for middle in block:
            if not first <= middle < first + len(lower):
                first, lower = self._lower(middle)
            out.append(lower[middle - first])
        return start, out

    def floor(self, offset: int) -> int:
        return self._straight(self._shifted(offset)[0])[0]

    def _straight(self, offset: int) -> tuple[int, int]:
        number = self._number(offset)
        return self._edge(number), self._edge(number + 1)

    def _shifted(self, offset: int) -> tuple[int, int]:
        number = self._number(offset)
        number += offset >= self._middle(number)
        return self._middle(number - 1), self._middle(number)

    def _edge(self, number: int) -> int:
        beyond = number - len(self._edges) + 1
        return self._edges[number] if beyond <= 0 else self._edges[-1] + beyond * self._samples

    def _middle(self, number: int) -> int:
        return (self._edge(number) + self._edge(number + 1)) // 2 if number >= 0 else 0

    def _number(self, offset: int) -> int:
        if offset < self._edges[-1]:
            return bisect_right(self._edges, offset) - 1
        return len(self._edges) - 1 + (offset - self._edges[-1]) // self._samples


class Groups(Plain):
    """All samples of neighbouring files together, of as many files as have at least ``samples``. ``ends`` is where
    each file of the stream ends, as far as it is known; ``length`` makes it longer."""

    def __init__(self, seed: str, samples: int, ends: Sequence[int], length: Callable[[int], int]) -> None:
        self._samples, self._ends, self._length = samples, ends, length
        self._edges = [0]
        self._layer = _Layer(f"{seed}/blocks", self._around, length)

    def block(self, offset: int) -> tuple[int, Sequence[int]]:
        return self._layer(offset)

    def floor(self, offset: int) -> int:
        return self._edges[bisect_right(self._edges, offset) - 1]

    def _around(self, offset: int) -> tuple[int, int]:
        while self._edges[-1] <= offset:
            least = self._edges[-1] + self._samples
            if self._length(least) < least:
                self._edges.append(max(least, offset + 1))  # the last one: cut where the stream ends
            else:
                self._edges.append(self._ends[bisect_right(self._ends, least - 1)])
        number = bisect_right(self._edges, offset) - 1
        return self._edges[number], self._edges[number + 1]
