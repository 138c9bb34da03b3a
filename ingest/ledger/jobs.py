"""The submitter's and the reader's side of the ledger: jobs in, states, results and events out."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ingest.errors import UnknownJob
from ingest.ledger.records import Begun, Created, Following, NewUnit, UnitRecord, WorkerInfo, new_id
from ingest.ledger.redis import clock_of, text
from ingest.ledger.space import SpaceLedger
from ingest.model import TERMINAL_JOB, FileSpec, JobOptions
from ingest.queues import queues_of
from ingest.record import unpack, unpack_json
from ingest.sources import source_from_json

#: Events that one look at a job gives at most.
AT_ONCE = 1000


class JobLedger(SpaceLedger):
    """Reads are plain commands, in bulk; writes are scripts."""

    _heard: Sequence[str] = ()

    def create(self, options: JobOptions, key: str | None, job: str | None = None) -> Created:
        """A new job, or the one that the same key made before."""
        found = self.run("create", job or new_id(), key or "", *self._written(options))
        return Created(text(found[0]), bool(found[1]), bool(found[2]), text(found[3]), int(found[4]))

    def create_again(self, options: JobOptions, key: str | None, job: str) -> Created:
        """A job that Redis lost, under its id. Its key is another job's if somebody took it meanwhile."""
        found = self.create(options, key, job)
        return found if found.job == job else self.create(options, None, job)

    def begin(
        self, options: JobOptions, job: str, kind: str, upto: int, units: Sequence[NewUnit], *, whole: bool
    ) -> Begun:
        """:meth:`create` without a key, :meth:`add` of the first units and, where these are the ``whole``,
        :meth:`seal`: all of it or nothing."""
        args = [value for unit in units for value in unit]
        found = self.run("begin", job, *self._written(options), int(whole), kind, upto, *args)
        return Begun(text(found[0]), text(found[1]), int(found[2]))

    def _written(self, options: JobOptions) -> tuple[int, int, str]:
        return int(self.settings.keep_s * 1000), int(options.reply), json.dumps(options.to_json())

    def add(self, job: str, kind: str, start: int, upto: int, units: Sequence[NewUnit]) -> str:
        """Shards (kind ``""``) or pieces of planning (``"p"``), the first of which is the submitter's ``start``th of
        its kind: what was added before is not added again. ``ok``, ``cancelled``, ``unknown``, or ``given up``: too
        late."""
        args = [value for unit in units for value in unit]
        return text(self.run("add", job, kind, start, upto, *args))

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

    def state(self, job: str) -> str:
        """The job's state; "" for one that is not there."""
        with self.translated():
            return text(self.redis.hget(self.key("job", job), "state"))

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
        return [_record(f"{job}.{n}", data) for n, data in zip(numbers, found, strict=True)]

    def all_units(self, job: str) -> Iterator[UnitRecord]:
        with self.translated():
            for n, data in self.redis.hscan_iter(self.key("job", job, "shard"), count=500):
                if record := _record(f"{job}.{text(n)}", data):
                    yield record

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

    def results_and_made(self, job: str, numbers: Sequence[str]) -> tuple[list[bytes | None], str]:
        """:meth:`results`, and of which making of the job they are ("": it is not there)."""
        with self.translated():
            pipe = self.redis.pipeline(transaction=False)
            pipe.hmget(self.key("job", job, "done"), list(numbers))
            pipe.hget(self.key("job", job), "made")
            found, made = pipe.execute()
        return list(found), text(made)

    def events(self, job: str, after: str, block_ms: int, count: int = AT_ONCE) -> list[tuple[str, dict[str, str]]]:
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
            pipe.xread({self.key("job", job, "events"): after}, count=AT_ONCE, block=min(block_ms, 1000) or None)
            pipe.hmget(self.key("job", job), "made", "sealed")
            pipe.xrange(self.key("job", job, "events"), after, after)
            read, (made, sealed), there = pipe.execute()
        rows = [(text(i), {text(k): text(v) for k, v in f.items()}) for _, found in read or [] for i, f in found]
        goes_on = bool(there) or after == "0-0"
        return Following(rows, text(made), sealed == b"1", goes_on, len(rows) < AT_ONCE)

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
        with self.translated():
            pipe = self.redis.pipeline(transaction=False)
            self.ask_clock(pipe)
            pipe.zrange(self.key("workers"), 0, -1, withscores=True)
            if known := self._heard:  # mostly they are those of the last time
                pipe.mget(known)
            time, kept, names, *rest = pipe.execute()
            now, ahead = clock_of(time, kept)
            self._heard = keys = [self.key(kind, text(n)) for kind in ("worker", "able") for n, _ in names]
            found = [] if not keys else rest[0] if keys == known else self.redis.mget(keys)
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


def _record(unit: str, data: bytes | None) -> UnitRecord | None:
    """None also for one that cannot be read: somebody wrote into it."""
    try:
        return UnitRecord.parse(unit, data) if data else None
    except (ValueError, KeyError, TypeError):
        return None


def _specs(number: str, packed: bytes) -> list[FileSpec]:
    if number.startswith("p"):
        return [FileSpec(0, 0, source_from_json(unpack_json(packed)).uri)]
    return unpack(FileSpec, packed)
