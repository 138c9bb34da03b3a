"""The node's agent: heartbeat, lease renewal, taking back what dead processes held, reconciling. A process of its own.

Not a thread of the worker's parent, which forks its pool at any time (a lock held at that moment would stay locked in
the child), and not a timer in its event loop, which stands still while it reconnects and while it waits for its pool at
shutdown: just when leases must be renewed. It ends when its worker ends.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.metadata import PackageNotFoundError, version
from types import FrameType

from ingest.app import app_for
from ingest.errors import LedgerUnavailable
from ingest.ledger import WorkLedger
from ingest.queues import queues_of
from ingest.settings import Settings, current
from ingest.space import Evictor
from ingest.store import Store
from workers import holding, logs
from workers.canary import Canary, tell_stuck
from workers.fitness import HANGS_BEATS, Fitness
from workers.logs import log
from workers.node import parent_of, started
from workers.reconcile import Reconciler
from workers.report import Outbox
from workers.snapshots.keeper import Keeper
from workers.space import Counting

#: A process that was told to stop and has not moved for so long is stuck in native code: it is killed.
STUCK_S = 10.0


class Agent:
    """One per worker. ``parent`` is the process id of ``celery worker``, ``store`` the id of its store, ``queues`` what
    it consumes (all that a data node may)."""

    def __init__(
        self,
        worker: str,
        parent: int,
        slots: int,
        table: int,
        store: str,
        *,
        grace_s: float,
        stuck_s: float = STUCK_S,
        queues: Sequence[str] = (),
        settings: Settings | None = None,
    ) -> None:
        self.settings = settings or current()
        self.queues = list(queues) or queues_of(self.settings.node)
        self.worker, self.parent, self.slots, self._table = worker, parent, slots, table
        self.ledger = WorkLedger(self.settings, retries=1)
        # By the id that the worker found at its start: where the disk is gone meanwhile, the heart beats and says so.
        self.store = Store(self.settings.store.root, store, self.settings.store)
        hangs_s = HANGS_BEATS * self.settings.limits.renew_s
        self.fitness = Fitness(self.store, self.settings.node, hangs_s, self._make_room)
        app = app_for(self.settings)
        self.canary = Canary(app, WorkLedger(self.settings, retries=1), self.settings, worker, slots)
        own = WorkLedger(self.settings, retries=1)
        self.reconciler = Reconciler(app, own, self.store, self.settings.limits.renew_s)
        self.outbox = Outbox(app, WorkLedger(self.settings, retries=1), self.store)
        self.keeper = Keeper(app, WorkLedger(self.settings, retries=1), self.settings, worker)
        self._grace_s, self._stuck_s = grace_s, stuck_s
        self.kill_at: float | None = None
        self._end_worker_at: float | None = None
        self._idle: set[tuple[str, str]] = set()
        self._told: dict[str, tuple[float, int]] = {}
        self._hanging: dict[str, tuple[float, int]] = {}
        self._away = False

    def info(self) -> dict[str, object]:
        """What the heartbeat says of this node."""
        return {
            "node": self.settings.node,
            "store": self.store.id,
            "slots": self.slots,
            "queues": self.queues,
            "connections": sorted(self.settings.connections),
            "version": _version(),
            "free_bytes": self.fitness.free_bytes,
            "pid": self.parent,
            "time": time.time(),
            "unable": self.canary.unable,
            "unfit": self.fitness.heed(self._table),
        }

    def _make_room(self, missing: Callable[[], int]) -> str:
        with closing(WorkLedger(self.settings, retries=1)) as ledger:
            evictor = Evictor(ledger, self.store)
            return evictor.make_room(missing, self.settings.store.min_free_bytes // 4, of_disk=True).why

    def beat(self) -> None:
        """One round: renew what living processes hold, take back what dead ones held, stop what is to stop."""
        held = self.ledger.held(self.worker)
        alive, dead, idle = [], [], set()
        for unit, (tag, fence) in held.items():
            lives = self._lives(tag)
            at_work = lives and holding.holds(self._table, int(tag.partition(":")[0]), unit, fence)
            # A process that has just claimed has not said so yet: only the second look counts.
            if lives and not at_work:
                idle.add((unit, fence))
            if at_work and self._is_lost(unit):
                self.ledger.let_go(unit, fence, f"NodeUnfit: {self.fitness.reason}")
                self._kill(unit, tag, "hangs in a store that does not answer")
            elif at_work or (lives and (unit, fence) not in self._idle):
                alive.append((unit, fence))
            elif lives:  # the ledger was away when it claimed, or when it was to say what became of it: no death
                self._take_back(unit, "its process has nothing in hand")
                self.ledger.let_go(unit, fence, "its process could not tell the ledger what became of it")
            else:
                self._take_back(unit, "its process died")
                dead.append((unit, fence))
        self._idle = idle
        stop = self.ledger.beat(self.worker, self.info(), alive, dead)
        self._end_stuck(held, stop)
        if self.canary.is_stuck or self._end_worker_at is not None:
            self._end_worker()
        if self.kill_at and time.monotonic() > self.kill_at:
            for unit, (tag, _) in held.items():
                self._kill(unit, tag, "did not hand its work back at shutdown")

    def _take_back(self, unit: str, reason: str) -> None:
        log.warning("lease.taken_back", extra={"shard": unit, "node": self.settings.node, "reason": reason})

    def _end_stuck(self, held: dict[str, tuple[str, str]], stop: list[str]) -> None:
        """A process sees by itself that its work is to stop, between two chunks. One whose bytes stand still cannot."""
        for unit in set(self._told) - set(stop):
            del self._told[unit]
        for unit in stop:
            if self._stands(unit, self._told) and unit in held:
                self._kill(unit, held[unit][0], "was told to stop and is stuck")

    def _is_lost(self, unit: str) -> bool:
        """Whether its process hangs in a store that does not answer. Perhaps no signal ends it, and it is not the unit
        that did it: that goes to others, uncounted, and what the process may say of it later is not heard."""
        if not self.fitness.hangs:
            self._hanging.clear()
            return False
        return self._stands(unit, self._hanging)

    def _stands(self, unit: str, seen: dict[str, tuple[float, int]]) -> bool:
        """Whether its bytes have not moved for ``stuck_s`` while they were looked at."""
        now, size = time.monotonic(), self.ledger.live_bytes_of(unit)
        since, before = seen.setdefault(unit, (now, size))
        if size != before:
            seen[unit] = (now, size)
        return size == before and now - since > self._stuck_s

    def _end_worker(self) -> None:
        """Its supervisor starts another one, which consumes: SIGTERM, and SIGKILL where that does not end it. Only the
        ledger's answers lead here, so not while Redis is away."""
        now = time.monotonic()
        if self._end_worker_at is None:
            self._end_worker_at = now + self._grace_s + self._stuck_s
            facts = {"node": self.settings.node, "reason": self.canary.unable}
            log.error("worker.stuck", extra=facts)
            tell_stuck(self._table)
            os.kill(self.parent, signal.SIGTERM)
        elif now > self._end_worker_at:
            os.kill(self.parent, signal.SIGKILL)

    def _lives(self, tag: str) -> bool:
        """Whether a process of this worker's pool, and no other of that number, is alive. The tag comes from Redis."""
        pid, _, begun = tag.partition(":")
        return pid.isdecimal() and started(int(pid)) == begun and parent_of(int(pid)) in (self.parent, None)

    def _kill(self, unit: str, tag: str, why: str) -> None:
        pid = int(tag.partition(":")[0])
        if self._lives(tag) and pid != self.parent:
            log.warning("process.killed", extra={"shard": unit, "node": self.settings.node, "reason": why})
            os.kill(pid, signal.SIGKILL)

    def run(self) -> None:
        """Until the worker is gone."""
        # A thread of its own, with a connection of its own: however much there is to make good, the heart beats.
        # Threads are no danger here: this process does not fork.
        limits = self.settings.limits
        period = limits.renew_s
        for step, every_s in (
            (self.reconciler.step, period),
            (self.outbox.step, period),
            (self.fitness.look, 3 * period),
            (self.canary.step, limits.canary_s),
            (Counting(WorkLedger(self.settings, retries=1), self.store).step, 5 * period),
        ):
            threading.Thread(target=self._repeat, args=(step, every_s), daemon=True).start()
        threading.Thread(target=self._keep, name="keeper", daemon=True).start()
        self.fitness.looked.wait(1.0)  # so that the first heartbeat knows
        while os.getppid() == self.parent:
            begun = time.monotonic()
            self._guarded(self.beat)
            time.sleep(max(0.1, period - (time.monotonic() - begun)))
        self.bye()

    def _repeat(self, step: Callable[[], None], every_s: float) -> None:
        while True:
            self._guarded(step)
            time.sleep(every_s)

    def _keep(self) -> None:
        while True:
            if not self._guarded(self.keeper.step):
                time.sleep(self.settings.limits.renew_s)

    def _guarded(self, step: Callable[[], None]) -> bool:
        """One round that may fail and is not the last: the ledger can be away, and what lies in it can be damaged.
        Whether it did not fail."""
        try:
            step()
            if self._away:
                self._away = False
                log.info("ledger.back", extra={"node": self.settings.node})
            return True
        except LedgerUnavailable as error:
            if not self._away:
                log.warning("ledger.unavailable", extra={"node": self.settings.node, "reason": str(error)})
            self._away = True
        except Exception as error:  # noqa: BLE001 - one damaged record must not end the heartbeat of all others
            facts = {"node": self.settings.node, "error": type(error).__name__, "reason": str(error)}
            log.error("agent.error", extra=facts)
        return False

    def bye(self) -> None:
        """Leave the list of live workers. What was held is taken back by the next tick: its processes are gone."""
        try:
            self.keeper.leave()
            dead = [
                (unit, fence) for unit, (tag, fence) in self.ledger.held(self.worker).items() if not self._lives(tag)
            ]
            self.ledger.beat(self.worker, self.info(), [], dead)
            self.ledger.bye(self.worker)
            self.canary.leave()
        except LedgerUnavailable:
            log.info("agent.left", extra={"node": self.settings.node, "reason": "the ledger was away; leases run out"})

    def stop_soon(self) -> None:
        self.canary.is_stopping = True
        self.kill_at = time.monotonic() + self._grace_s + self._stuck_s


def _version() -> str:
    try:
        return version("ingest")
    except PackageNotFoundError:
        return "0"


def main(argv: list[str]) -> int:
    """``python -m workers.agent {"worker": …, "parent": pid, "grace_s": …, "level": …}``, started by the worker."""
    given = json.loads(argv[0])
    logs.setup(current().log_format, given.get("level", logging.INFO))
    whose = (given["worker"], given["parent"], given["slots"], given["table"], given["store"])
    agent = Agent(*whose, grace_s=given["grace_s"], queues=given["queues"])

    def on_stopping(signum: int, frame: FrameType | None) -> None:
        agent.stop_soon()

    def on_end(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(0)

    signal.signal(signal.SIGUSR1, on_stopping)
    signal.signal(signal.SIGTERM, on_end)
    try:
        agent.run()
    except SystemExit:
        agent.bye()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
