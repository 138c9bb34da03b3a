"""The numbers of the demo. Every one is the job's (status, files, failures, shards) or the training loop's."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from ingest.client import Client, Job
from ingest.demo import data
from ingest.demo.origins import BUCKET
from ingest.errors import NotFound
from ingest.model import Failure, JobStatus
from ingest.sources import AnySource, Source, Sql

#: So many steps at the beginning and the end are averaged: one batch's loss says little.
_EDGE = 8

KINDS = {"HTTP": "tar shards", "S3": "Parquet files", "SQL": "partitions of a table"}


class Trained(Protocol):
    """What the table needs of a training; ``train.Trained`` is one, and importing that loads torch."""

    @property
    def first_batch_s(self) -> float: ...
    @property
    def step_s(self) -> Sequence[float]: ...
    @property
    def losses(self) -> Sequence[float]: ...
    @property
    def samples(self) -> Mapping[str, int]: ...
    @property
    def accuracy(self) -> float: ...


@dataclass(frozen=True)
class Row:
    """A kind of source. ``samples`` are those on disk, ``trained`` those that the training loop saw."""

    kind: str
    what: str
    files: int
    bytes: int
    samples: int
    trained: int
    failed: int
    retries: int


@dataclass(frozen=True)
class Report:
    """Seconds are from the moment the job was submitted, except ``seconds``: those are from the start
    of the command to the end of the training. ``unexpected`` says, a sentence each, what is not as it should be."""

    seconds: float
    status: JobStatus
    rows: Sequence[Row]
    failures: Sequence[Failure]
    first_batch_s: float
    steps: int
    steps_before_landed: int
    samples_per_s: float
    loss_first: float
    loss_last: float
    accuracy: float
    unexpected: Sequence[str]

    def to_json(self) -> dict[str, Any]:
        out = dataclasses.asdict(self)
        return {
            "ok": not self.unexpected,
            "dataset": "generated",
            **out,
            "status": self.status.to_json(),
            "failures": [failure.to_json() for failure in self.failures],
            "held_out": data.HELD_OUT,
        }


def sources(addresses: Mapping[str, str]) -> list[AnySource]:
    """What the demo asks for; the last one does not exist, and the one before fails at the first request."""
    http = addresses["http"]
    return [
        Source(f"{http}/digits-{{000..{data.SHARDS - 1:03}}}.tar"),
        Source(f"s3://{BUCKET}/train/part-*.parquet", connection="demo-s3"),
        Sql("demo-sql", table="digits", partition_on="id", partitions=data.PARTITIONS),
        Source(f"{http}/flaky.tar"),
        Source(f"{http}/missing.tar"),
    ]


def kind_of(source: AnySource) -> str:
    if isinstance(source, Sql):
        return "SQL"
    return "S3" if source.uri.startswith("s3://") else "HTTP"


def make(client: Client, job: Job, asked: Sequence[AnySource], trained: Trained, seconds: float) -> Report:
    """The report of a job that is over."""
    status, files, failures = job.status(), job.files(), job.failures()
    kinds = [kind_of(source) for source in asked]
    retries: Counter[str] = Counter()
    for unit in client.ledger.all_units(job.id):
        retries[kinds[unit.source]] += unit.attempts
    rows = []
    for kind, what in KINDS.items():
        ours = [file for file in files if kinds[file.index[0]] == kind]
        failed = sum(kinds[failure.index[0]] == kind for failure in failures)
        rows.append(
            Row(kind, what, len(ours), sum(f.size for f in ours), sum(f.samples or 0 for f in ours),
                trained.samples.get(kind, 0), failed, retries[kind])
        )  # fmt: skip
    reading_s = (trained.step_s[-1] if trained.step_s else 0.0) - trained.first_batch_s
    edge = max(1, min(_EDGE, len(trained.losses) // 2))
    report = Report(
        seconds=seconds, status=status, rows=rows, failures=failures,
        first_batch_s=trained.first_batch_s, steps=len(trained.losses),
        steps_before_landed=sum(at < status.seconds for at in trained.step_s),
        samples_per_s=sum(trained.samples.values()) / reading_s if reading_s > 0 else 0.0,
        loss_first=_mean(trained.losses[:edge]), loss_last=_mean(trained.losses[-edge:]), accuracy=trained.accuracy,
        unexpected=(),
    )  # fmt: skip
    return dataclasses.replace(report, unexpected=tuple(_unexpected(report, asked[-1].uri)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _unexpected(report: Report, bad: str) -> list[str]:
    """What is not as it should be, a sentence each."""
    found = [f"it should not have failed: {failure}" for failure in report.failures if failure.source != bad]
    if [failure.error for failure in report.failures if failure.source == bad] != [NotFound.__name__]:
        found.append(f"{bad} should have failed with {NotFound.__name__}")
    arrived = sum(row.files for row in report.rows)
    if arrived != data.FILES or report.status.files_done != data.FILES:
        found.append(f"{arrived} files arrived, and there are {data.FILES}")
    if not report.status.retries:
        found.append("the flaky URL should have been tried again")
    found += [
        f"the loop saw {row.trained} samples of {row.kind}, and {row.samples} are on disk"
        for row in report.rows
        if row.trained != row.samples
    ]
    if not report.loss_last < report.loss_first:
        found.append(f"the loss did not fall: {report.loss_first:.3f} first, {report.loss_last:.3f} last")
    return found
