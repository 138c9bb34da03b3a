"""From sources that only the origin can list (globs, prefixes, partitions, manifests) to shards, in batches, in flat
memory."""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery

from ingest.app import FETCH_QUEUE
from ingest.braces import count_braces, expand_braces
from ingest.doorbell import ring
from ingest.errors import (
    BadResponse,
    FetchError,
    FetchTimeout,
    NodeUnfit,
    NothingMatched,
    TransientFetchError,
    UsageError,
)
from ingest.ledger import Claim, NewUnit, Result, Settled, WorkLedger, batched
from ingest.model import Failure, FileSpec
from ingest.placement import choose_queue
from ingest.record import unpack_json
from ingest.sources import AnySource, Manifest, Source, check_source_text, parse_digest, source_from_json
from workers import node as here
from workers.control import Control
from workers.fetch import FLIGHT_WAIT_S, failure_of
from workers.fetchers.base import Interrupted
from workers.logs import log
from workers.node import Node
from workers.report import Events
from workers.retry import delay_s, is_final
from workers.transfer import Transfer

#: A shard of listed files holds about this much, where their sizes are known …
SHARD_BYTES = 64 << 20
#: … and not more files than this, so that one of it is seconds of work.
SHARD_FILES = 256
#: Shards in one step of planning: what is added, and rung for, at once.
STEP = 200
#: Lines of a manifest that may be no sources before it is taken for something else.
MOST_BAD = 1000


@dataclass
class Progress:
    """What one go at planning a source came to: lines that cannot be right, and files added in this go and in all."""

    bad: list[Failure] = field(default_factory=list)
    added: int = 0
    files: int = 0


def plan_source(app: Celery, node: Node, ledger: WorkLedger, claim: Claim, hostname: str | None) -> Settled:
    """Plan one source and settle the piece of planning: done, failed, or again later. A planner that died half-way is
    continued: the cursor says up to which file there are shards already."""
    begun = time.monotonic()
    limits = node.settings.limits
    control = Control(ledger, claim, slice_s=limits.soft_s, every_s=limits.progress_s, stopping=here.stopping)
    source = source_from_json(unpack_json(claim.spec))
    events = Events(app, hostname)
    events.started(claim)
    progress = Progress()
    try:
        _add_all(app, node, ledger, claim, control, source, progress)
        state = "failed" if progress.bad else "done"
        summary = str(progress.bad[0]) if progress.bad else f"{progress.files} files planned"
        settled = ledger.commit(claim, state, Result(failures=tuple(progress.bad)), control.flights)
    except Interrupted as stop:
        state, summary, settled = _interrupted(node, ledger, claim, control, source, progress, stop.why)
    except SoftTimeLimitExceeded:
        state, summary, settled = _interrupted(node, ledger, claim, control, source, progress, "slice")
    except FetchError as error:
        state, summary, settled = _failed(node, ledger, claim, control, source, error)
    seconds = time.monotonic() - begun
    facts = {"job": claim.job, "shard": claim.number, "node": node.settings.node, "origin": claim.record.origin}
    log.log(
        20 if state == "done" else 30, f"plan.{state}", extra=facts | {"seconds": round(seconds, 4), "reason": summary}
    )
    events.ended(claim, state, summary, seconds)
    return settled


Ended = tuple[str, str, Settled]


def _interrupted(
    node: Node, ledger: WorkLedger, claim: Claim, control: Control, source: AnySource, progress: Progress, why: str
) -> Ended:
    if why == "lost":
        return "lost", "the lease was lost", Settled(False, 0, "")
    if why == "cancelled":
        return "cancelled", "its job was cancelled", ledger.commit(claim, "cancelled", Result(), control.flights)
    if why == "busy":
        summary = f"waits for {source.uri}, which another job is fetching"
        return "retried", summary, ledger.back(claim, FLIGHT_WAIT_S, False, summary, None, control.flights)
    if why == "slice" and not progress.added:
        slice_s = node.settings.limits.soft_s
        reason = f"nothing could be planned within the time slice of {slice_s:g} s; raise [limits] soft_s"
        return _failed(node, ledger, claim, control, source, FetchTimeout(source.uri, reason))
    summary = f"planning handed back ({why})"
    return "retried", summary, ledger.back(claim, 0, False, summary, None, control.flights)


