"""What a shard waits for, as a sentence for a person: its queue, a time, space, a worker, or somebody who is not
there."""

from __future__ import annotations

from collections.abc import Sequence

from ingest.ledger import JobLedger, UnitRecord, WorkerInfo
from ingest.space import size


def why(ledger: JobLedger, record: UnitRecord) -> str:
    """All that the ledger knows of why a unit is not over: where it stands in its queue, until when it lies and why,
    who has it and how fast it comes, and whether anybody is there to take it."""
    now = ledger.now_ms()
    said = describe(record, now)
    if record.state == "leased":
        return said + _rate(ledger, record, now)
    if record.state != "due":
        return said
    if (ahead := ledger.place_in_queue(record)) is not None:
        said += f"; {ahead} {'is' if ahead == 1 else 'are'} before it there" if ahead else "; it is the next there"
    workers = ledger.workers()
    if not workers:
        return f"{said}; no data node is alive"
    return said + trouble(record.queue, workers)


def describe(record: UnitRecord, now_ms: int) -> str:
    """One line about a unit: its state, its origin, and why it is not over."""
    again = ", of which files were evicted or lost and are fetched again," if record.gone else ""
    what = f"shard {record.unit} from {record.origin}{again}"
    reason = f": {record.reason}" if record.reason and record.reason != _GONE else ""
    if record.state == "leased":
        return f"{what} is being fetched by {record.worker}, attempt {record.attempts + 1}{reason}"
    if record.state == "due" and record.due_ms > now_ms:
        return f"{what} is tried again in {(record.due_ms - now_ms) / 1000:.0f} s{reason}"
    if record.state == "due":
        return f"{what} waits in queue {record.queue}{reason}"
    return f"{what} is {record.state}{reason}"


#: What the ledger writes as the reason; ``describe`` says it in its own words.
_GONE = "files of it are gone from the store"


def _rate(ledger: JobLedger, record: UnitRecord, now_ms: int) -> str:
    seconds = max((now_ms - record.claimed_ms) / 1000, 1.0)
    come = ledger.live_bytes_of(record.unit)
    return f"; {size(come)} in {seconds:.0f} s, {size(come / seconds)}/s"


def node_of(queue: str) -> str:
    """The node that a queue is for; "" for one that all nodes serve."""
    return queue.split(".", 2)[2] if queue.count(".") >= 2 else ""


def trouble(queue: str, workers: Sequence[WorkerInfo]) -> str:
    """Why nobody takes what is due in that queue, or ""."""
    node = node_of(queue)
    if node and node not in {worker.node for worker in workers}:
        return f"; node {node} is not alive"
    takers = {worker.node: worker.trouble for worker in workers if queue in worker.queues}
    if not takers:
        return f"; {f'node {node} does not consume' if node else 'no live node consumes'} that queue (see -Q)"
    wrong = [f"node {name} is {said}" for name, said in sorted(takers.items()) if said]
    return f"; {'; '.join(wrong)}" if len(wrong) == len(takers) else ""
