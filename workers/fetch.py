"""A claimed shard, from its list of files to its commit: what is here already, what another is fetching, what to
fetch now.

One file's way is in ``transfer``; here it is decided what becomes of the shard when some arrived, some failed and
some must wait.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
from contextlib import suppress

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery

from ingest.errors import (
    FetchError,
    FetchTimeout,
    LedgerUnavailable,
    NodeUnfit,
    PermanentFetchError,
    SnapshotLost,
    TransientFetchError,
)
from ingest.ledger import Claim, Result, Settled, WorkLedger
from ingest.model import FileRecord, FileSpec
from workers import again
from workers import node as here
from workers.control import Control
from workers.events import Events
from workers.fetchers.base import Interrupted
from workers.logs import log
from workers.node import Node
from workers.origins import NotAsked, Origins
from workers.outcome import Outcome, failure_of
from workers.pack import pack_shard
from workers.parallel import each
from workers.report import manifest, report
from workers.retry import UNFIT_DELAY_S, delay_s, is_final
from workers.snapshots.increments import increment_of
from workers.snapshots.reading import Moments
from workers.space import Space, confirm
from workers.transfer import Transfer

#: How long a shard sleeps while another one fetches what it wants too; it is woken when that lands.
FLIGHT_WAIT_S = 30.0


def fetch_shard(app: Celery, node: Node, ledger: WorkLedger, claim: Claim, hostname: str | None) -> Settled:
    """Do what a claim says, and settle it: done, failed, cancelled, or given back for later."""
    begun = time.monotonic()
    limits = node.settings.limits
    control = Control(ledger, claim, slice_s=limits.soft_s, every_s=limits.progress_s, stopping=here.stopping)
    events = Events(app, hostname, claim)
    origins = Origins(claim)
    space = Space(node, ledger, claim, control)
    transfer = Transfer(node, claim.options, control, origins, space)
    outcome = again.begin(node, claim)
    moments = Moments(ledger, claim, transfer)
    try:
        if claim.options.pack:
            pack_shard(ledger, claim, transfer, control, outcome)
        else:
            _attempt(ledger, claim, transfer, control, outcome, moments)
    except Interrupted as stop:
        outcome.stopped, outcome.why = stop.why, stop.reason
    except SoftTimeLimitExceeded:
        outcome.stopped = "slice"
    space.close()
    again.check(node, claim, outcome)
    confirm(node, claim, outcome)
    settled, state, summary = _settle(node, ledger, claim, control, outcome)
    if state == "lost":
        moments.take_back(outcome.files)
    with suppress(LedgerUnavailable):  # others will see it
        origins.tell(ledger)
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
    log.log(logging.INFO if state == "done" else logging.WARNING, f"shard.{state}", extra=facts)
    if state in {"done", "failed", "cancelled"}:
        report(app, ledger, node.store, claim.unit)
        if claim.options.reply and ledger.wants_reply(claim.job):
            report(app, ledger, node.store, claim.job)
    events.ended(state, summary, seconds)
    return settled


def _attempt(
    ledger: WorkLedger, claim: Claim, transfer: Transfer, control: Control, outcome: Outcome, moments: Moments
) -> None:
    settled = outcome.result.arrived | {f.index for f in outcome.failures}
    todo: list[FileSpec] = []
    for spec in claim.files:
        if spec.index in settled:
            continue
        try:
            if claim.record.attempts:
                # It was not that version any more, or not in time: what is asked for is the source, as it is now. Who
                # listed it said how large that version was.
                spec = dataclasses.replace(spec, version=None, size=None if spec.version else spec.size)
            if again.refuse(claim, spec):
                raise again.moment_is_past(spec)
            spec = moments.pinned(transfer.resolve(spec))
            records = transfer.reuse(spec)
        except FetchError as error:
            outcome.missed(transfer.node, claim, [spec], error, claim.record.attempts + 1)
            continue
        if records is not None:
            outcome.files += records
            control.resumed(sum(record.size for record in records))
            if claim.record.reclaimed or claim.record.again:
                # Published by who could not say any more that its flight is over.
                control.flights = [*control.flights, transfer.flight(spec)]
        else:
            todo.append(spec)
    if not todo:
        return
    todo, twins = _without_twins(transfer, todo)
    keys = [transfer.flight(spec) for spec in todo]
    free = ledger.takeoff(claim, keys)
    if free is None:
        raise Interrupted("lost")
    control.flights = [*control.flights, *(key for key, ours in zip(keys, free, strict=True) if ours)]
    outcome.busy = [spec for spec, ours in zip(todo, free, strict=True) if not ours]
    ours = [spec for spec, is_ours in zip(todo, free, strict=True) if is_ours]
    _transfer_all(transfer, ours, claim, control, outcome, moments)
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
    records = [record for record in outcome.files if record.index == first.index]
    if records:
        outcome.files += [dataclasses.replace(r, source=spec.source, part=spec.part, reused=True) for r in records]
        return
    for failure in outcome.failures:
        if failure.index == first.index:
            outcome.failures.append(dataclasses.replace(failure, index=spec.index))
            return


def _transfer_all(
    transfer: Transfer, specs: Sequence[FileSpec], claim: Claim, control: Control, outcome: Outcome, moments: Moments
) -> None:
    """Several files at once where there are several. The first interruption stops them all; what had arrived counts."""

    def one(spec: FileSpec) -> list[FileRecord] | FetchError | Interrupted:
        try:
            control.check()
            return transfer.fetch(spec)
        except SnapshotLost as error:
            return moments.lost(error)
        except (FetchError, Interrupted) as error:
            return error

    for spec, found in each(specs, one, transfer.node.settings.http.parallel, control):
        if isinstance(found, list):
            outcome.files += found
            continue
        if isinstance(found, Interrupted):
            outcome.stopped = outcome.stopped or found.why
            if found.why != "slice" or not (found.wasted or _past_deadline(transfer, claim)):
                continue
            found = FetchTimeout(spec.uri, _too_long(transfer, found))
        outcome.missed(transfer.node, claim, [spec], found, claim.record.attempts + 1)


def _too_long(transfer: Transfer, stop: Interrupted) -> str:
    limits = transfer.node.settings.limits
    if not stop.wasted:
        return "did not arrive before the job's deadline"
    if stop.reason:
        return f"{stop.reason} took longer than the time slice of {limits.soft_s:g} s; raise [limits] soft_s and hard_s"
    return (
        f"took longer than the time slice of {limits.soft_s:g} s, and what came cannot be continued (the origin "
        "gives no strong ETag with ranges, or it is a query); "
        "raise [limits] soft_s and hard_s, or cut it into more partitions"
    )


def _past_deadline(transfer: Transfer, claim: Claim) -> bool:
    return claim.age_s >= (claim.options.deadline_s or transfer.node.settings.retry.deadline_s)


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
    if outcome.stopped == "snapshot":
        return _later(node, ledger, claim, result, control, FLIGHT_WAIT_S, outcome.why)
    if outcome.stopped and not outcome.transient:
        reason = "handed back at shutdown" if outcome.stopped == "stopping" else "time slice over, handed back"
        return _later(node, ledger, claim, result, control, 0, reason)
    if outcome.transient:
        policy, attempt = node.settings.retry, claim.record.attempts + 1
        delays = [delay_s(policy, error, attempt) for _, error in outcome.transient]
        counted = not all(isinstance(error, NodeUnfit) or error.progressed for _, error in outcome.transient)
        anew = not counted and any(e.progressed and not isinstance(e, NotAsked) for _, e in outcome.transient)
        spec, error = outcome.transient[0]
        reason = f"{type(error).__name__}: {spec.uri}: {error.reason}"
        return _later(node, ledger, claim, result, control, max(delays), reason, counted=counted, anew=anew)
    if outcome.busy:
        reason = f"waits for {outcome.busy[0].uri}, which another job is fetching"
        return _later(node, ledger, claim, result, control, FLIGHT_WAIT_S, reason)
    state = "failed" if outcome.is_failed else "done"
    try:
        said = manifest(claim.job, claim.number, result, increment_of(claim))
        node.store.write_manifest(claim.job, claim.number, said)
    except OSError as error:
        unfit = node.store.unfit(claim.record.origin, error)
        whole = FileSpec(claim.record.source, 0, claim.record.origin)
        if outcome.missed(node, claim, [whole], unfit, claim.record.attempts + 1):
            return _later(node, ledger, claim, result, control, UNFIT_DELAY_S, f"NodeUnfit: {unfit.reason}")
        result, state = outcome.result, "failed"
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
    reason: str,
    *,
    counted: bool = False,
    anew: bool = False,
) -> tuple[Settled, str, str]:
    """Give back. ``counted``: as an attempt that failed; ``anew``: one that got further, so that counting begins again.
    Returns as :func:`_settle`."""
    had = (len(claim.earlier.files), claim.record.failed)
    # Of what is fetched again the ledger keeps what it was: what has come of it is found in the store.
    news = None if claim.record.gone or (len(result.files), len(result.failures)) == had else result
    settled = ledger.back(claim, wait_s, counted, reason, news, control.flights, anew=anew)
    log.info("shard.later", extra=_delay(node, claim, wait_s, reason))
    return settled, "retried" if settled.ok else "lost", reason


def later_or_never(node: Node, ledger: WorkLedger, claim: Claim, error: TransientFetchError) -> tuple[Settled, bool]:
    """Give a claim back because of something that no file of it can survive now; or end it, where that was its last
    attempt or its time is over. Returns also whether it is over."""
    policy, options, attempt = node.settings.retry, claim.options, claim.record.attempts + 1
    if is_final(policy, error, attempt, options.attempts, claim.age_s, options.deadline_s):
        return fail_all(node, ledger, claim, error), True
    wait_s, counted = delay_s(policy, error, attempt), not isinstance(error, NodeUnfit)
    reason = f"{type(error).__name__}: {error.reason}"
    log.warning("shard.later", extra=_delay(node, claim, wait_s, reason))
    return ledger.back(claim, wait_s, counted, reason, None, ()), False


def _delay(node: Node, claim: Claim, wait_s: float, reason: str) -> dict[str, object]:
    """The facts of ``shard.later``."""
    facts = {"job": claim.job, "shard": claim.number, "node": node.settings.node}
    return {**facts, "delay_s": round(wait_s, 3), "reason": reason}


def unexpected(claim: Claim, error: Exception) -> PermanentFetchError:
    """A defect of ours, as a failure that a waiter can read: it is said once, and not tried again and again."""
    return PermanentFetchError(
        claim.record.origin, f"{type(error).__name__}: {error} (a defect; the worker's log has the traceback)"
    )


def fail_all(node: Node, ledger: WorkLedger, claim: Claim, error: FetchError) -> Settled:
    """End a claim because of something that no file of it can survive."""
    specs = [] if claim.is_plan else claim.files
    settled = claim.earlier.arrived
    missing = [(spec.uri, spec.index) for spec in specs if spec.index not in settled]
    missing = missing or [(error.uri, (claim.record.source, 0))]
    failures = tuple(failure_of(node, claim, uri, index, error) for uri, index in missing)
    return ledger.commit(claim, "failed", Result(claim.earlier.files, failures), ())