def _failed(
    node: Node, ledger: WorkLedger, claim: Claim, control: Control, source: AnySource, error: FetchError
) -> Ended:
    """The source cannot be planned: for good, or not now."""
    attempt = claim.record.attempts + 1
    policy, options = node.settings.retry, claim.options
    final = is_final(policy, error, attempt, options.attempts, claim.age_s, options.deadline_s)
    if isinstance(error, TransientFetchError) and not final:
        summary = f"{type(error).__name__}: {error}"
        wait_s = delay_s(policy, error, attempt)
        counted = not isinstance(error, NodeUnfit)
        return "retried", summary, ledger.back(claim, wait_s, counted, summary, None, control.flights)
    failure = failure_of(node, claim, source.uri, (claim.record.source, 0), error)
    return "failed", str(failure), ledger.commit(claim, "failed", Result(failures=(failure,)), control.flights)


def _add_all(
    app: Celery, node: Node, ledger: WorkLedger, claim: Claim, control: Control, source: AnySource, progress: Progress
) -> None:
    """Shards into the ledger, a batch at a time. Raises :class:`NothingMatched` for a source without files."""
    last, _, _ = claim.cursor.partition(" ")
    seen = int(last) + 1 if last else 0
    specs = _remaining(_expand(node, ledger, claim, control, source, progress), source, claim)
    nodes = [worker.node for worker in ledger.workers()] or [node.settings.node]
    for step in batched(_cut(specs, claim.options.shard_files, seen), STEP):
        control.check()
        made: list[NewUnit] = []
        queues: Counter[str] = Counter()
        for shard in step:
            queue = choose_queue(FETCH_QUEUE, claim.options.placement, nodes, shard[0].uri)
            made.append(NewUnit.shard(shard, queue))
            queues[queue] += 1
        end = step[-1][-1]
        answer = ledger.add_planned(claim, f"{max(end.part, seen - 1)} {end.uri}", made)
        if answer != "ok":
            raise Interrupted("cancelled" if answer == "cancelled" else "lost")
        progress.added += sum(len(shard) for shard in step)
        ring(app, queues)
    progress.files = seen + progress.added
    if not progress.files and not progress.bad:
        raise NothingMatched(
            source.uri, "matched nothing: look at the bucket, path or pattern, and at what the connection may list"
        )


def _remaining(specs: Iterator[FileSpec], source: AnySource, claim: Claim) -> Iterator[FileSpec]:
    """What of a listing is not in shards yet, by the cursor, which names the last file that is: its part, and its URI.

    A list that changed since must give no file twice. The lines of a manifest have their numbers, and those that failed
    are looked at again; keys come in ascending order, so what sorts after the last one is new, and is numbered after
    it.
    """
    if not claim.cursor:
        yield from specs
        return
    text, _, uri = claim.cursor.partition(" ")
    last = int(text)
    if isinstance(source, Manifest):
        failed = {failure.index[1] for failure in claim.earlier.failures}
        yield from (spec for spec in specs if spec.part > last or spec.part in failed)
    elif isinstance(source, Source) and count_braces(source.uri) == 1:
        after = (
            spec for spec in specs if spec.uri.encode("utf-8", "surrogatepass") > uri.encode("utf-8", "surrogatepass")
        )
        yield from (dataclasses.replace(spec, part=part) for part, spec in enumerate(after, last + 1))
    else:
        yield from (spec for spec in specs if spec.part > last)


