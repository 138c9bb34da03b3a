"""What feeding costs, in numbers, and how far it has come: counted by each iterator, brought together in the rank
process."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """One iterator's numbers since they were last taken. ``waits`` are for files that had not landed yet."""

    samples: int = 0
    files: int = 0
    bytes: int = 0
    hits: int = 0
    waits: int = 0
    waited_s: float = 0.0
    longest_wait_s: float = 0.0
    first_sample_s: float | None = None
    begun: float = field(default_factory=time.monotonic)

    def waited(self, seconds: float) -> None:
        self.waits += 1
        self.waited_s += seconds
        self.longest_wait_s = max(self.longest_wait_s, seconds)

    def gave(self) -> None:
        if self.first_sample_s is None:
            self.first_sample_s = time.monotonic() - self.begun
        self.samples += 1

    def take(self) -> dict[str, Any]:
        """The numbers, to be told; counting goes on from zero."""
        told = {name: getattr(self, name) for name in _SUMS}
        told |= {"longest_wait_s": self.longest_wait_s, "first_sample_s": self.first_sample_s}
        for name in _SUMS:
            setattr(self, name, 0)
        return told


_SUMS = ("samples", "files", "bytes", "hits", "waits", "waited_s")


class Totals:
    """Of all iterators of a rank, since the dataset was made."""

    def __init__(self) -> None:
        self._sums: dict[str, Any] = dict.fromkeys(_SUMS, 0)
        self._longest_s = 0.0
        self._first_s: float | None = None
        self._begun = time.monotonic()

    def add(self, told: Mapping[str, Any]) -> None:
        for name in _SUMS:
            self._sums[name] += told[name]
        self._longest_s = max(self._longest_s, told["longest_wait_s"])
        firsts = [first for first in (self._first_s, told["first_sample_s"]) if first is not None]
        self._first_s = min(firsts, default=None)

    @property
    def waited_s(self) -> float:
        return float(self._sums["waited_s"])

    def __str__(self) -> str:
        first = "" if self._first_s is None else f"the first one after {self._first_s:.1f} s, "
        return (
            f"{first}{self._sums['waits']} waits of {self._sums['waited_s']:.1f} s, the longest {self._longest_s:.1f} s"
        )

    @classmethod
    def of(cls, each: Sequence[Totals]) -> Totals:
        """Of all that is read side by side."""
        all_of = cls()
        for one in each:
            all_of.add({**one._sums, "longest_wait_s": one._longest_s, "first_sample_s": one._first_s})
            all_of._begun = min(all_of._begun, one._begun)
        return all_of

    def to_json(self) -> dict[str, Any]:
        elapsed = time.monotonic() - self._begun
        return {
            **self._sums,
            "longest_wait_s": self._longest_s,
            "first_sample_s": self._first_s,
            "elapsed_s": elapsed,
            "samples_per_s": self._sums["samples"] / elapsed,
            "bytes_per_s": self._sums["bytes"] / elapsed,
            "hit_rate": self._sums["hits"] / self._sums["files"] if self._sums["files"] else None,
        }


class Progress:
    """How far the iteration that began last has come on this rank."""

    def __init__(self, batch_size: int | None) -> None:
        self._batch_size = batch_size
        self._rank = self._world = self._epoch = self._begun = self._samples = self._before_that = 0
        self._workers: set[int] = set()
        self._over: set[int] = set()
        self._all, self._before = 0, (time.monotonic(), 0)

    def begin(self, rank: int, world: int, worker: int, epoch: int) -> None:
        """A worker of the rank begins, with others or alone, an epoch."""
        if worker in self._workers or epoch != self._begun:
            self._workers.clear()
            self._over.clear()
        if not self._workers:
            self._epoch = self._begun = epoch
            self._samples = self._before_that = 0
        self._rank, self._world = rank, world
        self._workers.add(worker)

    def go_on(self, epoch: int, samples: int, given: int) -> None:
        """What has begun goes on in that epoch: the rank had had so many ``samples`` where its workers began, and this
        one has ``given`` so many since."""
        self._epoch, self._before_that = epoch, samples
        self._samples += given

    def over(self, worker: int, workers: int) -> bool:
        """A worker of so many is at its end; whether that is the end of the epoch on this rank."""
        self._over.add(worker)
        return len(self._over) == workers

    def __str__(self) -> str:
        return f"epoch {self._epoch} on rank {self._rank} of {self._world}: {self.samples} samples"

    @property
    def samples(self) -> int:
        """Of the epoch, those before it was interrupted among them."""
        return self._before_that + self._samples

    @property
    def begun(self) -> bool:
        return bool(self._workers)

    def add(self, samples: int) -> None:
        self._samples += samples
        self._all += samples

    def take(self) -> dict[str, Any]:
        """As it is now; the rate is of the time since this was asked last."""
        now, (then, had) = time.monotonic(), self._before
        self._before = now, self._all
        return {
            "rank": self._rank,
            "world": self._world,
            "epoch": self._epoch,
            "samples": self.samples,
            "step": self.samples // self._batch_size if self._batch_size else None,
            "samples_per_s": (self._all - had) / max(now - then, 1e-3),
        }
