"""The iterator's side of a feed: it asks, waits with a deadline, and turns answers back into values and errors.

The feed is asked directly in the process that made it, and over its socket everywhere else.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.dataset.relay import from_wire
from ingest.dataset.wire import Ask
from ingest.errors import WaitTimeout
from ingest.model import Failure

_SLICE_S = 1.0  # an answer never takes longer than this to say "not yet", so that the feed sees who has gone away


@dataclass(frozen=True)
class Begin:
    """What an iterator has to know of its process: the epoch, and which rank of how many it is in."""

    epoch: int
    rank: int
    world: int


@dataclass(frozen=True)
class Extent:
    """How many files of the order are known, and whether that is all; then also what could not be planned."""

    files: int
    complete: bool
    failures: tuple[Failure, ...] = ()


@dataclass(frozen=True)
class Landed:
    """A file to read."""

    path: Path
    source: str


@dataclass(frozen=True)
class Missing:
    """A file that never came. ``cancelled``: nobody tries any more, as against one source that failed."""

    failure: Failure
    cancelled: bool


class Follower:
    """One iterator's questions. A wait of ``timeout_s`` ends in WaitTimeout; what the feed raises is raised here."""

    def __init__(self, ask: Ask, job: str, timeout_s: float) -> None:
        self._ask, self._job, self._timeout_s = ask, job, timeout_s
        self._extent = Extent(0, False)
        self._passed: list[int] = []

    def begin(self) -> Begin:
        return Begin(**self._answer({"ask": "begin"}))

    def extent(self, at_least: int) -> Extent | Missing:
        """The extent of the order, once it has that many files or is all; Missing when the job was cancelled before."""
        if self._extent.files < at_least and not self._extent.complete:
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
        return [Landed(Path(file["path"]), file["source"]) for file in answer["files"]]

    def passed(self, position: int) -> None:
        """The file there is needed no more; told with :meth:`tell`."""
        self._passed.append(position)

    def tell(self, worker: int, workers: int) -> None:
        if self._passed:
            positions, self._passed = self._passed, []
            self._answer({"ask": "passed", "positions": positions, "worker": worker, "workers": workers})

    def _answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        answer = self._ask(request)
        if "error" in answer:
            raise from_wire(answer)
        return answer

    def _wait(self, request: Mapping[str, Any], position: int | None) -> Mapping[str, Any]:
        deadline = time.monotonic() + self._timeout_s
        while True:
            left_s = deadline - time.monotonic()
            answer = self._answer({**request, "wait_s": max(0.0, min(left_s, _SLICE_S))})
            if "pending" not in answer:
                return answer
            if left_s <= 0:
                why = self._answer({"ask": "why", "position": position})["why"]
                raise WaitTimeout(self._job, self._timeout_s, why)


def _missing(answer: Mapping[str, Any]) -> Missing:
    return Missing(Failure.from_json(answer["failure"]), answer["cancelled"])
