"""A claimed shard, from its list of files to its commit: what is here already, what another is fetching, what to
fetch now.

One file's way is in ``transfer``; here it is decided what becomes of the shard when some arrived, some failed and
some must wait.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import lru_cache

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery

from ingest.errors import FetchError, FetchTimeout, NodeUnfit, PermanentFetchError, TransientFetchError
from ingest.ledger import Claim, Result, Settled, WorkLedger
from ingest.model import Failure, FileRecord, FileSpec
from ingest.record import unpack
from workers import node as here
from workers.control import Control
from workers.fetchers.base import Interrupted
from workers.logs import log
from workers.node import Node
from workers.report import Events, manifest, report
from workers.retry import UNFIT_DELAY_S, delay_s, is_final
from workers.transfer import Transfer

#: How long a shard sleeps while another one fetches what it wants too; it is woken when that lands.
FLIGHT_WAIT_S = 30.0


@dataclass
class Outcome:
    """What one attempt at a shard came to."""

    files: list[FileRecord] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    transient: list[tuple[FileSpec, TransientFetchError]] = field(default_factory=list)
    busy: list[FileSpec] = field(default_factory=list)
    stopped: str = ""

    @property
    def result(self) -> Result:
        return Result(
            tuple(sorted(self.files, key=lambda f: (f.source, f.part))),
            tuple(sorted(self.failures, key=lambda f: f.index)),
        )


def fetch_shard(app: Celery, node: Node, ledger: WorkLedger, claim: Claim, hostname: str | None) -> Settled:
    """Do what a claim says, and settle it: done, failed, cancelled, or given back for later."""
    begun = time.monotonic()
    limits = node.settings.limits
    control = Control(ledger, claim, slice_s=limits.soft_s, every_s=limits.progress_s, stopping=here.stopping)
    events = Events(app, hostname)
    events.started(claim)
    transfer = Transfer(node, claim.options, control)
    outcome = _begin(claim)
    try:
        _attempt(ledger, claim, transfer, control, outcome)
    except Interrupted as stop:
        outcome.stopped = stop.why
    except SoftTimeLimitExceeded:
        outcome.stopped = "slice"
    settled, state, summary = _settle(node, ledger, claim, control, outcome)
    seconds = time.monotonic() - begun
    facts = {
        "job": claim.job,
        "shard": claim.number,
        "node": node.settings.node,
        "origin": claim.record.origin,
        "attempt": claim.record.attempts + 1,
        "files": len(outcome.files),
        "failed": len(outcome.failures),
        "bytes": control.bytes,
        "seconds": round(seconds, 4),
        "reason": summary if state != "done" else None,
    }
    log.log(20 if state == "done" else 30, f"shard.{state}", extra=facts)
    if state in {"done", "failed", "cancelled"}:
        report(app, ledger, node.store, claim.unit)
        if ledger.wants_reply(claim.job):
            report(app, ledger, node.store, claim.job)
    events.ended(claim, state, summary, seconds)
    return settled


def _begin(claim: Claim) -> Outcome:
    """What earlier attempts already have. Failures count only until somebody asks for another try of the shard."""
    return Outcome(list(claim.earlier.files), list(claim.earlier.failures) if claim.record.failed else [])


def _attempt(ledger: WorkLedger, claim: Claim, transfer: Transfer, control: Control, outcome: Outcome) -> None:
    settled = {(f.source, f.part) for f in outcome.files} | {f.index for f in outcome.failures}
    todo: list[FileSpec] = []
    for spec in unpack(FileSpec, claim.spec):
        if (spec.source, spec.part) in settled:
            continue
        try:
            if claim.record.attempts:
                # It was not that version any more, or not in time: what is asked for is the source, as it is now.
                spec = dataclasses.replace(spec, version=None)
            spec = transfer.resolve(spec)
            record = transfer.reuse(spec)
        except FetchError as error:
            outcome.failures.append(failure_of(transfer.node, claim, spec.uri, (spec.source, spec.part), error))
            continue
        if record is not None:
            outcome.files.append(record)
        else:
            todo.append(spec)
    if not todo:
        return
    todo, twins = _without_twins(transfer, todo)
    keys = [transfer.flight(spec) for spec in todo]
    free = ledger.takeoff(claim, keys)
    if free is None:
        raise Interrupted("lost")
    control.flights = [key for key, ours in zip(keys, free, strict=True) if ours]
    outcome.busy = [spec for spec, ours in zip(todo, free, strict=True) if not ours]
    _transfer_all(transfer, [spec for spec, ours in zip(todo, free, strict=True) if ours], claim, control, outcome)
    for spec, first in twins:
        _follow_twin(outcome, spec, first)


def _without_twins(transfer: Transfer, specs: list[FileSpec]) -> tuple[list[FileSpec], list[tuple[FileSpec, FileSpec]]]:
    """A source that a shard lists twice is fetched once: the specs that are to be fetched, and (twin, first) of the
    others."""
    first: dict[tuple[str, str | None, int | None], FileSpec] = {}
    twins = []
    for spec in specs:
        known = first.setdefault((transfer.key(spec), spec.digest, spec.size), spec)
        if known is not spec:
            twins.append((spec, known))
    return list(first.values()), twins


def _follow_twin(outcome: Outcome, spec: FileSpec, first: FileSpec) -> None:
    """What became of the first is what becomes of its twin; nothing yet, if the first is to be tried again."""
    for record in outcome.files:
        if (record.source, record.part) == (first.source, first.part):
            outcome.files.append(dataclasses.replace(record, source=spec.source, part=spec.part, reused=True))
            return
    for failure in outcome.failures:
        if failure.index == (first.source, first.part):
            outcome.failures.append(dataclasses.replace(failure, index=(spec.source, spec.part)))
            return


def _transfer_all(
    transfer: Transfer, specs: Sequence[FileSpec], claim: Claim, control: Control, outcome: Outcome
) -> None:
    """Several files at once where there are several. The first interruption stops them all; what had arrived counts."""

    def one(spec: FileSpec) -> FileRecord | FetchError | Interrupted:
        try:
            control.check()
            return transfer.fetch(spec)
        except (FetchError, Interrupted) as error:
            return error

    def take(spec: FileSpec, found: FileRecord | FetchError | Interrupted) -> None:
        if isinstance(found, Interrupted):
            outcome.stopped = outcome.stopped or found.why
            if found.why != "slice" or not (found.wasted or _past_deadline(transfer, claim)):
                return
            found = FetchTimeout(spec.uri, _too_long(transfer, found))
        if isinstance(found, FileRecord):
            outcome.files.append(found)
        elif isinstance(found, TransientFetchError) and not _final(transfer, claim, found):
            outcome.transient.append((spec, found))
        else:
            outcome.failures.append(failure_of(transfer.node, claim, spec.uri, (spec.source, spec.part), found))

    if len(specs) == 1 or transfer.node.settings.http.parallel == 1:
        for spec in specs:
            take(spec, one(spec))
        return
    futures = [_threads(os.getpid(), transfer.node.settings.http.parallel).submit(one, spec) for spec in specs]
    try:
        for spec, future in zip(specs, futures, strict=True):
            try:
                take(spec, future.result())
            except SoftTimeLimitExceeded:
                control.interrupt("slice")
                take(spec, future.result())
    finally:
        wait(futures)  # nobody works on for a claim that is settled


@lru_cache(maxsize=1)
def _threads(pid: int, parallel: int) -> ThreadPoolExecutor:
    """This process's threads, kept from shard to shard: each keeps its connections."""
    return ThreadPoolExecutor(parallel, thread_name_prefix="fetch")


