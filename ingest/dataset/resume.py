"""Where an epoch stands: a small dict for a checkpoint, and what must be so for going on from it exactly.

It says how many samples all ranks together have taken, and by what the order was made. Under another number of ranks or
workers that is the same place of the same order. A DataLoader worker's own state (StatefulDataLoader asks for it) has
its part in it, and all of them together give the state again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ingest.dataset.epoch import Epoch
from ingest.dataset.order import Recipe
from ingest.errors import ResumeError, UsageError

VERSION = 1
_KEY = "ingest_dataset"


def _weights(data: Any) -> tuple[float, ...]:
    return tuple(map(float, data))


def _stop(data: Any) -> str | int:
    return data if isinstance(data, str) else int(data)


#: What a recipe is in a state: the key, the field of :class:`Recipe`, and what reads it.
_RECIPE: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "seed": ("seed", int),
    "epoch": ("epoch", int),
    "shuffle": ("shuffle", str),
    "shuffle_files": ("files", int),
    "shuffle_window": ("window", int),
    "streams": ("streams", int),
    "weights": ("weights", _weights),
    "stop": ("stop", _stop),
}


@dataclass(frozen=True)
class Part:
    """What one DataLoader worker has given since the place that its state names."""

    world: int
    worker: int
    workers: int
    batch: int | None
    given: int


@dataclass(frozen=True)
class Mark:
    """How far a job had been read: so many files of its order had been dealt, with that ``fingerprint``."""

    job: str
    files: int = 0
    fingerprint: str = ""


@dataclass(frozen=True)
class State:
    """``samples`` of the epoch are taken; ``marks`` say of which files of each job."""

    recipe: Recipe
    marks: tuple[Mark, ...]
    samples: int = 0
    part: Part | None = None

    def to_json(self) -> dict[str, Any]:
        recipe = {key: getattr(self.recipe, field) for key, (field, _) in _RECIPE.items()}
        marks = [dict(vars(mark)) for mark in self.marks]
        data = {_KEY: VERSION, **recipe, "weights": list(self.recipe.weights), "samples": self.samples, "jobs": marks}
        return data if self.part is None else {**data, "part": dict(vars(self.part))}

    @classmethod
    def from_json(cls, data: Any) -> State:
        """Raises :class:`UsageError` for what is no state of a dataset."""
        if not isinstance(data, Mapping) or data.get(_KEY) != VERSION:
            found = data.get(_KEY) if isinstance(data, Mapping) else type(data).__name__
            raise UsageError(f"this is no state of a StreamingDataset of version {VERSION}, but {found!r}")
        try:
            recipe = Recipe(**{field: kind(data[key]) for key, (field, kind) in _RECIPE.items()})
            marks = tuple(Mark(str(m["job"]), int(m["files"]), str(m["fingerprint"])) for m in data["jobs"])
            part = Part(**data["part"]) if "part" in data else None
            state = cls(recipe, marks, int(data["samples"]), part)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"this state of a StreamingDataset is damaged: {error!r}") from None
        if state.samples < 0 or any(mark.files < 0 for mark in marks):
            raise UsageError("this state of a StreamingDataset is damaged: a negative count")
        if len(marks) != len(recipe.weights):
            raise UsageError("this state of a StreamingDataset is damaged: it has another number of jobs than weights")
        return state

    def fits(self, recipe: Recipe) -> State:
        """This state, if a dataset made by that recipe can go on from it, in the state's epoch."""
        if replace(recipe, epoch=self.recipe.epoch) == self.recipe:
            return self
        then, now = self.to_json(), State(recipe, ()).to_json()
        other = [
            f"{key}={then[key]!r}, not {now[key]!r}" for key in _RECIPE if key != "epoch" and then[key] != now[key]
        ]
        raise UsageError(f"the state was made with {', '.join(other)}: the dataset needs the same")

    def check(self, epoch: Epoch) -> None:
        """That the files before this place are those of then. Raises :class:`ResumeError`."""
        for mark, passes in zip(self.marks, epoch.jobs, strict=True):
            streams, job = passes.first.streams, passes.job
            while len(streams.dealt) < mark.files and streams.deal():
                pass
            if len(streams.dealt) < mark.files:
                had = f"its order had {mark.files} files before this place"
                raise ResumeError(job, f"{had}, and now {len(streams.dealt)}")
            if streams.print_of(mark.files) != mark.fingerprint:
                raise ResumeError(
                    job, f"the first {mark.files} files of its order are not those of job {mark.job} then"
                )


def at(epoch: Epoch, place: int) -> State:
    """The state at a place of the epoch."""
    marks = (Mark(passes.job, *told) for passes, told in zip(epoch.jobs, epoch.prints(place), strict=True))
    return State(epoch.recipe, tuple(marks), place)


def states_in(data: Any) -> Iterator[State]:
    """All states of a dataset in what a loader gave as its own."""
    if isinstance(data, Mapping):
        if _KEY in data:
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
    same = {
        (state.recipe, state.samples, state.part and state.part.world, *(mark.job for mark in state.marks))
        for state in states
    }
    if len(same) > 1 or set(parts) != set(range(first.part.workers)):
        raise UsageError("these are not the states of all workers of one DataLoader at one moment")
    if first.part.batch is None and first.part.workers > 1:
        raise UsageError(
            "several workers and no batch_size: which samples the loader gave is not known to its dataset; "
            "make it with StreamingDataset(…, batch_size=…), the loader's own"
        )
    given = sum(part.given for part in parts.values())
    marks = (max(each, key=lambda mark: mark.files) for each in zip(*(state.marks for state in states), strict=True))
    return State(first.recipe, tuple(marks), first.samples + given * first.part.world)
