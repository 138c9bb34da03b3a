"""What each process of a worker has in hand, written where its agent can read it: one anonymous file, a slot a process.

The ledger's word alone is not enough to renew a lease. A claim whose reply was lost, or a commit that a Redis killed
within its last second forgot, leaves a unit that the ledger says is held and that nobody is working on.
"""

from __future__ import annotations

import os
import tempfile
from functools import lru_cache

_SLOT_BYTES = 256
_SLOTS = 1 << 16


@lru_cache(maxsize=1)
def table() -> int:
    """The file's descriptor. Made in the worker's parent; its pool's processes inherit it, its agent is given it."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("ingest-holding")
    with tempfile.TemporaryFile() as unnamed:
        return os.dup(unnamed.fileno())


def _offset(pid: int) -> int:
    return pid % _SLOTS * _SLOT_BYTES


def hold(unit: str, fence: str) -> None:
    """This process works on that unit now."""
    os.pwrite(
        table(), f"{os.getpid()} {unit} {fence}".encode().ljust(_SLOT_BYTES, b"\0")[:_SLOT_BYTES], _offset(os.getpid())
    )


def let_go() -> None:
    """This process works on nothing."""
    os.pwrite(table(), bytes(_SLOT_BYTES), _offset(os.getpid()))


def holds(descriptor: int, pid: int, unit: str, fence: str) -> bool:
    """Whether that process says that it works on that unit. Asked by the agent."""
    found = os.pread(descriptor, _SLOT_BYTES, _offset(pid)).rstrip(b"\0")
    return found == f"{pid} {unit} {fence}".encode()[:_SLOT_BYTES]
