"""The Celery tasks: shells. Claim, call one function, ring for the next."""

from __future__ import annotations

import hashlib
import os
import re
import time
from typing import Any, NoReturn

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Task
from celery.exceptions import Ignore

from ingest.app import app
from ingest.client.into import destination
from ingest.client.submission import check, cut, needs_origin
from ingest.doorbell import ring, ring_on
from ingest.errors import FetchTimeout, LedgerUnavailable, PermanentFetchError, TransientFetchError, UsageError
from ingest.ledger import Claim, NewUnit, Settled, WorkLedger
from ingest.model import TERMINAL_JOB, JobOptions
from ingest.queues import CANARY_TASK, DOWNLOAD_TASK, FETCH_QUEUE, FETCH_TASK, PLAN_QUEUE, PLAN_TASK, node_queue
from ingest.sources import Source
from ingest.store.disk import is_disk
from workers import holding
from workers import node as here
from workers.counting import count_unit
from workers.descriptors import own_fault
from workers.fetch import fail_all, fetch_shard, later_or_never, unexpected
from workers.logs import log
from workers.plan import plan_source
from workers.report import report

#: A bell's way through the broker, the worker's main process and a pool costs some milliseconds of processor time: as
#: much as a shard of small files. For so long a process takes one after the other.
TURN_S = 0.5


def answer(queue: str, hostname: str | None) -> None:
    """Claim the best due unit of a queue (else of this node's others of its kind), and do it; and more of them for
    ``TURN_S``. Then ring if more is due."""
    name = here.this_node().settings.node
    fetching = [node_queue(FETCH_QUEUE, name), FETCH_QUEUE]
    planning = queue not in fetching
    kind = [node_queue(PLAN_QUEUE, name), PLAN_QUEUE] if planning else fetching
    end = time.monotonic() + TURN_S
    last: Settled | None = None
    try:
        while not here.stopping():
            settled = _take([queue, *(q for q in kind if q != queue)], planning, hostname)
            last = settled or (last and last._replace(due=0))
            if settled is None or not settled.due or time.monotonic() >= end:
                break
        else:
            ring_on(app, [queue])  # this worker takes nothing new; another may
            return
    except LedgerUnavailable as error:
        # What was claimed is taken back by the agent, which sees that nobody has it in hand.
        log.warning("ledger.unavailable", extra={"node": name, "reason": str(error)})
        return
    if last is None:
        return
    try:
        # Bells of the other queue of its kind may have come while every process was busy, and have gone: it has its
        # turn now. Else a queue in which something is always due would be the only one that is served.
        others = [q for q in kind if q != last.queue and here.ledger().due_count(q)]
    except LedgerUnavailable:
        others = []
    ring_on(app, others or ([last.queue] if last.due else []))


def _take(queues: list[str], planning: bool, hostname: str | None) -> Settled | None:
    """Claim a unit and do it; None where there is none for this process. Raises :class:`LedgerUnavailable`."""
    node, ledger = here.this_node(), here.ledger()
    # Every process but one may fetch: planning always finds a free one.
    most = max(1, here.slots() - (0 if planning else 1))
    claim = ledger.claim(node.worker, here.process_tag(), most, queues)
    if claim is None:
        return None
    holding.hold(claim.unit, claim.fence)
    try:
        work = count_unit if claim.options.dry_run else plan_source if claim.is_plan else fetch_shard
        return work(app, node, ledger, claim, hostname)
    except LedgerUnavailable:
        raise
    except SoftTimeLimitExceeded:
        late = FetchTimeout(claim.record.origin, "the time slice was over, and it was not handed back in time")
        return _ended(node, ledger, claim, late)
    except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits must be told
        return _unforeseen(node, ledger, claim, error)
    except BaseException as error:
        if type(error).__name__ == "PanicException":
            _end_process(node, ledger, claim, error)
        raise
    finally:
        holding.let_go()


def _unforeseen(node: here.Node, ledger: WorkLedger, claim: Claim, error: Exception) -> Settled:
    """What nobody foresaw: the disk of this node, wherever it failed; or a defect."""
    if isinstance(error, OSError) and is_disk(error, node.store.root):
        return _ended(node, ledger, claim, node.store.unfit(claim.record.origin, error))
    log.exception("shard.defect", extra={"job": claim.job, "shard": claim.number})
    settled = fail_all(node, ledger, claim, unexpected(claim, error))
    report(app, ledger, node.store, claim.unit)
    return settled


