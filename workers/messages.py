"""What lies in a Celery queue and is no message: it is dropped, and the log says so. What messages mean: ``tasks``.

kombu 5.7 reads a message in the worker's event loop and lets every error of that out: one line of garbage would end
the worker, and the next one that reads it.
"""

from __future__ import annotations

from queue import Empty
from typing import Any

from kombu.transport import redis as transport

from ingest.settings import current
from workers.logs import log

_read: Any = transport.Channel._brpop_read
_deliver: Any = transport.Transport._deliver


class NotAMessage(ValueError):
    """``tag`` is what kombu may have noted it under, where it has one."""

    def __init__(self, reason: str, tag: str | None) -> None:
        super().__init__(reason)
        self.tag = tag


def deliver(self: Any, message: Any, queue: str) -> None:
    """A message that was read, to whoever consumes that queue. Raises :class:`NotAMessage`."""
    properties = message.get("properties") if isinstance(message, dict) else None
    tag = properties.get("delivery_tag") if isinstance(properties, dict) else None
    if not isinstance(tag, str):
        raise NotAMessage("it has no delivery tag", None)
    try:
        _deliver(self, message, queue)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise NotAMessage(f"{type(error).__name__}: {error}", tag) from error


def read(self: Any, **options: Any) -> Any:
    """The next message of a channel. One that cannot be read counts as none: :class:`Empty`, as when none came."""
    try:
        return _read(self, **options)
    except ValueError as error:  # also what is no JSON, and no text
        tag = getattr(error, "tag", None)
        if tag is not None:
            self.basic_reject(tag, requeue=False)  # else it would be noted as in hand, and be put back at the end
        log.error("message.refused", extra={"node": current().node, "reason": str(error)[:500]})
        raise Empty from None


def guard() -> None:
    """From now on, in this process."""
    channel: Any = transport.Channel
    channel._brpop_read = read
    of_all: Any = transport.Transport
    of_all._deliver = deliver
