"""``ingest demo``: the main job on this machine, from origins to a trained model; its parts are in ``ingest.demo``."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.status import Status

from ingest.cli import complain
from ingest.cli.output import json_option, show_json
from ingest.client import Job
from ingest.demo import stage
from ingest.demo.interrupts import Interrupts
from ingest.errors import IngestError

if TYPE_CHECKING:
    from ingest.demo.report import Report

_END_S = 30.0  # for the job, once all that can be read of it has been read
_LOOK_S = 0.2


@click.command()
@json_option
def demo(as_json: bool) -> None:
    """Fetch a small dataset over HTTP, S3 and SQL, and train on it while it lands. Under a minute, nothing to set up.

    Exit status 0 if all arrived but the one URL that is bad on purpose, and the loss fell.
    """
    begun = time.monotonic()
    stage.check_installed()
    from ingest.demo import table

    console = Console(stderr=True, quiet=as_json)
    with (
        Interrupts() as interrupts,
        tempfile.TemporaryDirectory(prefix="ingest-demo-", ignore_cleanup_errors=True) as name,
    ):
        folder = Path(name)
        try:
            made = _play(folder, begun, interrupts, console)
        except (IngestError, OSError):
            interrupts.check()
            _show_log(folder)
            raise
        interrupts.check()
        if made.unexpected:
            _show_log(folder)
        if as_json:
            show_json(made.to_json())
        else:
            table.show(made, Console())
    for sentence in made.unexpected:
        complain(sentence)
    if made.unexpected:
        raise click.exceptions.Exit(1)


def _play(folder: Path, begun: float, interrupts: Interrupts, console: Console) -> Report:
    """All of it, from the first process to the last; none is left when it returns."""
    with contextlib.ExitStack() as stack:
        said = stack.enter_context(console.status("starting an HTTP server, an S3 server and a database"))
        with interrupts.held():  # a process whose start is broken off would not be known, and be left
            origins = stack.enter_context(stage.started_origins(folder))
        with interrupts.held():  # an import that is broken off can come back as any error, or as none
            from ingest.demo import report, train
        addresses = origins.addresses()
        said.update("starting Redis and a data node")
        with interrupts.held():
            client = stack.enter_context(stage.started_service(folder, addresses, interrupts))
        stack.callback(interrupts.ignore)
        asked = report.sources(addresses)
        submitted = time.monotonic()
        job = client.submit(asked, name="demo")
        said.update("waiting for the first batch")
        trained = train.train(job, submitted, interrupts, _teller(job, said))
        job.wait(timeout=_END_S)
        made = report.make(client, job, asked, trained, time.monotonic() - begun)
        said.update("stopping all of it")
        return made


def _teller(job: Job, said: Status) -> Callable[[int, float], None]:
    """Says how far job and training are; asks the job a few times a second, not at every step."""
    next_look = 0.0

    def stepped(steps: int, loss: float) -> None:
        nonlocal next_look
        if time.monotonic() >= next_look:
            next_look = time.monotonic() + _LOOK_S
            status = job.status()
            landed = f"{status.files_done} of {status.files} files"
            said.update(f"training while files land: {landed}, step {steps}, loss {loss:.2f}")

    return stepped


def _show_log(folder: Path) -> None:
    if lines := stage.worker_log(folder):
        click.echo(f"the end of the worker's log:\n{lines}", err=True)
