"""What submitting would mean, counted by the data nodes: a dry run's numbers, put together."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ingest.client.job import Job
from ingest.ledger import JobLedger, Result, numbers_of
from ingest.model import Failure

#: Units whose numbers are read at once.
STEP = 200


@dataclass(frozen=True)
class Plan:
    """``bytes`` are those whose number is known without fetching; of ``unsized`` files it is not. ``here`` files are in
    the store and need no request. ``requests`` are the fewest, without retries: ``list``, ``check`` (is the copy in the
    store still right?) and ``fetch``. ``manifests`` were fetched to be read. It is not ``whole`` if counting was given
    up at the end of a time slice: then all numbers are the least. ``failures`` are what is known to fail.
    """

    files: int
    bytes: int
    unsized: int
    shards: int
    here: int
    here_bytes: int
    requests: Mapping[str, int]
    manifests: int
    whole: bool
    failures: tuple[Failure, ...]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self) | {"failures": [failure.to_json() for failure in self.failures]}


def plan_of(job: Job, ledger: JobLedger, timeout: float | None) -> Plan:
    """Wait for a dry run, add its numbers up, and take it out of the ledger. Raises :class:`WaitTimeout`."""
    job.wait(timeout)
    numbers = numbers_of(ledger.meta(job.id))
    counts: Counter[str] = Counter()
    for at in range(0, len(numbers), STEP):
        for packed in ledger.results(job.id, numbers[at : at + STEP]):
            counts.update(Result.unpacked(packed).counts or {})
    failures = tuple(job.failures())
    ledger.forget(job.id)
    return Plan(
        files=counts["files"],
        bytes=counts["bytes"],
        unsized=counts["unsized"],
        shards=counts["shards"],
        here=counts["here"],
        here_bytes=counts["here_bytes"],
        requests={kind: counts[kind] for kind in ("list", "check", "fetch")},
        manifests=counts["manifests"],
        whole=not counts["partial"],
        failures=failures,
    )
