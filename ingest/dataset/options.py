"""How a dataset reads its job: what the user asked for, checked once, in the user's own process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from ingest.dataset import formats
from ingest.dataset.formats.decoders import Decoder
from ingest.dataset.order import Recipe
from ingest.dataset.share import TAILS
from ingest.dataset.shuffle import KINDS
from ingest.errors import DataError, UsageError

ON_FAILURE = ("raise", "skip")
ORDERS = ("fixed", "arrival")
_LEAST = {"shuffle_files": 1, "shuffle_window": 2, "streams": 1, "batch_size": 1, "open_files": 1}
#: In the place of a sample that is left out.
SKIPPED: Final = object()


@dataclass(frozen=True)
class Options:
    """Travels to DataLoader workers by pickle."""

    shuffle: str = "none"
    shuffle_files: int = 1024
    shuffle_window: int = 4096
    streams: int = 1
    seed: int = 0
    batch_size: int | None = None
    tail: str = "pad"
    format: str | None = None
    columns: tuple[str, ...] | None = None
    decode: bool | Mapping[str, Decoder] = False
    read: Callable[[Path], Iterable[Any]] | None = None
    on_bad: str | Callable[[DataError], Any] = "raise"
    timeout_s: float = 300.0
    on_failure: str = "raise"
    keep: bool = True
    verify: bool = False
    open_files: int | None = None
    order: str = "fixed"
    weights: tuple[float, ...] = (1.0,)
    stop: str | int = "first"

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise UsageError(f"timeout={self.timeout_s:g}: give the seconds to wait for the next shard, above 0")
        _one_of("on_failure", self.on_failure, ON_FAILURE)
        _one_of("order", self.order, ORDERS)
        _one_of("shuffle", self.shuffle, KINDS)
        _one_of("tail", self.tail, TAILS)
        if not callable(self.on_bad):
            _one_of("on_bad", self.on_bad, ON_FAILURE)
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise UsageError(f"{name}={value!r} must be a whole number, {least} or more")
        if self.format is not None:
            formats.by_name(self.format)
        if self.read is not None and (self.format, self.columns, self.decode) != (None, None, False):
            raise UsageError("read= gives a file's samples by itself: leave out format=, columns= and decode=")

        if self.order == "arrival":
            self._check_arrival()

    def _check_arrival(self) -> None:
        wrong = {
            "tail='drop'": self.tail == "drop",  # what was given before the end was known cannot be taken back
            "streams": self.streams > 1,
            "a mixture of jobs": len(self.weights) > 1 or self.stop != "first",
        }
        for what in (what for what, is_so in wrong.items() if is_so):
            raise UsageError(f"{what} needs an order that is known beforehand: leave out order='arrival'")

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

    def recipe(self, epoch: int) -> Recipe:
        order = self.shuffle, self.shuffle_files, self.shuffle_window, self.streams
        return Recipe(self.seed, epoch, *order, self.weights, self.stop)


def _one_of(name: str, value: object, known: Sequence[str]) -> None:
    if value not in known:
        raise UsageError(f"{name}={value!r}: use one of {', '.join(known)}")


def shuffle_of(shuffle: bool | str) -> str:
    """``True`` is ``"window"``."""
    return ("window" if shuffle else "none") if isinstance(shuffle, bool) else shuffle


def columns_of(columns: Sequence[str] | None) -> tuple[str, ...] | None:
    if isinstance(columns, str):
        raise UsageError(f"columns={columns!r}: give a list of names")
    return None if columns is None else tuple(columns)
