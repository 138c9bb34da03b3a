"""``ingest fetch``: submit, wait with a progress bar, print the paths. Starts a service of its own when none answers
here."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import click
from rich.console import Console

from ingest.cli import complain
from ingest.cli.asking import Asked, asking, show_plan
from ingest.cli.output import json_option, show_json
from ingest.cli.watch import follow
from ingest.client import Client
from ingest.client.follow import GRACE_S
from ingest.client.submission import check
from ingest.embedded.ports import answers
from ingest.errors import LedgerUnavailable, UsageError, WaitTimeout
from ingest.ledger import JobLedger
from ingest.ledger.connect import until
from ingest.settings import current

LOOPBACK = {"127.0.0.1", "localhost", "::1"}


@click.command()
@asking
@click.option(
    "--timeout",
    "timeout_s",
    type=float,
    default=24 * 3600.0,
    show_default=False,
    help="Seconds to wait (the job goes on).",
)
@json_option
def fetch(asked: Asked, timeout_s: float, as_json: bool) -> None:
    """Fetch URIs and print the local paths, one a line, in the order asked for."""
    if not timeout_s > 0:
        raise UsageError(f"--timeout {timeout_s:g} must be above 0")
    if not asked.sources:
        raise UsageError("give at least one URI (or --manifest URI)")
    for source in asked.sources:
        check(source)
    console = Console(stderr=True)
    with service(console) as (client, stays):
        if asked.dry_run:
            show_plan(client.plan(asked.sources, timeout=timeout_s, **asked.options), as_json)
            return
        end = time.monotonic() + timeout_s
        job = None
        try:
            with until(end + GRACE_S):
                job = client.submit(asked.sources, **asked.options)
            follow(job, timeout_s, console)
        except KeyboardInterrupt as stop:
            if not stays:
                complain("stopping the service that was started for this command")
            elif job is not None:
                complain(f"job {job.id} goes on: see `ingest watch {job.id}`, or stop it with `ingest cancel {job.id}`")
            else:
                for note in getattr(stop, "__notes__", []):
                    complain(note)
            raise
        except WaitTimeout as error:
            if stays:
                raise
            what = f" ({error.waiting_for})" if error.waiting_for else ""
            complain(f"not finished after {timeout_s:g} s{what}; its own service ends now, and the job with it")
            raise click.exceptions.Exit(1) from None
        files = job.files(timeout=max(1.0, end - time.monotonic()))
        failures = job.failures()
        if as_json:
            show_json(
                {"job": job.id, "files": [f.to_json() for f in files], "failures": [f.to_json() for f in failures]}
            )
        else:
            for file in files:
                click.echo(str(file.into or file.path))
        done = job.status().state == "done"  # a packed shard may be, without every one of its samples
    for failure in failures:
        complain(str(failure))
    if failures and not done:
        raise click.exceptions.Exit(1)


@contextlib.contextmanager
def service(console: Console) -> Iterator[tuple[Client, bool]]:
    """A client of the service that answers, and True; else of one that lives as long as this block, and False.

    A Redis that is configured on another machine and does not answer is an error, not a reason to start one here.
    """
    settings = current()
    try:
        JobLedger(settings, retries=0).ping()
    except LedgerUnavailable:
        if urlsplit(settings.ledger_url).hostname not in LOOPBACK or answers(settings.ledger_url):
            raise
    else:
        yield Client(lease=False), True
        return
    from ingest.embedded.service import EmbeddedService, embedded_service

    def ready(started: EmbeddedService) -> bool:
        return bool(Client(started.redis_url).workers())

    console.print(
        "[dim]no service answers here; starting one for this command (`ingest up` keeps one)[/]", highlight=False
    )
    with embedded_service(ready) as started:
        yield Client(started.redis_url, lease=False), False
