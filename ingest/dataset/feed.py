"""The rank process's side: one thread follows the job's reader; iterators, here and in DataLoader workers, ask.

An iterator asks for a file by its position in the job's order and may wait a moment for the answer; it keeps its own
deadline and asks again. So the feed keeps nothing about those who ask, and every epoch sees the job from its beginning.
"""

from __future__ import annotations

import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ingest.dataset.protocols import End, Layout, LocalFile, Reader
from ingest.dataset.relay import from_wire, to_wire
from ingest.dataset.wire import Server
from ingest.errors import IngestError, LedgerUnavailable
from ingest.model import TERMINAL_JOB, Failure

_POLL_S = 0.5  # how soon a closed feed lets go of its connection
_AGAIN_S = 1.0  # between two tries while the ledger is away
_WHY_S = 3.0  # for the following thread to look up what a shard waits for, once its poll is over


class Passes:
    """Which shards all consumers of this process have passed, so that their files may go. Kept: what some have passed
    and others have not."""

    def __init__(self) -> None:
        self._who: dict[int, set[int]] = {}
        self._left: dict[int, int] = {}
        self._shards: list[int] = []

    def add(self, layout: Layout, position: int, worker: int, workers: int) -> None:
        who = self._who.setdefault(position, set())
        who.add(worker)
        if len(who) < workers:
            return
        del self._who[position]
        left = self._left.pop(layout.shard, layout.files) - 1
        if left:
            self._left[layout.shard] = left
        else:
            self._shards.append(layout.shard)

    def take(self) -> list[int]:
        """Those that are passed since the last call."""
        shards, self._shards = self._shards, []
        return shards

    def put_back(self, shards: Sequence[int]) -> None:
        """They could not be released now."""
        self._shards += shards


