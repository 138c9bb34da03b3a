"""A job in its global order, as far as it is known: what a dataset reads. Order is by source, then part; never by
arrival."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ingest.client.files import LocalFile
from ingest.client.follow import EventStream, Restorer
from ingest.client.lease import Leases, Progress
from ingest.client.waiting import why
from ingest.client.window import Window
from ingest.errors import UnknownJob
from ingest.ledger import JobLedger, Result, UnitRecord
from ingest.model import TERMINAL_JOB, TERMINAL_SHARD, Failure, JobOptions
from ingest.store import Store


class ShardLayout(NamedTuple):
    """A shard's number, the (source, part) of its first file, and how many files it lists; of a ``packed`` one, all
    that it lists is one place in the order."""

    shard: int
    source: int
    part: int
    files: int
    packed: bool = False


@dataclass(frozen=True)
class ShardEnd:
    """A shard that is over: ``state`` is done, failed, cancelled or quarantined."""

    shard: int
    state: str
    files: tuple[LocalFile, ...]
    failures: tuple[Failure, ...]


class JobReader:
    """``order`` is the known beginning of the job's shards and only grows at its end; ``complete`` says that it is all.
    ``ends`` holds the shards that are over, by number; a shard that is tried or fetched again leaves it until it is
    there, also after the job's end: ``poll`` goes on to tell. One thread at a time.

    All files of the job are held until ``close``, but those of shards that were released; with ``keep`` false, those of
    the window that ``need`` was given last.
    """

    def __init__(
        self,
        ledger: JobLedger,
        job: str,
        store: Store | None,
        restorer: Restorer | None = None,
        leases: Leases | None = None,
        *,
        keep: bool = True,
    ) -> None:
        self.order: list[ShardLayout] = []
        self.complete = False
        self.ends: dict[int, ShardEnd] = {}
        self.state = "planning"
        self.job = job
        self._ledger, self._store = ledger, store
        self._stream = EventStream(ledger, job, restorer)
        self._leases = leases
        if leases is not None:
            leases.keep(job, whole=keep)
        self._window = Window(ledger, job, store, leases)
        self._seen = 0
        self._pending: dict[int, UnitRecord] = {}
        self._before: dict[int, ShardLayout] = {}  # of a job that was lost and put back: what is in ``order`` already

    @property
    def budget_bytes(self) -> int | None:
        """What the store here may hold, where that is said."""
        return (self._store.limits.max_bytes or None) if self._store is not None else None

    def poll(self, timeout_s: float) -> bool:
        """Wait up to that long for news and take it in; True if there was any. Errors as :meth:`EventStream.poll`."""
        events = self._stream.poll(timeout_s)
        self._window.renew()
        if not events:
            return False
        over: dict[str, str] = {}
        layout = False
        for event in events:
            kind, n = event["k"], event["n"]
            layout |= kind in {"add", "sealed", "planned", "again"} or n.startswith("p")
            if kind == "lost":
                self._begin_again()
                over.clear()
            if kind in {"shard", "there"}:
                over[n] = event["s"]
            elif kind in {"again", "gone"}:
                over.pop(n, None)
                if not n.startswith("p"):
                    self.ends.pop(int(n), None)
                    self._window.taken_back(int(n))
                self.complete &= not n.startswith("p")
        shards = [n for n in over if not n.startswith("p")]
        for at in range(0, len(shards), 100):
            some = shards[at : at + 100]
            for n, packed in zip(some, self._ledger.results(self.job, some), strict=True):
                self.ends[int(n)] = self._end(int(n), over[n], Result.unpacked(packed))
        if layout:
            self._read_layout()
        self._leave(self._window.landed([int(n) for n in shards], self.ends))
        self.state = self._stream.ended or ("running" if self.complete else "planning")
        return True

    def _begin_again(self) -> None:
        """All of it comes once more, and what is done is found in the store again."""
        self._before = {layout.shard: layout for layout in self.order}
        self.ends = {n: end for n, end in self.ends.items() if end.state == "done"}
        self._pending.clear()
        self._window = self._window.anew()
        self._seen, self.complete = 0, False

    def _end(self, n: int, state: str, result: Result) -> ShardEnd:
        return ShardEnd(n, state, tuple(LocalFile.of(f, self._store) for f in result.files), result.failures)

    def _read_layout(self) -> None:
        """Extend ``order`` by what is certain: shards of sources before the first one that is still being planned,
        and of that one as far as it has come (a planner adds its shards in order)."""
        # What has been planned is asked before what there is: a planner that ends in between has added its shards by
        # then.
        meta = self._ledger.meta(self.job)
        plans = self._ledger.units(self.job, [f"p{n}" for n in range(int(meta["plan_next"]))])
        open_plans = [r.source for r in plans if r and r.state not in TERMINAL_SHARD]
        shards = int(self._ledger.meta(self.job)["next"])
        new = [str(n) for n in range(self._seen, shards)]
        self._seen = shards
        for at in range(0, len(new), 1000):
            some = new[at : at + 1000]
            for n, record in zip(some, self._ledger.units(self.job, some), strict=True):
                if record is not None:
                    self._pending[int(n)] = record
        sealed = meta["sealed"] == "1"
        certain = min(open_plans, default=math.inf if sealed else int(meta["upto"]))
        packed = JobOptions.from_json(json.loads(meta["options"])).pack is not None
        fresh = [
            ShardLayout(n, r.source, r.part, 1 if packed else r.files, packed)
            for n, r in self._pending.items()
            if r.source <= certain
        ]
        for layout in fresh:
            del self._pending[layout.shard]
            if self._before.get(layout.shard, layout) != layout:
                raise UnknownJob(self.job)  # planned anew, it came in another order: what was read does not fit
        fresh = [layout for layout in fresh if layout.shard not in self._before]
        self.order += sorted(fresh, key=lambda shard: (shard.source, shard.part))
        self.complete = sealed and not open_plans

    def plan_failures(self) -> tuple[Failure, ...]:
        """Sources that could not even be planned (nothing matched, access denied); known once the job is complete."""
        plans = [f"p{n}" for n in range(int(self._ledger.meta(self.job)["plan_next"]))]
        return tuple(f for packed in self._ledger.results(self.job, plans) for f in Result.unpacked(packed).failures)

    @property
    def over(self) -> bool:
        return self.state in TERMINAL_JOB

    def waiting_for(self, shard: int) -> str:
        """What that shard waits for, as a sentence for a person: its place in which queue, until when and why, for
        whose space, on which worker and at what rate it comes, or who is not there to take it."""
        (record,) = self._ledger.units(self.job, [str(shard)])
        if record is None:
            return f"shard {self.job}.{shard} is not planned yet"
        return why(self._ledger, record)

    def need(self, shards: Sequence[int]) -> None:
        """These shards are read now and next: those that are open, then the others, nearest first; some dozens, all of
        the window each time. What is due among them goes before all that nobody needs; what is delayed keeps its time.
        What is done and whose files are gone from the store here is fetched again, and leaves ``ends`` until then.
        With ``keep=False`` their files are held and no others.

        One round trip, unless files are gone. Each file is looked for when its shard comes into the window, see
        :meth:`doubt`. Raises :class:`LedgerUnavailable`, and :class:`StoreError` where the store is not there.
        """
        self._leave(self._window.move(shards, self.ends))

    def _leave(self, gone: Sequence[int]) -> None:
        for shard in gone:
            self.ends.pop(shard, None)

    def doubt(self, shards: Sequence[int]) -> None:
        """A file of these was not there when it was opened: the next :meth:`need` looks again."""
        self._window.doubt(shards)

    def release(self, shards: Sequence[int]) -> None:
        """These shards are consumed: their files may be evicted once all who read the job have said so."""
        if self._leases is not None:
            self._leases.done(self.job, shards)

    def report(self, progress: Progress) -> None:
        """``progress`` is asked from now on, by another thread, how far this reader has come, for those who watch. A
        client without leases tells nobody."""
        if self._leases is not None:
            self._leases.report(self.job, progress)

    def rest(self) -> None:
        """Nothing more is asked: let go of the connection. The files stay, until :meth:`close`."""
        self._ledger.close()

    def close(self) -> None:
        if self._leases is not None:
            self._leases.close()
        self._ledger.close()
