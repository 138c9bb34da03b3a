"""Celery's consumer, with less patience after a lost connection. What the messages mean is in ``tasks``."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer

#: After a lost connection Celery's consumer waits for 2, 4, … 30 s between two attempts, so that a Redis that was away
#: for a minute is not noticed for half a minute more. A try costs one connection.
FIRST_S, MORE_S, MOST_S = 0.5, 0.5, 3.0


class Consumer(CeleryConsumer):  # type: ignore[misc] # Celery has no types
    """The setting ``worker_consumer`` names it."""

    def ensure_connected(self, conn: Any) -> Any:
        plain = conn.ensure_connection
        conn.ensure_connection = partial(plain, interval_start=FIRST_S, interval_step=MORE_S, interval_max=MOST_S)
        try:
            return super().ensure_connected(conn)
        finally:
            del conn.ensure_connection
