"""What this process reads: leases on the files of its jobs, renewed while the process lives, and gone a minute after it
died. One small thread for all of them, from the first job that is read until none is."""

from __future__ import annotations

import atexit
import os
import threading
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from ingest.errors import IngestError
from ingest.ledger import JobLedger
from ingest.ledger.space import READER_TTL_S
from ingest.settings import Settings

#: Three renewals fit in a lease, so that two may be lost.
RENEW_S = READER_TTL_S / 4


class Leases:
    """What one client of this process reads. A forked child holds nothing of what its parent reads, and makes neither a
    thread nor a connection unless it asks for files itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pid = os.getpid()
        self._jobs: set[str] = set()

    def keep(self, job: str) -> None:
        """This process reads that job, until :meth:`drop`, :meth:`close` or its end. While there is no ledger nobody
        can evict; it hears of it afterwards."""
        if self._pid != os.getpid():
            self._pid, self._jobs = os.getpid(), set()
        if job not in self._jobs:
            self._jobs.add(job)
            _reading(self._settings).hold(job)

    def drop(self, job: str) -> None:
        """It does not read it any more."""
        if self._pid == os.getpid() and job in self._jobs:
            self._jobs.discard(job)
            _reading(self._settings).release(job)

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
    """All that this process reads of one ledger, over one connection. ``reader`` is its name there."""

    def __init__(self, settings: Settings) -> None:
        self.pid, self.reader = os.getpid(), uuid.uuid4().hex
        self._settings = settings
        self._lock = threading.Lock()
        self._jobs: Counter[str] = Counter()
        self._ledger: JobLedger | None = None
        self._wake = threading.Event()

    def hold(self, job: str) -> None:
        with self._lock:
            self._jobs[job] += 1
            first, ledger = self._jobs[job] == 1, self._open()
        if first:
            with suppress(IngestError):
                ledger.read(self.reader, [job])

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

    def release(self, job: str) -> None:
        with self._lock:
            self._jobs[job] -= 1
            if self._jobs[job] > 0 or self._ledger is None:
                return
            del self._jobs[job]
            ledger, last = self._ledger, not self._jobs
            if last:
                self._ledger = None
                self._wake.set()
        self._give_back(ledger, [job], last=last)

    def close(self) -> None:
        with self._lock:
            jobs, ledger = list(self._jobs), self._ledger
            self._jobs.clear()
            self._ledger = None
            self._wake.set()
        if ledger is not None:
            self._give_back(ledger, jobs, last=True)

    def _give_back(self, ledger: JobLedger, jobs: list[str], *, last: bool) -> None:
        with suppress(IngestError):  # then they run out by themselves
            ledger.read(self.reader, jobs, 0)
        if last:
            ledger.close()

    def _renew(self, ledger: JobLedger, wake: threading.Event) -> None:
        while not wake.wait(RENEW_S):
            with self._lock:
                jobs = list(self._jobs)
            with suppress(IngestError):  # it is tried again soon
                ledger.read(self.reader, jobs)


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