def _ended(node: here.Node, ledger: WorkLedger, claim: Claim, error: TransientFetchError) -> Settled:
    """An attempt that came to nothing as a whole: there will be another, within the job's limits."""
    settled, is_over = later_or_never(node, ledger, claim, error)
    if is_over:
        report(app, ledger, node.store, claim.unit)
    return settled


def _end_process(node: here.Node, ledger: WorkLedger, claim: Claim, error: BaseException) -> NoReturn:
    """A library in Rust panicked: in this process it may do so for ever, whatever it is asked. Another process takes
    its place, and the unit is taken back as from any that died; uncounted if it was for want of files."""
    reason = f"a library panicked: {error}"
    facts = {"shard": claim.unit, "node": node.settings.node, "reason": reason}
    log.error("process.killed", extra=facts)
    try:
        if unfit := own_fault(PermanentFetchError(claim.record.origin, reason)):
            later_or_never(node, ledger, claim, unfit)
    finally:
        os._exit(os.EX_SOFTWARE)


# Doorbells are no news for a dashboard: the units they lead to are (workers.events).
@app.task(name=FETCH_TASK, bind=True, ignore_result=True, send_events=False)  # type: ignore[untyped-decorator]
def fetch(self: Task, queue: str) -> None:
    """Doorbell of a fetch queue."""
    answer(queue, self.request.hostname)


@app.task(name=PLAN_TASK, bind=True, ignore_result=True, send_events=False)  # type: ignore[untyped-decorator]
def plan(self: Task, queue: str) -> None:
    """Doorbell of a plan queue."""
    answer(queue, self.request.hostname)


@app.task(name=CANARY_TASK, ignore_result=True, send_events=False)  # type: ignore[untyped-decorator]
def canary() -> None:
    """Whether messages are answered here, see :mod:`workers.canary`."""
    try:
        here.ledger().able(here.this_node().worker)
    except LedgerUnavailable as error:
        log.warning("ledger.unavailable", extra={"node": here.this_node().settings.node, "reason": str(error)})


#: A task id that may be a job's id as it is: others would be taken for a part of a key or of a unit.
PLAIN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Download(Task):  # type: ignore[misc] # Celery has no types
    """``ingest.download`` as a job of one source under the message's own id: the commit writes the result, not this
    task."""

    name = DOWNLOAD_TASK

    def run(
        self, uri: str, into: str | None = None, digest: str | None = None, connection: str | None = None
    ) -> dict[str, Any]:
        node, ledger = here.this_node(), here.ledger()
        source = Source(uri, digest, None, connection)
        check(source)
        if into is not None and "://" not in into and not os.path.isabs(into):
            raise UsageError(
                f"into={into!r} must be an absolute path: the data node, which makes it, has another working directory"
            )
        if connection is not None and connection not in node.settings.connections:
            raise UsageError(f"connection {connection!r} is not configured on node {node.settings.node}")
        own = f"node:{node.settings.node}"
        task = str(self.request.id)
        name = (
            task if PLAIN_ID.fullmatch(task) else f"d{hashlib.sha256(task.encode('utf-8', 'replace')).hexdigest()[:32]}"
        )
        options = JobOptions(
            name=f"download {uri}"[:200], placement=own, into=destination(into), reply=True, reply_to=task
        )
        queue = node_queue(PLAN_QUEUE if needs_origin(source) else FETCH_QUEUE, node.settings.node)
        units = [
            NewUnit.plan(unit.source, unit.index, queue) if unit.source else NewUnit.listed(unit.files, queue)
            for unit in cut([source], None)
        ]
        if (job := self._room(ledger, task, name)) is not None:
            ledger.begin(options, job, "p" if needs_origin(source) else "", 0, units, whole=True)
            ring(app, {queue: len(units)})
        # The result comes when the job is over, from whoever commits its last shard; this message's work is done.
        raise Ignore

    @staticmethod
    def _room(ledger: WorkLedger, task: str, name: str) -> str | None:
        """An id for its job; None while that is under way: the message came twice. Somebody may use one task id again
        and again: as with any task, the last call counts. A job that is over makes room for it; one that somebody still
        reads stays beside it."""
        while state := ledger.state(name):
            if state not in TERMINAL_JOB:
                return None
            app.backend.forget(task)  # a SUCCESS is never overwritten
            if not ledger.forget(name):
                name = f"d{hashlib.sha256(name.encode()).hexdigest()[:32]}"
        return name


# The client's declaration makes room for the real thing.
app.tasks.unregister(DOWNLOAD_TASK)
app.register_task(Download())
