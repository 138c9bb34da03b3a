"""``ingest.mix``: several jobs to be read as one, by weight. What the order of it is, is said in ``epoch.py``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ingest.dataset.protocols import Job
from ingest.errors import UsageError

#: When an epoch is over, beside after a number of samples.
STOPS = ("first", "all")


@dataclass(frozen=True)
class Mixture:
    """``weights`` add up to 1."""

    jobs: tuple[Job, ...]
    weights: tuple[float, ...]
    stop: str | int

    @classmethod
    def of(cls, job: Job | Mixture) -> Mixture:
        """One job is a mixture, too."""
        return job if isinstance(job, Mixture) else cls((job,), (1.0,), "first")


_Job = TypeVar("_Job", bound=Job)


def mix(jobs: Mapping[_Job, float] | Iterable[tuple[_Job, float]], *, stop: str | int = "first") -> Mixture:
    """Jobs to be read as one: ``StreamingDataset(ingest.mix({a: 0.7, b: 0.3}))``, also as a list of (job, weight).

    Of every block of 64 samples each job has its share by weight, to within two; after whole blocks the counts of all
    are as near to their weights as whole numbers come. Weights are positive and need not add up to 1. Each job is read
    in its own order, which does not depend on what it is mixed with; a job that is read again within an epoch is
    shuffled anew, if the dataset shuffles.

    ``stop`` says when an epoch is over: ``"first"``, before any job would have to be read again; ``"all"``, when every
    job has been read to its end, the shorter ones again and again, which is seen at the next turn of the last one; or
    after so many samples. Each epoch begins all jobs at their beginning.

    Raises :class:`UsageError`.
    """
    pairs = [(job, weight) for job, weight in (jobs.items() if isinstance(jobs, Mapping) else jobs)]
    if not pairs:
        raise UsageError("a mixture of no jobs: give {job: weight, …}")
    ids = [job.id for job, _ in pairs]
    twice = next((id for n, id in enumerate(ids) if id in ids[:n]), None)
    if twice is not None:
        raise UsageError(f"job {twice} is in the mixture twice: give it once, with the sum of its weights")
    if stop not in STOPS and (isinstance(stop, bool) or not isinstance(stop, int) or stop < 1):
        raise UsageError(f"stop={stop!r}: use one of {', '.join(STOPS)}, or a number of samples, 1 or more")
    weights = [_weight(job, weight) for job, weight in pairs]
    most = max(weights)  # first: the sum of large ones may be no number
    total = math.fsum(weight / most for weight in weights)
    shares = tuple(weight / most / total for weight in weights)
    if not all(shares):
        raise UsageError(f"weights {weights}: they are too far apart to be shares of one whole")
    return Mixture(tuple(job for job, _ in pairs), shares, stop)


def _weight(job: Job, weight: float) -> float:
    try:
        value = float(weight)
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UsageError(f"weight {weight!r} of job {job.id}: give a number above 0, or leave the job out")
    return value
