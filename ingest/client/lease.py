"""What this process reads: leases on the files of its jobs, or on the windows of them that it needs next, and how far
it has come with them; renewed while the process lives, and gone a minute after it died. One small thread for all of
them, from the first job that is read until none is."""

from __future__ import annotations

import atexit
import itertools
import os
import socket
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from ingest.errors import IngestError
from ingest.ledger import JobLedger
from ingest.ledger.space import READER_TTL_S, Needed
from ingest.settings import Settings

#: Three renewals fit in a lease, so that two may be lost.
RENEW_S = READER_TTL_S / 4
#: How often it says how far it has come.
TELL_S = RENEW_S / 3

#: Who says how far a reader has come: the fields of :class:`Consumer` but where it is; None before it has begun.
Progress = Callable[[], Mapping[str, Any] | None]


class Leases:
    """What one client of this process reads. A forked child holds nothing of what its parent reads, and makes neither a
    thread nor a connection unless it asks for files itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pid = os.getpid()
        self._jobs: set[str] = set()

    def keep(self, job: str, *, whole: bool = True) -> None:
        """This process reads that job, until :meth:`drop`, :meth:`close` or its end; not the ``whole`` of it: no more
        than its window, see :meth:`need`. While there is no ledger nobody can evict; it hears of it afterwards."""
        if self._pid != os.getpid():
            self._pid, self._jobs = os.getpid(), set()
        if job not in self._jobs:
            self._jobs.add(job)
            _reading(self._settings).hold(job, self, whole=whole)

    def need(self, job: str, shards: Sequence[int], gone: Mapping[int, int], queue: str) -> Needed:
        """These shards of a job that is kept are needed now, nearest first; ``gone`` and ``queue`` as
        :meth:`JobLedger.need` has them. Raises :class:`LedgerUnavailable`."""
        if self._pid != os.getpid() or job not in self._jobs:
            return Needed([], [])
        return _reading(self._settings).need(job, self, shards, gone, queue)

    def report(self, job: str, progress: Progress) -> None:
        """How far this reader of a job that is kept has come is asked of ``progress`` every ``TELL_S``, by a thread of
        its own."""
        if self._pid == os.getpid() and job in self._jobs:
            _reading(self._settings).report(job, self, progress)

    def drop(self, job: str) -> None:
        """It does not read it any more."""
        if self._pid == os.getpid() and job in self._jobs:
            self._jobs.discard(job)
            _reading(self._settings).release(job, self)

    def done(self, job: str, shards: Sequence[int]) -> None:
        """These shards are consumed: their files may go once all who read the job have said so. Raises
        :class:`LedgerUnavailable`."""
        if self._pid == os.getpid() and job in self._jobs:
            _reading(self._settings).done(job, shards)

    def close(self) -> None:
        """It reads nothing any more. Idempotent."""
        for job in list(self._jobs):
            self.drop(job)


class _Reading:
    """All that this process reads of one ledger, over one connection. ``reader`` is its name there.

    Several of its readers may each have a window of one job; the process has one: all of them, the nearest first. It
    holds no more than that unless one of them keeps the whole.
    """

    def __init__(self, settings: Settings) -> None:
        self.pid, self.reader = os.getpid(), uuid.uuid4().hex
        self._settings = settings
        self._lock = threading.Lock()
        self._jobs: dict[str, dict[Leases, bool]] = {}  # who reads it, and whether the whole of it
        self._windows: dict[str, dict[Leases, Sequence[int]]] = {}
        self._consumers: dict[tuple[str, Leases], Progress] = {}
        self._loose: dict[str, set[int]] = {}  # not held when a window was renewed, and nobody was told yet
        self._ledger: JobLedger | None = None
        self._wake = threading.Event()

    def hold(self, job: str, who: Leases, *, whole: bool) -> None:
        with self._lock:
            known = self._jobs.setdefault(job, {})
            known[who] = whole
            if not whole:
                self._windows.setdefault(job, {})[who] = ()
            news, ledger = len(known) == 1 or job in self._windows, self._open()
        if news:
            with suppress(IngestError):
                self._say(ledger, job)

    def need(self, job: str, who: Leases, shards: Sequence[int], gone: Mapping[int, int], queue: str) -> Needed:
        with self._lock:
            ledger = self._ledger
            if ledger is None:
                return Needed([], [])
            self._windows.setdefault(job, {})[who] = tuple(shards)
        found = self._say(ledger, job, gone, queue)
        with self._lock:
            loose = self._loose.pop(job, set())
        return Needed(found.queues, sorted(loose.union(found.loose)))

    def _say(self, ledger: JobLedger, job: str, gone: Mapping[int, int] | None = None, queue: str = "") -> Needed:
        """What is read of a job, and needed of it, for another term."""
        with self._lock:
            windows = list(self._windows.get(job, {}).values())
            whole = any(self._jobs.get(job, {}).values())
        if not windows:
            ledger.read(self.reader, [job])
            return Needed([], [])
        rows = itertools.zip_longest(*windows)  # the nearest of each, then the next of each
        shards = dict.fromkeys(n for row in rows for n in row if n is not None)
        holds = "all" if whole else "window"
        return ledger.need(job, self.reader, list(shards), holds=holds, gone=gone, queue=queue)

    def _open(self) -> JobLedger:
        if self._ledger is None:
            self._ledger, self._wake = JobLedger(self._settings, retries=1), threading.Event()
            threading.Thread(target=self._renew, args=(self._ledger, self._wake), name="leases", daemon=True).start()
        return self._ledger

    def done(self, job: str, shards: Sequence[int]) -> None:
        with self._lock:
            ledger = self._ledger
        if ledger is not None:
            ledger.release(job, self.reader, shards)

    def report(self, job: str, who: Leases, progress: Progress) -> None:
        with self._lock:
            self._consumers[job, who] = progress

    def _tell(self, ledger: JobLedger) -> None:
        """How far all of them have come."""
        with self._lock:
            consumers = list(self._consumers.items())
        for (job, who), progress in consumers:
            come = progress()
            if come is not None:
                ledger.tell(job, self._consumer(who), {**come, "host": socket.gethostname(), "pid": os.getpid()})
            if (job, who) not in self._consumers:  # released meanwhile
                ledger.tell(job, self._consumer(who), None)

    def _consumer(self, who: Leases) -> str:
        return f"{self.reader}:{id(who):x}"

    def release(self, job: str, who: Leases) -> None:
        with self._lock:
            ledger = self._ledger
            was_told_of = self._consumers.pop((job, who), None) is not None
            self._jobs.get(job, {}).pop(who, None)
            had_window = self._windows.get(job, {}).pop(who, None) is not None
            rest = bool(self._jobs.get(job))
            if not rest:
                self._jobs.pop(job, None)
            if not self._windows.get(job):
                self._windows.pop(job, None)
                self._loose.pop(job, None)
            last = not self._jobs and ledger is not None
            if last:
                self._ledger = None
                self._wake.set()
        if ledger is None:
            return
        if was_told_of:
            with suppress(IngestError):  # it is forgotten in a minute
                ledger.tell(job, self._consumer(who), None)
        if rest and (had_window or job in self._windows):
            with suppress(IngestError):  # it is said again soon
                self._say_less(ledger, job)
        elif not rest:
            self._give_back(ledger, [job], [job] * had_window, last=last)

    def _say_less(self, ledger: JobLedger, job: str) -> None:
        """Another reader of this process goes on: with its window alone, or with the whole and no window."""
        if job in self._windows:
            self._say(ledger, job)
        else:
            ledger.need(job, self.reader, [], holds="all")

    def close(self) -> None:
        with self._lock:
            jobs, ledger, consumers = list(self._jobs), self._ledger, list(self._consumers)
            self._jobs.clear()
            self._consumers.clear()
            self._ledger = None
            self._wake.set()
        if ledger is not None:
            with suppress(IngestError):
                for job, who in consumers:
                    ledger.tell(job, self._consumer(who), None)
            self._give_back(ledger, jobs, list(self._windows), last=True)

    def _give_back(self, ledger: JobLedger, jobs: list[str], windowed: list[str], *, last: bool) -> None:
        with suppress(IngestError):  # then they run out by themselves
            for job in windowed:
                ledger.need(job, self.reader, [], holds="window")
            ledger.read(self.reader, jobs, 0)
        if last:
            ledger.close()

    def _renew(self, ledger: JobLedger, wake: threading.Event) -> None:
        for turn in itertools.count(1):
            if wake.wait(TELL_S):
                return
            with suppress(IngestError):
                self._tell(ledger)
            if turn % round(RENEW_S / TELL_S):
                continue
            with self._lock:
                plain = [job for job in self._jobs if job not in self._windows]
                windowed = [job for job in self._jobs if job in self._windows]
            with suppress(IngestError):  # it is tried again soon
                ledger.read(self.reader, plain)
                for job in windowed:
                    loose = self._say(ledger, job).loose
                    with self._lock:
                        self._loose.setdefault(job, set()).update(loose)


_all: dict[tuple[str, str], _Reading] = {}
_making = threading.Lock()


def _reading(settings: Settings) -> _Reading:
    key = (settings.ledger_url, settings.prefix)
    with _making:
        if key not in _all or _all[key].pid != os.getpid():
            _all[key] = _Reading(settings)
        return _all[key]


@atexit.register
def _end() -> None:
    for reading in _all.values():
        if reading.pid == os.getpid():
            reading.close()


def _forget() -> None:
    """In a forked child: locks may have been held at that moment, and what they guard is the parent's."""
    global _making
    _making = threading.Lock()
    _all.clear()


os.register_at_fork(after_in_child=_forget)
