"""Honcho's process manager, taught what a Celery worker needs to end well. What is run is said in ``ingest.cli.up``.

Four differences from honcho 2: SIGTERM goes to the process, not to its group (the children of a worker would die of
it in the middle of a file, before the worker could tell them to hand back their work); there are ``GRACE_S`` until
SIGKILL instead of 5 s; whatever a process leaves behind of its group is killed when it has ended; and all of it
ends when we are killed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from honcho.manager import Manager
from honcho.process import Process

from ingest.embedded.bound import bound, end_with_parent

#: Seconds between SIGTERM and SIGKILL. A worker hands back its shards between two chunks; this is for one that cannot.
GRACE_S = 20.0

_RETRY_S = 0.1  # as often as honcho's own loop looks


class Supervisor(Manager):  # type: ignore[misc]  # honcho has no types
    """Runs processes until one ends or a signal comes, then ends them all. Their output is printed with their names.

    After :meth:`loop`, :attr:`fallen` names those that ended by themselves, with their exit status; empty when a
    signal ended us. ``unseen`` names processes whose starting and stopping is not told.
    """

    def __init__(self, *, grace_s: float = GRACE_S, unseen: Sequence[str] = ()) -> None:
        super().__init__()
        self.fallen: dict[str, int] = {}
        self._grace_s = grace_s
        self._unseen = frozenset(unseen)
        self._kill_at: float | None = None
        self._procmgr = _Signals()
        self._process_ctor = _Process

    def loop(self) -> None:
        try:
            super().loop()
        except BaseException:
            # For instance a terminal that is gone, so that nothing can be printed: nobody is left to run for.
            for process in multiprocessing.active_children():
                process.kill()  # what it runs gets its SIGTERM from the kernel
            raise

    def terminate(self) -> None:
        """SIGTERM to all, once; SIGKILL to those that are left after the time of grace."""
        if not self._all_started():
            # A signal came while they start: honcho does not know their process ids yet.
            self._later(_RETRY_S, self.terminate)
        elif self._kill_at is None:
            self._kill_at = time.monotonic() + self._grace_s
            self.fallen = {name: p["returncode"] for name, p in self._processes.items() if "returncode" in p}
            self._later(self._grace_s, self.kill)
            super().terminate()

    def kill(self) -> None:
        """SIGKILL to all that are left; honcho calls it after 5 s, we let it pass when the time of grace is over."""
        if self._kill_at is not None and time.monotonic() >= self._kill_at:
            super().kill()

    def _later(self, delay_s: float, call: Any) -> None:
        timer = threading.Timer(delay_s, call)
        timer.daemon = True
        timer.start()

    def _system_print(self, data: str) -> None:
        if self._unseen.isdisjoint(data.split()):
            super()._system_print(data)


class _Signals:
    """Honcho's seam for ending a process by its id."""

    def terminate(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)

    def kill(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)


class _Process(Process):  # type: ignore[misc]  # honcho has no types
    """One command. Honcho runs each from a process of its own, which reads its output."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._manager_pid = os.getpid()
        self._child_ctor = _start

    def run(self, events: Any = None, ignore_signals: bool = False) -> None:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)  # before the start of the child, or a quick Ctrl-C would orphan it
        end_with_parent(self._manager_pid, signal.SIGKILL)
        super().run(events, ignore_signals)


def _start(command: Sequence[str], env: Mapping[str, str], cwd: str | None) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(
        bound(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        env=env,
        cwd=cwd,
    )
    threading.Thread(target=_sweep, args=(child,), daemon=True).start()
    return child


def _sweep(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of its group when it has ended: children of a worker that was killed hold its output open."""
    child.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