def _too_long(transfer: Transfer, stop: Interrupted) -> str:
    limits = transfer.node.settings.limits
    if not stop.wasted:
        return "did not arrive before the job's deadline"
    return (
        f"took longer than the time slice of {limits.soft_s:g} s, and what came cannot be continued (the origin "
        "gives no strong ETag with ranges, or it is a query); "
        "raise [limits] soft_s and hard_s, or cut it into more partitions"
    )


def _past_deadline(transfer: Transfer, claim: Claim) -> bool:
    return claim.age_s >= (claim.options.deadline_s or transfer.node.settings.retry.deadline_s)


def _final(transfer: Transfer, claim: Claim, error: FetchError) -> bool:
    options = claim.options
    policy = transfer.node.settings.retry
    return is_final(policy, error, claim.record.attempts + 1, options.attempts, claim.age_s, options.deadline_s)


def failure_of(node: Node, claim: Claim, uri: str, index: tuple[int, int], error: FetchError) -> Failure:
    """What becomes of an error that is final: a line in the log, and the record that every waiter gets."""
    name = type(error).__name__
    facts = {"job": claim.job, "shard": claim.number, "node": node.settings.node, "source": uri, "error": name}
    log.warning("file.failed", extra=facts | {"reason": error.reason})
    tries = claim.record.attempts + 1
    return Failure(uri, name, error.reason, tries, claim.unit, node.settings.node, index, error.details)


