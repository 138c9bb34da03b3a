"""The window of a reader: the shards of a job that it reads next, what of them is gone from the store, and where that
is fetched again. What the ledger makes of it is in ``need.lua``."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from ingest.client.bells import ring
from ingest.client.lease import RENEW_S, Leases
from ingest.errors import LedgerUnavailable, StoreError, UsageError
from ingest.ledger import JobLedger, fit
from ingest.ledger.space import Needed
from ingest.placement import rendezvous
from ingest.queues import FETCH_QUEUE, node_queue
from ingest.store import Store

#: A window is what is read within minutes. More would only be what nobody needs yet.
MOST = 1000


class Landed(Protocol):
    """A file of a shard that is over."""

    @property
    def is_local(self) -> bool: ...
    @property
    def node(self) -> str: ...
    def is_gone(self) -> bool: ...


class Ended(Protocol):
    """A shard that is over."""

    @property
    def state(self) -> str: ...
    @property
    def files(self) -> Sequence[Landed]: ...


class Window:
    """Of one reader. With ``leases`` they renew it; without, :meth:`renew` does, and nothing is held."""

    def __init__(self, ledger: JobLedger, job: str, store: Store | None, leases: Leases | None) -> None:
        self._ledger, self._job, self._store, self._leases = ledger, job, store, leases
        self._name = uuid.uuid4().hex
        self._shards: Sequence[int] = ()
        self._here: set[int] = set()  # shards of the window whose files were found in the store
        self._taken_back: Counter[int] = Counter()
        self._said = 0.0

    def anew(self) -> Window:
        """The job was lost and is there again: what the ledger counted, it counts from the beginning."""
        made = Window(self._ledger, self._job, self._store, self._leases)
        made._name, made._shards = self._name, self._shards
        return made

    def taken_back(self, shard: int) -> None:
        """The end of that shard does not count any more."""
        self._taken_back[shard] += 1
        self._here.discard(shard)

    def doubt(self, shards: Sequence[int]) -> None:
        self._here.difference_update(shards)

    def move(self, shards: Sequence[int], ends: Mapping[int, Ended]) -> list[int]:
        """See :meth:`JobReader.need`. Returns those that are gone."""
        if len(shards) > MOST:
            raise UsageError(f"need() of {len(shards)} shards: a window is what is read next, {MOST} at most")
        self._shards = tuple(dict.fromkeys(shards))
        self._here.intersection_update(self._shards)
        gone = self._find_gone(ends)
        self._tell(gone, ends)
        return gone

    def landed(self, shards: Collection[int], ends: Mapping[int, Ended]) -> list[int]:
        """The reader has just heard that these are over. Returns those of the window that are gone again: it may be
        long ago that they landed."""
        gone = []
        if not set(self._shards).isdisjoint(shards):
            with suppress(StoreError):  # whoever opens a file hears of it
                gone = self._find_gone(ends)
        if gone:
            try:
                self._tell(gone, ends)
            except LedgerUnavailable:
                return []  # they are looked for again
        return gone

    def _tell(self, gone: Sequence[int], ends: Mapping[int, Ended]) -> None:
        needed = self._say({n: self._taken_back[n] for n in gone}, self._queue_for(gone, ends))
        self._here.difference_update(needed.loose)
        if needed.queues:
            ring(self._ledger.settings, dict.fromkeys(needed.queues, 1))

    def renew(self) -> None:
        """What is needed is needed still. For those without a lease, whose thread does it."""
        if self._leases is None and self._shards and time.monotonic() - self._said > RENEW_S:
            try:
                self._say({}, "")
            except LedgerUnavailable:
                return  # it is said again soon

    def _say(self, gone: Mapping[int, int], queue: str) -> Needed:
        self._said = time.monotonic()
        if self._leases is not None:
            return self._leases.need(self._job, self._shards, gone, queue)
        return self._ledger.need(self._job, self._name, self._shards, gone=gone, queue=queue)

    def _find_gone(self, ends: Mapping[int, Ended]) -> list[int]:
        gone = []
        for shard in self._shards:
            end = ends.get(shard)
            if shard in self._here or end is None or end.state != "done":
                continue
            missing = [file.is_gone() for file in end.files if file.is_local]  # all: those that are there stay by it
            if any(missing):
                gone.append(shard)
            else:
                self._here.add(shard)
        return gone

    def _queue_for(self, gone: Sequence[int], ends: Mapping[int, Ended]) -> str:
        """Where the files will land in the store here: in the queue of a node that has it. "" for their own, which
        will do where every node has that store."""
        if not gone or self._store is None:
            return ""
        workers = self._ledger.workers()
        nodes = fit([worker for worker in workers if worker.store == self._store.id])
        if not nodes:  # whoever has it next takes over the queue of the node that had it
            nodes = sorted({file.node for n in gone for file in ends[n].files if file.is_local})
        elif all(worker.store == self._store.id for worker in workers):
            return ""
        return node_queue(FETCH_QUEUE, rendezvous(f"{self._job}.{gone[0]}", nodes))
