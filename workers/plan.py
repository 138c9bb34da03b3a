"""From sources that only the origin can list (globs, prefixes, partitions, manifests) to shards, in batches, in flat
memory. What a source lists is in ``listing``; here it is cut, added, and settled."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator

from billiard.exceptions import SoftTimeLimitExceeded
from celery import Celery

from ingest.cuts import cut_listed
from ingest.doorbell import ring
from ingest.errors import FetchError, FetchTimeout, NodeUnfit, NothingMatched, TransientFetchError
from ingest.ledger import Claim, NewUnit, Result, Settled, WorkLedger, batched, fit
from ingest.model import Failure, FileSpec
from ingest.placement import choose_queue
from ingest.queues import FETCH_QUEUE
from ingest.record import unpack_json
from ingest.sources import AnySource, source_from_json
from workers import node as here
from workers.control import Control
from workers.descriptors import own_fault
from workers.events import Events
from workers.fetch import FLIGHT_WAIT_S
from workers.fetchers.base import Interrupted
from workers.listing import Listing
from workers.logs import log
from workers.node import Node
from workers.outcome import failure_of
from workers.retry import delay_s, is_final

#: Shards in one step of planning: what is added, and rung for, at once.
STEP = 200
#: How long a planner that is far enough ahead rests; it is woken when half of what it added is done.
AHEAD_WAIT_S = 60.0

#: The state of a go, a line about it, and whether it was settled.
Ended = tuple[str, str, Settled]


class Planning:
    """One go at planning a source: what it lists, cut into shards, and added step by step."""

    def __init__(
        self, app: Celery, node: Node, ledger: WorkLedger, claim: Claim, control: Control, source: AnySource
    ) -> None:
        self.app, self.node, self.ledger, self.claim, self.control = app, node, ledger, claim, control
        self.listing = Listing(node, ledger, claim, control, source, claim.cursor)
        #: Files that this go added, the row or place of the last of them, and whether it is far enough ahead.
        self.added, self.upto, self.ahead = 0, -1, False
        #: What it waits for, if it is for a moment at which to read.
        self.awaits = ""
        #: Units of the job that may be open before this rests; 0 for what would begin anew at its origin.
        self.most = node.settings.limits.plan_ahead if self.listing.goes_on else 0

    @property
    def files(self) -> int:
        """How many there are in shards by now."""
        return self.listing.begin.files + self.added

    def add_all(self) -> None:
        """Shards into the ledger, a step at a time. Raises :class:`NothingMatched` for a source without files, and
        :class:`Interrupted`."""
        self.ahead = bool(self.claim.cursor and self.most) and self.ledger.open_units(self.claim.job) > self.most
        if self.ahead:
            raise Interrupted("ahead")
        nodes = fit(self.ledger.workers()) or [self.node.settings.node]
        for step in batched(self.shards(), STEP, len):
            self.control.check()
            self.step(step, nodes)
        if not self.files and not self.listing.bad:
            raise NothingMatched(
                self.listing.source.uri,
                "matched nothing: look at the bucket, path or pattern, and at what the connection may list",
            )

    def shards(self) -> Iterator[list[FileSpec]]:
        return cut_listed(self.listing.specs(), self.claim.options.shard_files, self.files)

    def step(self, shards: list[list[FileSpec]], nodes: list[str]) -> None:
        """Shards into the ledger, and their bells. Raises :class:`Interrupted` where that was the last step for now."""
        claim = self.claim
        made: list[NewUnit] = []
        queues: Counter[str] = Counter()
        for shard in shards:
            queue = choose_queue(FETCH_QUEUE, claim.options.placement, nodes, shard[0].uri)
            made.append(NewUnit.shard(shard, queue))
            queues[queue] += 1
        end = shards[-1][-1]
        files = sum(len(shard) for shard in shards)
        cursor = self.listing.reached(end, self.files + files).text
        answer = self.ledger.add_planned(claim, cursor, made, self.most)
        if answer not in {"ok", "ahead"}:
            raise Interrupted("cancelled" if answer == "cancelled" else "lost")
        self.added += files
        self.upto = end.part
        ring(self.app, queues)
        self.ahead = answer == "ahead"
        if self.ahead:
            raise Interrupted("ahead")

    def result(self, *failures: Failure) -> Result:
        """What there is to say of it at its end."""
        return Result(failures=failures)

    def over(self) -> Ended:
        """All of it is planned; rows that are no files are its failures."""
        bad = self.listing.bad
        state = "failed" if bad else "done"
        summary = str(bad[0]) if bad else f"{self.files} files planned"
        return state, summary, self.ledger.commit(self.claim, state, self.result(*bad), self.control.flights)

    def interrupted(self, why: str) -> Ended:
        uri = self.listing.source.uri
        if why == "lost":
            return "lost", "the lease was lost", Settled(False, 0, "")
        if why == "cancelled":
            settled = self.ledger.commit(self.claim, "cancelled", Result(), self.control.flights)
            return "cancelled", "its job was cancelled", settled
        if why == "busy":
            return self.back(FLIGHT_WAIT_S, f"waits for {uri}, which another job is fetching")
        if why == "snapshot":  # woken when it is there
            return self.back(FLIGHT_WAIT_S, self.awaits)
        if why == "ahead":
            return self.back(AHEAD_WAIT_S, f"{self.files} files planned; goes on when some are done")
        if why == "slice" and not self.added:
            slice_s = self.node.settings.limits.soft_s
            reason = f"nothing could be planned within the time slice of {slice_s:g} s; raise [limits] soft_s"
            return self.failed(FetchTimeout(uri, reason))
        return self.back(0, f"planning handed back ({why})")

    def failed(self, error: FetchError) -> Ended:
        """The source cannot be planned: for good, or not now."""
        error = own_fault(error) or error
        claim, attempt = self.claim, self.claim.record.attempts + 1
        policy, options = self.node.settings.retry, claim.options
        final = is_final(policy, error, attempt, options.attempts, claim.age_s, options.deadline_s)
        if isinstance(error, TransientFetchError) and not final:
            reason = f"{type(error).__name__}: {error}"
            return self.back(delay_s(policy, error, attempt), reason, counted=not isinstance(error, NodeUnfit))
        failure = failure_of(self.node, claim, self.listing.source.uri, (claim.record.source, 0), error)
        result = self.result(failure, *self.listing.bad)
        return "failed", str(failure), self.ledger.commit(claim, "failed", result, self.control.flights)

    def back(self, wait_s: float, reason: str, *, counted: bool = False) -> Ended:
        """Later, by whoever claims it then; with the bad rows that were passed, which nobody looks at again."""
        news = Result(failures=self.listing.failures(self.upto)) if self.added else None
        settled = self.ledger.back(self.claim, wait_s, counted, reason, news, self.control.flights)
        return "retried", reason, settled


def plan_source(app: Celery, node: Node, ledger: WorkLedger, claim: Claim, hostname: str | None) -> Settled:
    """Plan one source and settle the piece of planning: done, failed, or again later. A planner that died half-way is
    continued: the cursor says up to which file there are shards already."""
    source = source_from_json(unpack_json(claim.spec))
    return go(Planning(app, node, ledger, claim, control_of(node, ledger, claim), source), hostname)


def control_of(node: Node, ledger: WorkLedger, claim: Claim) -> Control:
    limits = node.settings.limits
    return Control(ledger, claim, slice_s=limits.soft_s, every_s=limits.progress_s, stopping=here.stopping)


def go(planning: Planning, hostname: str | None) -> Settled:
    """One go at it, from its beginning to where it is settled."""
    begun, claim = time.monotonic(), planning.claim
    events = Events(planning.app, hostname, claim)
    try:
        planning.add_all()
        state, summary, settled = planning.over()
    except Interrupted as stop:
        planning.awaits = stop.reason
        state, summary, settled = planning.interrupted(stop.why)
    except SoftTimeLimitExceeded:
        state, summary, settled = planning.interrupted("slice")
    except FetchError as error:
        state, summary, settled = planning.failed(error)
    seconds = time.monotonic() - begun
    facts: dict[str, object] = {"job": claim.job, "shard": claim.number, "node": planning.node.settings.node}
    facts |= {"origin": claim.record.origin, "files": planning.added, "seconds": round(seconds, 4), "reason": summary}
    level = logging.INFO if state == "done" or planning.ahead or planning.awaits else logging.WARNING
    log.log(level, f"plan.{state}", extra=facts)
    events.ended(state, summary, seconds)
    return settled
