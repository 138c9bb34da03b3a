"""How fast an API is asked, and whether a refused page is asked for again here or by the ledger. No request is made."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from ingest.errors import BadResponse, Throttled
from workers.fetchers.http import answers

#: A wait up to here is waited for with the work in hand; a longer one gives the slot to other work.
PATIENCE_S = 10.0
#: So many times in a row, for one page.
MOST_WAITS = 5
#: While it waits, the work learns this soon that it is to stop.
_TICK_S = 0.25
#: What a server says when the next request would be one too many.
_LEFT = ("RateLimit-Remaining", "X-RateLimit-Remaining", "X-Rate-Limit-Remaining")


class Pace:
    """The requests of this process over one connection, at most ``requests_per_s`` of them in a second."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._next = 0.0

    def turn_s(self, per_s: float) -> float:
        """Seconds until it is this request's turn; the next one's is later."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + 1 / per_s
            return turn - now


def per_second(uri: str, profile: str, value: object) -> float | None:
    """``requests_per_s`` of a profile. Raises :class:`BadResponse` for what is no rate."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise BadResponse(uri, f"[connections.{profile}] requests_per_s must be a number above 0")
    return float(value)


def pause(seconds: float, idle: Callable[[], None]) -> None:
    """Wait, and ask ``idle`` now and then whether to go on."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(left, _TICK_S))
        idle()


def until_open_s(headers: Mapping[str, str]) -> float:
    """Seconds until the next request may be made, by an answer that says that no more are left; else 0."""
    said = [headers.get(name, "").strip() for name in _LEFT]
    if not any(text == "0" for text in said) and (any(said) or not headers.get("RateLimit")):
        return 0.0
    return answers.rate_limit_reset_s(headers) or 0.0


def short_wait_s(error: Throttled, waits: int) -> float | None:
    """How long to wait here for the page that was refused, the ``waits``-th time; None if that is the ledger's."""
    after = error.retry_after_s
    return max(after, 0.1) if after is not None and after <= PATIENCE_S and waits < MOST_WAITS else None
