"""Which sample is the i-th of an epoch: a pure function of seed, epoch and the job's files with their sample counts.

Files, shuffled or not, are dealt to a fixed number of *streams*: the next file goes to the stream that comes to its
end first. Within a stream samples are shuffled in bounded blocks, and the streams are read in turn, a sample each. So
the order knows nothing of ranks, workers or arrival, and is laid out as far as it is asked for and no further.
"""

from __future__ import annotations

import hashlib
import heapq
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, Protocol

from ingest.dataset.shuffle import Extent, Groups, Places, Plain, Window


class Entry(NamedTuple):
    """A file as the order sees it: how many samples it has (0 where it is left out), and what makes it another one."""

    samples: int
    identity: str = ""


class Catalog(Protocol):
    """What an order must know of a job. Both wait until it is known."""

    def extent(self, at_least: int) -> Extent:
        """Once so many files are known, or no more will be."""

    def entry(self, position: int) -> Entry:
        """What the file there is."""


@dataclass(frozen=True)
class Recipe:
    """What an order is made by, beside the job: equal recipes over equal files give equal orders.

    ``shuffle`` is one of :data:`~ingest.dataset.shuffle.KINDS`, of files within windows of ``files`` files, of samples
    in blocks of ``window`` samples. ``streams`` is how many are read in turn. ``weights`` and ``stop`` are those of a
    :class:`~ingest.dataset.mixture.Mixture`; ``passed`` is how often a job was read in this epoch before.
    """

    seed: int = 0
    epoch: int = 0
    shuffle: str = "none"
    files: int = 1024
    window: int = 4096
    streams: int = 1
    weights: tuple[float, ...] = (1.0,)
    stop: str | int = "first"
    passed: int = 0

    @property
    def random(self) -> str:
        return f"{self.seed}/{self.epoch}" + (f"/{self.passed}" if self.passed else "")

    def of(self, epoch: int) -> Recipe:
        return replace(self, epoch=epoch)

    @property
    def plain(self) -> bool:
        """One job, once."""
        return len(self.weights) == 1 and self.stop == "first"


class Pick(NamedTuple):
    """Samples of one file: their ``numbers`` in it, and their ``slots`` among those that were asked for together. Of
    several jobs, ``job`` says which one's file it is."""

    position: int
    numbers: Sequence[int]
    slots: Sequence[int]
    job: int = 0


@dataclass
class Stream:
    """The files dealt to one stream so far: positions in the job's order, and the offset at which each ends. ``laid``
    is the block of its samples that is read at present, from offset ``first`` on."""

    files: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    shuffle: Plain = field(default_factory=Plain)
    first: int = 0
    laid: list[tuple[int, int]] = field(default_factory=list)

    @property
    def samples(self) -> int:
        return self.ends[-1] if self.ends else 0

    def find(self, offset: int, *, wait: bool) -> tuple[int, int] | None:
        """``(position, number)`` of the sample that is given at that place of the stream, which has one there; None
        where it might have to wait for that, and is not to."""
        if type(self.shuffle) is Plain:
            return self._at(offset)
        if not self.first <= offset < self.first + len(self.laid):
            if not wait:
                return None
            self.first, sources = self.shuffle.block(offset)
            self.laid = [self._at(source) for source in sources]
        return self.laid[offset - self.first]

    def _at(self, offset: int) -> tuple[int, int]:
        at = bisect_right(self.ends, offset)
        return self.files[at], offset - (self.ends[at - 1] if at else 0)


class Streams:
    """Deals files to streams as they are asked for.

    ``dealt`` are their positions, in the order of dealing, and ``starts`` the offset of each in its stream. It never
    falls, as the next file always goes to the shortest stream. ``samples`` is how many all of them have, and ``read``
    are those that are not over.
    """

    def __init__(self, catalog: Catalog, recipe: Recipe) -> None:
        self.each = [Stream() for _ in range(recipe.streams)]
        self.dealt: list[int] = []
        self.starts: list[int] = []
        self.samples = 0
        self.read: dict[int, None] = {}
        self.complete = False
        self._chain = [b""]
        self._catalog = catalog
        self._places = Places(catalog.extent, recipe.files, recipe.random if recipe.shuffle != "none" else None)
        # Shortest first, then who has the fewest files: the first files go to a stream each before any has landed.
        self._heap = [(0, 0, number) for number in range(recipe.streams)]

    def deal(self) -> bool:
        """Deal one more file, waiting until its samples are counted. False when there is none."""
        position = None if self.complete else next(self._places, None)
        if position is None:
            self.complete = True
            return False
        length, files, number = self._heap[0]
        entry = self._catalog.entry(position)
        end = length + entry.samples
        link = self._chain[-1] + f"{entry.samples} {entry.identity}".encode()
        self._chain.append(hashlib.sha256(link).digest()[:16])
        self.each[number].files.append(position)
        self.each[number].ends.append(end)
        self.dealt.append(position)
        self.samples += entry.samples
        self.read[position] = None
        self.starts.append(length)
        heapq.heapreplace(self._heap, (end, files + 1, number))
        return True

    def ahead(self, count: int) -> list[int]:
        """The next that will be dealt, as far as they are known; waits for nothing."""
        return self._places.ahead(count)

    def print_of(self, files: int) -> str:
        """The fingerprint of the first files that were dealt."""
        return self._chain[files].hex()

    def length(self, number: int, wanted: int) -> int:
        """Samples of that stream: at least ``wanted``, or all that it will ever have."""
        while self.each[number].samples < wanted and self.deal():
            pass
        return self.each[number].samples

    def shortest(self, wanted: int) -> int:
        """Samples of the shortest: at least ``wanted``, or what it is when all files are dealt."""
        while self._heap[0][0] < wanted and self.deal():
            pass
        return self._heap[0][0]


