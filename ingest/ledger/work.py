"""The worker's side of the ledger: claim, renew, give back, commit. Every call but ``claim`` names the fence token it
holds."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from ingest.ledger.pictures import PictureLedger
from ingest.ledger.records import NewUnit, UnitRecord
from ingest.ledger.redis import text
from ingest.model import Failure, FileRecord, FileSpec, JobOptions
from ingest.record import pack_json, unpack, unpack_json

#: Units that one call moves: some milliseconds.
MOVED_AT_ONCE = 200


@dataclass(frozen=True)
class Result:
    """What a unit has so far: the files that it published and those that failed for good; of a dry run, numbers."""

    files: tuple[FileRecord, ...] = ()
    failures: tuple[Failure, ...] = ()
    counts: Mapping[str, int] | None = None

    def packed(self) -> bytes:
        both = {"files": [f.to_json() for f in self.files], "failures": [f.to_json() for f in self.failures]}
        return pack_json(both | ({"counts": self.counts} if self.counts else {}))

    @classmethod
    def unpacked(cls, data: bytes | None) -> Result:
        if not data:
            return cls()
        both = unpack_json(data)
        return cls(
            tuple(FileRecord.from_json(f) for f in both["files"]),
            tuple(Failure.from_json(f) for f in both["failures"]),
            both.get("counts"),
        )

    @property
    def bytes(self) -> int:
        return sum(f.size for f in self.files)

    @property
    def arrived(self) -> set[tuple[int, int]]:
        """(source, part) of what is in these files."""
        return {place for f in self.files for place in f.holds}


@dataclass(frozen=True)
class Claim:
    """A leased unit: what to do, under which token, and what earlier attempts already have. ``down``: why its origin is
    not to be asked."""

    unit: str
    fence: str
    record: UnitRecord
    spec: bytes
    options: JobOptions
    earlier: Result
    cursor: str
    age_s: float
    down: str = ""

    @property
    def job(self) -> str:
        return self.unit.rpartition(".")[0]

    @property
    def number(self) -> str:
        return self.record.number

    @cached_property
    def files(self) -> list[FileSpec]:
        """What a shard lists."""
        return unpack(FileSpec, self.spec)

    @property
    def is_plan(self) -> bool:
        return self.record.is_plan


class Settled(NamedTuple):
    """After a unit went back or ended: ``ok`` (else the token was old), and how many more are due in its queue."""

    ok: bool
    due: int
    queue: str


class Tick(NamedTuple):
    """What is due, by queue; jobs to forget, and jobs whose submitter was not heard; whether there is more to take back
    at once."""

    due: dict[str, int]
    expired: list[str]
    abandoned: list[str]
    more: bool


class WorkLedger(PictureLedger):
    """One per worker process. A worker reads what a client reads, so this is that and more."""

    @property
    def _lease_ms(self) -> int:
        return int(self.settings.limits.lease_s * 1000)

    def claim(self, worker: str, pid: str, max_held: int, queues: Sequence[str]) -> Claim | None:
        """The best due unit of the first of ``queues`` that has one; None when there is none, or no slot for it.

        ``pid`` tells this process from every other of the worker, also from an earlier one of the same number.
        """
        found = self.run("claim", worker, pid, max_held, self._lease_ms, *queues)
        if found is None or isinstance(found, bytes):
            return None
        unit, fence, record, spec, options, earlier, age_ms, down = found
        return Claim(
            text(unit), text(fence), UnitRecord.parse(text(unit), record), spec,
            JobOptions.from_json(json.loads(options)), Result.unpacked(earlier), json.loads(record).get("cu", ""),
            int(age_ms) / 1000, text(down),
        )  # fmt: skip

    def progress(self, claim: Claim, size_bytes: int, held_bytes: int = 0) -> str:
        """Renew, and say how far it is: ``ok``, ``cancelled`` or ``lost``. ``held_bytes`` were here when it began: a
        unit that got further from one death of its worker to the next is not what kills them."""
        return text(self.run("progress", claim.unit, claim.fence, size_bytes, self._lease_ms, held_bytes))

    def takeoff(self, claim: Claim, keys: Sequence[str]) -> list[bool] | None:
        """For each source key, whether this unit may fetch it now; another one is at it where not. None: lease lost."""
        answer = self.run("takeoff", claim.unit, claim.fence, *keys)
        return None if isinstance(answer, bytes) else [bool(a) for a in answer]

    def wanted(self, keys: Sequence[str]) -> bool:
        """Whether a live job waits for one of these sources."""
        return bool(keys) and int(self.run("wanted", *keys)) > 0

    def add_planned(self, claim: Claim, cursor: str, units: Sequence[NewUnit], most: int = 0) -> str:
        """Shards found while planning. ``cursor`` names the batch: the same one is added once. ``ok``, ``cancelled``,
        ``lost``, or ``ahead``: added, and more than ``most`` units of the job are open; rest until half are."""
        args = [value for unit in units for value in unit]
        return text(self.run("planned", claim.job, claim.unit, claim.fence, cursor, most, *args))

    def origin(self, name: str, failures: int, reason: str = "") -> None:
        """What a claim learned of an origin: that it answered (0), or did not, so often and never in between."""
        self.run("origin", name, failures, _plain(reason))

    def open_units(self, job: str) -> int:
        """How many units of a job are not over."""
        with self.translated():
            return int(self.redis.hget(self.key("job", job), "open") or 0)

    def back(
        self,
        claim: Claim,
        delay_s: float,
        counted: bool,
        reason: str,
        result: Result | None,
        flights: Sequence[str],
        *,
        anew: bool = False,
    ) -> Settled:
        """Give the unit back, due again after ``delay_s``, with what it has so far (None: nothing new). ``counted``: it
        was an attempt that failed; ``anew``: one that failed and got further, so that counting begins anew."""
        return self._settled(
            self.run(
                "back",
                claim.unit,
                claim.fence,
                int(delay_s * 1000),
                2 if anew else int(counted),
                _plain(reason),
                *_numbers(result),
                *flights,
            )
        )

    def let_go(self, unit: str, fence: str, reason: str) -> None:
        """:meth:`back` at once and uncounted, in place of a process that cannot say it any more."""
        self.run("back", unit, fence, 0, 0, _plain(reason), *_numbers(None))

    def commit(self, claim: Claim, state: str, result: Result, flights: Sequence[str]) -> Settled:
        """The end: ``done``, ``failed`` or ``cancelled``."""
        return self._settled(self.run("commit", claim.unit, claim.fence, state, *_numbers(result), *flights))

    @staticmethod
    def _settled(answer: list[Any]) -> Settled:
        return Settled(True, int(answer[1]), text(answer[2])) if text(answer[0]) == "ok" else Settled(False, 0, "")

    # What the node's agent does, beside the processes that fetch.

    def held(self, worker: str) -> dict[str, tuple[str, str]]:
        """What a worker's processes hold: unit → (pid, fence)."""
        with self.translated():
            found = self.redis.hgetall(self.key("held", worker))
        return {text(unit): tuple(text(value).split(" ", 1)) for unit, value in found.items()}  # type: ignore[misc]

    def beat(
        self, worker: str, info: dict[str, Any], alive: Sequence[tuple[str, str]], dead: Sequence[tuple[str, str]]
    ) -> list[str]:
        """Heartbeat: renew what living processes hold, take back what dead ones held. Returns the units that are to
        stop."""
        pairs = [value for pair in (*alive, *dead) for value in pair]
        deaths, lease = self.settings.retry.deliveries, self._lease_ms
        said = json.dumps(info | {"lease_s": self.settings.limits.lease_s})
        facts = (info["node"], info["store"], said)
        return [text(u) for u in self.run("beat", worker, *facts, lease, deaths, len(alive), *pairs)]

    def able(self, worker: str) -> None:
        """A message that went through this worker's queue is answered."""
        self.run("able", worker)

    def able_at(self, worker: str) -> str:
        """When that was last, by the ledger's clock; "" for never."""
        with self.translated():
            return text(self.redis.get(self.key("able", worker)))

    def bye(self, worker: str) -> None:
        with self.translated():
            self.redis.zrem(self.key("workers"), worker)
            self.redis.delete(self.key("worker", worker), self.key("able", worker))

    def tick(self, every_s: float, abandoned_s: float) -> Tick | None:
        """What one node at a time does for all; None when another did it within ``every_s`` (0: go on)."""
        deaths = self.settings.retry.deliveries
        answer = self.run("tick", int(every_s * 1000), self._lease_ms, deaths, int(abandoned_s * 1000))
        if answer is None:
            return None
        due, expired, abandoned, more = answer
        return Tick(
            {text(q): int(n) for q, n in zip(due[::2], due[1::2], strict=True)},
            [text(j) for j in expired],
            [text(j) for j in abandoned],
            bool(more),
        )

    def outbox(self, limit: int, again_s: float) -> list[str]:
        """Units and jobs whose Celery result the caller is to write; others are asked for them after ``again_s``."""
        return [text(member) for member in self.run("outbox", limit, int(again_s * 1000))]

    def store_of(self, node: str) -> str | None:
        """The id of the store that a node last had, also when the node is dead; None for one never heard of."""
        with self.translated():
            found = self.redis.hget(self.key("stores"), node)
        return text(found) or None

    def reported(self, member: str) -> None:
        """The Celery result of a unit (or of a job) is written."""
        with self.translated():
            self.redis.zrem(self.key("outbox"), member)

    def move(self, origin: str, target: str, placement: str = "", *, within_s: float = 1.0) -> int:
        """What is due in a queue that nobody serves goes to another, and how much went; with a ``placement``, only what
        jobs with it have there. A huge queue is left half-way after ``within_s``."""
        end = time.monotonic() + within_s
        moved, passed = 0, 0
        while True:
            went, stayed = map(int, self.run("move", origin, target, placement, passed, MOVED_AT_ONCE))
            moved, passed = moved + went, passed + stayed
            if went + stayed < MOVED_AT_ONCE or time.monotonic() > end:
                return moved


def _plain(reason: str) -> str:
    """Fit for a record: a file name that is not UTF-8 may be in it."""
    return reason[:500].encode("utf-8", "backslashreplace").decode()


def _numbers(result: Result | None) -> tuple[bytes | str, int, int, int]:
    if result is None:
        return "", 0, 0, 0
    return result.packed(), len(result.arrived), len(result.failures), result.bytes
