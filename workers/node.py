"""This worker process: its settings, its store, its ledger, and who it is in leases. One of each, made when first
needed.

A pool's children are forks: what holds a connection is made anew in each, and the parent makes none.
"""

from __future__ import annotations

import mmap
import os
import secrets
import struct
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ingest.ledger import WorkLedger
from ingest.settings import Settings, current
from ingest.store import Store

#: Shared by a worker's processes, as forks inherit it: the monotonic time by which work is to be handed back, or 0.
_stop_at = mmap.mmap(-1, 8)


@dataclass(frozen=True)
class Node:
    """``worker`` names this run of ``celery worker``; all its processes share it."""

    settings: Settings
    store: Store
    worker: str


@lru_cache(maxsize=1)
def this_node() -> Node:
    """Raises :class:`ingest.errors.StoreError` when the store cannot be used; called in the parent, before it forks."""
    settings = current()
    return Node(settings, Store.open(settings.store), f"{settings.node}-{os.getpid()}-{secrets.token_hex(3)}")


_slots = 0


def set_slots(count: int) -> None:
    """How many processes the pool has; told by the worker before it forks them."""
    global _slots
    _slots = count


def slots() -> int:
    """How many processes this worker's pool has."""
    return _slots or this_node().settings.concurrency


@lru_cache(maxsize=1)
def _ledger_of(pid: int) -> WorkLedger:
    return WorkLedger(this_node().settings)


def ledger() -> WorkLedger:
    """The ledger connection of this process."""
    return _ledger_of(os.getpid())


@lru_cache(maxsize=1)
def _tag_of(pid: int) -> str:
    return f"{pid}:{started(pid) or 0}"


def process_tag() -> str:
    """``pid:start``: this process, told from an earlier one that had the same number."""
    return _tag_of(os.getpid())


def started(pid: int) -> str | None:
    """When a process started (clock ticks since boot), or None if it is gone, dead or stopped: then it renews nothing.

    Linux: ``/proc/PID/stat``, fields 3 and 22 of proc(5). Elsewhere only whether it is there, as "0".
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
        try:
            os.kill(pid, 0)
        except OSError:
            return None
        return "0"
    except OSError:
        return None
    return None if fields[0] in "ZXxTt" else fields[19]


def parent_of(pid: int) -> int | None:
    """A process's parent; None where the system does not say (no ``/proc``)."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def stop_within(seconds: float) -> None:
    """Tell every process of this worker to hand its work back by then. Called in the parent."""
    struct.pack_into("d", _stop_at, 0, time.monotonic() + max(seconds, 0.001))


def stopping() -> bool:
    """Whether the time to hand work back has come."""
    (at,) = struct.unpack_from("d", _stop_at, 0)
    return bool(at) and time.monotonic() >= at
