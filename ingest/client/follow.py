"""Waiting for what happens to a job: one event stream per job, read with a deadline, through short absences of
Redis."""

from __future__ import annotations

import time

from ingest.errors import LedgerUnavailable
from ingest.ledger import JobLedger

#: How long a follower puts up with a ledger that does not answer before it says so. Redis restarting with a large
#: append-only file takes tens of seconds.
PATIENCE_S = 60.0
#: A wait is made of shorter ones: a deadline may be years away, or infinite.
LOOK_S = 60.0


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


class EventStream:
    """The events of one job from its beginning. ``ended`` holds the job's state once its last event said so, else
    ""."""

    def __init__(self, ledger: JobLedger, job: str) -> None:
        self.ledger, self.job = ledger, job
        self.ended = ""
        self._after = "0-0"
        self._silent_since: float | None = None

    def poll(self, timeout_s: float) -> list[dict[str, str]]:
        """The next events, at most a thousand; [] when none came in time.

        Raises :class:`UnknownJob` when the ledger has lost the job, :class:`LedgerUnavailable` after ``PATIENCE_S``
        without one.
        """
        deadline = Deadline(timeout_s)
        while True:
            try:
                rows = self.ledger.events(self.job, self._after, int(min(deadline.left_s, LOOK_S) * 1000))
                if not rows:
                    self.ledger.meta(self.job)
                self._silent_since = None
            except LedgerUnavailable:
                now = time.monotonic()
                self._silent_since = self._silent_since or now
                if now - self._silent_since > PATIENCE_S:
                    raise
                rows = []
                time.sleep(min(0.2, deadline.left_s))
            if rows:
                self._after = rows[-1][0]
                events = [fields for _, fields in rows]
                for event in events:
                    if event["k"] == "end":
                        self.ended = event["s"]
                    elif event["k"] == "again":
                        self.ended = ""
                return events
            if deadline.over:
                return []
