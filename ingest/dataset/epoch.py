"""Which sample is the i-th of an epoch of one job, or of several in turn: a pure function, as each job's own order is.

``turns.py`` says that place *i* is the *j*-th turn of job *k*. If that has *n* samples, it is the (*j* mod *n*)-th of
its pass *j* div *n*. A pass is an order of its own. How many samples a job has is known when all of its files have
landed, and is asked for no sooner than a place depends on it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import replace

from ingest.dataset.order import Catalog, Order, Pick, Recipe
from ingest.dataset.turns import BLOCK, Turns
from ingest.errors import UsageError


class Passes:
    """One job's samples without end, pass after pass. The ``first`` pass is what all others are told by."""

    def __init__(self, job: str, catalog: Catalog, recipe: Recipe) -> None:
        self.job = job
        self._catalog, self._recipe = catalog, recipe
        self.first = Order(catalog, recipe)
        self._orders = {0: self.first}
        self._current = 0

    def lasts(self, samples: int) -> bool | None:
        """Whether it has as many without being read again; None where that is not known yet."""
        streams = self.first.streams
        if streams.samples >= samples:
            return True
        return self._samples >= samples if streams.complete else None

    def find(self, number: int, *, wait: bool) -> tuple[int, int] | None:
        """``(position, number in its file)``; None where it might have to wait for that, and is not to."""
        streams = self.first.streams
        if not streams.complete:
            found = self.first.find(number, wait=wait)
            if found is not None or not streams.complete:
                return found
        self._current, place = divmod(number, self._samples)
        return self._order(self._current).find(place, wait=wait)

    @property
    def _samples(self) -> int:
        """Of a pass, when all files are dealt."""
        samples = self.first.streams.samples
        if not samples and not self._recipe.plain:
            raise UsageError(f"job {self.job} has no samples, and cannot be part of a mixture: leave it out")
        return samples

    def _order(self, number: int) -> Order:
        if number not in self._orders:
            self._orders[number] = Order(self._catalog, replace(self._recipe, passed=number))
        return self._orders[number]

    @property
    def read(self) -> list[int]:
        """The files that are not over, of those that were dealt."""
        return list(dict.fromkeys(n for order in self._orders.values() for n in order.streams.read))

    def ahead(self, count: int) -> list[int]:
        """The next files that will be dealt, as far as they are known: ``count`` at most. Waits for nothing."""
        found = self._order(self._current).streams.ahead(count)
        if len(found) < count and self._recipe.stop != "first" and self._catalog.extent(0).complete:
            found += self._order(self._current + 1).streams.ahead(count - len(found))
        return found

    def over(self, number: int | None) -> list[int]:
        """The files that are not read any more from that sample on, nor soon again; all, where it is None."""
        current, place = (None, None) if number is None else (0, number)
        if number and self.first.streams.complete and self._samples:
            current, place = divmod(number, self._samples)
            self._current = max(self._current, current)
        found = []
        for passed, order in list(self._orders.items()):
            if current is None or passed <= current:
                found += order.over(place if passed == current else None)
            if current is not None and 0 < passed < current:
                del self._orders[passed]
        reading = set(self.read)
        return [position for position in dict.fromkeys(found) if position not in reading]

    def print_before(self, number: int) -> tuple[int, str]:
        """How many files of the first pass have given samples before that one, and their fingerprint: all of them, when
        it is of a later pass. Waits for nothing."""
        streams = self.first.streams
        files = self.first.files_before(min(number, streams.samples) if streams.complete else number)
        return files, streams.print_of(files)


class Epoch:
    """The samples of one epoch by their place in it. Whoever asks waits for the files that the answer depends on."""

    def __init__(self, catalogs: Mapping[str, Catalog], recipe: Recipe) -> None:
        self.recipe = recipe
        self.jobs = [Passes(job, catalog, recipe) for job, catalog in catalogs.items()]
        self._turns = Turns(recipe.weights, recipe.random)
        self._sure = 0  # places that the epoch is known to have

    def locate(self, places: range) -> list[Pick]:
        """Where the samples at these places of the epoch are, file by file: that of the first place, and of those
        behind it as many as are known without waiting for another file. None where the epoch is over."""
        if self.recipe.plain:
            return self.jobs[0].first.locate(places)
        found: dict[tuple[int, int], tuple[list[int], list[int]]] = {}
        for slot, place in enumerate(places):
            if not self._has(place, wait=not slot):
                break
            job, turn = self._turns.at(place)
            at = self.jobs[job].find(turn, wait=not slot)
            if at is None:
                break
            numbers, slots = found.setdefault((job, at[0]), ([], []))
            numbers.append(at[1])
            slots.append(slot)
        return [Pick(position, *both, job) for (job, position), both in found.items()]

    def turns(self, place: int) -> list[int]:
        """How many samples of each job come before that place."""
        return self._turns.before(place)

    def has(self, place: int) -> bool:
        """Whether the epoch has a sample there."""
        return self._has(place, wait=True)

    def count(self) -> int:
        """All samples of the epoch. Waits for as many files as it takes to know."""
        beyond = max(1, self._sure)
        while self.has(beyond):
            beyond *= 2
        return bisect_left(range(beyond), True, key=lambda place: not self.has(place))

    def over(self, place: int | None) -> list[list[int]]:
        """Of each job the files all of whose samples come before that place, which has been come to; all that are left
        where it is None. Waits for nothing."""
        if place is None:
            return [job.over(None) for job in self.jobs]
        return [job.over(turns) for job, turns in zip(self.jobs, self.turns(place), strict=True)]

    def prints(self, place: int) -> list[tuple[int, str]]:
        """Of each job, how many files have given samples before that place, and their fingerprint. Waits for nothing:
        of what was not come to, nothing is said."""
        return [job.print_before(turns) for job, turns in zip(self.jobs, self.turns(place), strict=True)]

    def come_to(self, place: int) -> None:
        """Wait for all files before that place."""
        for job, turns in zip(self.jobs, self.turns(place), strict=True):
            if turns:
                job.find(turns - 1, wait=True)

    def _has(self, place: int, *, wait: bool) -> bool:
        """Not to wait, False may mean that nobody knows yet."""
        if isinstance(self.recipe.stop, int):
            return place < self.recipe.stop
        if place < self._sure:
            return True
        block = (place // BLOCK + 1) * BLOCK
        if self._lasts(block):
            self._sure = block
            return True
        while (lasts := self._lasts(place + 1)) is None and wait:
            needed = zip(self.jobs, self.turns(place + 1), strict=True)
            next(job for job, turns in needed if job.lasts(turns) is None).first.streams.deal()
        return bool(lasts)

    def _lasts(self, places: int) -> bool | None:
        """Whether the epoch has as many; None where that is not known yet."""
        lasting = [job.lasts(turns) for job, turns in zip(self.jobs, self.turns(places), strict=True)]
        decides = self.recipe.stop == "all"
        if decides in lasting:
            return decides
        return None if None in lasting else not decides
