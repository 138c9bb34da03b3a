"""A job's samples by index, without torch: for samplers, and whatever picks samples itself. ``streaming.py`` makes it a
torch dataset."""

from __future__ import annotations

import operator
import os
import weakref
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from ingest.dataset import relay
from ingest.dataset.feeds import Feeds
from ingest.dataset.library import Library
from ingest.dataset.mixture import Mixture
from ingest.dataset.options import Files, taking
from ingest.dataset.order import Order, Recipe
from ingest.dataset.protocols import Job
from ingest.dataset.samples import AHEAD
from ingest.dataset.stream import rank_here
from ingest.errors import UsageError


class View:
    """All samples of a job by their index, in the order of its sources: ``len()``, ``[i]``, ``[-1]``, and a batch in
    one go, for a DataLoader with any sampler, fork or spawn. Which samples are a rank's is the sampler's matter
    (``DistributedSampler``), and so is its state.

    An index is found when the files up to it have landed and are counted; ``len()``, which most samplers ask first,
    needs all of them. A batch is read file by file. Each process has ``open_files`` (16) open at most.

    The other options are as :class:`Stream` has them, but that ``on_bad="skip"`` is refused: an index has a sample.
    Files stay in the store until ``close()`` or the end of the view. Not for several threads at once.

    Raises what iterating a :class:`Stream` raises, and IndexError.
    """

    @taking(Files)
    def __init__(self, job: Job, options: Files) -> None:
        if isinstance(job, Mixture):
            raise UsageError("a mixture is read in its own order: give its jobs to a MapDataset each")
        if options.on_bad == "skip":
            raise UsageError("on_bad='skip': an index has a sample or none; give a function that says what stands in")
        self._options = options
        self._feeds = Feeds([job], type(self).rank_of, timeout_s=options.timeout)
        self._shelves: _Shelves | None = None  # of the process that asked last

    @staticmethod
    def rank_of() -> tuple[int, int, int]:
        """For those who ask who reads the job."""
        return rank_here(None, None)

    @staticmethod
    def worker_here() -> tuple[int, int]:
        """Which DataLoader worker this process is, and of how many."""
        return 0, 1

    def __len__(self) -> int:
        return self._here().order.count()

    def __getitem__(self, index: int) -> Any:
        (sample,) = self.__getitems__([index])
        return sample

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The samples of these indices, in this order."""
        if self._feeds.is_here:
            return self._here().take(indices)
        with relay.relayed():
            return self._here().take(indices)

    def stats(self) -> dict[str, Any]:
        """What it has cost: as :meth:`Stream.stats`."""
        return self._feeds.stats()

    def close(self) -> None:
        """Let go of thread, connection, socket and files; the view's end does the same."""
        self._feeds.close()
        if self._shelves is not None:
            self._shelves.close()

    def _here(self) -> _Shelves:
        if self._shelves is None or self._shelves.pid != os.getpid():
            if self._shelves is not None:  # the parent's, in a process that was forked
                self._shelves.close()
            self._shelves = _Shelves(self._feeds, self._options, *self.worker_here())
            weakref.finalize(self, self._shelves.close)
        return self._shelves

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_shelves": None}


class _Shelves:
    """What one process knows of the job, and the files that it has open."""

    def __init__(self, feeds: Feeds, options: Files, worker: int, workers: int) -> None:
        self.pid = os.getpid()
        self._lines, self._worker = ExitStack(), (worker, workers)
        (self._follower,) = feeds.followers(self._lines)
        self._follower.begin(worker, workers)
        self._library = Library(self._follower, options, self._need)
        self.order = Order(self._library, Recipe())

    def _need(self, position: int) -> None:
        self._follower.move([position], self.order.streams.ahead(AHEAD), *self._worker)

    def take(self, indices: Sequence[int]) -> list[Any]:
        found: dict[int, tuple[list[int], list[int]]] = {}
        wanted = [self._index(index) for index in indices]
        for slot in sorted(range(len(wanted)), key=wanted.__getitem__):
            at = self.order.find(wanted[slot], wait=True)
            if at is None:
                raise IndexError(f"sample {indices[slot]} of {self.order.count()}")
            numbers, slots = found.setdefault(at[0], ([], []))
            numbers.append(at[1])
            slots.append(slot)
        out: list[Any] = [None] * len(wanted)
        for position, (numbers, slots) in found.items():
            for slot, sample in zip(slots, self._library.take(position, numbers), strict=True):
                out[slot] = sample
                self._follower.tally.gave()
        self._follower.report()
        return out

    def close(self) -> None:
        self._library.close()
        self._lines.close()

    def _index(self, index: int) -> int:
        place = operator.index(index)
        if place < 0:
            place += self.order.count()
        if place < 0:
            raise IndexError(f"sample {index} of {self.order.count()}")
        return place
