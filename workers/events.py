"""Task events of a unit, for Flower and ``celery events``: as if it were a Celery task of its own, with its job, shard
and origin in ``args``.

A thread of each process sends what has gathered as one message: what publishing costs is by the message, and no work
waits for it. A process that is killed takes with it what it had not sent yet.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from celery import Celery, signals

from ingest.ledger import Claim
from ingest.queues import FETCH_TASK, PLAN_TASK
from workers.logs import log

#: An event waits for others for so long.
GATHER_S = 0.1
#: So many wait at most, for a broker that hangs; then the oldest are lost.
MOST = 10_000
#: After an event that could not be sent, the next ones wait for so long.
AGAIN_S = 1.0
#: So long a process that ends sends what is left.
LAST_S = 1.0


class _Sender:
    """One per process."""

    def __init__(self, app: Celery, hostname: str | None) -> None:
        self._app, self._hostname = app, hostname
        self._waiting: deque[tuple[str, dict[str, Any]]] = deque(maxlen=MOST)
        self._any, self._ends = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._thread.start()

    def put(self, kind: str, **fields: Any) -> None:
        self._waiting.append((kind, fields | {"timestamp": time.time()}))
        self._any.set()

    def close(self) -> None:
        self._ends.set()
        self._any.set()
        self._thread.join(LAST_S)

    def _run(self) -> None:
        while not (self._ends.is_set() and not self._waiting):
            self._any.wait()
            self._ends.wait(GATHER_S)
            self._any.clear()
            try:
                self._send()
            except Exception as error:  # noqa: BLE001 - whatever it is: a dashboard misses something, no more
                log.debug("events.lost", extra={"reason": str(error)})
                if self._ends.wait(AGAIN_S):
                    return
                self._any.set()  # the rest may get through

    def _send(self) -> None:
        with self._app.amqp.producer_pool.acquire(block=True) as producer:
            dispatcher = self._app.events.Dispatcher(
                producer.connection, hostname=self._hostname, channel=producer.channel,
                buffer_group={"task"}, buffer_while_offline=False,
            )  # fmt: skip
            while self._waiting:
                kind, fields = self._waiting.popleft()
                dispatcher.send(kind, **fields)
            dispatcher.flush()


_sender: _Sender | None = None


@signals.worker_process_shutdown.connect  # type: ignore[untyped-decorator] # Celery has no types
def _end(**_: Any) -> None:
    if _sender is not None:
        _sender.close()


class Events:
    """Of one claim."""

    def __init__(self, app: Celery, hostname: str | None, claim: Claim) -> None:
        global _sender
        self._unit = claim.unit
        try:
            _sender = _sender or _Sender(app, hostname)  # after the fork: a thread does not come along
        except RuntimeError as error:  # no thread is to be had
            log.debug("events.lost", extra={"reason": str(error)})
        args = f"job={claim.job} shard={claim.number} origin={claim.record.origin} files={claim.record.files}"
        name = PLAN_TASK if claim.is_plan else FETCH_TASK
        self._put(
            "task-received", uuid=claim.unit, name=name, args=args, kwargs="{}", retries=claim.record.attempts,
            eta=None, expires=None,
        )  # fmt: skip
        self._put("task-started", uuid=claim.unit)

    def _put(self, kind: str, **fields: Any) -> None:
        if _sender is not None:
            _sender.put(kind, **fields)

    def ended(self, state: str, summary: str, seconds: float) -> None:
        """``state``: done, failed, cancelled, retried or lost."""
        if state == "done":
            self._put("task-succeeded", uuid=self._unit, result=summary, runtime=seconds)
        elif state == "failed":
            self._put("task-failed", uuid=self._unit, exception=summary, traceback=None)
        elif state == "cancelled":
            self._put("task-revoked", uuid=self._unit, terminated=True, signum=None, expired=False)
        else:
            self._put("task-retried", uuid=self._unit, exception=summary, traceback=None)
