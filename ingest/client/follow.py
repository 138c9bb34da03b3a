"""Waiting for what happens to a job: one event stream per job, read with a deadline, through short absences of Redis
and through its losses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from ingest.errors import LedgerUnavailable, UnknownJob
from ingest.ledger import JobLedger
from ingest.ledger.connect import left_s, until

#: How long a follower puts up with a ledger that does not answer before it says so. Redis restarting with a large
#: append-only file takes tens of seconds.
PATIENCE_S = 60.0
#: A wait is made of shorter ones: a deadline may be years away, or infinite.
LOOK_S = 60.0
#: What the last question may take, beyond the deadline.
GRACE_S = 1.0
#: A ledger that is away is asked again after so long.
AGAIN_S = 0.2

T = TypeVar("T")
#: What a stream says when the job was lost and is there again: everything comes anew.
LOST = {"k": "lost", "n": "", "s": ""}


class Deadline:
    """A point in time, and how long it is until then."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._end = time.monotonic() + seconds

    @property
    def left_s(self) -> float:
        return max(0.0, self._end - time.monotonic())

    @property
    def over(self) -> bool:
        return self.left_s <= 0


def patiently(call: Callable[[], T], deadline: Deadline) -> T:
    """What ``call`` gives, through absences of the ledger of up to ``PATIENCE_S``. Raises :class:`LedgerUnavailable`
    after that, or at the deadline, or where :func:`until` ends."""
    patience = Deadline(min(PATIENCE_S, deadline.left_s, left_s()))
    while True:
        try:
            with until(time.monotonic() + patience.left_s + GRACE_S):
                return call()
        except LedgerUnavailable:
            if patience.over:
                raise
        time.sleep(min(AGAIN_S, patience.left_s))


class Restorer(Protocol):
    """Who can put a job back that Redis lost."""

    def put_back(self, deadline: Deadline) -> bool:
        """Whether it is there again; False for a job that is gone for good."""

    def complete(self, deadline: Deadline) -> None:
        """Write the end of a submission, which Redis has lost."""


class EventStream:
    """The events of one job from its beginning. ``ended`` holds the job's state once its last event said so, else "";
    ``over`` says that none came after that by then.

    A job that was lost and put back, by ``restorer`` or by another process, gives one event ``lost``; after it the
    events come from the beginning.
    """

    def __init__(self, ledger: JobLedger, job: str, restorer: Restorer | None = None) -> None:
        self.ledger, self.job = ledger, job
        self.ended = ""
        self.over = False
        self._restorer = restorer
        self._after = "0-0"
        self._made = ""
        self._is_all = False
        self._silent_since: float | None = None

    def poll(self, timeout_s: float) -> list[dict[str, str]]:
        """The next events, at most a thousand; [] when none came in time.

        Raises :class:`UnknownJob` when the ledger has lost the job and nobody can put it back,
        :class:`LedgerUnavailable` after ``PATIENCE_S`` without one.
        """
        deadline = Deadline(timeout_s)
        while True:
            try:
                with until(time.monotonic() + deadline.left_s + GRACE_S):
                    events = self._read(deadline)
                self._silent_since = None
            except LedgerUnavailable:
                now = time.monotonic()
                self._silent_since = self._silent_since or now
                if now - self._silent_since > PATIENCE_S:
                    self._silent_since = None  # whoever asks again has as much patience again
                    raise
                events = []
                time.sleep(min(AGAIN_S, max(0.01, deadline.left_s)))
            for event in events:
                if event["k"] == "end":
                    self.ended = event["s"]
                elif event["k"] == "again":
                    self.ended = ""
            self.over = bool(self.ended) and self._is_all
            if events or deadline.over:
                return events

    def _read(self, deadline: Deadline) -> list[dict[str, str]]:
        found = self.ledger.follow(self.job, self._after, int(min(deadline.left_s, LOOK_S) * 1000))
        if not found.made:
            if self._restorer is None or not self._restorer.put_back(deadline):
                raise UnknownJob(self.job)
            return self._from_the_beginning("")
        if not found.sealed and self._restorer is not None:
            self._restorer.complete(deadline)
        # Another process put it back; or Redis went back to an earlier moment. Perhaps more has happened since than it
        # forgot: what tells is that an event which was seen is not there, as none is ever removed.
        if found.made != (self._made or found.made) or not found.goes_on:
            return self._from_the_beginning(found.made)
        self._made, self._is_all = found.made, found.is_all
        if found.rows:
            self._after = found.rows[-1][0]
        return [fields for _, fields in found.rows]

    def _from_the_beginning(self, made: str) -> list[dict[str, str]]:
        self._after, self._made, self.ended, self._is_all = "0-0", made, "", False
        return [LOST]
