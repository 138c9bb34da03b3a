"""The feeds of a dataset's jobs in the process that made it; in any other, forked or spawned, where to ask them."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from ingest.dataset.feed import Feed
from ingest.dataset.follow import Follower
from ingest.dataset.protocols import Job
from ingest.dataset.stats import Totals
from ingest.dataset.wire import Line
from ingest.errors import UsageError

_CLOSE_S = 5.0  # for the readers to let go of their connections; one poll takes a tenth of it
_ANSWER_S = 30.0  # beyond its own deadline, for a rank process that is busy


class Feeds:
    """One for each job. They end with it. ``share`` is as :class:`Feed` has it."""

    def __init__(
        self,
        jobs: Sequence[Job],
        share: Callable[[], tuple[int, int, int]],
        *,
        timeout_s: float,
        keep: bool = True,
        batch_size: int | None = None,
    ) -> None:
        self.jobs = tuple(job.id for job in jobs)
        self._timeout_s = timeout_s
        self._own: list[Feed] = []
        make = partial(Feed, share=share, keep=keep, among=len(jobs), batch_size=batch_size if len(jobs) == 1 else None)
        with ExitStack() as undo:
            for job in jobs:
                self._own.append(make(job.id, job.reader(keep=keep)))
                undo.callback(self._own[-1].close)
            undo.pop_all()
        self._doors = [(feed.address, feed.key) for feed in self._own]
        self._finalizer = weakref.finalize(self, _close, self._own)

    @property
    def is_here(self) -> bool:
        """Whether this is the process that made them."""
        return bool(self._own) and self._own[0].pid == os.getpid()

    def lead(self, what: str) -> Feed:
        """The one that knows what holds for all jobs. Raises :class:`UsageError` in another process, naming the call
        that needs it."""
        if not self.is_here:
            raise UsageError(f"call {what} in the process that made the dataset")
        return self._own[0]

    def set_epoch(self, epoch: int, state: Mapping[str, Any] | None = None) -> None:
        """As :meth:`Feed.set_epoch`."""
        self.lead("set_epoch").set_epoch(epoch, state)
        for feed in self._own[1:]:
            feed.set_epoch(epoch)

    def followers(self, lines: ExitStack) -> list[Follower]:
        """For one iterator, one of each job. The connections that they need end with ``lines``."""
        if self.is_here:
            asks = [feed.answer for feed in self._own]
        else:
            made = [lines.enter_context(Line(*door, self._timeout_s + _ANSWER_S)) for door in self._doors]
            asks = [line.ask for line in made]
        return [Follower(ask, job, self._timeout_s) for ask, job in zip(asks, self.jobs, strict=True)]

    def stats(self) -> dict[str, Any]:
        """What all of it has cost."""
        self.lead("stats")
        return Totals.of([feed.totals for feed in self._own]).to_json()

    def close(self) -> None:
        _close(self._own, _CLOSE_S)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_own": [], "_finalizer": None}


def _close(feeds: Sequence[Feed], wait_s: float = 0.0) -> None:
    for feed in feeds:  # all are told before any is waited for
        feed.close()
    for feed in feeds if wait_s else ():
        feed.close(wait_s)
