"""Where an epoch stands: a small dict for a checkpoint, and what must be so for going on from it exactly.

It says how many samples all ranks together have taken, and by what the order was made. Under another number of ranks or
workers that is the same place of the same order. A DataLoader worker's own state (StatefulDataLoader asks for it) has
its part in it, and all of them together give the state again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ingest.dataset.order import Order, Recipe
from ingest.errors import ResumeError, UsageError

VERSION = 1
_MARK = "ingest_dataset"
_RECIPE = {"seed": int, "epoch": int, "shuffle": str, "shuffle_files": int, "shuffle_window": int, "streams": int}


@dataclass(frozen=True)
class Part:
    """What one DataLoader worker has given since the place that its state names."""

    rank: int
    world: int
    worker: int
    workers: int
    batch: int | None
    given: int


@dataclass(frozen=True)
class State:
    """``samples`` of the epoch are taken; ``files`` of the order had been dealt then, with that ``fingerprint``."""

    job: str
    recipe: Recipe
    samples: int = 0
    files: int = 0
    fingerprint: str = ""
    part: Part | None = None

    def to_json(self) -> dict[str, Any]:
        recipe = self.recipe
        data = {
            _MARK: VERSION,
            "job": self.job,
            "seed": recipe.seed,
            "epoch": recipe.epoch,
            "shuffle": recipe.shuffle,
            "shuffle_files": recipe.files,
            "shuffle_window": recipe.window,
            "streams": recipe.streams,
            "samples": self.samples,
            "files": self.files,
            "fingerprint": self.fingerprint,
        }
        return data if self.part is None else {**data, "part": dict(vars(self.part))}

    @classmethod
    def from_json(cls, data: Any) -> State:
        """Raises :class:`UsageError` for what is no state of a dataset."""
        if not isinstance(data, Mapping) or data.get(_MARK) != VERSION:
            found = data.get(_MARK) if isinstance(data, Mapping) else type(data).__name__
            raise UsageError(f"this is no state of a StreamingDataset of version {VERSION}, but {found!r}")
        try:
            seed, epoch, shuffle, files, window, streams = (kind(data[key]) for key, kind in _RECIPE.items())
            part = Part(**data["part"]) if "part" in data else None
            recipe = Recipe(seed, epoch, shuffle, files, window, streams)
            state = cls(data["job"], recipe, int(data["samples"]), int(data["files"]), str(data["fingerprint"]), part)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"this state of a StreamingDataset is damaged: {error!r}") from None
        if state.samples < 0 or state.files < 0:
            raise UsageError("this state of a StreamingDataset is damaged: a negative count")
        return state

    def fits(self, recipe: Recipe) -> State:
        """This state, if a dataset made by that recipe can go on from it, in the state's epoch."""
        if replace(recipe, epoch=self.recipe.epoch) == self.recipe:
            return self
        then, now = self.to_json(), State(self.job, recipe).to_json()
        other = [
            f"{key}={then[key]!r}, not {now[key]!r}" for key in _RECIPE if key != "epoch" and then[key] != now[key]
        ]
        raise UsageError(f"the state was made with {', '.join(other)}: the dataset needs the same")

    def check(self, order: Order, job: str) -> None:
        """That the files before this place are those of then. Raises :class:`ResumeError`."""
        streams = order.streams
        while len(streams.dealt) < self.files and streams.deal():
            pass
        if len(streams.dealt) < self.files:
            raise ResumeError(job, f"its order had {self.files} files before this place, and now {len(streams.dealt)}")
        if streams.print_of(self.files) != self.fingerprint:
            raise ResumeError(job, f"the first {self.files} files of its order are not those of job {self.job} then")


def at(order: Order, job: str, place: int, part: Part | None = None, start: int = 0) -> State:
    """The state at a place of the epoch; of a worker, whose part began at ``start``."""
    files = order.files_before(place)
    return State(job, order.recipe, start if part else place, files, order.streams.print_of(files), part)


def states_in(data: Any) -> Iterator[State]:
    """All states of a dataset in what a loader gave as its own."""
    if isinstance(data, Mapping):
        if _MARK in data:
            yield State.from_json(data)
            return
        for value in data.values():
            yield from states_in(value)


def whole(states: list[State]) -> State:
    """One state of what a rank's workers have given, or of the dataset itself. Raises :class:`UsageError` where they
    do not belong together."""
    if not states:
        raise UsageError("there is no state of a StreamingDataset in it")
    first = states[0]
    if first.part is None:
        return first
    parts = {state.part.worker: state.part for state in states if state.part is not None}
    same = {(state.job, state.recipe, state.samples, state.part and state.part.world) for state in states}
    if len(same) > 1 or set(parts) != set(range(first.part.workers)):
        raise UsageError("these are not the states of all workers of one DataLoader at one moment")
    if first.part.batch is None and first.part.workers > 1:
        raise UsageError(
            "several workers and no batch_size: which samples the loader gave is not known to its dataset; "
            "make it with StreamingDataset(…, batch_size=…), the loader's own"
        )
    given = sum(part.given for part in parts.values())
    most = max(states, key=lambda state: state.files)
    return replace(most, samples=first.samples + given * first.part.world, part=None)