class Feed:
    """Follows ``reader`` and answers ``begin``, ``extent``, ``file``, ``passed`` and ``why``, in the process that made
    it.

    ``share`` says which rank of how many this process is, at the time an iterator begins. ``epoch`` is the dataset's.
    """

    def __init__(self, job: str, reader: Reader, share: Callable[[], tuple[int, int]]) -> None:
        self.pid = os.getpid()
        self.epoch = 0
        self._job, self._reader, self._share = job, reader, share
        self._passes = Passes()
        self._news = threading.Condition()
        self._layouts: list[Layout] = []
        self._starts: list[int] = []  # position of each shard's first file
        self._files = 0
        self._complete = False
        self._plan_failures: Sequence[Failure] | None = None
        self._state = "planning"
        self._asked: set[int] = set()  # shards of which somebody wants to know what they wait for
        self._reasons: dict[int, str] = {}
        # In its wire form, and made anew for each who waits: an error that is raised keeps the frames that it passed
        # through alive, and with them the dataset.
        self._error: Mapping[str, Any] | None = None
        self._closed = False
        self._entries: dict[int, tuple[End, list[list[LocalFile] | Failure]]] = {}
        self._questions = {
            "begin": self._begin,
            "extent": self._extent,
            "file": self._file,
            "passed": self._passed,
            "why": self._why,
        }
        self._server = Server(self.answer)
        self.address, self.key = self._server.address, self._server.key
        self._thread = threading.Thread(target=self._follow, name=f"ingest-feed-{job}", daemon=True)
        self._thread.start()

    def close(self, wait_s: float = 0.0) -> None:
        """Stop following and answering; who waits gets an error. Idempotent; does nothing in a forked child."""
        if os.getpid() != self.pid:
            return
        self._server.close()
        self._closed = True
        with self._news:
            self._news.notify_all()
        if wait_s:
            self._thread.join(wait_s)

    # -- following ---------------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        try:
            self._take_in(None)
            while not self._closed and not self._ended():
                try:
                    self._reader.poll(_POLL_S)
                    self._take_in(None)
                except LedgerUnavailable as error:  # reaches all who wait; those who come later may find it back
                    self._take_in(error)
                    with self._news:
                        self._news.wait_for(lambda: self._closed, _AGAIN_S)
        except IngestError as error:
            self._take_in(error)
        except Exception as error:  # noqa: BLE001 - it must reach those who wait rather than end this thread unseen
            self._take_in(IngestError(f"following job {self._job} failed: {error!r}"))
        finally:
            self._reader.rest()
            with self._news:  # files are read long after they have landed, in every epoch: until then they stay
                self._news.wait_for(lambda: self._closed)
            self._reader.close()

    def _take_in(self, error: IngestError | None) -> None:
        if error is None:
            self._look_up()
        with self._news:
            if error is None:
                for layout in self._reader.order[len(self._layouts) :]:
                    self._layouts.append(layout)
                    self._starts.append(self._files)
                    self._files += layout.files
                self._state = self._reader.state
                self._complete = self._reader.complete or self._state in TERMINAL_JOB
            self._error = None if error is None else to_wire(error)
            self._news.notify_all()

    def _look_up(self) -> None:
        """What takes a question to the ledger: asked by this thread only, as the reader belongs to one."""
        if self._plan_failures is None and (self._reader.complete or self._reader.state in TERMINAL_JOB):
            self._plan_failures = self._reader.plan_failures()
        for shard in tuple(self._asked):
            self._reasons[shard] = self._reader.waiting_for(shard)
            self._asked.discard(shard)

    def _ended(self) -> bool:
        """Whether nothing more can come: the job as it ended is then all that this dataset will ever show."""
        if self._state not in TERMINAL_JOB:
            return False
        ends = self._reader.ends
        return self._state == "cancelled" or all(layout.shard in ends for layout in self._layouts)

    # -- answering ---------------------------------------------------------------------------------------------------

    def answer(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer one question; errors are answers too. Called by many threads at once."""
        try:
            return self._questions[request["ask"]](request)
        except IngestError as error:
            return to_wire(error)
        except Exception as error:  # noqa: BLE001 - an answer is owed, or the worker would wait until its deadline
            return to_wire(IngestError(f"{type(error).__name__}: {error}"))

    def _begin(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        rank, world = self._share()
        return {"epoch": self.epoch, "rank": rank, "world": world}

    def _extent(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """``{"files", "complete", "failures"}`` once ``at_least`` files are known or no more will be."""
        if not self._wait(lambda: self._files >= request["at_least"] or self._complete, request["wait_s"]):
            return {"pending": True}
        if self._files < request["at_least"] and self._state == "cancelled":
            return self._given_up(self._job, "cancelled")
        failures = [failure.to_json() for failure in self._plan_failures or ()]
        return {"files": self._files, "complete": self._complete, "failures": failures}

    def _file(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """``{"files": [{"path", "source"}, …]}`` or ``{"failure", "cancelled"}`` of that place, once its shard has
        ended."""
        position = request["position"]
        number = bisect_right(self._starts, position) - 1
        layout, place = self._layouts[number], position - self._starts[number]
        name = f"{self._job}.{layout.shard}"
        if not self._wait(lambda: layout.shard in self._reader.ends or self._state == "cancelled", request["wait_s"]):
            return {"pending": True}
        end = self._reader.ends.get(layout.shard)
        if end is None:  # given up with its job; or over for a moment, and tried again
            return self._given_up(name, "cancelled") if self._state == "cancelled" else {"pending": True}
        entries = self._sorted(layout, end)
        if place >= len(entries):
            return self._given_up(name, end.state)
        entry = entries[place]
        if isinstance(entry, Failure):
            return {"failure": entry.to_json(), "cancelled": end.state == "cancelled"}
        return {"files": [{"path": str(file.path), "source": file.source} for file in entry]}

    def _passed(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """A consumer needs the files at these positions no more. What all of this process have passed is released."""
        with self._news:
            for position in request["positions"]:
                number = bisect_right(self._starts, position) - 1
                self._passes.add(self._layouts[number], position, request["worker"], request["workers"])
            shards = self._passes.take()
        try:
            self._reader.release(shards)
        except LedgerUnavailable:
            with self._news:
                self._passes.put_back(shards)
        return {}

    def _why(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """A sentence on what the file at ``position`` waits for, or the plan where that is None."""
        position = request["position"]
        if position is None:
            return {"why": f"its plan: {self._files} files are known so far, and more are expected"}
        shard = self._layouts[bisect_right(self._starts, position) - 1].shard
        with self._news:
            self._reasons.pop(shard, None)
            self._asked.add(shard)
            self._news.wait_for(lambda: shard in self._reasons or self._error is not None or self._closed, _WHY_S)
            said = self._reasons.get(shard) or "the ledger does not say now what it waits for"
        return {"why": f"file {position} of its order, in shard {shard}: {said}"}

    def _wait(self, ready: Callable[[], bool], wait_s: float) -> bool:
        """True once ready. Raises what stopped the reader: only to those who would have to wait."""
        with self._news:
            self._news.wait_for(lambda: ready() or self._error is not None or self._closed, wait_s)
            if ready():
                return True
            if self._error is not None:
                raise from_wire(self._error)
            if self._closed:
                raise IngestError(f"the dataset of job {self._job} was closed")
        return False

    def _sorted(self, layout: Layout, end: End) -> list[list[LocalFile] | Failure]:
        """A shard's files and failures by place; a failed file keeps its place, so that the others keep theirs. A
        source that became several files has them all at its place."""
        cached = self._entries.get(layout.shard)
        if cached is None or cached[0] is not end:
            files: dict[tuple[int, int], list[LocalFile]] = {}
            for file in end.files:
                files.setdefault((0, 0) if layout.packed else file.index, []).append(file)
            failed = () if layout.packed and files else end.failures[: 1 if layout.packed else None]
            by_index: dict[tuple[int, int], list[LocalFile] | Failure] = {f.index: f for f in failed}
            by_index.update(files)
            entries = [by_index[index] for index in sorted(by_index)]
            if len(entries) > layout.files:
                listed = f"shard {self._job}.{layout.shard} lists {layout.files} files"
                raise IngestError(f"{listed} and ended with {len(entries)}: the ledger contradicts itself")
            cached = self._entries[layout.shard] = (end, entries)
        return cached[1]

    def _given_up(self, name: str, state: str) -> Mapping[str, Any]:
        """The failure of a file of which nothing was said, because its shard or its job was given up."""
        error = {"cancelled": "Cancelled", "quarantined": "Quarantined"}.get(state, "PermanentFetchError")
        failure = Failure(name, error, f"{name} is {state}, and this file of it never arrived", 0, name)
        return {"failure": failure.to_json(), "cancelled": state == "cancelled"}
