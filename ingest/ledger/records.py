"""What goes into the ledger and comes out of it, as values: units on their way in, their records, jobs as they were
made, what happened to them, workers. The calls are in ``jobs`` and ``work``."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ingest.model import FileSpec, origin_of
from ingest.queues import FETCH_QUEUE, node_queue
from ingest.record import pack_json
from ingest.sources import AnySource, source_to_json

#: Units in one add call: a few hundred keep a script under some milliseconds.
BATCH = 400
#: Files in the units of one call: their specs are in memory all at once, and what they pack to is one message to Redis.
BATCH_WEIGHT = 100_000


class NewUnit(NamedTuple):
    """A shard or a piece of planning on its way into the ledger: its packed spec, and the facts that its record
    keeps."""

    spec: bytes
    facts: str

    @classmethod
    def shard(cls, specs: Sequence[FileSpec], queue: str) -> NewUnit:
        return cls.listed([spec.to_json() for spec in specs], queue)

    @classmethod
    def listed(cls, files: Sequence[Mapping[str, Any]], queue: str) -> NewUnit:
        """A shard of files as they travel (:meth:`FileSpec.to_json`)."""
        first = files[0]
        facts = {"i": first["source"], "p": first["part"], "c": len(files), "o": origin_of(first["uri"]), "q": queue}
        return cls(pack_json(files), json.dumps(facts, separators=(",", ":")))

    @classmethod
    def plan(cls, source: AnySource, index: int, queue: str) -> NewUnit:
        facts = {"i": index, "p": 0, "c": 0, "o": origin_of(source.uri), "q": queue}
        return cls(pack_json(source_to_json(source)), json.dumps(facts, separators=(",", ":")))


@dataclass(frozen=True)
class UnitRecord:
    """What the ledger keeps of a unit: see ``common.lua``. ``gone``: it was done, and is fetched again since files of
    it are gone; ``claimed_ms``: when it was leased last; ``need``: how far ahead of a reader it is, if one needs it."""

    unit: str
    state: str
    queue: str
    source: int
    part: int
    files: int
    origin: str
    attempts: int
    deaths: int
    worker: str
    due_ms: int
    reason: str
    failed: int
    again: int = 0
    reclaimed: bool = False
    gone: bool = False
    claimed_ms: int = 0
    need: int | None = None

    @property
    def number(self) -> str:
        """``"7"`` for a shard, ``"p0"`` for a piece of planning."""
        return self.unit.rpartition(".")[2]

    @property
    def is_plan(self) -> bool:
        return self.number.startswith("p")

    @classmethod
    def parse(cls, unit: str, data: bytes | str) -> UnitRecord:
        r = json.loads(data)
        return cls(
            unit, r["s"], r["q"], int(r["i"]), int(r["p"]), int(r["c"]), r.get("o", ""),
            int(r.get("at", 0)), int(r.get("dl", 0)), r.get("w") or "",
            int(r.get("nb") or 0), r.get("er") or "", int(r.get("ff") or 0), int(r.get("an") or 0),
            bool(r.get("re")), bool(r.get("gn")), int((r.get("f") or "0").partition(".")[0]) * 1000, r.get("nd"),
        )  # fmt: skip


class Created(NamedTuple):
    """A job, as it was made or found: ``is_open`` while its submission is not complete, ``is_new`` if this call made
    it. ``epoch`` names the ledger that it is in, ``created`` is in ms of that."""

    job: str
    is_open: bool
    is_new: bool
    epoch: str
    created: int


class Begun(NamedTuple):
    """What became of a submission that has just begun, as :meth:`JobLedger.add` says it; the rest as of
    :class:`Created`."""

    answer: str
    epoch: str
    created: int


class Following(NamedTuple):
    """One look at a job's events: those after a certain one; ``made``, which differs once the job was lost and put
    back ("" while it is not there); whether its submission is complete; whether that certain one is still there; and
    whether these are all that there are by now."""

    rows: list[tuple[str, dict[str, str]]]
    made: str
    sealed: bool
    goes_on: bool
    is_all: bool


@dataclass(frozen=True)
class WorkerInfo:
    """What a live worker says of itself, from its last heartbeat.

    ``able_s``: seconds since a message in its queue was answered, or its work went on while no process was free; None
    where none was yet. ``unable``, ``unfit``: why it cannot work though it is alive, and why its store cannot be
    worked in; "" where it can. ``skew_s``: by how much its clock is ahead of Redis's. ``queues``: those that it
    consumes.
    """

    id: str
    node: str
    store: str
    slots: int
    connections: tuple[str, ...]
    version: str
    free_bytes: int
    age_s: float
    pid: int
    able_s: float | None = None
    unable: str = ""
    unfit: str = ""
    skew_s: float = 0.0
    queues: tuple[str, ...] = ()

    @property
    def trouble(self) -> str:
        """Why nothing is to be expected of it now, or ""."""
        return f"unfit: {self.unfit}" if self.unfit else f"not able to work: {self.unable}" if self.unable else ""


def fit(workers: Sequence[WorkerInfo]) -> list[str]:
    """The nodes on which work can be placed: of those that consume the queue of their own, those that can work now; all
    of them where none can."""
    own = [worker for worker in workers if node_queue(FETCH_QUEUE, worker.node) in worker.queues]
    return sorted({worker.node for worker in [w for w in own if not w.trouble] or own})


def new_id() -> str:
    """Of a job."""
    return f"j{secrets.token_hex(8)}"


def numbers_of(meta: Mapping[str, str]) -> list[str]:
    """All units that a job has by its hash: pieces of planning, then shards."""
    return [f"p{n}" for n in range(int(meta["plan_next"]))] + [str(n) for n in range(int(meta["next"]))]


T = TypeVar("T")


def batched(items: Iterable[T], size: int = BATCH, weigh: Callable[[T], int] = lambda item: 0) -> Iterator[list[T]]:
    """Lists of up to ``size`` items; of fewer, once they weigh ``BATCH_WEIGHT`` together."""
    batch: list[T] = []
    weight = 0
    for item in items:
        batch.append(item)
        weight += weigh(item)
        if len(batch) == size or weight >= BATCH_WEIGHT:
            yield batch
            batch, weight = [], 0
    if batch:
        yield batch