def _cut(specs: Iterator[FileSpec], wanted: int | None, seen: int = 0) -> Iterator[list[FileSpec]]:
    """Shards from a listing whose length is not known: small ones at first, so that work begins and is spread at
    once, larger ones as the list goes on."""
    shard: list[FileSpec] = []
    size = 0
    for number, spec in enumerate(specs, seen):
        most = wanted or min(SHARD_FILES, 1 + number // 256)
        if shard and (len(shard) >= most or (wanted is None and size + (spec.size or 0) > SHARD_BYTES)):
            yield shard
            shard, size = [], 0
        shard.append(spec)
        size += spec.size or 0
    if shard:
        yield shard


OnBad = Callable[[int, Exception], None]


def _bad_line(node: Node, claim: Claim, source: AnySource, line: int, error: Exception, so_far: int) -> Failure:
    if so_far >= MOST_BAD:
        raise BadResponse(source.uri, f"more than {MOST_BAD} of its lines are no sources: is it a manifest?")
    found = BadResponse(source.uri, f"line {line}: {error}")
    return failure_of(node, claim, source.uri, (claim.record.source, line), found)


def _expand(
    node: Node, ledger: WorkLedger, claim: Claim, control: Control, source: AnySource, progress: Progress
) -> Iterator[FileSpec]:
    options = claim.options
    if claim.earlier.failures:  # asked to try again what failed: what was there then is not what is looked at
        options = dataclasses.replace(options, fresh_s=0.0)
    elif claim.cursor:  # going on where a planner stopped: in the same list, or lines would have other numbers
        options = dataclasses.replace(options, fresh_s=float("inf"))
    transfer = Transfer(node, options, control)

    def on_bad(line: int, error: Exception) -> None:
        progress.bad.append(_bad_line(node, claim, source, line, error, len(progress.bad)))

    if isinstance(source, Manifest):
        path = _manifest_path(ledger, claim, control, transfer, source)
        listed = _from_manifest(path, source, on_bad)
    else:
        listed = _from_origin(transfer, source)
    return (dataclasses.replace(spec, source=claim.record.source) for spec in listed)


def _manifest_path(ledger: WorkLedger, claim: Claim, control: Control, transfer: Transfer, source: Manifest) -> Path:
    """The manifest as a local file. It is fetched like any file: verified, published, fetched once for all."""
    spec = transfer.resolve(FileSpec(0, 0, source.uri, connection=source.connection))
    record = transfer.reuse(spec)
    if record is None:
        flights = [transfer.flight(spec)]
        free = ledger.takeoff(claim, flights)
        if free is None:
            raise Interrupted("lost")
        if not free[0]:
            raise Interrupted("busy")
        control.flights = flights
        record = transfer.fetch(spec)
    return transfer.node.store.path_of(record.path)


def _from_origin(transfer: Transfer, source: AnySource) -> Iterator[FileSpec]:
    """What the origin lists of each URI that the braces of a pattern stand for, one after the other."""
    part = 0
    for uri in expand_braces(source.uri) if isinstance(source, Source) else [source.uri]:
        one = dataclasses.replace(source, uri=uri) if isinstance(source, Source) else source
        name, context = transfer.context(uri, source.connection)
        for spec in transfer.fetcher(uri).expand(one, context):
            yield dataclasses.replace(spec, connection=name, part=part)
            part += 1


def _from_manifest(path: Path, source: Manifest, on_bad: OnBad) -> Iterator[FileSpec]:
    """The files that a manifest lists. A line that cannot be right is told to ``on_bad`` and left out."""
    suffix = path.suffix.lstrip(".").lower()
    kind = source.format or {"csv": "csv", "jsonl": "jsonl", "ndjson": "jsonl"}.get(suffix, "txt")
    # The line's number is the part: a line that is mended later does not move the others.
    for line, row in _rows(path, kind, source.uri):
        try:
            yield _row_spec(source, line, row)
        except (UsageError, ValueError) as error:
            on_bad(line, error)


def _row_spec(source: Manifest, line: int, row: dict[str, Any]) -> FileSpec:
    uri = str(row.get(source.uri_column) or "")
    if not uri:
        raise UsageError(f"no {source.uri_column!r}; name the column with Manifest(uri_column=…)")
    check_source_text(uri)
    digest = ":".join(parse_digest(str(row["digest"]))) if row.get("digest") else None
    size = int(row["size"]) if row.get("size") not in (None, "") else None
    if size is not None and size < 0:
        raise UsageError(f"a size of {size} bytes cannot be")
    return FileSpec(0, line, uri, digest, size, source.connection)


def _rows(path: Path, kind: str, uri: str) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(path, encoding="utf-8", newline="") as f:
        try:
            if kind == "csv":
                yield from ((number, dict(row)) for number, row in enumerate(csv.DictReader(f), 2))
                return
            for number, line in enumerate(f, 1):
                text = line.strip()
                if not text or (kind == "txt" and text.startswith("#")):
                    continue
                row = {"uri": text} if kind == "txt" else json.loads(text)
                if not isinstance(row, dict):
                    raise BadResponse(uri, f"line {number}: not a JSON object")
                yield number, row
        except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
            raise BadResponse(uri, f"not a readable {kind} manifest: {error}") from None
