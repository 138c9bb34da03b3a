"""Between chunks: renew the lease, say how far we are, and learn that the work is to stop. Shared by a shard's
threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from ingest.errors import LedgerUnavailable
from ingest.ledger import Claim, WorkLedger
from workers.fetchers.base import Interrupted


class Control:
    """One per claim. ``advance`` is called with every chunk of every file; it costs a clock reading, and a round
    trip to the ledger each ``every_s``. Raises :class:`Interrupted` once the work is to stop, in every thread."""

    def __init__(
        self, ledger: WorkLedger, claim: Claim, *, slice_s: float, every_s: float, stopping: Callable[[], bool]
    ) -> None:
        self.flights: Sequence[str] = ()
        self.bytes = 0
        self._held = 0
        self._ledger, self._claim = ledger, claim
        self._every_s, self._stopping = every_s, stopping
        self._slice_end = time.monotonic() + slice_s
        self._next = time.monotonic() + every_s
        self._lock = threading.Lock()
        self._asking = (
            threading.Lock()
        )  # another one: while one thread asks a slow ledger, the bytes of the others go on
        self._why = ""

    @property
    def why(self) -> str:
        """Why the work is to stop: ``cancelled``, ``lost``, ``slice`` or ``stopping``; "" while it is not."""
        return self._why

    def interrupt(self, why: str) -> None:
        self._why = self._why or why

    def resumed(self, size_bytes: int) -> None:
        """So much was here already when a file was begun: how far the attempts before this one got."""
        with self._lock:
            self._held += size_bytes
            self._next = 0.0  # the ledger is to know soon: the next death may come before the next report

    def advance(self, size_bytes: int) -> None:
        with self._lock:
            self.bytes += size_bytes
        self.check()

    def confirm(self) -> None:
        """Ask now whether the work is still wanted from us. Raises :class:`Interrupted` if not."""
        with self._asking:
            self._ask()
        self.check()

    def check(self) -> None:
        """Raises :class:`Interrupted` when the work is to stop."""
        now = time.monotonic()
        if not self._why:
            if now >= self._slice_end:
                self.interrupt("slice")
            elif self._stopping():
                self.interrupt("stopping")
            elif now >= self._next and self._asking.acquire(blocking=False):
                try:
                    self._ask()
                finally:
                    self._next = time.monotonic() + self._every_s
                    self._asking.release()
        if self._why:
            raise Interrupted(self._why)

    def _ask(self) -> None:
        try:
            answer = self._ledger.progress(self._claim, self.bytes, self._held)
            if answer == "cancelled" and self._ledger.wanted(self.flights):
                return  # another job waits for what we fetch
            if answer != "ok":
                self.interrupt(answer)
        except LedgerUnavailable:
            # The bytes still come. Whether the lease is still ours is decided at the commit, not by a pause of Redis.
            return
