"""The agent's part: it takes the wishes for snapshots that the ledger has for this node, has them opened by a process
of its own (``holder``), says in the ledger what became of them, and lets them go when nobody reads at them any more."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from celery import Celery

from ingest.doorbell import ring
from ingest.errors import ConnectionLost, FetchError, LedgerUnavailable, NoSnapshot, TransientFetchError
from ingest.ledger import Taken, WorkLedger
from ingest.settings import Settings
from workers.fetchers.base import Context
from workers.logs import log
from workers.retry import delay_s, is_final

#: Snapshots that a node holds at a time, each a connection of the database; more of them wait.
MOST = 16
#: How often the holder asks the server whether a transaction is still there: three times within the time after which
#: the server ends one in which nobody speaks (``libpq.begin``).
PING_S = 3.0
#: The holder is ended when it has held nothing for so long.
IDLE_S = 60.0


@dataclass
class Held:
    """A snapshot that is opened or held in ``process``. ``offered``: the ledger knows the moment; ``error``: why it is
    gone, or never came."""

    taken: Taken
    process: subprocess.Popen[str]
    moment: str = ""
    offered: bool = False
    error: FetchError | None = None

    @property
    def facts(self) -> dict[str, Any]:
        job = self.taken.name.rpartition(".")[0]
        return {"job": job, "source": self.taken.source, "attempt": self.taken.generation}


class Keeper:
    """One per agent. ``step`` is called by one thread, again and again; another one reads what the holder says."""

    def __init__(self, app: Celery, ledger: WorkLedger, settings: Settings, worker: str) -> None:
        self._app, self._ledger, self._settings, self._worker = app, ledger, settings, worker
        self._held: dict[str, Held] = {}
        self._lock = threading.RLock()
        self._process: subprocess.Popen[str] | None = None
        self._used = time.monotonic()
        self._leaving = False

    def step(self) -> None:
        """One round, begun when something happens or a heartbeat is due. Raises :class:`LedgerUnavailable`."""
        limits = self._settings.limits
        self._ledger.await_wish(self._settings.node, limits.renew_s)
        if self._leaving:
            return
        for held in self._all():
            self._settle(held)
        mine = {held.taken.name: held.taken.generation for held in self._all()}
        node, known = self._settings.node, sorted(self._settings.connections)
        past, taken = self._ledger.hold(self._worker, node, limits.lease_s, MOST - len(mine), known, mine)
        for name in past:
            self._let_go(name)
        for one in taken:
            self._open(one)
        self._end_idle()

    def leave(self) -> None:
        """The node stops: others are to take over now, not when they miss it. Raises :class:`LedgerUnavailable`."""
        self._leaving = True
        try:
            for held in self._all():
                taken, why = held.taken, "the node that held its snapshot stops"
                if held.offered and self._ledger.anew(taken.name, taken.generation, why, "") is not None:
                    log.warning("snapshot.lost", extra=held.facts | {"node": self._settings.node, "reason": why})
        finally:
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.close()

    def _all(self) -> list[Held]:
        with self._lock:
            return list(self._held.values())

    def _open(self, taken: Taken) -> None:
        process = self._running()
        held = Held(taken, process)
        with self._lock:
            self._held[taken.name] = held
        try:
            self._tell(process, self._order(taken))
        except FetchError as error:
            held.error = error
            self._settle(held)

    def _order(self, taken: Taken) -> dict[str, Any]:
        from workers.fetchers.sql.databases import url_of
        from workers.fetchers.sql.databases.libpq import DRIVER, begin, libpq_uri

        limits = self._settings.limits
        context = Context(self._settings, self._settings.connections[taken.connection])
        uri = libpq_uri(url_of(taken.source, context), limits)
        return {"open": _tag(taken), "uri": uri, "options": DRIVER, "begin": begin(limits, 0), "every_s": PING_S}

    def _let_go(self, name: str) -> None:
        with self._lock:
            held = self._held.pop(name, None)
        if held is not None:
            self._tell(held.process, {"close": _tag(held.taken)})
            log.info("snapshot.released", extra=held.facts | {"node": self._settings.node})

    # The holder

    def _running(self) -> subprocess.Popen[str]:
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(
                    [sys.executable, str(Path(__file__).with_name("holder.py"))],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
                threading.Thread(target=self._listen, args=(self._process,), name="holder", daemon=True).start()
            self._used = time.monotonic()
            return self._process

    def _end_idle(self) -> None:
        with self._lock:
            if self._held:
                self._used = time.monotonic()
            elif self._process is not None and time.monotonic() - self._used > IDLE_S:
                assert self._process.stdin is not None
                self._process.stdin.close()
                self._process = None

    @staticmethod
    def _tell(process: subprocess.Popen[str], order: dict[str, Any]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        except (OSError, ValueError):
            return  # it has ended: whoever listens to it says so

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._heard(json.loads(line))
        status = process.wait()
        process.stdout.close()
        for held in self._all():
            if held.process is process:
                held.error = ConnectionLost(held.taken.source, f"the process that held its snapshot ended ({status})")
                self._try_settle(held)

    def _heard(self, said: dict[str, Any]) -> None:
        held = next((held for held in self._all() if _tag(held.taken) == said["name"]), None)
        if held is None:
            return
        if moment := said.get("moment"):
            held.moment = moment
        else:
            held.error = self._translated(held.taken, said)
        self._try_settle(held)

    def _translated(self, taken: Taken, said: dict[str, Any]) -> FetchError:
        from workers.fetchers.sql.databases.errors import translate

        error = Exception(said["gone"])
        error.sqlstate = said["sqlstate"]  # type: ignore[attr-defined] # as the driver's own has it
        found = translate(taken.source, error, Context(self._settings, self._settings.connections[taken.connection]))
        # Whoever could connect might read the table, only not all of its partitions at one moment.
        transient = isinstance(found, TransientFetchError)
        return found if transient or said["at"] == "connect" else NoSnapshot(found.uri, found.reason)

    # What becomes of it, in the ledger

    def _try_settle(self, held: Held) -> None:
        try:
            self._settle(held)
        except LedgerUnavailable:
            return  # the next round does it

    def _settle(self, held: Held) -> None:
        with self._lock:
            if self._held.get(held.taken.name) is not held:
                return
            if held.error is not None:
                self._gone(held, held.error)
            elif held.moment and not held.offered:
                taken = held.taken
                lease_s = self._settings.limits.lease_s
                queues = self._ledger.offer(taken.name, taken.generation, self._worker, held.moment, lease_s)
                if queues is None:
                    self._let_go(taken.name)
                    return
                held.offered = True
                log.info("snapshot.held", extra=held.facts | {"node": self._settings.node})
                self._ring(queues)

    def _gone(self, held: Held, error: FetchError) -> None:
        facts = held.facts | {"node": self._settings.node, "error": type(error).__name__, "reason": error.reason}
        if held.offered:
            queues = self._ledger.anew(held.taken.name, held.taken.generation, f"its snapshot was lost: {error.reason}")
            log.warning("snapshot.lost", extra=facts)
        else:
            policy, attempt = self._settings.retry, held.taken.refusals + 1
            final = is_final(policy, error, attempt, None, 0.0, None)
            wait_s = 0.0 if final or not isinstance(error, TransientFetchError) else delay_s(policy, error, attempt)
            queues = self._ledger.refuse(held.taken, self._worker, final, wait_s, _refusal(error))
            log.warning("snapshot.refused", extra=facts | {"delay_s": None if final else round(wait_s, 3)})
        self._held.pop(held.taken.name, None)
        self._ring(queues or ())

    def _ring(self, queues: Sequence[str]) -> None:
        if queues:
            ring(self._app, Counter(queues))


def _tag(taken: Taken) -> str:
    return f"{taken.name}/{taken.generation}"


def _refusal(error: FetchError) -> FetchError:
    """What whoever asked for the source is told. One that could not be read anyhow keeps its own reason."""
    if not isinstance(error, TransientFetchError | NoSnapshot):
        return error
    return NoSnapshot(
        error.uri,
        f"no snapshot for all of its partitions: {error.reason}; partitions=1 needs none, and consistent=False reads "
        "each partition at a moment of its own",
    )
