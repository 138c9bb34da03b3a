"""A command that ends when the process that started it ends, however that happens (also ``kill -9``).

Run as a script in front of the command: ``python -I -S bound.py PARENT SIGNAL COMMAND…``. It imports nothing of
ours, so that it costs a few milliseconds, and replaces itself by the command, so that the process id stays the
same. A script rather than ``preexec_fn``, which may deadlock in a process that has threads.

The kernel watches the *thread* that started the command: start it from one that lives as long as the command
should. Outside Linux there is no such service of the kernel; there, a process that is killed with -9 leaves its
children behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent(parent: int, signum: int) -> None:
    """From now on this process gets ``signum`` when ``parent`` ends; at once if it has ended already."""
    if sys.platform != "linux":
        return
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        signal.raise_signal(signal.Signals(signum))


def bound(command: Sequence[str], signum: int = signal.SIGTERM) -> list[str]:
    """``command``, to be started by this very process and thread, as one that gets ``signum`` when we end."""
    return [sys.executable, "-I", "-S", os.path.abspath(__file__), str(os.getpid()), str(int(signum)), *command]


def _main(argv: list[str]) -> None:
    # What a supervisor ignores for itself is inherited across exec, and a command that ignores SIGTERM cannot be
    # stopped.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, signal.SIG_DFL)
    end_with_parent(int(argv[0]), int(argv[1]))
    os.execvp(argv[2], argv[2:])


if __name__ == "__main__":
    _main(sys.argv[1:])
