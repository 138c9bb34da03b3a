"""Ringing: Celery messages that say "there is work on this queue". The ledger is written first; a lost ring costs
seconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

from celery import Celery
from kombu.exceptions import KombuError
from kombu.messaging import Producer

from ingest.queues import FETCH_TASK, PLAN_QUEUE, PLAN_TASK

#: Rings of one queue that may lie in the broker at once, whatever the number of shards: enough to wake every process of
#: a large fleet; whoever finishes a shard rings for the next.
MOST_RINGS = 1000


def task_of(queue: str) -> str:
    """Which task a queue's doorbells call."""
    return PLAN_TASK if queue == PLAN_QUEUE or queue.startswith(PLAN_QUEUE + ".") else FETCH_TASK


def ring(app: Celery, due: Mapping[str, int], most: int = MOST_RINGS) -> int:
    """Ring for each queue until there is a bell for every due unit, ``most`` of them at most; those that lie in the
    broker already count. Returns how many were rung.

    A broker that cannot be reached is no error here: the reconciler rings for whatever is due and unclaimed.
    """
    rung = 0
    try:
        with app.producer_or_acquire() as producer:
            for queue, count in due.items():
                want = max(0, min(count, most) - waiting(producer.channel, queue))
                if want:
                    _send(app, producer, queue, want)
                rung += want
    except unreachable(app):
        return rung
    return rung


def ring_on(app: Celery, queues: Sequence[str]) -> None:
    """Ring once for each queue, in place of the bell that was just answered: their number stays what it was."""
    if not queues:
        return
    try:
        with app.producer_or_acquire() as producer:
            for queue in queues:
                _send(app, producer, queue, 1)
    except unreachable(app):
        return


def _send(app: Celery, producer: Producer, queue: str, count: int) -> None:
    # The trip that several share costs a single one more than it saves.
    with producer.batch() if count > 1 else nullcontext():  # type: ignore[no-untyped-call] # kombu has few types
        for _ in range(count):
            app.send_task(task_of(queue), (queue,), queue=queue, producer=producer, ignore_result=True, retry=False)


def waiting(channel: object, queue: str) -> int:
    """How many messages lie in a broker queue. kombu's Redis channel counts over all its priority lists."""
    return int(channel._size(queue))  # type: ignore[attr-defined]


def unreachable(app: Celery) -> tuple[type[Exception], ...]:
    """What a broker that takes no message makes kombu raise."""
    connection = app.connection_for_write()
    # Also what a Redis says that is there and refuses: out of memory, a replica.
    return (KombuError, *connection.connection_errors, *connection.channel_errors)
