"""The ledger's side of space: what a store holds and what is reserved in it, and who reads which job. What lies on the
disk, and what may go, is for ``ingest.store.evict`` and ``ingest.space``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

from ingest.ledger.redis import Ledger, text
from ingest.model import Consumer

#: A reader that is not heard for so long is gone; it says four times in that time that it lives.
READER_TTL_S = 60.0


class Space(NamedTuple):
    """Of a store, in bytes: ``used`` as last counted and published since (None before the first count), and
    ``reserved`` by units that fetch into it. ``waiting``: how many units wait for space there;
    ``counted_s``: seconds since the disk was counted."""

    used: int | None
    reserved: int
    waiting: int
    counted_s: float | None = None


class Grant(NamedTuple):
    """``ok`` and how much is ``granted`` in all; or ``lost``, ``uncounted``, or ``full``: so much is ``missing``, and
    ``why`` nothing can be evicted for ``wait_s`` more, or "". ``can_wait``: see :meth:`SpaceLedger.can_wait`."""

    answer: str
    granted: int = 0
    missing: int = 0
    why: str = ""
    wait_s: float = 0.0
    can_wait: bool = False


class Turn(NamedTuple):
    """The right to evict: ``ok``, ``busy`` (another has it) or ``young`` (readers must be heard first). ``holders``
    changes when it is another question which files are held, ``comers`` when more of them may be."""

    answer: str
    holders: str = ""
    added: int = 0
    comers: str = ""


class Dry(NamedTuple):
    """Why no more can be evicted for ``seconds``, as of that ``version`` of who holds what; ``later``: for those who
    can wait."""

    why: str = ""
    version: str = ""
    seconds: float = 0.0
    later: bool = False


@dataclass(frozen=True)
class Holder:
    """A job whose files stay, and ``why``: those of the shards in ``only`` where it is read by windows; else all but
    those of the shards that every reader has ``released``."""

    job: str
    why: str
    released: frozenset[str] = frozenset()
    only: frozenset[str] | None = None


class Needed(NamedTuple):
    """What became of a window: ``queues`` to ring for, and the shards of it that are not held (``loose``), since one
    that is needed before them waits for space."""

    queues: list[str]
    loose: list[int]


class SpaceLedger(Ledger):
    """Stores are named by their ids, sizes are bytes."""

    def space(self, store: str) -> Space:
        with self.translated():
            used, reserved, counted = self.redis.hmget(self.key("space", store), "used", "res", "counted")
            waiting = self.redis.zcard(self.key("short", store))
        age_s = None if counted is None else max(0.0, (self.now_ms() - int(counted)) / 1000)
        return Space(None if used is None else int(used), int(reserved or 0), int(waiting), age_s)

    def reserve(
        self,
        unit: str,
        fence: str,
        store: str,
        need: int,
        *,
        wish: int = 0,
        most: int,
        moved: int = 0,
        published: int = 0,
    ) -> Grant:
        """Space for what a leased unit is writing, in all; see ``reserve.lua``."""
        args = (need, max(need, wish), most, moved, published)
        answer, *more = self.run("reserve", unit, fence, store, *args)
        if text(answer) == "ok":
            return Grant("ok", granted=int(more[0]))
        if text(answer) == "full":
            return Grant("full", 0, int(more[0]), text(more[1]), int(more[2]) / 1000, len(more) > 3)
        return Grant(text(answer))

    def can_wait(self, unit: str) -> bool:
        """Whether a shard is of a job that is read by a window, and nobody needs it yet: then nothing is evicted for it
        that such a job has fetched."""
        job, _, number = unit.rpartition(".")
        with self.translated():
            windowed = int(self.redis.get(self.key("windowed", job)) or 0)
            packed = self.redis.hget(self.key("job", job, "shard"), number) if windowed else None
        now = self.now_ms()
        return packed is not None and windowed > now > json.loads(packed).get("nt", 0)

    def turn(
        self,
        store: str,
        token: str,
        ttl_s: float,
        *,
        step: int = 0,
        freed: int = 0,
        dry: Dry | None = None,
        patient: str = "",
    ) -> Turn:
        """Take, keep or (``ttl_s`` 0) give back the right to evict from a store; ``step`` freed so many bytes.
        ``patient``: "1" where jobs have been, so that after a wipe of the ledger readers are waited for, "0" only after
        its absence, "" never."""
        dry = dry or Dry()
        ms = int(dry.seconds * 1000)
        args = (step, freed, int(ttl_s * 1000), dry.why, patient, dry.version, ms, int(dry.later))
        answer, *more = self.run("evict", store, token, *args)
        return Turn(text(answer), text(more[0]), int(more[1]), text(more[2])) if more else Turn(text(answer))

    def counted(self, store: str, size: int, added: int, scratch: Sequence[tuple[str, int]]) -> None:
        """What the disk holds: ``size`` of published files, and ``scratch`` (source key, bytes). ``added`` is the
        turn's, from before."""
        self.run("count", store, size, added, *(value for pair in scratch for value in pair))

    def aloft(self, store: str, keys: Sequence[str]) -> list[bool]:
        """Which of these sources are in flight to a store."""
        return [bool(found) for found in self.run("aloft", store, *keys)] if keys else []

    def read(self, reader: str, jobs: Sequence[str], ttl_s: float = READER_TTL_S) -> None:
        """A process reads these jobs: their files stay for ``ttl_s``. 0: it does not any more."""
        if jobs:
            self.run("read", reader, int(ttl_s * 1000), *jobs)

    def need(
        self,
        job: str,
        reader: str,
        shards: Sequence[int],
        *,
        holds: str = "",
        gone: Mapping[int, int] | None = None,
        queue: str = "",
        ttl_s: float = READER_TTL_S,
    ) -> Needed:
        """These shards, nearest first, are what a reader needs now, for ``ttl_s``; see ``need.lua``. It ``holds``
        the files of its ``window``, of ``all`` of the job, or none (""). ``gone``: shards of them of which files are
        gone though they are done, and how often their end was taken back by then; they are fetched from ``queue``."""
        pairs = [value for pair in (gone or {}).items() for value in pair]
        args = (int(ttl_s * 1000), holds, queue, len(gone or {}), *pairs, *shards)
        queues, loose = self.run("need", job, reader, *args)
        return Needed(sorted(set(map(text, queues))), [int(n) for n in loose])

    def release(self, job: str, reader: str, shards: Sequence[int]) -> None:
        """A reader has done with these shards: what all readers of the job released may go. Without a lease of that
        reader nothing happens."""
        if shards:
            self.run("release", job, reader, int(READER_TTL_S * 1000), *shards)

    def tell(self, job: str, consumer: str, progress: Mapping[str, Any] | None) -> None:
        """How far a consumer of a job has come: the fields of :class:`Consumer`. None: it reads no more."""
        said = "" if progress is None else json.dumps(progress)
        self.run("tell", job, consumer, int(READER_TTL_S * 1000), said)

    def consumers(self, job: str) -> list[Consumer]:
        """Who reads a job and was heard within ``READER_TTL_S``, by rank."""
        now = self.now_ms()
        with self.translated():
            pipe = self.redis.pipeline(transaction=False)
            pipe.zrangebyscore(self.key("consuming", job), now, "+inf", withscores=True)
            pipe.hgetall(self.key("consumers", job))
            heard, said = pipe.execute()
        found = []
        for consumer, until_ms in heard:
            with suppress(ValueError, TypeError, KeyError):  # of another version
                progress = json.loads(said[consumer])
                age_s = max(0.0, READER_TTL_S - (until_ms - now) / 1000)
                found.append(Consumer(**progress, age_s=age_s))
        return sorted(found, key=lambda each: (each.rank, each.host, each.pid))

    def parted(self, job: str) -> list[str]:
        """The shards of a job that were ever handed back with files."""
        with self.translated():
            return sorted(map(text, self.redis.smembers(self.key("job", job, "parted"))))

    def holders(self, hold_s: float) -> list[Holder]:
        """The jobs that hold files: those that are read now, those that are not over, and those that ended within
        ``hold_s`` and were read by nobody yet. A job with ``into`` holds only while it is read: its files are where
        they were asked for."""
        now = self.now_ms()
        with self.translated():
            pipe = self.redis.pipeline(transaction=False)
            pipe.zrangebyscore(self.key("reading"), now, "+inf")
            pipe.zrangebyscore(self.key("holding"), now - int(hold_s * 1000), "+inf", withscores=True)
            reading, ended = pipe.execute()
            ends = {text(job): float(at) for job, at in ended}
            jobs = sorted({*map(text, reading), *ends})
            pipe = self.redis.pipeline(transaction=False)
            for job in jobs:
                pipe.hmget(self.key("job", job), "options", "read")
                pipe.zrangebyscore(self.key("readers", job), now, "+inf")
            found = pipe.execute()
            made = [
                self._holder(job, ends.get(job), meta, list(map(text, readers)))
                for job, meta, readers in zip(jobs, found[::2], found[1::2], strict=True)
            ]
        return [holder for holder in made if holder is not None]

    def _holder(self, job: str, ended: float | None, meta: list[Any], readers: list[str]) -> Holder | None:
        options = json.loads(meta[0]) if meta[0] else {}
        name = f"job {job} ({options['name']})" if options.get("name") else f"job {job}"
        running = ended == math.inf
        if readers:
            said = f"{name}, which {len(readers)} process{'es' * (len(readers) > 1)} read{'s' * (len(readers) == 1)}"
            return Holder(job, said, *self._held(job, readers))
        if ended is None or not meta[0] or options.get("into"):
            return None
        if running:
            return Holder(job, f"{name}, which is not over and which nobody reads")
        return None if meta[1] else Holder(job, f"{name}, which has just ended")

    def _held(self, job: str, readers: list[str]) -> tuple[frozenset[str], frozenset[str] | None]:
        """What readers let go, and what they hold instead of all the rest, see :class:`Holder`."""
        pipe = self.redis.pipeline(transaction=False)
        for reader in readers:
            pipe.smembers(self.key("released", f"{job}:{reader}"))
            pipe.hgetall(self.key("window", f"{job}:{reader}"))
        found = pipe.execute()
        held: set[str] = set()
        released: list[frozenset[str]] = []
        for gone, window in zip(found[::2], found[1::2], strict=True):
            if window.pop(b"-", b"") == b"window":
                held |= {text(n) for n, is_held in window.items() if is_held == b"1"}
            else:
                released.append(frozenset(map(text, gone)))
        if not released:
            return frozenset(), frozenset(held)
        return frozenset.intersection(*released) - held, None
