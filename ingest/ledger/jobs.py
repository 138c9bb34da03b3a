"""The submitter's and the reader's side of the ledger: jobs in, states, results and events out."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from ingest.errors import UnknownJob
from ingest.ledger.redis import text
from ingest.ledger.space import SpaceLedger
from ingest.model import TERMINAL_JOB, FileSpec, JobOptions, origin_of
from ingest.queues import FETCH_QUEUE, node_queue, queues_of
from ingest.record import pack_json, unpack, unpack_json
from ingest.sources import AnySource, source_from_json, source_to_json

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


class Following(NamedTuple):
    """One look at a job's events: those after a certain one; ``made``, which differs once the job was lost and put
    back ("" while it is not there); whether its submission is complete; and whether that certain one is still there."""

    rows: list[tuple[str, dict[str, str]]]
    made: str
    sealed: bool
    goes_on: bool


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


class JobLedger(SpaceLedger):
    """Reads are plain commands, in bulk; writes are scripts."""

    def create(self, options: JobOptions, key: str | None, job: str | None = None) -> tuple[str, bool]:
        """A new job, or the one that the same key made before: ``(id, made)``."""
        found, made, _ = self._create(options, key, job or f"j{secrets.token_hex(8)}")
        return text(found), bool(made)

    def create_again(self, options: JobOptions, key: str | None, job: str) -> bool:
        """A job that Redis lost, under its id; whether it was not there. Its key is another job's if somebody took it
        meanwhile."""
        found, _, new = self._create(options, key, job)
        if text(found) != job:
            _, _, new = self._create(options, None, job)
        return bool(new)

    def _create(self, options: JobOptions, key: str | None, job: str) -> Any:
        keep_ms = int(self.settings.keep_s * 1000)
        return self.run("create", job, key or "", keep_ms, int(options.reply), json.dumps(options.to_json()))

    def add(self, job: str, kind: str, start: int, upto: int, units: Sequence[NewUnit]) -> str:
        """Shards (kind ``""``) or pieces of planning (``"p"``), the first of which is the submitter's ``start``th of
        its kind: what was added before is not added again. ``ok``, ``cancelled``, ``unknown``, or ``given up``: too
        late."""
        args = [value for unit in units for value in unit]
        return text(self.run("add", job, kind, start, upto, "", "", "", *args))

    def seal(self, job: str, error: str = "") -> str:
        return text(self.run("seal", job, error))

    def forget(self, job: str) -> bool:
        """A job that is over leaves the ledger. Whether it went: one that somebody reads stays for now."""
        return bool(self.run("forget", job))

    def meta(self, job: str) -> dict[str, str]:
        """The job's hash. Raises :class:`UnknownJob`."""
        with self.translated():
            found = self.redis.hgetall(self.key("job", job))
        if not found:
            raise UnknownJob(job)
        return {text(k): text(v) for k, v in found.items()}

    def job_of(self, key: str) -> str | None:
        """The job that was made with that key, if it is there."""
        with self.translated():
            found = self.redis.get(self.key("key", key))
            return text(found) if found and self.redis.exists(self.key("job", text(found))) else None

    def wants_reply(self, job: str) -> bool:
        """Whether the whole job is over and asked for one Celery result under its own id (``ingest.download``)."""
        with self.translated():
            reply, state = self.redis.hmget(self.key("job", job), "reply", "state")
        return reply == b"1" and text(state) in TERMINAL_JOB

    def live_bytes(self, job: str) -> int:
        """Bytes of files that are still on their way."""
        with self.translated():
            return sum(int(v) for v in self.redis.hvals(self.key("job", job, "live")))

    def live_bytes_of(self, unit: str) -> int:
        job, _, number = unit.rpartition(".")
        with self.translated():
            return int(self.redis.hget(self.key("job", job, "live"), number) or 0)

    def place_in_queue(self, record: UnitRecord) -> int | None:
        """How many units are to be claimed before that one; None where it is not in its queue now."""
        with self.translated():
            found = self.redis.zrank(self.key("due", record.queue), record.unit)
        return None if found is None else int(found)

    def units(self, job: str, numbers: Sequence[str]) -> list[UnitRecord | None]:
        if not numbers:
            return []
        with self.translated():
            found = self.redis.hmget(self.key("job", job, "shard"), list(numbers))
        return [UnitRecord.parse(f"{job}.{n}", data) if data else None for n, data in zip(numbers, found, strict=True)]

    def all_units(self, job: str) -> Iterator[UnitRecord]:
        with self.translated():
            for n, data in self.redis.hscan_iter(self.key("job", job, "shard"), count=500):
                yield UnitRecord.parse(f"{job}.{text(n)}", data)

    def specs(self, job: str, numbers: Sequence[str]) -> list[list[FileSpec]]:
        """The files that units list; for a piece of planning, its source as if it were one file."""
        if not numbers:
            return []
        with self.translated():
            found = self.redis.hmget(self.key("job", job, "spec"), list(numbers))
        return [_specs(n, packed) if packed else [] for n, packed in zip(numbers, found, strict=True)]

    def results(self, job: str, numbers: Sequence[str]) -> list[bytes | None]:
        """Packed results (``{"files": […], "failures": […]}``) of units; None for one that has none yet."""
        if not numbers:
            return []
        with self.translated():
            return list(self.redis.hmget(self.key("job", job, "done"), list(numbers)))

    def events(self, job: str, after: str, block_ms: int, count: int = 1000) -> list[tuple[str, dict[str, str]]]:
        """What happened to a job after that event id; waits up to ``block_ms`` for something to happen (0: does not
        wait).

        ``k`` is the kind: ``add``, ``sealed``, ``planned``, ``part`` and ``shard`` (with ``n`` and, for shard, its
        state ``s``), ``again`` (a unit is tried again after its end), ``anew`` (what it had does not count any more:
        its source is read at another moment), ``end`` (the job's state in ``s``). For readers: ``gone`` (files of a
        shard that is done are gone, and it is fetched again) and ``there`` (that is over; its state ``s``).
        """
        # A read may not block for longer than the socket's patience.
        block = min(block_ms, 2000) or None
        with self.translated():
            answer = self.redis.xread({self.key("job", job, "events"): after}, count=count, block=block)
        return [
            (text(i), {text(k): text(v) for k, v in fields.items()}) for _, rows in answer or [] for i, fields in rows
        ]

    def follow(self, job: str, after: str, block_ms: int) -> Following:
        """:meth:`events`, and in the same answer whether it is still the same job. ``block_ms`` as there."""
        with self.translated():
            pipe = self.redis.pipeline(transaction=False)
            pipe.xread({self.key("job", job, "events"): after}, count=1000, block=min(block_ms, 1000) or None)
            pipe.hmget(self.key("job", job), "made", "sealed")
            pipe.xrange(self.key("job", job, "events"), after, after)
            read, (made, sealed), there = pipe.execute()
        rows = [(text(i), {text(k): text(v) for k, v in f.items()}) for _, found in read or [] for i, f in found]
        return Following(rows, text(made), sealed == b"1", bool(there) or after == "0-0")

    def was_lost(self, job: str, epoch: str, created_ms: int) -> bool:
        """Of a job that is not there: whether Redis lost it, rather than that it expired or was forgotten."""
        with self.translated():
            pipe = self.redis.pipeline(transaction=False)
            pipe.get(self.key("epoch"))
            pipe.zscore(self.key("gone"), job)
            now, gone = pipe.execute()
        if text(now) != epoch:
            return True  # the whole ledger is another one
        return gone is None and self.now_ms() - created_ms < self.settings.keep_s * 1000

    def sweep(self, verb: str, job: str) -> list[str]:
        """``cancel`` or ``retry`` all units of a job that it applies to. Returns the queues that have something due
        for it."""
        queues: list[str] = []
        cursor = "0"
        while True:
            cursor, *found = map(text, self.run("sweep", verb, job, cursor))
            queues += found
            if cursor == "0":
                return queues

    def cursor(self, key: str) -> str:
        """Where a cursor stands (JSON, as :mod:`workers.snapshots.increments` writes it); "" for none."""
        with self.translated():
            return text(self.redis.hget(self.key("cursors"), key))

    def set_cursor(self, key: str, value: str) -> None:
        with self.translated():
            if value:
                self.redis.hset(self.key("cursors"), key, value)
            else:
                self.redis.hdel(self.key("cursors"), key)

    def recent(self, limit: int) -> list[str]:
        """Ids of the latest jobs, newest first."""
        with self.translated():
            return [text(j) for j in self.redis.zrevrange(self.key("jobs"), 0, limit - 1)]

    def workers(self) -> list[WorkerInfo]:
        """The workers that are alive: heard within the lease that they have."""
        now, ahead = self.clock()
        with self.translated():
            names = self.redis.zrange(self.key("workers"), 0, -1, withscores=True)
            keys = [self.key(kind, text(n)) for kind in ("worker", "able") for n, _ in names]
            found = self.redis.mget(keys) if keys else []
        out = []
        for (name, seen), info, able in zip(names, found[: len(names)], found[len(names) :], strict=True):
            d: Mapping[str, Any] = json.loads(info) if info else {}
            if d and now - seen <= d.get("lease_s", self.settings.limits.lease_s) * 1000:
                out.append(
                    WorkerInfo(
                        id=text(name),
                        node=d["node"],
                        store=d["store"],
                        slots=d["slots"],
                        connections=tuple(d["connections"]),
                        version=d["version"],
                        free_bytes=d["free_bytes"],
                        age_s=max(0.0, (now - seen) / 1000),
                        pid=d["pid"],
                        able_s=max(0.0, (now - int(able)) / 1000) if able else None,
                        unable=d.get("unable", ""),
                        unfit=d.get("unfit", ""),
                        skew_s=d["time"] - (seen - ahead) / 1000 if "time" in d else 0.0,
                        queues=tuple(d.get("queues") or queues_of(d["node"])),
                    )
                )
        return out

    def due_count(self, queue: str) -> int:
        with self.translated():
            return int(self.redis.zcard(self.key("due", queue)))


def numbers_of(meta: Mapping[str, str]) -> list[str]:
    """All units that a job has by its hash: pieces of planning, then shards."""
    return [f"p{n}" for n in range(int(meta["plan_next"]))] + [str(n) for n in range(int(meta["next"]))]


def _specs(number: str, packed: bytes) -> list[FileSpec]:
    if number.startswith("p"):
        return [FileSpec(0, 0, source_from_json(unpack_json(packed)).uri)]
    return unpack(FileSpec, packed)


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
