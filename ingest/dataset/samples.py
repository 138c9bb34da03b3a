"""One iterator over one share of an epoch: where its samples are, reading them, and where it stands. No torch here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from ingest.dataset import resume
from ingest.dataset.follow import Follower
from ingest.dataset.library import Library
from ingest.dataset.options import SKIPPED, Options
from ingest.dataset.order import Order, Pick
from ingest.dataset.resume import Part, State
from ingest.dataset.share import Share, turn_of
from ingest.errors import UsageError

#: Files beyond those that are read that are asked for by then, at most.
AHEAD = 32
#: How often it is told how far this one has come, while no file is opened.
REPORT_S = 2.0


class Reading:
    """The samples of one DataLoader worker of one rank (or of a rank without workers), from the beginning of the epoch
    or from ``state`` on. ``epoch``, ``start`` and ``given`` say where it stands: so many samples since that place."""

    def __init__(
        self, follower: Follower, options: Options, job: str, worker: int, workers: int, state: State | None = None
    ) -> None:
        begin = follower.begin(worker, workers)
        if state is None and begin.state is not None:
            state = State.from_json(begin.state)
        if options.on_bad == "skip" and begin.world > 1 and options.tail != "uneven":
            raise UsageError(
                "on_bad='skip' leaves some ranks with fewer samples, and the others would wait for them: give a "
                "function that says what stands in for a bad sample, or tail='uneven'"
            )
        epoch = begin.epoch if state is None else state.recipe.epoch
        self._follower, self._options, self._job = follower, options, job
        self._from = state and state.fits(options.recipe(epoch))
        self.start = state.samples if state else 0
        self.given = _given(state, begin.world, worker, workers) if state else 0
        turn = turn_of(begin.rank, begin.world, begin.local_world)
        self.share = Share(turn, begin.world, worker, workers, options.batch_size, options.tail, self.start)
        self._rank = begin.rank
        self.library = Library(follower, options, job, self._tell)
        self.order = Order(self.library, options.recipe(epoch))
        self._window: tuple[list[int], list[int]] | None = None

    def state(self) -> State:
        """Where it stands: of a rank without workers the place that all ranks have come to, of a worker its part."""
        share = self.share
        if share.workers == 1:
            place = self.start + self.given * share.world
            return resume.at(self.order, self._job, place)
        part = Part(self._rank, share.world, share.worker, share.workers, share.batch, self.given)
        return resume.at(self.order, self._job, self.start, part)

    def __iter__(self) -> Iterator[Any]:
        try:
            if self._from is not None:
                self._from.check(self.order, self._job)
            for numbers in self.share.lumps(self.given):
                while numbers:
                    self._follower.report(REPORT_S)
                    picks = self._picks(numbers)
                    found = sum(len(pick.numbers) for pick in picks)
                    yield from self._give(self.library.read(picks, found))
                    numbers = numbers[found:]
                    if not found:
                        break
                if numbers:
                    yield from self._give(self._again(numbers))
                    break
            self._move(None)
            self._follower.report(over=True)
        finally:
            self.library.close()

    def _give(self, samples: Iterator[Any]) -> Iterator[Any]:
        for sample in samples:
            self.given += 1
            if sample is not SKIPPED:
                self._follower.tally.gave()
                yield sample

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
            raise UsageError(
                f"job {self._job} has {samples} samples for {share.world} ranks: some would have none, and the others "
                "would wait for them; use fewer ranks, or tail='pad'"
            )
        mine = numbers[: len(range(numbers.start, share.most(samples), numbers.step))]
        for place in share.places(mine) if share.tail == "pad" else ():
            place = share.again(place, samples)
            yield from self.library.read(self.order.locate(range(place, place + 1)), 1)

    def _move(self, place: int | None) -> None:
        """What comes before that place is over; at the end (None) all is."""
        over = self.order.over(place)
        for position in over:
            self.library.forget(position)
        if over or place is None:  # what is dealt anew is told of by then
            self._tell(None, over=place is None)

    def _tell(self, dealt: int | None, *, over: bool = False) -> None:
        """Tell the feed which files are read and which are next, the one that is dealt just now among them: before it
        is waited for, since it is fetched before what nobody needs, and may need the space of those that are over."""
        streams = self.order.streams
        read = [] if over else [*streams.read, *([] if dealt is None else [dealt])]
        window = read, [] if over else streams.ahead(AHEAD)
        if window != self._window:
            self._window = window
            self._follower.move(*window, self.share.worker, self.share.workers)


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
