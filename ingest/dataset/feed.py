"""The rank process's side: one thread follows the job's reader; iterators, here and in DataLoader workers, ask.

An iterator asks for a file by its position in the job's order and may wait a moment for the answer; it keeps its own
deadline and asks again. So the feed keeps nothing of those who ask but which files they read now and next, which the
ledger is told; every epoch sees the job from its beginning.
"""

from __future__ import annotations

import logging
import os
import threading
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from ingest.dataset.protocols import End, Layout, LocalFile, Reader
from ingest.dataset.relay import from_wire, to_wire
from ingest.dataset.stats import Progress, Totals
from ingest.dataset.windows import Windows
from ingest.dataset.wire import Server
from ingest.errors import IngestError, LedgerUnavailable, StoreError
from ingest.model import TERMINAL_JOB, Failure

log = logging.getLogger(__name__)

_FACTS = ("name", "source", "digest", "samples", "size", "reused")
_POLL_S = 0.5  # how soon a closed feed lets go of its connection
_AGAIN_S = 1.0  # between two tries while the ledger is away
_SOME = 100  # shards that have landed, for what is usual
_WHY_S = 3.0  # for the following thread to look up what a shard waits for, once its poll is over


def _told(file: LocalFile) -> dict[str, Any]:
    """What iterators are told of a file."""
    return {field: getattr(file, field) for field in _FACTS}


def _bytes_of(end: End) -> int:
    return sum(file.size for file in end.files)


