"""The iterator's side of a feed: it asks, waits with a deadline, and turns answers back into values and errors.

The feed is asked directly in the process that made it, and over its socket everywhere else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.dataset.relay import from_wire
from ingest.dataset.stats import Tally
from ingest.dataset.wire import Ask
from ingest.errors import WaitTimeout
from ingest.model import Failure

log = logging.getLogger(__name__)

_SPEAK_S = 5.0  # a wait that is longer says what it waits for
_AGAIN_S = 30.0  # and again so often
_BLINK_S = 0.01  # an answer that takes longer was waited for
_SLICE_S = 1.0  # an answer never takes longer than this to say "not yet", so that the feed sees who has gone away


@dataclass(frozen=True)
class Begin:
    """What an iterator has to know of its process: which rank of how many it is in, of ``local_world`` on its node, and
    the epoch; ``state`` where it goes on, if not at the beginning."""

    rank: int
    world: int
    local_world: int
    epoch: int
    state: Mapping[str, Any] | None


@dataclass(frozen=True)
class Extent:
    """How many files of the order are known, and whether that is all; then also what could not be planned."""

    files: int
    complete: bool
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Landed:
    """A file that was fetched, wherever it lies. ``samples`` where its format said how many; ``reused`` where it was in
    the store already."""

    name: str
    source: str
    digest: str
    samples: int | None
    size: int
    reused: bool


@dataclass(frozen=True)
class Missing:
    """A file that never came. ``cancelled``: nobody tries any more, as against one source that failed."""

    failure: Failure
    cancelled: bool


class Follower:
    """One iterator's questions. A wait of ``timeout_s`` ends in WaitTimeout; what the feed raises is raised here."""

    def __init__(self, ask: Ask, job: str, timeout_s: float) -> None:
        self.job = job
        self._ask, self._timeout_s = ask, timeout_s
        self.tally = Tally()
        self._reported = time.monotonic()
        self._who = (0, 1)
        self._extent = Extent(0, False)

    def begin(self, worker: int, workers: int) -> Begin:
        self._who = (worker, workers)
        return Begin(**self._answer({"ask": "begin", "worker": worker, "workers": workers}))

    def go_on(self, epoch: int, samples: int, given: int) -> None:
        """It has begun in the middle of an epoch: the rank has had so many ``samples`` of the job by then, and this one
        ``given`` so many more."""
        self._answer({"ask": "go_on", "epoch": epoch, "samples": samples, "given": given})

    def extent(self, at_least: int) -> Extent | Missing:
        """The extent of the order, once it has that many files or is all; Missing when the job was cancelled before.
        ``at_least=0``: what it is by now."""
        if (self._extent.files < at_least or not at_least) and not self._extent.complete:
            answer = self._wait({"ask": "extent", "at_least": at_least}, None)
            if "failure" in answer:
                return _missing(answer)
            failures = tuple(Failure.from_json(failure) for failure in answer["failures"])
            self._extent = Extent(answer["files"], answer["complete"], failures)
        return self._extent

    def files(self, position: int) -> list[Landed] | Missing:
        """What is at that place of the order, once its shard has ended: mostly one file. The position must be within a
        known extent."""
        answer = self._wait({"ask": "file", "position": position}, position)
        if "failure" in answer:
            return _missing(answer)
        return [Landed(**file) for file in answer["files"]]

    def paths(self, position: int, *, verify: bool) -> list[tuple[Landed, Path]] | Missing:
        """The same, each with where it lies, and ``verify``: each by its digest. Raises NotLocalError or StoreError for
        one that cannot be read here."""
        answer = self._wait({"ask": "paths", "position": position, "verify": verify}, position)
        if "failure" in answer:
            return _missing(answer)
        return [(Landed(**file), Path(path)) for file, path in zip(answer["files"], answer["paths"], strict=True)]

    def landed(self, among: Sequence[int]) -> list[int]:
        """Those of these positions whose shards have ended; waits for the first."""
        return list(self._wait({"ask": "landed", "among": among}, among[0])["landed"])

    def move(self, read: Sequence[int], ahead: Sequence[int], worker: int, workers: int) -> None:
        """These files are read by this worker now, and these are next, nearest first."""
        self._answer({"ask": "move", "read": read, "ahead": ahead, "worker": worker, "workers": workers})

    def doubt(self, position: int) -> None:
        """A file there cannot be read any more: it is looked for, and fetched again if it is gone."""
        self._answer({"ask": "doubt", "position": position})

    def report(self, every_s: float = 0.0, *, over: bool = False) -> None:
        """Tell what feeding has cost so far, unless that was done less than ``every_s`` ago; and that it is
        ``over``."""
        now = time.monotonic()
        if now - self._reported >= every_s:
            self._reported = now
            self._answer({"ask": "report", "tally": self.tally.take(), "over": self._who if over else None})

    def _answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        answer = self._ask(request)
        if "error" in answer:
            raise from_wire(answer)
        return answer

    def _wait(self, request: Mapping[str, Any], position: int | None) -> Mapping[str, Any]:
        begun = time.monotonic()
        speak_s = _SPEAK_S
        while True:
            waited_s = time.monotonic() - begun
            answer = self._answer({**request, "wait_s": max(0.0, min(self._timeout_s - waited_s, _SLICE_S))})
            if "pending" not in answer:
                took_s = time.monotonic() - begun
                if took_s > _BLINK_S:
                    self.tally.waited(took_s)
                return answer
            if waited_s >= min(speak_s, self._timeout_s):
                why = self._answer({"ask": "why", "position": position})["why"]
                if waited_s >= self._timeout_s:
                    raise WaitTimeout(self.job, self._timeout_s, why)
                log.warning("dataset.waiting %.0f s for %s", waited_s, why, extra={"job": self.job, "reason": why})
                speak_s += _AGAIN_S


def _missing(answer: Mapping[str, Any]) -> Missing:
    return Missing(Failure.from_json(answer["failure"]), answer["cancelled"])