def _settle(
    node: Node, ledger: WorkLedger, claim: Claim, control: Control, outcome: Outcome
) -> tuple[Settled, str, str]:
    """Commit, or give back. Returns also the state's name and a line about it, for the log and for Flower."""
    result = outcome.result
    if outcome.stopped == "lost":
        return Settled(False, 0, ""), "lost", "the lease was lost: another worker has it, or its job is gone"
    if outcome.stopped == "cancelled":
        settled = ledger.commit(claim, "cancelled", result, control.flights)
        return settled, "cancelled" if settled.ok else "lost", "its job was cancelled"
    if outcome.stopped and not outcome.transient:
        reason = "handed back at shutdown" if outcome.stopped == "stopping" else "time slice over, handed back"
        return _later(node, ledger, claim, result, control, 0, False, reason)
    if outcome.transient:
        policy, attempt = node.settings.retry, claim.record.attempts + 1
        delays = [delay_s(policy, error, attempt) for _, error in outcome.transient]
        counted = not all(isinstance(error, NodeUnfit) for _, error in outcome.transient)
        spec, error = outcome.transient[0]
        reason = f"{type(error).__name__}: {spec.uri}: {error.reason}"
        return _later(node, ledger, claim, result, control, max(delays), counted, reason)
    if outcome.busy:
        reason = f"waits for {outcome.busy[0].uri}, which another job is fetching"
        return _later(node, ledger, claim, result, control, FLIGHT_WAIT_S, False, reason)
    state = "failed" if result.failures else "done"
    try:
        node.store.write_manifest(claim.job, claim.number, manifest(claim.job, claim.number, result))
    except OSError as error:
        reason = f"the store at {node.store.root} failed: {error.strerror}"
        return _later(node, ledger, claim, result, control, UNFIT_DELAY_S, False, reason)
    settled = ledger.commit(claim, state, result, control.flights)
    if not settled.ok:
        return settled, "lost", "the lease was lost before the commit"
    summary = f"{len(result.files)} files, {result.bytes} bytes" if state == "done" else str(result.failures[0])
    return settled, state, summary


def _later(
    node: Node,
    ledger: WorkLedger,
    claim: Claim,
    result: Result,
    control: Control,
    wait_s: float,
    counted: bool,
    reason: str,
) -> tuple[Settled, str, str]:
    news = (
        result if (len(result.files), len(result.failures)) != (len(claim.earlier.files), claim.record.failed) else None
    )
    settled = ledger.back(claim, wait_s, counted, reason, news, control.flights)
    log.info(
        "shard.later",
        extra={
            "job": claim.job,
            "shard": claim.number,
            "node": node.settings.node,
            "delay_s": round(wait_s, 3),
            "reason": reason,
        },
    )
    return settled, "retried" if settled.ok else "lost", reason


def unexpected(claim: Claim, error: Exception) -> PermanentFetchError:
    """A defect of ours, as a failure that a waiter can read: it is said once, and not tried again and again."""
    return PermanentFetchError(
        claim.record.origin, f"{type(error).__name__}: {error} (a defect; the worker's log has the traceback)"
    )


def fail_all(node: Node, ledger: WorkLedger, claim: Claim, error: FetchError) -> Settled:
    """End a claim because of something that no file of it can survive."""
    specs = [] if claim.is_plan else unpack(FileSpec, claim.spec)
    settled = {(f.source, f.part) for f in claim.earlier.files}
    missing = [(s.uri, (s.source, s.part)) for s in specs if (s.source, s.part) not in settled]
    missing = missing or [(error.uri, (claim.record.source, 0))]
    failures = tuple(failure_of(node, claim, uri, index, error) for uri, index in missing)
    return ledger.commit(claim, "failed", Result(claim.earlier.files, failures), ())
