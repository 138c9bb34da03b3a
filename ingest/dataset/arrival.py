"""``order="arrival"``: files are read as they land, for those who need no order that can be told beforehand.

Whose a sample is does not depend on when it comes: sample *n* of file *f* belongs to the ((*n* + *f*) mod *C*)-th of
all *C* DataLoader workers of all ranks. So each is given once, whatever any of them sees first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any

from ingest.dataset.follow import Follower
from ingest.dataset.library import Library
from ingest.dataset.options import SKIPPED, Options
from ingest.dataset.order import Recipe
from ingest.dataset.samples import AHEAD
from ingest.dataset.shuffle import Places, permutation
from ingest.errors import UsageError

_WIDE = 1024  # of so many files of the order, whichever lands first is read first


class Arriving:
    """The samples of one DataLoader worker of one rank (or of a rank without workers), as they land."""

    def __init__(self, follower: Follower, options: Options, recipe: Recipe, worker: int, workers: int) -> None:
        begin = follower.begin(worker, workers)
        options.check_for(begin.world)
        self._follower, self._options, self._worker = follower, options, (worker, workers)
        self._pads = options.tail == "pad" and begin.world > 1
        self._me, self._all = begin.rank * workers + worker, begin.world * workers
        self._library = Library(follower, options, lambda position: None)
        self._random = recipe.of(begin.epoch).random
        seed = self._random if options.kind != "none" else None
        self._places = Places(self._library.extent, options.shuffle_files, seed)

    def __iter__(self) -> Iterator[Any]:
        try:
            counts = [0] * (self._all + 1)  # how many more samples each has than the one before it
            some = None
            for position in self._arrivals():
                samples = self._library.entry(position).samples
                yield from self._give(position, self._numbers(position, samples))
                self._library.forget(position)
                self._count(counts, position, samples)
                some = (position, self._me % samples) if samples else some
            each = list(accumulate(counts[:-1]))
            if some is None or not self._pads:
                self._check_shares(each)
            else:
                yield from self._give(some[0], [some[1]] * (max(each) - each[self._me]))
            self._follower.move([], [], *self._worker)
            self._follower.report(over=True)
        finally:
            self._library.close()

    def _check_shares(self, each: Sequence[int]) -> None:
        """Raises :class:`UsageError` on all ranks where one has nothing, as any other order does."""
        workers = self._worker[1]
        ranks = [sum(each[first : first + workers]) for first in range(0, self._all, workers)]
        if len(ranks) > 1 and not min(ranks):
            raise UsageError(
                f"job {self._follower.job} has {sum(ranks)} samples for {len(ranks)} ranks: some have none, and the "
                "others would wait for them; use fewer ranks, or tail='pad'"
            )

    def _arrivals(self) -> Iterator[int]:
        """The positions of all files, whichever has landed of the next ones."""
        waiting: dict[int, None] = {}
        while True:
            if not waiting and (first := next(self._places, None)) is not None:
                waiting[first] = None
            if not waiting:
                return
            for _ in self._places.ahead(_WIDE - len(waiting)):
                waiting[next(self._places)] = None
            self._follower.move([], list(waiting)[:AHEAD], *self._worker)
            landed = self._follower.landed(list(waiting))
            for n, position in enumerate(landed):
                del waiting[position]
                self._follower.move([position], [*landed[n + 1 :], *waiting][:AHEAD], *self._worker)
                yield position

    def _numbers(self, position: int, samples: int) -> Sequence[int]:
        mine = range((self._me - position) % self._all, samples, self._all)
        if self._options.kind in ("none", "files"):
            return mine
        return [mine[n] for n in permutation(len(mine), f"{self._random}/{position}/{self._me}")]

    def _count(self, counts: list[int], position: int, samples: int) -> None:
        """All have had so many of a file, and the first ones that it begins with, one more."""
        rounds, more = divmod(samples, self._all)
        first = position % self._all
        counts[0] += rounds
        for start, stop in ((first, min(first + more, self._all)), (0, first + more - self._all)):
            if start < stop:
                counts[start] += 1
                counts[stop] -= 1

    def _give(self, position: int, numbers: Sequence[int]) -> Iterator[Any]:
        for sample in self._library.take(position, numbers) if numbers else ():
            if sample is not SKIPPED:
                self._follower.tally.gave()
                yield sample
