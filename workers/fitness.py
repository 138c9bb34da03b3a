"""Whether this node's store can be worked in: looked at by the agent, heeded by the worker's main process.

What is looked at is in ``ingest.store.disk``. A node that is unfit is given nothing by the ledger, does not take the
bells that others could answer, and is fit again by itself.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ingest.store import Store
from ingest.store.disk import Look, free_bytes, in_words, probe
from ingest.store.ground import Ground, ground, was_removed
from workers import holding
from workers.logs import log

#: A look that takes longer than so many heartbeats (30 s by default) hangs: a network filesystem that is gone. An fsync
#: on a busy disk takes seconds.
HANGS_BEATS = 15
#: Bytes: of a disk that is full, more are made free until a small file can be written again.
_A_LITTLE = 1 << 20


class Fitness:
    """One per agent. ``look`` is for a thread of its own, as it may hang; ``reason`` does not.

    ``make_room`` is called when the disk is full: an unfit node is given no shard that would evict what may go. It is
    given what says how many bytes are missing, and says why no more could go, or "".
    """

    def __init__(
        self, store: Store, node: str, hangs_s: float, make_room: Callable[[Callable[[], int]], str] | None = None
    ) -> None:
        self.free_bytes = 0
        self.looked = threading.Event()
        self._store, self._node, self._hangs_s, self._make_room = store, node, hangs_s, make_room
        self._found = ""
        self._ground: Ground = ()
        self._begun: float | None = None
        self._said = ""

    def look(self) -> None:
        found = self._look()
        self.looked.set()
        if found.is_missing:
            self._make_again()
        if found.is_full and self._make_room is not None:
            try:
                why = self._make_room(lambda: _A_LITTLE if self._look().is_full else 0)
            except OSError as error:
                why = in_words(error)
            if self._found and why:
                self._found = f"{self._found}; {why}"

    def _look(self) -> Look:
        self._begun = time.monotonic()
        root = self._store.root
        before = _ground(root)
        found = probe(root, self._store.id, self._store.limits)
        if not found.reason and _ground(root) == before:
            self._ground = before
        try:
            self.free_bytes = free_bytes(root)
        except OSError:
            self.free_bytes = 0
        self._begun, self._found = None, found.reason
        return found

    def _make_again(self) -> None:
        """What somebody removed of the store; the next look finds it well. What lies on a filesystem that is gone comes
        back with it: nothing is made in its place."""
        if not was_removed(self._ground, _ground(self._store.root)):
            return
        try:
            self._store.make_again()
            self._found += " It was removed, and is made again: what was in it is fetched again when it is asked for"
        except OSError as error:
            self._found += f" It was removed, and cannot be made again: {in_words(error)}"

    @property
    def hangs(self) -> bool:
        begun = self._begun
        return begun is not None and time.monotonic() - begun > self._hangs_s

    @property
    def reason(self) -> str:
        """Why nothing can be done here now, or ""."""
        if self.hangs:
            return f"the store at {self._store.root} does not answer; is it on a network filesystem that is gone?"
        return self._found

    def heed(self, table: int) -> str:
        """The reason, told to the worker's main process, and to the log when it changes from or to ""."""
        reason = self.reason
        if bool(reason) != bool(self._said):
            facts = {"node": self._node, "reason": reason or self._said}
            if reason:
                log.error("node.unfit", extra=facts)
            else:
                log.warning("node.fit", extra=facts)
        self._said = reason
        tell(table, fit=not reason)
        return reason


def _ground(root: Path) -> Ground:
    try:
        return ground(root)
    except OSError:
        return ()


def tell(table: int, *, fit: bool) -> None:
    """Write it where the worker's main process can see it."""
    holding.write(table, holding.FITNESS_AT, b"\0" if fit else b"\1")


def is_told_unfit(table: int) -> bool:
    return os.pread(table, 1, holding.FITNESS_AT) == b"\1"


class Hearing:
    """In the worker's main process: an unfit node does not take bells, or those of the shared queues would ring where
    nobody can answer. ``always`` is heard all the same."""

    def __init__(self, always: str) -> None:
        self._always = always
        self._left: list[str] = []

    def follow(self, consumer: Any, *, fit: bool) -> None:
        """Called again and again in the event loop. ``consumer`` is Celery's; without a connection nothing is done."""
        if consumer is None or consumer.task_consumer is None or fit == (not self._left):
            return
        if fit:
            for queue in self._left:
                consumer.add_task_queue(queue)
            self._left = []
            return
        self._left = [queue for queue in consumer.app.amqp.queues.consume_from if queue != self._always]
        for queue in self._left:
            consumer.cancel_task_queue(queue)
