"""Faults by name, and doing them in an order and at instants that the seed decides."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress

from tests.faults.rig import Rig, all_processes, send
from tests.servers.node import Worker, until

#: What a fault does, with a victim; it brings back what it took.
Fault = Callable[[Rig, str], None]


def kill_worker(rig: Rig, name: str) -> None:
    """The main process; its pool and its agent follow it by themselves. A supervisor starts another."""
    worker = rig.victim()
    with rig.fault(name, worker):
        worker.kill()
    rig.restart(worker)


def kill_child(rig: Rig, name: str) -> None:
    """One process of the pool, mostly one that is at work."""
    worker = rig.victim()
    busy = _busy(rig, worker)
    with suppress(OSError):
        if some := busy if busy and rig.rng.random() < 0.8 else worker.children():
            child = rig.rng.choice(sorted(some))
            with rig.fault(name, worker, child=child):
                send([child], signal.SIGKILL)


def kill_agent(rig: Rig, name: str) -> None:
    worker = rig.victim()
    with suppress(OSError), rig.fault(name, worker) as hurt:
        hurt.units.clear()  # its worker works on: they stay where they are
        send(worker.agents(), signal.SIGKILL)


def _busy(rig: Rig, worker: Worker) -> list[int]:
    found = set()
    ledger = rig.client().ledger
    for info in rig.client().workers():
        if info.pid == worker.process.pid:
            found |= {int(tag.split(b":")[0]) for tag in ledger.redis.hvals(ledger.key("held", info.id))}
    return sorted(found)


def _signalled(*signals: signal.Signals, apart_s: float = 0.0) -> Fault:
    def fault(rig: Rig, name: str) -> None:
        worker = rig.victim()
        with rig.fault(name, worker):
            for number, signum in enumerate(signals):
                if number:  # a moment that the seed decides: before, while and after it hands its work back
                    _until_then(worker, rig.rng.uniform(0, apart_s))
                send([worker.process.pid], signum)
        until(lambda: worker.process.poll() is not None, f"it ends after {name}", 60)
        rig.restart(worker)

    return fault


def _until_then(worker: Worker, seconds: float) -> None:
    end = time.monotonic() + seconds
    until(lambda: worker.process.poll() is not None or time.monotonic() >= end, "that moment", seconds + 5)


def _stopped(seconds: float, *, whole: bool) -> Fault:
    """Stopped for longer than its lease, then continued: a process of the pool, or all of a worker."""

    def fault(rig: Rig, name: str) -> None:
        worker = rig.victim()
        pids = all_processes(worker)
        if not whole:
            pids = (_busy(rig, worker) or worker.children())[:1]
            if not pids:
                return  # it has only just begun
        with rig.fault(name, worker, child=None if whole else pids[0]):
            send(pids, signal.SIGSTOP)

        def go_on() -> None:
            rig.load.pause(seconds)
            send(pids, signal.SIGCONT)

        thread = threading.Thread(target=go_on)
        thread.start()
        thread.join()

    return fault


LONGER_THAN_A_LEASE_S = 5.0  # of SHORT_LEASES, and a tick
FAULTS: dict[str, Fault] = {
    "kill -9 of a worker": kill_worker,
    "kill -9 of a pool child, any": kill_child,
    "kill -9 of an agent": kill_agent,
    "SIGTERM, SIGQUIT, a second signal: SIGTERM": _signalled(signal.SIGTERM),
    "SIGTERM, SIGQUIT, a second signal: SIGQUIT": _signalled(signal.SIGQUIT),
    "SIGTERM, SIGQUIT, a second signal: SIGTERM twice": _signalled(signal.SIGTERM, signal.SIGTERM, apart_s=3),
    "SIGTERM, SIGQUIT, a second signal: then SIGQUIT": _signalled(signal.SIGTERM, signal.SIGQUIT, apart_s=3),
    "SIGTERM, SIGQUIT, a second signal: then kill -9": _signalled(signal.SIGTERM, signal.SIGKILL, apart_s=9),
    "Redis or a worker stopped: a process": _stopped(LONGER_THAN_A_LEASE_S, whole=False),
    "Redis or a worker stopped: a whole worker": _stopped(LONGER_THAN_A_LEASE_S, whole=True),
}


def run(rig: Rig, count: int, kinds: Mapping[str, float], mean_s: float) -> None:
    """So many faults at random instants, ``mean_s`` apart on average. Where there are more than one, one worker is left
    that can go on: how long a recovery takes says nothing where nobody is there to recover. Other files may add to
    ``FAULTS``."""
    least = min(2, len(rig.alive()))
    for _ in range(count):
        rig.load.pause(rig.rng.expovariate(1 / mean_s))
        until(lambda: len(rig.working()) >= least, "a worker is there to be hurt", 120)
        (name,) = rig.rng.choices(list(kinds), list(kinds.values()))
        FAULTS[name](rig, name)
