"""What makes good what was lost: rings for what is due and unclaimed, results that were not written, queues of dead
nodes.

Every node's agent runs it every two seconds, and the ledger lets one at a time do it; there is no scheduler to forget.
"""

from __future__ import annotations

import time

from celery import Celery

from ingest.doorbell import ring
from ingest.ledger import WorkerInfo, WorkLedger
from ingest.placement import rendezvous
from ingest.queues import FETCH_QUEUE, PLAN_QUEUE
from ingest.store import Store
from ingest.store.audit import sweep_scratch
from workers.logs import log
from workers.report import report

#: A submission that nobody has gone on with for so long was given up; its job ends with what it has.
ABANDONED_S = 900.0
SWEEP_EVERY_S = 300.0


class Reconciler:
    """One per agent."""

    def __init__(self, app: Celery, ledger: WorkLedger, store: Store, every_s: float) -> None:
        self._app, self._ledger, self._store = app, ledger, store
        self._every_s = every_s
        self._swept = time.monotonic()

    def step(self) -> None:
        """One round. Raises :class:`LedgerUnavailable`."""
        self._sweep_store()
        # A little less than the agents' period, so that one late beat does not skip a round.
        tick = self._ledger.tick(self._every_s * 0.75, ABANDONED_S)
        if tick is None:
            return
        for member in tick.outbox:
            report(self._app, self._ledger, self._store, member)
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
        """A dead node's work moves: to a node with the same store if there is one, else to where anybody takes it.

        Work that was placed on a node by name or by ``here`` waits for a node with that store: nobody else's disk
        would do.
        """
        kind = next((k for k in (FETCH_QUEUE, PLAN_QUEUE) if queue.startswith(k + ".")), None)
        if kind is None:
            return queue
        node = queue.removeprefix(kind + ".")
        if not workers or any(worker.node == node for worker in workers):
            return queue
        store = self._ledger.store_of(node)
        heirs = sorted({worker.node for worker in workers if worker.store == store})
        target = f"{kind}.{rendezvous(queue, heirs)}" if heirs else None
        if target is None and kind == PLAN_QUEUE:
            target = PLAN_QUEUE
        if target is None:
            return queue
        moved = self._ledger.move(queue, target)
        log.warning(
            "queue.moved", extra={"node": node, "reason": f"{moved} units of {queue} to {target}: the node is dead"}
        )
        return target

    def _sweep_store(self) -> None:
        now = time.monotonic()
        if now - self._swept >= SWEEP_EVERY_S:
            self._swept = now
            if gone := sweep_scratch(self._store):
                log.info("scratch.swept", extra={"files": gone})
