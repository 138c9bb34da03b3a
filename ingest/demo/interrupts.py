"""Ctrl-C, SIGTERM and a closed terminal as one KeyboardInterrupt, after which nothing disturbs the cleaning up."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType
from typing import Any


class Interrupts:
    """For the length of the ``with`` block, in the main thread. Processes forked within it leave a Ctrl-C to us."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._holding = self._due = self._over = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Interrupts:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = signal.getsignal(signum)
            if before is not signal.SIG_IGN:  # under nohup it stays ignored
                self._before[signum] = before
                signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)

    def ignore(self) -> None:
        """From now on: all that is left to do is to clean up."""
        self._over = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """An interrupt that comes within the block is raised at its end, or by :meth:`check`."""
        self._holding = True
        try:
            yield
        finally:
            self._holding = False
        self.check()

    def check(self) -> None:
        """Raise the interrupt that came, also again: Python drops one that is raised in a finalizer or at a fork."""
        if self._due:
            raise KeyboardInterrupt

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A DataLoader worker, forked with this handler: Ctrl-C goes to the whole group, and we end it in order.
            if signum != signal.SIGINT:
                signal.signal(signum, signal.SIG_DFL)
                signal.raise_signal(signal.Signals(signum))
        elif not self._over:
            self._due = self._over = True
            if not self._holding:
                raise KeyboardInterrupt
