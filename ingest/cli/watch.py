"""``ingest watch``, and the progress bar that ``ingest fetch`` shows too."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from ingest.cli.output import duration, json_option, show_json, size
from ingest.client import Client, Job
from ingest.errors import WaitTimeout
from ingest.model import TERMINAL_JOB, Consumer, JobStatus

EVERY_S = 0.3


def line(status: JobStatus) -> str:
    """One line about a job: files, bytes, rate, and what it waits for."""
    failed = f", [red]{status.files_failed} failed[/]" if status.files_failed else ""
    waits = f", {status.waiting_for}" if status.waiting_for else ""
    eta = f", {duration(status.eta_s)} to go" if status.eta_s is not None else ""
    files = f"{status.files_done} of {status.files} files"
    return f"{status.state}: {files}{failed}, {size(status.bytes)}, {size(status.rate)}/s{eta}{waits}"


def readers(consumers: Sequence[Consumer]) -> str:
    """Those who train on a job, as the one of them that has come least far."""
    if not consumers:
        return ""
    last = min(consumers, key=lambda each: (each.epoch, each.samples))
    waited = f", waited {duration(last.waited_s)}" if last.waited_s >= 1 else ""
    rate = f"{sum(each.samples_per_s for each in consumers):,.0f} samples/s"
    ranks = f"{len(consumers)} rank{'s' * (len(consumers) > 1)}"
    return f"; {ranks} at {rate}: epoch {last.epoch}, {last.samples:,} samples{waited}"


def _looks(job: Job, timeout_s: float) -> Iterator[tuple[JobStatus, list[Consumer]]]:
    """How a job stands and who reads it, some times a second, and last when it is over. Raises
    :class:`WaitTimeout`."""
    end = time.monotonic() + timeout_s
    while True:
        status = job.status()
        yield status, job.consumers()
        if status.state in TERMINAL_JOB:
            return
        left = end - time.monotonic()
        if left <= 0:
            raise WaitTimeout(job.id, timeout_s, status.waiting_for)
        with suppress(WaitTimeout):
            job.wait(timeout=min(EVERY_S, left))


def follow(job: Job, timeout_s: float, console: Console) -> JobStatus:
    """A bar until the job is over: as it then is. Raises :class:`WaitTimeout`. On what is no terminal it says nothing
    until the end."""
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=24))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)
        for status, consumers in _looks(job, timeout_s):
            bar.update(
                task,
                description=line(status) + readers(consumers),
                total=status.files or None,
                completed=status.files_done + status.files_failed,
            )
    return status


@click.command()
@click.argument("job_id", metavar="[JOB]", required=False)
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=24 * 3600.0, help="Seconds."
)
@json_option
def watch(job_id: str | None, timeout_s: float, as_json: bool) -> None:
    """Follow a job (the latest, if none is named) to its end. Exit status 1 if something failed. With --json, a line
    a change."""
    client = Client()
    jobs = [client.job(job_id)] if job_id else client.jobs(1)
    if not jobs:
        raise click.UsageError("there is no job to watch")
    (job,) = jobs
    if as_json:
        status = _stream_json(job, timeout_s)
    else:
        status = follow(job, timeout_s, Console(stderr=True))
        Console().print(f"{job.id} {line(status)}", highlight=False, soft_wrap=True)
    if status.state != "done":
        raise click.exceptions.Exit(1)


def _stream_json(job: Job, timeout_s: float) -> JobStatus:
    before = None
    for status, consumers in _looks(job, timeout_s):
        now = status.state, status.shards, status.bytes, [(each.epoch, each.samples) for each in consumers]
        if now != before:
            show_json({**status.to_json(), "consumers": [each.to_json() for each in consumers]})
            before = now
    return status
