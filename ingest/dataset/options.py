"""How a job is read: what the user asked for, checked once, in the user's own process."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar

from ingest.dataset import formats
from ingest.dataset.formats.decoders import Decoder
from ingest.dataset.mixture import Mixture
from ingest.dataset.order import Recipe
from ingest.dataset.share import TAILS
from ingest.dataset.shuffle import KINDS
from ingest.errors import DataError, UsageError

ON_FAILURE = ("raise", "skip")
ORDERS = ("fixed", "arrival")
#: In the place of a sample that is left out.
SKIPPED: Final = object()

_SPARE = 8  # open files beyond one for each stream


@dataclass(frozen=True, kw_only=True)
class Files:
    """How files are waited for and read. Travels to DataLoader workers by pickle."""

    format: str | None = None
    columns: Sequence[str] | None = None
    decode: bool | Mapping[str, Decoder] = False
    read: Callable[[Path], Iterable[Any]] | None = None
    on_bad: str | Callable[[DataError], Any] = "raise"
    timeout: float = 300.0
    on_failure: str = "raise"
    verify: bool = False
    open_files: int | None = None

    def __post_init__(self) -> None:
        if self.timeout <= 0:
            raise UsageError(f"timeout={self.timeout:g}: give the seconds to wait for the next shard, above 0")
        _one_of("on_failure", self.on_failure, ON_FAILURE)
        if not callable(self.on_bad):
            _one_of("on_bad", self.on_bad, ON_FAILURE)
        _at_least(self, open_files=1)
        if isinstance(self.columns, str):
            raise UsageError(f"columns={self.columns!r}: give a list of names")
        if self.format is not None:
            formats.by_name(self.format)
        if self.read is not None and (self.format, self.columns, self.decode) != (None, None, False):
            raise UsageError("read= gives a file's samples by itself: leave out format=, columns= and decode=")

    @property
    def most_open(self) -> int:
        """So many files are open at once."""
        return self.open_files or 2 * _SPARE


@dataclass(frozen=True, kw_only=True)
class Options(Files):
    """And in which order, and whose they are."""

    shuffle: bool | str = False
    shuffle_files: int = 1024
    shuffle_window: int = 4096
    seed: int = 0
    streams: int = 1
    order: str = "fixed"
    batch_size: int | None = None
    tail: str = "pad"
    keep: bool = True
    rank: int | None = None
    world_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_of("order", self.order, ORDERS)
        _one_of("shuffle", self.kind, KINDS)
        _one_of("tail", self.tail, TAILS)
        _at_least(self, shuffle_files=1, shuffle_window=2, streams=1, batch_size=1)
        rank, world = self.rank, self.world_size
        if (rank is None) != (world is None) or not 0 <= (rank or 0) < (1 if world is None else world):
            raise UsageError(f"rank={rank} and world_size={world}: give both, with 0 <= rank < world_size, or neither")
        if self.order == "arrival" and self.tail == "drop":  # nobody knows what to leave out before it has been given
            raise _no_arrival("tail='drop'")
        if self.order == "arrival" and self.streams > 1:
            raise _no_arrival("streams")

    @property
    def kind(self) -> str:
        """Of shuffle; ``True`` is ``"window"``."""
        return ("window" if self.shuffle else "none") if isinstance(self.shuffle, bool) else self.shuffle

    @property
    def most_open(self) -> int:
        return self.open_files or self.streams + _SPARE

    def recipe(self, mixture: Mixture) -> Recipe:
        """Of epoch 0."""
        order = self.kind, self.shuffle_files, self.shuffle_window, self.streams
        recipe = Recipe(self.seed, 0, *order, mixture.weights, mixture.stop)
        if self.order == "arrival" and not recipe.plain:
            raise _no_arrival("a mixture of jobs")
        return recipe

    def check_exact(self) -> None:
        """Raises :class:`UsageError` where there is no order to go on in."""
        if self.order == "arrival":
            raise UsageError(
                "order='arrival' has no state: what landed first this time need not land first again, so no place in "
                "it says which samples were taken; leave it out, and the dataset resumes exactly"
            )

    def check_for(self, world: int) -> None:
        """Raises :class:`UsageError` where so many ranks could not have as many samples each."""
        if self.on_bad == "skip" and world > 1 and self.tail != "uneven":
            raise UsageError(
                "on_bad='skip' leaves some ranks with fewer samples, and the others would wait for them: give a "
                "function that says what stands in for a bad sample, or tail='uneven'"
            )


def _no_arrival(what: str) -> UsageError:
    return UsageError(f"{what} needs an order that is known beforehand: leave out order='arrival'")


def _one_of(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{name}={value!r}: use one of {', '.join(known)}")


def _at_least(options: Files, **least: int) -> None:
    for name, number in least.items():
        value = getattr(options, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < number):
            raise UsageError(f"{name}={value!r} must be a whole number, {number} or more")


_Self = TypeVar("_Self")
_Read = TypeVar("_Read")
_Made = TypeVar("_Made", bound=Files)
_Fields = ParamSpec("_Fields")


def taking(
    make: Callable[_Fields, _Made],
) -> Callable[[Callable[[_Self, _Read, _Made], None]], Callable[Concatenate[_Self, _Read, _Fields], None]]:
    """An ``__init__`` that takes the fields of its options one by one, and is given them as one."""

    def decorate(
        init: Callable[[_Self, _Read, _Made], None],
    ) -> Callable[Concatenate[_Self, _Read, _Fields], None]:
        def __init__(self: _Self, job: _Read, /, *none: _Fields.args, **fields: _Fields.kwargs) -> None:
            init(self, job, make(*none, **fields))

        signature = inspect.signature(init)
        first, job, _ = signature.parameters.values()
        fields = inspect.signature(make).parameters.values()
        __init__.__signature__ = signature.replace(parameters=[first, job, *fields])  # type: ignore[attr-defined]
        return __init__

    return decorate
