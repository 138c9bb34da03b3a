"""``Job``: follow a submitted job from any process, before, during or after the work. Every wait has a deadline."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from ingest.client.bells import ring
from ingest.client.files import LocalFile
from ingest.client.follow import AGAIN_S, Deadline, EventStream, patiently
from ingest.client.lease import Leases
from ingest.client.places import Places
from ingest.client.reader import JobReader
from ingest.client.request import Request
from ingest.client.submission import positive
from ingest.client.waiting import describe, trouble
from ingest.errors import LedgerUnavailable, UnknownJob, WaitTimeout
from ingest.ledger import JobLedger, Result, UnitRecord, batched, numbers_of
from ingest.ledger.connect import until
from ingest.model import TERMINAL_JOB, Consumer, Failure, FileRecord, JobStatus
from ingest.settings import Settings
from ingest.store import Store

_LOOK_AT = 5000  # units, for one that says why a job waits
_STATES = ("due", "leased", "done", "failed", "cancelled", "quarantined")


class Outcome(NamedTuple):
    """How a job ended (done, failed or cancelled), and its files as :meth:`Job.files` has them."""

    state: str
    files: list[LocalFile]


T = TypeVar("T", JobStatus, Outcome)


class Job:
    """A job's handle: its id and a connection. ``client.job(id)`` makes the same one elsewhere.

    One that ``submit`` gave keeps ``request``: when Redis has lost the job, its waits put it back. From the first time
    that files are asked for until this process ends, or ``release()``, none of them is evicted (``leases``).
    """

    def __init__(
        self,
        id: str,
        settings: Settings,
        ledger: JobLedger,
        store: Store | None,
        request: Request | None = None,
        leases: Leases | None = None,
    ) -> None:
        self.id = id
        self._settings, self._ledger, self._store, self._request = settings, ledger, store, request
        self._leases = leases

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def status(self) -> JobStatus:
        """Where it is now: state, shards by state, files, bytes, bytes a second, seconds to go where that can be
        said."""
        meta = self._ledger.meta(self.id)
        number = defaultdict(int, {k: int(v) for k, v in meta.items() if re.fullmatch(r"-?[0-9]+", v)})
        end = number["finished"] or self._ledger.now_ms()
        seconds = max((end - number["created"]) / 1000, 0.001)
        total = number["bytes"] + (0 if "finished" in meta else self._ledger.live_bytes(self.id))
        done, failed, files = number["files_done"], number["files_failed"], number["files"]
        over = meta["state"] in TERMINAL_JOB
        eta = None
        if not over and done and meta["state"] == "running":
            eta = seconds / done * (files - done - failed)
        return JobStatus(
            id=self.id,
            name=_name(meta),
            state=meta["state"],
            shards={s: number[f"c:{s}"] for s in _STATES if number[f"c:{s}"]},
            files=files,
            files_done=done,
            files_failed=failed,
            bytes=total,
            seconds=seconds,
            rate=total / seconds,
            eta_s=eta,
            waiting_for="" if over and not number["gone"] else self._waiting_for(number),
            created=number["created"] / 1000,
            retries=number["retries"],
        )

    def _waiting_for(self, number: dict[str, int]) -> str:
        """Why nothing moves, when nothing moves."""
        if number["c:leased"]:
            return ""
        workers = self._ledger.workers()
        if not workers:
            return "no data node is alive"
        now = self._ledger.now_ms()
        for looked, record in enumerate(self._ledger.all_units(self.id)):
            if record.state in {"due", "leased"}:
                return describe(record, now) + trouble(record.queue, workers)
            if looked == _LOOK_AT:  # of a job of a million, somebody is waiting for this answer
                return f"{number['c:due']} of its shards are due"
        return ""

    def consumers(self) -> list[Consumer]:
        """The datasets that read this job now, by rank, and how far each has come; each says so every few seconds."""
        return self._ledger.consumers(self.id)

    def as_completed(self, timeout: float | None = None) -> Iterator[LocalFile]:
        """Files as they land, each once, until the job is over. Those that are there already come first.

        Raises :class:`WaitTimeout` ``timeout`` seconds after the call, however many came before; never because a source
        failed: that is in :meth:`failures`.
        """
        deadline = self._deadline(timeout)
        self._lease(deadline)
        return self._as_completed(deadline)

    def _as_completed(self, deadline: Deadline) -> Iterator[LocalFile]:
        stream = EventStream(self._ledger, self.id, self._request)
        seen: dict[str, set[tuple[int, int, int]]] = defaultdict(set)
        had = Places()  # what came, also before the job was lost, or Redis lost its last moments
        renewed: set[str] = set()
        while True:
            events = stream.poll(0 if stream.ended else deadline.left_s)
            for event in events:
                if event["k"] == "anew":
                    seen.pop(event["n"], None)  # it comes again, as it is at another moment
                    renewed.add(event["n"])
                elif event["k"] == "again":
                    renewed.add(event["n"])
                elif event["k"] == "lost":
                    seen.clear()
                    renewed.clear()
            news = list(
                dict.fromkeys(e["n"] for e in events if e["k"] in {"part", "shard"} and not e["n"].startswith("p"))
            )
            for at in range(0, len(news), 50):
                some = news[at : at + 50]
                for n, packed in zip(some, self._results_of(some, deadline), strict=True):
                    for record in Result.unpacked(packed).files:
                        if record.place not in seen[n]:
                            seen[n].add(record.place)
                            if record.place in had and n not in renewed:
                                continue
                            had.add(record.place)
                            yield LocalFile.of(record, self._here())
            for event in events:
                if event["k"] == "shard" and event["s"] == "done":
                    seen.pop(event["n"], None)  # nothing of it comes again
            if stream.over:
                self._is_over()
                return
            if deadline.over and not (stream.ended and events):
                raise WaitTimeout(self.id, deadline.seconds, self._why())

    def wait(self, timeout: float | None = None) -> JobStatus:
        """Until the job is over (done, failed or cancelled). Raises :class:`WaitTimeout`; the job then goes on."""
        return self._at_end(self.status, self._deadline(timeout))

    def _at_end(self, ask: Callable[[], T], deadline: Deadline) -> T:
        """What ``ask`` gives of the job once it is over; its ``state`` says whether it still is."""
        stream = EventStream(self._ledger, self.id, self._request)
        while True:
            wait_s = 0.0 if stream.ended else deadline.left_s
            if stream.over:  # and then it was not: for the event that says why
                wait_s = min(AGAIN_S, deadline.left_s)
            events = stream.poll(wait_s)
            if stream.over:
                self._is_over()
                try:
                    found = patiently(ask, deadline)
                    if found.state in TERMINAL_JOB:
                        return found
                except UnknownJob:
                    if self._request is None or deadline.over:
                        raise
                # It was tried again, or lost, just now: which the stream sees, too.
            if deadline.over and not (stream.ended and events):
                raise WaitTimeout(self.id, deadline.seconds, self._why())

    def _is_over(self) -> None:
        if self._request is not None:
            self._request.is_over()

    def files(self, timeout: float | None = None) -> list[LocalFile]:
        """All files, once the job is over: by source, then by key or partition; duplicates repeat, failures are left
        out."""
        return self.outcome(timeout).files

    def outcome(self, timeout: float | None = None) -> Outcome:
        """:meth:`files`, and how the job ended."""
        deadline = self._deadline(timeout)
        self._lease(deadline)
        return self._at_end(self._outcome, deadline)

    def paths(self, timeout: float | None = None) -> list[Path]:
        """The absolute paths of :meth:`files`. Raises as :attr:`LocalFile.path`."""
        return [file.path for file in self.files(timeout)]

    def failures(self) -> list[Failure]:
        """What failed for good so far: source, error, reason, attempts, shard. What is tried again is not here."""
        records = list(self._ledger.all_units(self.id))
        failed = [r for r in records if r.failed]
        ended = [r for r in records if r.state in {"cancelled", "quarantined"}]
        found: dict[tuple[int, int], Failure] = {}
        for some in batched(failed, 100):
            for packed in self._ledger.results(self.id, [r.number for r in some]):
                found |= {failure.index: failure for failure in Result.unpacked(packed).failures}
        for some in batched(ended, 100):
            for failure in self._never_came(some):
                found.setdefault(failure.index, failure)
        error = self._ledger.meta(self.id).get("error")
        last = [Failure(self.id, "PermanentFetchError", error, 0, self.id)] if error else []
        return [found[index] for index in sorted(found)] + last

    def _never_came(self, records: list[UnitRecord]) -> Iterator[Failure]:
        """The files of shards that ended without a worker's word on them: cancelled, or quarantined."""
        numbers = [r.number for r in records]
        both = zip(records, self._ledger.specs(self.id, numbers), self._ledger.results(self.id, numbers), strict=True)
        for record, specs, packed in both:
            arrived = Result.unpacked(packed).arrived
            cancelled = record.state == "cancelled"
            error, reason = ("Cancelled", "the job was cancelled") if cancelled else ("Quarantined", record.reason)
            tries = record.attempts if cancelled else record.deaths
            for spec in specs:
                # The piece of planning of a source lists it as its own first.
                place = (record.source if record.is_plan else spec.source, spec.part)
                if place not in arrived:
                    yield Failure(spec.uri, error, reason, tries, record.unit, index=place)

    def _outcome(self) -> Outcome:
        """As of now. Raises :class:`UnknownJob`."""
        meta = self._ledger.meta(self.id)
        files, made = list[FileRecord](), meta["made"]
        for some in batched(numbers_of(meta), 100):
            found, made = self._ledger.results_and_made(self.id, some)
            files += [file for packed in found for file in Result.unpacked(packed).files]
        if made != meta["made"]:
            raise UnknownJob(self.id)  # it was lost meanwhile, and another process has put it back
        files.sort(key=lambda record: record.place)
        here = self._here()
        return Outcome(meta["state"], [LocalFile.of(record, here) for record in files])

    def _results_of(self, numbers: list[str], deadline: Deadline) -> list[bytes | None]:
        return patiently(lambda: self._ledger.results(self.id, numbers), deadline)

    def retry(self) -> Job:
        """Try again what failed, was quarantined or cancelled, and only that. Returns this job, running again."""
        ring(self._settings, dict.fromkeys(self._ledger.sweep("retry", self.id), 1))
        if self._request is not None:
            self._request.goes_on()
        return self

    def cancel(self) -> None:
        """Stop it: what has not begun does not begin, what has is interrupted, unless another job waits for the same
        source."""
        self._ledger.meta(self.id)
        if self._request is not None:
            self._request.drop()  # nobody wants it back
        self._ledger.sweep("cancel", self.id)

    def task_ids(self) -> list[str]:
        """The Celery task ids of its shards, as planned so far: ``AsyncResult(id).get()`` gives ``{"paths": […]}``."""
        return [f"{self.id}.{n}" for n in range(int(self._ledger.meta(self.id)["next"]))]

    def reader(self, *, keep: bool = True) -> JobReader:
        """The job in its global order, over a connection of its own: what a dataset reads. With ``keep=False`` it holds
        no more than what it needs next (:meth:`JobReader.need`): the job may be larger than the store."""
        leases = Leases(self._settings) if self._leases is not None else None
        return JobReader(JobLedger(self._settings), self.id, self._here(), self._request, leases, keep=keep)

    def release(self) -> None:
        """This process reads its files no more: they may be evicted when others need the space."""
        if self._leases is not None:
            self._leases.drop(self.id)

    def _lease(self, deadline: Deadline) -> None:
        if self._leases is not None:
            with until(time.monotonic() + deadline.left_s):
                self._leases.keep(self.id)

    def _deadline(self, timeout: float | None) -> Deadline:
        positive("timeout", timeout)
        return Deadline(self._settings.limits.wait_s if timeout is None else timeout)

    def _here(self) -> Store | None:
        """The store of this machine. The first data node here makes it, perhaps after this handle was made."""
        self._store = self._store or Store.attach(self._settings.store)
        return self._store

    def _why(self) -> str:
        try:
            status = patiently(self.status, Deadline(0))
        except (LedgerUnavailable, UnknownJob) as error:
            return str(error)
        return status.waiting_for or f"{status.files_done} of {status.files} files are there"


def _name(meta: dict[str, str]) -> str:
    return str(json.loads(meta["options"]).get("name", ""))