class Order:
    """The samples of one epoch by their place in it. Whoever asks waits for the files that the answer depends on."""

    def __init__(self, catalog: Catalog, recipe: Recipe) -> None:
        self.recipe = recipe
        self.streams = Streams(catalog, recipe)
        for number, stream in enumerate(self.streams.each):
            stream.shuffle = self._shuffle(number)
        self._over = [0] * recipe.streams  # of each stream, how many files
        self._tail: list[tuple[int, int, list[int]]] | None = None

    def _shuffle(self, number: int) -> Plain:
        seed, window = f"{self.recipe.random}/{number}", self.recipe.window
        length = partial(self.streams.length, number)
        if self.recipe.shuffle == "window":
            return Window(seed, window, length)
        if self.recipe.shuffle == "blocks":
            return Groups(seed, window, self.streams.each[number].ends, length)
        return Plain()

    def count(self) -> int:
        """All samples of the epoch. Deals all files."""
        self.streams.shortest(sys.maxsize)
        return self.streams.samples

    def locate(self, places: range) -> list[Pick]:
        """Where the samples at these places of the epoch are, file by file: that of the first place, and of those
        behind it as many as are known without waiting for another file. None where the epoch is over."""
        if self.recipe.streams == 1 and type(self.streams.each[0].shuffle) is Plain:
            return self._run(places)
        found: dict[int, tuple[list[int], list[int]]] = {}
        for slot, place in enumerate(places):
            at = self.find(place, wait=not slot)
            if at is None:
                break
            numbers, slots = found.setdefault(at[0], ([], []))
            numbers.append(at[1])
            slots.append(slot)
        return [Pick(position, *both) for position, both in found.items()]

    def _run(self, places: range) -> list[Pick]:
        """One stream, as it is: a range of places is a range in one of its files."""
        (stream,) = self.streams.each
        if self.streams.length(0, places[0] + 1) <= places[0]:
            return []
        at = bisect_right(stream.ends, places[0])
        start = stream.ends[at - 1] if at else 0
        within = places[: bisect_left(places, stream.ends[at])]
        numbers = range(within.start - start, within.stop - start, within.step)
        return [Pick(stream.files[at], numbers, range(len(within)))]

    def find(self, place: int, *, wait: bool) -> tuple[int, int] | None:
        """``(position, number)`` of the sample at that place; None where the epoch is over, or where it might have to
        wait for that, and is not to."""
        streams = self.streams
        offset, number = divmod(place, self.recipe.streams)
        if streams.shortest(offset + 1 if wait else 0) <= offset:
            if not streams.complete:
                return None
            number, offset = self._turn(place)
            if offset >= streams.each[number].samples:
                return None
        return streams.each[number].find(offset, wait=wait)

    def _turn(self, place: int) -> tuple[int, int]:
        """``(stream, offset)`` of a place when all files are dealt: streams that are at their end are left out."""
        if self._tail is None:
            self._tail = list(self._turns())
        at = bisect_right(self._tail, place, key=lambda piece: piece[0]) - 1
        first, offset, numbers = self._tail[at]
        rounds, turn = divmod(place - first, len(numbers))
        return numbers[turn], offset + rounds

    def _turns(self) -> Iterator[tuple[int, int, list[int]]]:
        """Pieces in which the same streams take turns: first place, offset of all of them there, and their numbers. The
        last one has no end: beyond it no stream has any more."""
        lengths = [stream.samples for stream in self.streams.each]
        place = offset = 0
        for length in sorted({length for length in lengths if length}):
            numbers = [number for number, samples in enumerate(lengths) if samples >= length]
            yield place, offset, numbers
            place, offset = place + (length - offset) * len(numbers), length
        yield place, sys.maxsize >> 1, [0]

    def files_before(self, place: int) -> int:
        """How many of the files that were dealt have given samples before that place, which has been come to. Waits for
        nothing."""
        streams, count = self.streams, self.recipe.streams
        ended = streams.complete and streams.shortest(0) <= place // count
        offset = self._turn(place)[1] + 1 if ended else -(-place // count)
        return bisect_left(streams.starts, offset)

    def over(self, place: int | None) -> list[int]:
        """The files all of whose samples come before that place, which has been come to, and that were not named
        before; all that are left where it is None. Waits for nothing."""
        streams = self.streams
        offset = sys.maxsize if place is None else place // self.recipe.streams
        if place is not None and streams.complete and streams.shortest(0) <= offset:
            offset = self._turn(place)[1]
        found = []
        for number, stream in enumerate(streams.each):
            ended = place is None or (streams.complete and offset >= stream.samples)
            floor = stream.samples if ended else stream.shuffle.floor(offset)
            at = self._over[number]
            while at < len(stream.files) and stream.ends[at] <= floor:
                found.append(stream.files[at])
                at += 1
            self._over[number] = at
        for position in found:
            del streams.read[position]
        return found
