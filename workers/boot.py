"""How a ``celery worker`` becomes a data node: its name, its queues, its agent, its logs, and what it does when it
is to stop."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from typing import Any

import billiard.pool
from celery import bootsteps, signals
from celery.concurrency import prefork
from kombu.entity import Queue

from ingest.app import app
from ingest.errors import IngestError
from ingest.queues import canary_queue, queues_of
from ingest.settings import current
from workers import holding, logs, node
from workers.canary import STUCK_STATUS, is_told_stuck
from workers.fetchers import fetcher_for
from workers.fitness import Hearing, is_told_unfit
from workers.logs import log

#: After SIGTERM, work in hand may go on for so long; then it hands back what it has.
GRACE_S = 8.0
#: Then, or at once in a cold shutdown, all of it must be gone within so long: the agent kills a process that is stuck
#: after half of it.
END_S = 20

_agent: subprocess.Popen[bytes] | None = None
_consumed: list[str] = []


def configure() -> None:
    """This node's queues, beside the shared ones. ``-Q`` on the command line chooses among them."""
    app.conf.task_queues = [Queue(name, routing_key=name) for name in queues_of(current().node)]  # type: ignore[no-untyped-call]
    app.conf.worker_consumer = "workers.consumer:Consumer"


@signals.celeryd_init.connect  # type: ignore[untyped-decorator] # Celery has no types
def _name(sender: str, instance: Any, conf: Any, options: dict[str, Any], **_: Any) -> None:
    """``ingest@NODE`` unless ``-n`` says otherwise; a store that cannot be used ends the worker here, before it
    takes work."""
    if sender.startswith("celery@"):
        instance.hostname = f"ingest@{current().node}"
    _check_queues(options.get("queues") or ())
    node.set_slots(_processes(conf, options))
    holding.table()  # before the pool is forked, so that every process shares it
    try:
        node.this_node()
    except IngestError as error:
        raise SystemExit(f"ingest: {error}") from None
    # Loaded once here, shared by every process forked later: the first download of each need not wait for it.
    fetcher_for("https")


def _check_queues(wanted: str | Iterable[str]) -> None:
    """``-Q``: a name that is misspelt would make a node that looks well and takes no work."""
    ours = queues_of(current().node)
    given = wanted.split(",") if isinstance(wanted, str) else wanted
    unknown = sorted({name.strip() for name in given} - {*ours, canary_queue(current().node)})
    if unknown:
        raise SystemExit(f"ingest: -Q {','.join(unknown)}: node {current().node} may consume {', '.join(ours)}")


def _processes(conf: Any, options: dict[str, Any]) -> int:
    """How many the pool will have at most: ``--autoscale`` MAX,MIN, ``-c``, or ``worker_concurrency``."""
    autoscale = options.get("autoscale")
    if autoscale:
        return int(str(autoscale[0] if isinstance(autoscale, list | tuple) else autoscale).partition(",")[0])
    return int(options.get("concurrency") or conf.worker_concurrency)


@signals.setup_logging.connect  # type: ignore[untyped-decorator] # Celery has no types
def _logging(loglevel: int | str | None = None, **_: Any) -> None:
    level = loglevel if isinstance(loglevel, int) else logging.INFO
    # Celery's own default of WARNING would hide that anything is done at all.
    logs.setup(current().log_format, min(level, logging.INFO) if level == logging.WARNING else level)


@signals.worker_shutting_down.connect  # type: ignore[untyped-decorator] # Celery has no types
def _stopping(sender: Any = None, sig: str = "", how: str = "", **_: Any) -> None:
    grace_s = GRACE_S if how == "Warm" else 0
    node.stop_within(grace_s)
    # Celery's and billiard's shutdown wait for pipes and processes without bound. Nobody handles this signal: whatever
    # the main process hangs in, it ends it; its pool and its agent follow, and its supervisor starts another.
    signal.alarm(math.ceil(grace_s) + END_S)
    if _agent is not None and _agent.poll() is None:
        _agent.send_signal(signal.SIGUSR1)


def start_agent() -> None:
    """Start the agent, or start it again if it ended."""
    global _agent
    if _agent is not None and _agent.poll() is None:
        return
    if _agent is not None:
        log.warning(
            "agent.restarted", extra={"node": current().node, "reason": f"it ended with status {_agent.returncode}"}
        )
    given: dict[str, Any] = {
        "worker": node.this_node().worker,
        "parent": os.getpid(),
        "grace_s": GRACE_S,
        "level": logging.getLogger().getEffectiveLevel(),
        "table": holding.table(),
        "slots": node.slots(),
        "store": node.this_node().store.id,
        "queues": _consumed,
    }
    # A session of its own: Ctrl-C goes to the worker, which needs its agent until its pool has ended.
    _agent = subprocess.Popen(
        [sys.executable, "-m", "workers.agent", json.dumps(given)], start_new_session=True, pass_fds=(given["table"],)
    )


def stop_agent() -> None:
    if _agent is None or _agent.poll() is not None:
        return
    _agent.terminate()
    try:
        _agent.wait(5)
    except subprocess.TimeoutExpired:
        _agent.kill()
        _agent.wait(5)


class AgentStep(bootsteps.StartStopStep):  # type: ignore[misc] # Celery has no types
    """Starts the agent with the worker and looks after it while the worker's event loop runs."""

    requires = ("celery.worker.components:Timer",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        # What Celery's workers tell each other (revoked tasks, clocks, every event to everybody) the ledger knows, and
        # asking for it takes a second at each start and after each lost connection.
        worker.options |= {"without_mingle": True, "without_gossip": True}
        _consumed[:] = sorted(app.amqp.queues.consume_from)
        # Also with -Q: whether it answers is asked whatever it consumes.
        self._canary = canary_queue(current().node)
        app.amqp.queues.select_add(Queue(self._canary, routing_key=self._canary))  # type: ignore[no-untyped-call]

    def start(self, worker: Any) -> None:
        if not issubclass(worker.pool_cls, prefork.TaskPool):
            # In one process, threads would share one lease, and nothing could end native code that hangs.
            raise SystemExit("ingest: a data node needs the prefork pool (Celery's default); leave out -P / --pool")
        start_agent()
        hearing = Hearing(always=self._canary)

        def look() -> None:
            start_agent()
            hearing.follow(worker.consumer, fit=not is_told_unfit(holding.table()))

        worker.timer.call_repeatedly(current().limits.renew_s, look)


@signals.worker_shutdown.connect  # type: ignore[untyped-decorator] # Celery has no types
def _end(sender: Any = None, **_: Any) -> None:
    begun = time.monotonic()
    stop_agent()
    if is_told_stuck(holding.table()):
        sender.exitcode = STUCK_STATUS
    log.info("node.stopped", extra={"node": current().node, "seconds": round(time.monotonic() - begun, 3)})


app.steps["worker"].add(AgentStep)

# A pool process that ends waits until its parent has counted all its messages, 300 × 0.1 s at most (billiard 4.3,
# pool.py), and at a shutdown under load the count can stay behind for good. Ours say nothing that is not in the
# ledger already.
billiard.pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = 10
