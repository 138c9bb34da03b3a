"""A dry run's unit: what it would mean is counted, and nothing is fetched but a manifest. What a source lists is found
as in ``plan``.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Iterator

from celery import Celery

from ingest.braces import count_braces
from ingest.cuts import cut_listed
from ingest.errors import FetchError
from ingest.ledger import Claim, Result, Settled, WorkLedger
from ingest.model import Failure, FileSpec
from ingest.record import unpack, unpack_json
from ingest.sources import AnySource, Manifest, Source, Sql, source_from_json
from workers.control import Control
from workers.listing import from_origin
from workers.node import Node
from workers.outcome import failure_of
from workers.plan import Ended, Planning, control_of, go
from workers.transfer import Transfer

#: Keys in a page of a listing, and bytes in a range of an object: what one request to an object store brings.
PAGE_KEYS, RANGE_BYTES = 1000, 8 << 20
#: Schemes that are asked in such pages and ranges; those that are asked nothing; all else is at least one request.
OBJECTS, NO_REQUEST = frozenset({"s3", "gs", "gcs", "az", "abfs"}), frozenset({"file"})
#: Sources that cannot be had, as far as that can be known, of which each is listed.
MOST_LISTED = 1000


class Counting(Planning):
    """One go at counting: a source to be listed, or a shard of literal ones. It keeps numbers only, and begins anew
    when it is interrupted; at the end of a time slice it says how far it came."""

    def __init__(
        self, app: Celery, node: Node, ledger: WorkLedger, claim: Claim, control: Control, source: AnySource
    ) -> None:
        super().__init__(app, node, ledger, claim, control, source)
        self.counts: Counter[str] = Counter()
        self.lost: list[Failure] = []
        # Looking must not make anything appear under into=.
        self._transfer = Transfer(node, dataclasses.replace(claim.options, into=None), control)

    def shards(self) -> Iterator[list[FileSpec]]:
        if not self.claim.is_plan:
            return iter([unpack(FileSpec, self.claim.spec)])
        source = self.listing.source
        if not isinstance(source, Sql):
            return super().shards()
        # No moment to read at is taken for it, and no cursor moves on.
        source = dataclasses.replace(source, consistent=False, incremental_on=None, since=None)
        listed = from_origin(self._transfer, source, self.claim.record.source)
        return cut_listed(listed, self.claim.options.shard_files)

    def step(self, shards: list[list[FileSpec]], nodes: list[str]) -> None:
        self.counts["shards"] += len(shards)
        for shard in shards:
            self.control.check()
            for spec in shard:
                self.added += 1
                self._count(spec)

    def _count(self, spec: FileSpec) -> None:
        counts = self.counts
        counts["files"] += 1
        size = spec.size
        try:
            spec = self._transfer.resolve(spec)
            records = self._transfer.reuse(spec)
            known = None if records or spec.digest else self.node.store.lookup(self._transfer.key(spec))
        except FetchError as error:
            if len(self.lost) < MOST_LISTED:
                self.lost.append(failure_of(self.node, self.claim, spec.uri, spec.index, error))
            return
        if records is not None:
            size = sum(record.size for record in records)
            counts["here"] += 1
            counts["here_bytes"] += size
        elif known is not None:
            size = known.size if size is None else size
            counts["check"] += 1
        else:
            counts["fetch"] += requests_for(spec.uri, size)
        counts["bytes"] += size or 0
        counts["unsized"] += size is None

    def result(self, *failures: Failure) -> Result:
        """The numbers of this unit, among them the requests that its listing takes."""
        if self.claim.is_plan:
            self.counts["list"] += listing_requests(self.listing.source, self.added)
            self.counts["manifests"] += isinstance(self.listing.source, Manifest) and self.listing.file is not None
        return Result(failures=(*failures, *self.lost), counts={k: v for k, v in self.counts.items() if v})

    def over(self) -> Ended:
        bad = (*self.listing.bad, *self.lost)
        state = "failed" if bad else "done"
        summary = str(bad[0]) if bad else f"{self.added} files counted"
        result = self.result(*self.listing.bad)
        return state, summary, self.ledger.commit(self.claim, state, result, self.control.flights)

    def interrupted(self, why: str) -> Ended:
        if why != "slice":
            return super().interrupted(why)
        self.counts["partial"] += 1
        return self.over()

    def back(self, wait_s: float, reason: str, *, counted: bool = False) -> Ended:
        settled = self.ledger.back(self.claim, wait_s, counted, reason, None, self.control.flights)
        return "retried", reason, settled


def count_unit(app: Celery, node: Node, ledger: WorkLedger, claim: Claim, hostname: str | None) -> Settled:
    """Count what a claim of a dry run stands for, and settle it."""
    if claim.is_plan:
        source = source_from_json(unpack_json(claim.spec))
    else:
        source = Source(unpack(FileSpec, claim.spec)[0].uri)
    return go(Counting(app, node, ledger, claim, control_of(node, ledger, claim), source), hostname)


def requests_for(uri: str, size: int | None) -> int:
    """The fewest requests that bring a file of that size."""
    scheme = uri.partition("://")[0].lower()
    if scheme in NO_REQUEST:
        return 0
    return max(1, math.ceil((size or 0) / RANGE_BYTES)) if scheme in OBJECTS else 1


def listing_requests(source: AnySource, files: int) -> int:
    """The fewest requests that list so many files. A manifest that was read here is here."""
    scheme = source.uri.partition("://")[0].lower()
    if isinstance(source, Manifest) or scheme in NO_REQUEST:
        return 0
    if isinstance(source, Sql):
        return 1 + (source.partitions > 1)
    if not isinstance(source, Source):
        return 0  # an API is asked page by page when it is fetched
    patterns = count_braces(source.uri)
    return max(patterns, math.ceil(files / PAGE_KEYS)) if scheme in OBJECTS else patterns
