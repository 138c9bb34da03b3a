"""One iterator over one share of an epoch: where its samples are, reading them, and where it stands. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from ingest.dataset import resume
from ingest.dataset.epoch import Epoch
from ingest.dataset.follow import Follower
from ingest.dataset.library import Library
from ingest.dataset.options import SKIPPED, Options
from ingest.dataset.order import Pick, Recipe
from ingest.dataset.resume import Part, State
from ingest.dataset.share import Share, turn_of
from ingest.errors import UsageError

#: Files beyond those that are read that are asked for by then, at most.
AHEAD = 32
#: How often it is told how far this one has come, while no file is opened.
REPORT_S = 2.0


class Reading:
    """The samples of one DataLoader worker of one rank (or of a rank without workers), from the beginning of the epoch
    or from ``state`` on. ``start`` and ``given`` say where it stands: so many samples since that place. There is a
    follower for each of its jobs; the first one is asked what holds for all."""

    def __init__(
        self,
        followers: Sequence[Follower],
        options: Options,
        recipe: Recipe,
        worker: int,
        workers: int,
        state: State | None = None,
    ) -> None:
        begin, *_ = [follower.begin(worker, workers) for follower in followers]
        if state is None and begin.state is not None:
            state = State.from_json(begin.state)
        options.check_for(begin.world)
        epoch = begin.epoch if state is None else state.recipe.epoch
        self._followers, self._options = followers, options
        self._from = state and state.fits(recipe)
        self.start = state.samples if state else 0
        self.given = _given(state, begin.world, worker, workers) if state else 0
        turn = turn_of(begin.rank, begin.world, begin.local_world)
        self.share = Share(turn, begin.world, worker, workers, options.batch_size, options.tail, self.start)
        self._libraries = [Library(each, options, partial(self._tell, n)) for n, each in enumerate(followers)]
        catalogs = {each.job: library for each, library in zip(followers, self._libraries, strict=True)}
        self.order = Epoch(catalogs, recipe.of(epoch))
        self._place = self.start  # the first of those that are read at present
        self._windows: dict[int, tuple[list[int], list[int]]] = {}
        if state is not None:
            self._go_on(begin.world)

    def _go_on(self, world: int) -> None:
        """Say how much of each job was read before: by weight, as nobody has counted whose turns were this rank's."""
        then, now = self.order.turns(self.start), self.order.turns(self.start + self.given * world)
        for follower, had, has in zip(self._followers, then, now, strict=True):
            follower.go_on(self.order.recipe.epoch, had // world, (has - had) // world)

    def state(self) -> State:
        """Where it stands: of a rank without workers the place that all ranks have come to, of a worker its part."""
        share = self.share
        if share.workers == 1:
            return resume.at(self.order, self.start + self.given * share.world)
        part = Part(share.world, share.worker, share.workers, share.batch, self.given)
        return replace(resume.at(self.order, self._place), samples=self.start, part=part)

    def __iter__(self) -> Iterator[Any]:
        try:
            if self._from is not None:
                self._from.check(self.order)
            for numbers in self.share.lumps(self.given):
                while numbers:
                    for follower in self._followers:
                        follower.report(REPORT_S)
                    picks = self._picks(numbers)
                    found = sum(len(pick.numbers) for pick in picks)
                    yield from self._read(picks, found)
                    numbers = numbers[found:]
                    if not found:
                        break
                if numbers:
                    yield from self._again(numbers)
                    break
            self._move(None)
            for follower in self._followers:
                follower.report(over=True)
        finally:
            for library in self._libraries:
                library.close()

    def _read(self, picks: Sequence[Pick], count: int) -> Iterator[Any]:
        """The samples that are picked, without those that are left out."""
        for job, sample in self._taken(picks, count):
            self.given += 1
            if sample is not SKIPPED:
                self._followers[job].tally.gave()
                yield sample

    def _taken(self, picks: Sequence[Pick], count: int) -> Iterator[tuple[int, Any]]:
        """In the order of their slots, each with its job."""
        if all(isinstance(pick.slots, range) for pick in picks):
            for pick in picks:
                for sample in self._libraries[pick.job].take(pick.position, pick.numbers):
                    yield pick.job, sample
            return
        out: list[Any] = [None] * count
        for pick in picks:
            samples = self._libraries[pick.job].take(pick.position, pick.numbers)
            for slot, sample in zip(pick.slots, samples, strict=True):
                out[slot] = pick.job, sample
        yield from out

    def _picks(self, numbers: range) -> list[Pick]:
        """Where the first of these numbers of the rank are, as far as that is known; none at the end of the epoch."""
        share, places = self.share, self.share.places(numbers)
        self._move(places[0])
        picks = self.order.locate(places)
        if share.tail != "drop" or not picks:
            return picks
        # Every rank is to have as many: what is given here must be followed by a sample for each of the others.
        found = sum(len(pick.numbers) for pick in picks)
        if self.order.has(self.start + (numbers[found - 1] + 1) * share.world - 1):
            return picks
        mine = numbers[: len(range(numbers.start, share.most(self.order.count()), numbers.step))]
        return self.order.locate(share.places(mine)) if mine else []

    def _again(self, numbers: range) -> Iterator[Any]:
        """What stands in beyond the end of the epoch, so that ranks have as many: the rank's own last sample."""
        share, samples = self.share, self.order.count()
        if samples < share.world > 1 and not self.start and (share.tail != "pad" or not samples):
            jobs = " + ".join(follower.job for follower in self._followers)
            raise UsageError(
                f"job {jobs} has {samples} samples for {share.world} ranks: some would have none, and the others would "
                "wait for them; use fewer ranks, or tail='pad'"
            )
        mine = numbers[: len(range(numbers.start, share.most(samples), numbers.step))]
        for place in share.places(mine) if share.tail == "pad" else ():
            place = share.again(place, samples)
            yield from self._read(self.order.locate(range(place, place + 1)), 1)

    def _move(self, place: int | None) -> None:
        """What comes before that place is over; at the end (None) all is."""
        self._place = self._place if place is None else place
        over = self.order.over(place)
        for library, positions in zip(self._libraries, over, strict=True):
            for position in positions:
                library.forget(position)
        if place is None or any(over):  # what is dealt anew is told of by then
            self._tell(over=place is None)

    def _tell(self, job: int = 0, dealt: int | None = None, *, over: bool = False) -> None:
        """Tell the feeds which files are read and which are next, the one that is dealt just now among them: before it
        is waited for, since it is fetched before what nobody needs, and may need the space of those that are over."""
        for n, passes in enumerate(self.order.jobs):
            now = [dealt] if n == job and dealt is not None else []
            read = [] if over else list(dict.fromkeys([*passes.read, *now]))
            window = read, [] if over else passes.ahead(AHEAD)
            if window != self._windows.get(n):
                self._windows[n] = window
                self._followers[n].move(*window, self.share.worker, self.share.workers)


def _given(state: State, world: int, worker: int, workers: int) -> int:
    part = state.part
    if part is None:
        return 0
    if (part.world, part.worker, part.workers) != (world, worker, workers):
        raise UsageError(
            f"this is the state of worker {part.worker} of {part.workers}, one of {part.world} ranks, and here is "
            f"worker {worker} of {workers}, one of {world}: for another layout load "
            "StreamingDataset.state_of(the loader's state) into the dataset instead"
        )
    return part.given


def elastic(loader_state: Mapping[str, Any]) -> State:
    """A rank's state out of what its StatefulDataLoader gave as its own, for any other layout."""
    states = list(resume.states_in(loader_state))
    state = resume.whole(states)
    steps = loader_state.get("_steps_since_snapshot", 0)
    part = states[0].part
    if steps and part is not None:
        if part.batch is None:
            raise UsageError("a loader with snapshot_every_n_steps above 1 needs a dataset with batch_size=")
        state = replace(state, samples=state.samples + steps * part.batch * part.world)
    return state