class Feed:
    """Follows ``reader`` and answers the questions of iterators, in the process that made it.

    ``batch_size`` is for those who ask how far it has come. ``share`` says which rank of how many this process is, and
    how many of them are on its node, at the time an iterator begins. ``begun`` is when the last one did: its epoch, and
    its state if it went on from one. ``among``: so many jobs are read side by side.
    """

    def __init__(
        self,
        job: str,
        reader: Reader,
        share: Callable[[], tuple[int, int, int]],
        *,
        keep: bool = True,
        among: int = 1,
        batch_size: int | None = None,
    ) -> None:
        self.pid = os.getpid()
        self.begun: tuple[int, Mapping[str, Any] | None] = (0, None)
        self._epoch = 0
        self._state: Mapping[str, Any] | None = None
        self._went_on: set[int] = set()  # workers that have begun from it
        self._job, self._reader, self.share, self._keep, self._among = job, reader, share, keep, among
        self._windows = Windows()
        self._warned = False
        self._moved = False  # they are others than the ledger was told
        self._doubted: set[int] = set()  # shards whose files are to be looked for
        self.totals = Totals()
        self._progress = Progress(batch_size)
        self._news = threading.Condition()
        self._layouts: list[Layout] = []
        self._starts: list[int] = []  # position of each shard's first file
        self._files = 0
        self._complete = False
        self._plan_failures: Sequence[Failure] | None = None
        self._job_state = "planning"
        self._asked: set[int] = set()  # shards of which somebody wants to know what they wait for
        self._reasons: dict[int, str] = {}
        # In its wire form, and made anew for each who waits: an error that is raised keeps the frames that it passed
        # through alive, and with them the dataset.
        self._error: Mapping[str, Any] | None = None
        self._closed = False
        self._entries: dict[int, tuple[End, list[list[LocalFile] | Failure]]] = {}
        self._questions = {
            "begin": self._begin,
            "go_on": self._go_on,
            "extent": self._extent,
            "file": self._file,
            "paths": self._paths,
            "landed": self._landed,
            "move": self._move,
            "doubt": self._doubt,
            "why": self._why,
            "report": self._report,
        }
        self._server = Server(self.answer)
        self.address, self.key = self._server.address, self._server.key
        reader.report(self._come)
        self._thread = threading.Thread(target=self._follow, name=f"ingest-feed-{job}", daemon=True)
        self._thread.start()

    def set_epoch(self, epoch: int, state: Mapping[str, Any] | None = None) -> None:
        """Iterators that begin from now on are of that epoch; the first of each worker goes on from ``state``. The
        state that is there stays, if it is of the same epoch."""
        with self._news:
            if state is not None or epoch != self._epoch:
                self._state, self._went_on = state, set()
            self._epoch = epoch

    def standing(self) -> tuple[int, Mapping[str, Any] | None]:
        """The epoch that the next iteration is of, and the state that it goes on from."""
        return self._epoch, self._state

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
            while not self._closed:
                try:
                    self._need()
                    self._take_in(None)
                    if self._ended():
                        self._rest()
                    else:
                        self._reader.poll(_POLL_S)
                        self._take_in(None)
                except (LedgerUnavailable, StoreError) as error:  # reaches all who wait; it may be there again soon
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

    def _rest(self) -> None:
        """All is over, and the connection is let go of, until somebody wants to know more."""
        self._reader.rest()
        with self._news:
            self._news.wait_for(lambda: self._closed or self._moved or bool(self._doubted) or bool(self._asked))

    def _need(self) -> None:
        """Tell the ledger what is read now and next, and look for what could not be opened."""
        with self._news:
            if not self._moved and not self._doubted:
                return
            self._moved, doubted = False, set(self._doubted)
            shards = self._window()
        try:
            self._reader.doubt(sorted(doubted))
            self._reader.need([*shards, *sorted(doubted.difference(shards))])
        except IngestError:
            self._moved = True
            raise
        with self._news:
            self._doubted -= doubted
            self._news.notify_all()

    def _window(self) -> list[int]:
        """The shards that are read, and of those that come next as many as half of the store has room for, among the
        ranks of this node and the jobs of each. How large one is, is known when it has landed; till then it is as large
        as the others."""
        read, ahead = (
            list(dict.fromkeys(self._layouts[self._shard_at(at)].shard for at in positions))
            for positions in (self._windows.read, self._windows.ahead)
        )
        budget = self._reader.budget_bytes
        if self._keep or budget is None:
            return list(dict.fromkeys([*read, *ahead]))
        ends = self._reader.ends
        some = [_bytes_of(end) for end in islice(ends.values(), _SOME)]
        usual = sum(some) / len(some) if some else budget / 8
        at_once = sum(_bytes_of(ends[n]) if n in ends else usual for n in read)
        sharers = self.share()[2] * self._among
        room = budget / 2 / sharers - at_once
        if at_once * sharers > budget and not self._warned:
            self._warned = True
            log.warning(
                "dataset.too_much_at_once: %d shards, about %.0f bytes, are read in turn, and the store may hold %d: "
                "they are fetched again and again; choose shuffle='files', or a smaller shuffle_window or streams",
                len(read),
                at_once,
                budget,
                extra={"job": self._job},
            )
        window = dict.fromkeys(read)
        for n in ahead:
            if n not in window:
                room -= _bytes_of(ends[n]) if n in ends else usual
                if room < 0 and len(window) > len(read):
                    break
                window[n] = None
        return list(window)

    def _take_in(self, error: IngestError | None) -> None:
        if error is None:
            self._look_up()
        with self._news:
            if error is None:
                for layout in self._reader.order[len(self._layouts) :]:
                    self._layouts.append(layout)
                    self._starts.append(self._files)
                    self._files += layout.files
                self._job_state = self._reader.state
                self._complete = self._reader.complete or self._job_state in TERMINAL_JOB
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
        if self._job_state not in TERMINAL_JOB:
            return False
        return self._job_state == "cancelled" or len(self._reader.ends) >= len(self._layouts)

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
        rank, world, local_world = self.share()
        with self._news:
            state = None if request["worker"] in self._went_on else self._state
            self._went_on.add(request["worker"])
            self.begun = self._epoch, state
            self._progress.begin(rank, world, request["worker"], self._epoch)
            return {"rank": rank, "world": world, "local_world": local_world, "epoch": self._epoch, "state": state}

    def _go_on(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        with self._news:
            self._progress.go_on(request["epoch"], request["samples"], request["given"])
        return {}

    def _extent(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """``{"files", "complete", "failures"}`` once ``at_least`` files are known or no more will be."""
        if not self._wait(lambda: self._files >= request["at_least"] or self._complete, request["wait_s"]):
            return {"pending": True}
        if self._files < request["at_least"] and self._job_state == "cancelled":
            return self._given_up(self._job, "cancelled")
        failures = [failure.to_json() for failure in self._plan_failures or ()]
        return {"files": self._files, "complete": self._complete, "failures": failures}

    def _file(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """``{"files": [{"name", "source", "digest", …}, …]}`` or ``{"failure", "cancelled"}`` of that place,
        once its shard has ended."""
        entry = self._entry(request["position"], request["wait_s"])
        return entry if isinstance(entry, Mapping) else {"files": list(map(_told, entry))}

    def _is_over(self, shard: int) -> bool:
        return shard in self._reader.ends and shard not in self._doubted

    def _paths(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The same, and ``"paths"`` where they lie (they may be fetched again just now)."""
        entry = self._entry(request["position"], request["wait_s"])
        if isinstance(entry, Mapping):
            return entry
        paths = [str(file.verified() if request["verify"] else file.path) for file in entry]
        return {"files": list(map(_told, entry)), "paths": paths}

    def _landed(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """``{"landed"}``: those of the positions ``among`` of which something can be said."""

        def there() -> list[int]:
            given_up = self._job_state == "cancelled"
            return [n for n in request["among"] if given_up or self._is_over(self._layouts[self._shard_at(n)].shard)]

        return {"landed": there()} if self._wait(lambda: bool(there()), request["wait_s"]) else {"pending": True}

    def _entry(self, position: int, wait_s: float) -> Sequence[LocalFile] | Mapping[str, Any]:
        """The files at that place; or the answer why there are none, or not yet."""
        number = self._shard_at(position)
        layout, place = self._layouts[number], position - self._starts[number]
        name = f"{self._job}.{layout.shard}"
        if not self._wait(lambda: self._is_over(layout.shard) or self._job_state == "cancelled", wait_s):
            return {"pending": True}
        end = self._reader.ends.get(layout.shard)
        if end is None:  # given up with its job; or over for a moment, and tried again
            return self._given_up(name, "cancelled") if self._job_state == "cancelled" else {"pending": True}
        entries = self._sorted(layout, end)
        if place >= len(entries):
            return self._given_up(name, end.state)
        entry = entries[place]
        if isinstance(entry, Failure):
            return {"failure": entry.to_json(), "cancelled": end.state == "cancelled"}
        return entry

    def _move(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """A worker reads the files at these positions now and next."""
        with self._news:
            self._windows.move(request["read"], request["ahead"], request["worker"], request["workers"])
            self._moved = True
            self._news.notify_all()
        return {}

    def _doubt(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """The file there could not be opened: nobody is told that it is there until it has been looked for."""
        with self._news:
            self._doubted.add(self._layouts[self._shard_at(request["position"])].shard)
            self._news.notify_all()
        return {}

    def _shard_at(self, position: int) -> int:
        """The number in the order of the shard that has that file."""
        return bisect_right(self._starts, position) - 1

    def _report(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        with self._news:
            self.totals.add(request["tally"])
            self._progress.add(request["tally"]["samples"])
            if request["over"] and self._progress.over(*request["over"]):
                log.info("dataset.epoch %s", f"{self._progress}; in all {self.totals}", extra={"job": self._job})
        return {}

    def _come(self) -> Mapping[str, Any] | None:
        """How far this rank has come, for those who watch; None before it has begun."""
        with self._news:
            return {**self._progress.take(), "waited_s": self.totals.waited_s} if self._progress.begun else None

    def _why(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """A sentence on what the file at ``position`` waits for, or the plan where that is None."""
        position = request["position"]
        if position is None:
            return {"why": f"its plan: {self._files} files are known so far, and more are expected"}
        shard = self._layouts[self._shard_at(position)].shard
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
