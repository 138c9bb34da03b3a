"""A worker's ability to work: a tiny message goes the way of all messages, and a process of the pool answers it in the
ledger. That the main process is there, and its agent's heart beats, says nothing of that.

Celery's consumer can stop for good after its broker was away, with its process well (celery issues 8030, 8091, 9191).
What follows from a missing answer is in ``agent``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from celery import Celery
from kombu.messaging import Producer

from ingest.doorbell import unreachable, waiting
from ingest.errors import LedgerUnavailable
from ingest.ledger import WorkLedger
from ingest.queues import CANARY_TASK, canary_queue
from ingest.settings import Settings
from workers import holding
from workers.logs import log

#: The exit status of a worker that is ended for it: its supervisor is to see a failure.
STUCK_STATUS = 1
#: So many messages in a row without an answer, with processes free: then the worker is not able to work.
MISSED = 3


class Canary:
    """One per agent. ``step`` is called once in ``canary_s``; time is counted in steps that were made, so that a
    machine that slept misses nothing."""

    def __init__(self, app: Celery, ledger: WorkLedger, settings: Settings, worker: str, slots: int) -> None:
        self._app, self._ledger, self._settings = app, ledger, settings
        self._worker, self._slots = worker, slots
        self._queue = canary_queue(settings.node)
        self._answered = ""
        self._missed = 0
        self._work: dict[tuple[str, str], int] = {}
        self.is_stopping = False

    def step(self) -> None:
        """Look for the last answer, and send the next message. Raises :class:`LedgerUnavailable`: while Redis is away
        nobody can answer, and nothing is counted."""
        try:
            self._look()
            self._send()
        except LedgerUnavailable:
            self._missed = 0
            raise

    def _look(self) -> None:
        answered = self._ledger.able_at(self._worker)
        held = self._ledger.held(self._worker)
        work = {(unit, fence): self._ledger.live_bytes_of(unit) for unit, (_, fence) in held.items()}
        busy = len(work) >= self._slots
        if busy and self._work and work != self._work:
            self._ledger.able(self._worker)  # no process is free to answer, and what they do goes on
        if answered != self._answered or busy:
            if self._missed >= MISSED:
                log.warning("node.able", extra={"node": self._settings.node})
            self._missed = 0
        else:
            self._missed += 1
            if self._missed == MISSED:
                log.error("node.unable", extra={"node": self._settings.node, "reason": self.unable})
        self._answered, self._work = answered, work

    def _send(self) -> None:
        """One message at a time: what was not taken lies there still."""
        with self._producer() as producer:
            if not waiting(producer.channel, self._queue):
                self._app.send_task(CANARY_TASK, queue=self._queue, producer=producer, ignore_result=True, retry=False)

    def leave(self) -> None:
        """The worker is gone: nothing of it stays in the broker. Raises :class:`LedgerUnavailable`."""
        with self._producer() as producer:
            producer.channel.queue_purge(self._queue)

    @contextmanager
    def _producer(self) -> Iterator[Producer]:
        away = unreachable(self._app)
        try:
            with self._app.producer_or_acquire() as producer:
                yield producer
        except away as error:
            raise LedgerUnavailable(self._ledger.url, f"the broker takes no message ({error})") from error

    @property
    def unable(self) -> str:
        """Why the worker cannot work, although it is alive; or ""."""
        if self.is_stopping:
            return "it is shutting down"
        if self._missed < MISSED:
            return ""
        seconds = self._missed * self._settings.limits.canary_s
        free = self._slots - len(self._work)
        return f"no message of its queues was answered for {seconds:g} s, with {free} processes free"

    @property
    def is_stuck(self) -> bool:
        """Whether a new worker is wanted in its place: after ``restart_s``, which is long."""
        patience = self._settings.limits.restart_s
        waited = (self._missed - 1) * self._settings.limits.canary_s
        return not self.is_stopping and 0 < patience <= waited and self._missed >= MISSED


def tell_stuck(table: int) -> None:
    """Say to the worker's main process that it is ended because it is stuck."""
    holding.write(table, holding.STUCK_AT, b"\1")


def is_told_stuck(table: int) -> bool:
    return os.pread(table, 1, holding.STUCK_AT) == b"\1"
