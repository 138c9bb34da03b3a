"""What each process of a worker has in hand, written where its agent can read it: one anonymous file, a slot a process.

The ledger's word alone is not enough to renew a lease. A claim whose reply was lost, or a commit that a Redis killed
within its last second forgot, leaves a unit that the ledger says is held and that nobody is working on.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from functools import lru_cache

_SLOT_BYTES = 256
_SLOTS = 1 << 16
_BYTES = (1 + _SLOTS) * _SLOT_BYTES
#: Bytes before all slots: see :mod:`workers.fitness` and :mod:`workers.canary`.
FITNESS_AT, STUCK_AT = 0, 1


@lru_cache(maxsize=1)
def table() -> int:
    """The file's descriptor. Made in the worker's parent; its pool's processes inherit it, its agent is given it."""
    if hasattr(os, "memfd_create"):
        made = os.memfd_create("ingest-holding")
    else:
        with tempfile.TemporaryFile() as unnamed:
            made = os.dup(unnamed.fileno())
    os.ftruncate(made, _BYTES)
    _memory(made)  # now: a process without a descriptor left could not make it
    return made


@lru_cache(maxsize=1)
def _memory(descriptor: int) -> mmap.mmap:
    return mmap.mmap(descriptor, _BYTES)


def write(descriptor: int, at: int, data: bytes) -> None:
    """As memory: a limit on the size of files (ulimit -f), which os.pwrite would meet, says nothing of it."""
    _memory(descriptor)[at : at + len(data)] = data


def _offset(pid: int) -> int:
    return (1 + pid % _SLOTS) * _SLOT_BYTES


def hold(unit: str, fence: str) -> None:
    """This process works on that unit now."""
    text = f"{os.getpid()} {unit} {fence}".encode()
    write(table(), _offset(os.getpid()), text.ljust(_SLOT_BYTES, b"\0")[:_SLOT_BYTES])


def let_go() -> None:
    """This process works on nothing."""
    write(table(), _offset(os.getpid()), bytes(_SLOT_BYTES))


def holds(descriptor: int, pid: int, unit: str, fence: str) -> bool:
    """Whether that process says that it works on that unit. Asked by the agent."""
    found = os.pread(descriptor, _SLOT_BYTES, _offset(pid)).rstrip(b"\0")
    return found == f"{pid} {unit} {fence}".encode()[:_SLOT_BYTES]
