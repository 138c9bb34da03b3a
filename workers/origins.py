"""Origins that do not answer: found out once, within a shard and by the whole fleet.

Within a claim, a few failures in a row end the asking; what a claim learned goes to the ledger, which lets shards of
an origin that is down wait without a process (``claim.lua``).
"""

from __future__ import annotations

import threading
from urllib.parse import urlsplit

from ingest.errors import ConnectionLost, FetchError, FetchTimeout, OriginUnavailable
from ingest.ledger import Claim, WorkLedger
from ingest.model import FileSpec, origin_of

#: So many files in a row for which an origin had no byte: the others of the shard are not asked for.
IN_A_ROW = 5

#: An error of the server's own is an answer.
_AWAY = (ConnectionLost, FetchTimeout)


class NotAsked(OriginUnavailable):
    """Others of its origin did not answer just now. No attempt is counted, so that a file that is there never fails
    because of those beside it that are not."""

    progressed = True


class Origins:
    """What one claim knows of its origins. Used by several threads."""

    def __init__(self, claim: Claim) -> None:
        self._lock = threading.Lock()
        self._fleet = {claim.record.origin: claim.down} if claim.down else {}
        self._here: dict[str, str] = {}
        self._failed: dict[str, int] = {}
        self._reason: dict[str, str] = {}

    def check(self, spec: FileSpec) -> None:
        """Raises :class:`OriginUnavailable` where the fleet has waited for the origin long enough, and
        :class:`NotAsked`."""
        origin = origin_of(spec.uri)
        if reason := self._fleet.get(origin):
            raise OriginUnavailable(spec.uri, reason)
        with self._lock:
            reason = self._here.get(origin)
        if reason:
            raise NotAsked(spec.uri, reason)

    def learned(self, spec: FileSpec, error: FetchError | None) -> None:
        """How asking for a file ended; ``error`` is None where any byte came."""
        origin = origin_of(spec.uri)
        if not urlsplit(origin).netloc:
            return  # a path of this machine
        with self._lock:
            if not isinstance(error, _AWAY):
                self._failed[origin] = 0
                return
            self._failed[origin] = count = self._failed.get(origin, 0) + 1
            self._reason[origin] = f"{type(error).__name__}: {error.reason}"
            if count >= IN_A_ROW:
                self._here[origin] = f"{origin} did not answer {count} times in a row; the last: {self._reason[origin]}"

    def tell(self, ledger: WorkLedger) -> None:
        """Let the fleet know, once the claim is settled. Raises :class:`LedgerUnavailable`."""
        for origin, count in self._failed.items():
            ledger.origin(origin, count, self._reason.get(origin, ""))
