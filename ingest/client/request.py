"""A job as it was asked for: written into the ledger, and put back there when Redis lost it. What its sources mean is
in ``submission``; nothing of them is copied, so they must stay what they were."""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ingest.client.bells import ring
from ingest.client.follow import Deadline, patiently
from ingest.client.local import Survey
from ingest.client.submission import Unit, cut
from ingest.errors import UnknownJob, UsageError
from ingest.ledger import JobLedger, NewUnit, batched, new_id
from ingest.model import JobOptions
from ingest.placement import choose_queue
from ingest.queues import FETCH_QUEUE, PLAN_QUEUE
from ingest.settings import Settings
from ingest.sources import AnySource, Source, as_sources

log = logging.getLogger(__name__)

#: A Redis that loses a job again and again while it is submitted evicts keys.
MOST_LOSSES = 10
#: Bells for a batch of units at the least: there may be more processes by now than there were.
LEAST_RINGS = 32


class _Batch(NamedTuple):
    """Units of one kind, for one call; the last is of the source ``upto``. ``due``: how many by queue."""

    kind: str
    upto: int
    units: list[NewUnit]
    due: Mapping[str, int]


class Request:
    """What a job's handle keeps of ``submit``, in the process that called it. ``given`` is the caller's own object.

    ``nodes`` are those that were alive then. Used by any number of threads.
    """

    def __init__(
        self,
        settings: Settings,
        ledger: JobLedger,
        given: Any,
        surveys: Mapping[int, Survey],
        options: JobOptions,
        key: str | None,
        nodes: Sequence[str],
    ) -> None:
        self.job = ""
        self.options = options
        self._settings, self._ledger = settings, ledger
        self._rings, self._begun = True, False
        self._given, self._surveys, self._key, self._nodes = given, surveys, key, list(nodes)
        self._epoch, self._created_ms = "", 0
        self._digest = ""
        self._over_at: float | None = None
        self._cancelled = False
        self._once = iter(given) is given if hasattr(given, "__iter__") else False  # cannot be gone through twice
        self._lock = threading.Lock()

    def submit(self, sources: list[str | AnySource]) -> None:
        """Make the job, or find the one of this key, and write what is not there. Raises :class:`UsageError` for a key
        of other sources, :class:`LedgerUnavailable`. Ctrl-C says in a note which job it had begun."""
        try:
            self._submit(sources)
        except KeyboardInterrupt as stop:
            if self._begun:
                stop.add_note(
                    f"job {self.job} had begun to be submitted, and what the ledger has of it, if anything, goes on: "
                    f"`ingest cancel {self.job}` stops it"
                )
            raise

    def _submit(self, sources: list[str | AnySource]) -> None:
        while True:
            self.job, self._begun = new_id(), False
            if self._key is not None and not self._create():
                return
            if self._write(sources, Deadline(math.inf)) != "given up":
                return
            reason = "this process stood still for so long that its submission was given up; it begins again"
            log.warning("job.submitted_again %s", self.job, extra={"job": self.job, "reason": reason})

    def _create(self) -> bool:
        """The job of this key: whether it is still to be written."""
        made = self._ledger.create(self.options, self._key, self.job)
        self.job, self._begun = made.job, True
        if not made.is_new:
            options = JobOptions.from_json(json.loads(self._ledger.meta(made.job)["options"]))
            if options.request != self.options.request:
                raise UsageError(
                    f"key {self._key!r} is job {self.job}'s, which asks for other sources; take another key"
                )
            self.options = options  # those of who submitted it first, who may have seen another fleet
        self._known(made.epoch, made.created)
        return made.is_open

    def is_over(self) -> None:
        """The job's end was seen: it expires from now on."""
        self._over_at = self._over_at or time.monotonic()

    def goes_on(self) -> None:
        """It was taken up again: it does not expire, and is wanted."""
        self._over_at, self._cancelled = None, False

    def drop(self) -> None:
        """It was cancelled: do not put it back."""
        self._cancelled = True

    def complete(self, deadline: Deadline) -> None:
        """Write what a Redis that lost its last moments has not of a submission that was complete."""
        with self._lock:
            if not (self._cancelled or self._once):
                log.warning("job.completed_again %s", self.job, extra={"job": self.job})
                self._write(self._sources(), deadline)

    def put_back(self, deadline: Deadline) -> bool:
        """Put the job back under its id, if Redis lost it: once for each loss, whoever else does so too. False for a
        job that expired, was forgotten or cancelled, or whose sources are not kept or have changed."""
        with self._lock:
            if self._cancelled or self._once or self._expired():
                return False
            if self._is_there(deadline):
                return True
            if not patiently(lambda: self._ledger.was_lost(self.job, self._epoch, self._created_ms), deadline):
                return False
            try:
                sources = self._sources()
            except UsageError as error:
                log.warning("job.not_put_back %s", error, extra={"job": self.job, "reason": str(error)})
                return False
            self._begin_again(deadline)
            self._write(sources, deadline)
            return True

    def _is_there(self, deadline: Deadline) -> bool:
        """Another process, or another thread with this handle, was first."""
        try:
            meta = patiently(lambda: self._ledger.meta(self.job), deadline)
        except UnknownJob:
            return False
        self._known(meta["epoch"], int(meta["created"]))
        return True

    def _expired(self) -> bool:
        return self._over_at is not None and time.monotonic() - self._over_at >= self._settings.keep_s

    def _sources(self) -> list[str | AnySource]:
        """As they were. Raises :class:`UsageError` where that cannot be said any more."""
        sources = as_sources(self._given)
        if self._digest:
            digest = hashlib.sha256()
            for _, new in self._units(sources):
                digest.update(new[0].spec)
            same = digest.hexdigest() == self._digest
        else:
            same = fingerprint(sources, self._surveys) == self.options.request
        if not same:
            raise UsageError(f"the sources of job {self.job} are not what they were when it was submitted")
        return sources

    def _known(self, epoch: str, created_ms: int) -> None:
        self._epoch, self._created_ms = epoch, created_ms

    def _begin_again(self, deadline: Deadline) -> None:
        made = patiently(lambda: self._ledger.create_again(self.options, self._key, self.job), deadline)
        if made.is_new:
            log.warning("job.put_back %s", self.job, extra={"job": self.job, "reason": "the ledger has lost it"})
        self._known(made.epoch, made.created)

    def _write(self, sources: list[str | AnySource], deadline: Deadline) -> str:
        """All units into the ledger, each batch rung for as it lands; then the seal. Begins again when the ledger is
        wiped meanwhile; at the deadline it leaves the rest to the next wait. Returns what the ledger said last."""
        for _ in range(MOST_LOSSES):
            answer = self._write_once(sources, deadline)
            if answer != "unknown":
                return answer
            self._begin_again(deadline)
        raise UnknownJob(self.job)

    def _write_once(self, sources: list[str | AnySource], deadline: Deadline) -> str:
        numbers = {"": 0, "p": 0}
        digest = hashlib.sha256()
        batches = self._batches(sources)
        batch = next(batches, _Batch("", 0, [], {}))  # of a list that is empty there is nothing but the seal
        while True:
            for unit in batch.units:
                digest.update(unit.spec)
            following = next(batches, None)
            answer = self._write_batch(batch, numbers[batch.kind], following is None, deadline)
            if answer != "ok":  # cancelled meanwhile, or the ledger was wiped
                return answer
            numbers[batch.kind] += len(batch.units)
            self._ring(batch.due)
            if following is None:
                self._digest = digest.hexdigest()
                return "ok"
            if deadline.over:
                return "late"
            batch = following

    def _write_batch(self, batch: _Batch, start: int, is_last: bool, deadline: Deadline) -> str:
        """The first one makes the job, if that is still to be done; the last one seals it."""
        if not self._begun:
            self._begun = True
            begun = self._ledger.begin(self.options, self.job, batch.kind, batch.upto, batch.units, whole=is_last)
            self._known(begun.epoch, begun.created)
            return begun.answer
        answer = patiently(lambda: self._ledger.add(self.job, batch.kind, start, batch.upto, batch.units), deadline)
        if answer == "ok" and is_last:
            state = patiently(lambda: self._ledger.seal(self.job), deadline)
            return state if state in {"unknown", "given up"} else "ok"
        return answer

    def _batches(self, sources: Sequence[str | AnySource]) -> Iterator[_Batch]:
        for kind, run in itertools.groupby(self._units(sources), key=lambda pair: "p" if pair[0].source else ""):
            for batch in batched(run, weigh=lambda pair: len(pair[0].files)):
                due = Counter(queue for _, (_, queue) in batch)
                yield _Batch(kind, batch[-1][0].index, [new for _, (new, _) in batch], due)

    def _ring(self, due: Mapping[str, int]) -> None:
        """Twice for each process that there is, who then go on by themselves. A broker that hangs is waited for
        once."""
        most = max(LEAST_RINGS, 2 * self.options.slots)
        self._rings = self._rings and ring(self._settings, {queue: min(count, most) for queue, count in due.items()})

    def _units(self, sources: Sequence[str | AnySource]) -> Iterator[tuple[Unit, tuple[NewUnit, str]]]:
        for unit in cut(sources, self.options.shard_files, self._surveys, self.options.slots):
            yield unit, _new_unit(self.job, unit, self.options, self._nodes)


def fingerprint(sources: Sequence[str | AnySource], surveys: Mapping[int, Survey]) -> str:
    """What tells one request from another. Cheap: it is made of a million sources, too."""
    digest = hashlib.sha256()
    for source in sources:
        written = Source(source) if isinstance(source, str) else source
        digest.update(repr(written).encode("utf-8", "surrogatepass"))
    for known in surveys.values():
        digest.update(known.digest.encode())
    return digest.hexdigest()[:32]


def _new_unit(job: str, unit: Unit, options: JobOptions, nodes: list[str]) -> tuple[NewUnit, str]:
    if unit.source is not None:
        queue = choose_queue(PLAN_QUEUE, "any" if options.placement == "spread" else options.placement, nodes, job)
        return NewUnit.plan(unit.source, unit.index, queue), queue
    queue = choose_queue(FETCH_QUEUE, options.placement, nodes, unit.files[0]["uri"])
    return NewUnit.listed(unit.files, queue), queue
