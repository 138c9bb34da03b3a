"""What makes good what was lost: leases that ran out, rings for what is due and unclaimed, queues of dead nodes.

Every node's agent runs it every two seconds, and the ledger lets one at a time do it; there is no scheduler to forget.
Results that were not written are in ``report``.
"""

from __future__ import annotations

import time
from contextlib import suppress

from celery import Celery

from ingest.doorbell import ring
from ingest.ledger import WorkerInfo, WorkLedger
from ingest.placement import rendezvous
from ingest.queues import FETCH_QUEUE, PLAN_QUEUE, node_queue
from ingest.store import Store
from ingest.store.audit import sweep_scratch
from workers.logs import log

#: A submission that nobody has gone on with for so long was given up; its job ends with what it has.
ABANDONED_S = 900.0
#: For so long a round goes on with what is to be taken back at once: a rack that lost its power held thousands.
ROUND_S = 1.0
#: Scratch is swept so often; and four times within ``scratch_ttl_s``, where that is short.
SWEEP_EVERY_S = 300.0


class Reconciler:
    """One per agent."""

    def __init__(self, app: Celery, ledger: WorkLedger, store: Store, every_s: float) -> None:
        self._app, self._ledger, self._store = app, ledger, store
        self._every_s = every_s
        self._sweep_every_s = min(SWEEP_EVERY_S, store.limits.scratch_ttl_s / 4)
        self._swept = time.monotonic()

    def step(self) -> None:
        """One round. Raises :class:`LedgerUnavailable`."""
        self._sweep_store()
        # A little less than the agents' period, so that one late beat does not skip a round.
        tick, end = self._ledger.tick(self._every_s * 0.75, ABANDONED_S), time.monotonic() + ROUND_S
        while tick is not None and tick.more and time.monotonic() < end:
            tick = self._ledger.tick(0, ABANDONED_S)
        if tick is None:
            return
        for job in tick.expired:
            self._ledger.forget(job)
            log.info("job.expired", extra={"job": job})
        for job in tick.abandoned:
            self._ledger.seal(
                job, "its submission was interrupted and not taken up again; submit it again with the same key"
            )
            log.warning("job.abandoned", extra={"job": job})
        if tick.due:
            self._ring(tick.due)

    def _ring(self, due: dict[str, int]) -> None:
        workers = self._ledger.workers()
        slots = sum(worker.slots for worker in workers) or 1
        live: dict[str, int] = {}
        for queue, count in due.items():
            queue = self._rescued(queue, workers)
            live[queue] = live.get(queue, 0) + count
        # Twice the processes there are: enough to wake them all, and no pile when nobody is there to answer.
        ring(self._app, live, most=2 * slots)

    def _rescued(self, queue: str, workers: list[WorkerInfo]) -> str:
        """Work of a node that nobody serves moves: to a node with the same store if there is one, else to where anybody
        takes it. Returns where it is.

        Work that was placed on a node by name or by ``here`` waits for a node with that store: nobody else's disk
        would do. What was only to be spread may be anybody's.
        """
        kind = next((k for k in (FETCH_QUEUE, PLAN_QUEUE) if queue.startswith(k + ".")), None)
        served = {name for worker in workers for name in worker.queues}
        if kind is None or queue in served:
            return queue
        node = queue.removeprefix(kind + ".")
        store = self._ledger.store_of(node)
        own = [worker for worker in workers if node_queue(kind, worker.node) in worker.queues]
        heirs = sorted({worker.node for worker in own if worker.store == store})
        if not heirs and kind not in served:
            return queue
        target = node_queue(kind, rendezvous(queue, heirs)) if heirs else kind
        moved = self._ledger.move(queue, target, "" if heirs or kind == PLAN_QUEUE else "spread")
        if not moved:
            return queue
        why = f"{moved} units of {queue} to {target}: the node is dead, or does not consume it"
        log.warning("queue.moved", extra={"node": node, "reason": why})
        return target

    def _sweep_store(self) -> None:
        now = time.monotonic()
        if now - self._swept < self._sweep_every_s:
            return
        self._swept = now
        with suppress(OSError):  # a store that cannot be worked in: its node says so
            if gone := sweep_scratch(self._store):
                log.info("scratch.swept", extra={"files": gone})
