"""From sources that only the origin can list (globs, prefixes, partitions, manifests) to shards, in batches, in flat
memory."""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery

from ingest.app import FETCH_QUEUE
from ingest.braces import expand_braces
from ingest.doorbell import ring
from ingest.errors import BadResponse, FetchError, NodeUnfit, NothingMatched, TransientFetchError, UsageError
from ingest.ledger import Claim, NewUnit, Result, Settled, WorkLedger, batched
from ingest.model import (
    AnySource,
    Failure,
    FileSpec,
    Manifest,
    Source,
    check_source_text,
    parse_digest,
    source_from_json,
    unpack_json,
)
from ingest.placement import choose_queue
from workers import node as here
from workers.control import Control
from workers.fetch import failure_of
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


def plan_source(app: Celery, node: Node, ledger: WorkLedger, claim: Claim, hostname: str | None) -> Settled:
    """Plan one source and settle the piece of planning: done, failed, or again later. A planner that died half-way is
    continued: the cursor says how many files are in shards already."""
    begun = time.monotonic()
    limits = node.settings.limits
    control = Control(ledger, claim, slice_s=limits.soft_s, every_s=limits.progress_s, stopping=here.stopping)
    transfer = Transfer(node, claim.options, control)
    source = source_from_json(unpack_json(claim.spec))
    events = Events(app, hostname)
    events.started(claim)
    state, summary = "done", ""
    bad: list[Failure] = []
    try:
        files = _add_all(app, node, ledger, claim, transfer, control, source, bad)
        state = "failed" if bad else "done"
        summary = str(bad[0]) if bad else f"{files} files planned"
        settled = ledger.commit(claim, state, Result(failures=tuple(bad)), ())
    except Interrupted as stop:
        state, summary = _interrupted(stop.why)
        settled = _interrupted_settled(ledger, claim, stop.why, summary)
    except SoftTimeLimitExceeded:
        state, summary = _interrupted("slice")
        settled = _interrupted_settled(ledger, claim, "slice", summary)
    except FetchError as error:
        state, summary, settled = _failed(node, ledger, claim, source, error)
    seconds = time.monotonic() - begun
    facts = {"job": claim.job, "shard": claim.number, "node": node.settings.node, "origin": claim.record.origin}
    log.log(
        20 if state == "done" else 30, f"plan.{state}", extra=facts | {"seconds": round(seconds, 4), "reason": summary}
    )
    events.ended(claim, state, summary, seconds)
    return settled


def _failed(
    node: Node, ledger: WorkLedger, claim: Claim, source: AnySource, error: FetchError
) -> tuple[str, str, Settled]:
    """The source cannot be planned: for good, or not now."""
    attempt = claim.record.attempts + 1
    policy, options = node.settings.retry, claim.options
    final = is_final(policy, error, attempt, options.attempts, claim.age_s, options.deadline_s)
    if isinstance(error, TransientFetchError) and not final:
        summary = f"{type(error).__name__}: {error}"
        wait_s = delay_s(policy, error, attempt)
        return "retried", summary, ledger.back(claim, wait_s, not isinstance(error, NodeUnfit), summary, None, ())
    failure = failure_of(node, claim, source.uri, (claim.record.source, 0), error)
    return "failed", str(failure), ledger.commit(claim, "failed", Result(failures=(failure,)), ())


def _interrupted_settled(ledger: WorkLedger, claim: Claim, why: str, summary: str) -> Settled:
    if why == "lost":
        return Settled(False, 0, "")
    if why == "cancelled":
        return ledger.commit(claim, "cancelled", Result(), ())
    return ledger.back(claim, 0, False, summary, None, ())


def _interrupted(why: str) -> tuple[str, str]:
    if why == "cancelled":
        return "cancelled", "its job was cancelled"
    return ("lost", "the lease was lost") if why == "lost" else ("retried", f"planning handed back ({why})")


def _add_all(
    app: Celery,
    node: Node,
    ledger: WorkLedger,
    claim: Claim,
    transfer: Transfer,
    control: Control,
    source: AnySource,
    bad: list[Failure],
) -> int:
    """Shards into the ledger, a batch at a time. Returns how many files the source has; raises
    :class:`NothingMatched` for none."""
    done = int(claim.cursor or "0")
    files = 0
    specs = _expand(
        transfer,
        source,
        claim.record.source,
        lambda line, error: bad.append(_bad_line(node, claim, source, line, error, len(bad))),
    )
    nodes = [worker.node for worker in ledger.workers()] or [node.settings.node]
    for step in batched(_cut(specs, claim.options.shard_files), STEP):
        control.check()
        files += sum(len(shard) for shard in step)
        if files <= done:
            continue
        made: list[NewUnit] = []
        queues: Counter[str] = Counter()
        for shard in step:
            queue = choose_queue(FETCH_QUEUE, claim.options.placement, nodes, shard[0].uri)
            made.append(NewUnit.shard(shard, queue))
            queues[queue] += 1
        answer = ledger.add_planned(claim, str(files), made)
        if answer != "ok":
            raise Interrupted("cancelled" if answer == "cancelled" else "lost")
        ring(app, queues)
    if not files and not bad:
        raise NothingMatched(
            source.uri, "matched nothing: look at the bucket, path or pattern, and at what the connection may list"
        )
    return files


def _cut(specs: Iterator[FileSpec], wanted: int | None) -> Iterator[list[FileSpec]]:
    """Shards from a listing whose length is not known: small ones at first, so that work begins and is spread at
    once, larger ones as the list goes on. The cut depends on the listing alone, so that planning again cuts the
    same."""
    shard: list[FileSpec] = []
    size = 0
    for seen, spec in enumerate(specs):
        most = wanted or min(SHARD_FILES, 1 + seen // 256)
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


def _expand(transfer: Transfer, source: AnySource, index: int, on_bad: OnBad) -> Iterator[FileSpec]:
    if isinstance(source, Manifest):
        listed = _from_manifest(transfer, source, on_bad)
    else:
        listed = _from_origin(transfer, source)
    return (dataclasses.replace(spec, source=index) for spec in listed)


def _from_origin(transfer: Transfer, source: AnySource) -> Iterator[FileSpec]:
    """What the origin lists of each URI that the braces of a pattern stand for, one after the other."""
    part = 0
    for uri in expand_braces(source.uri) if isinstance(source, Source) else [source.uri]:
        one = dataclasses.replace(source, uri=uri) if isinstance(source, Source) else source
        name, context = transfer.context(uri, source.connection)
        for spec in transfer.fetcher(uri).expand(one, context):
            yield dataclasses.replace(spec, connection=name, part=part)
            part += 1


def _from_manifest(transfer: Transfer, source: Manifest, on_bad: OnBad) -> Iterator[FileSpec]:
    """The files that a manifest lists. The manifest is fetched like any file: verified, published, fetched once for
    all. A line that cannot be right is told to ``on_bad`` and left out."""
    spec = transfer.resolve(FileSpec(0, 0, source.uri, connection=source.connection))
    record = transfer.reuse(spec) or transfer.fetch(spec)
    path = transfer.node.store.path_of(record.path)
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
