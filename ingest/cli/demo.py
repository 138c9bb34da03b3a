"""``ingest demo``: the main job on this machine, from origins to a trained model. What it is made of is in ``ingest.demo``."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.status import Status

from ingest.cli import complain
from ingest.cli.output import json_option, show_json
from ingest.client import Job
from ingest.demo import stage
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
        _Interrupts() as interrupts,
        tempfile.TemporaryDirectory(prefix="ingest-demo-", ignore_cleanup_errors=True) as name,
    ):
        folder = Path(name)
        try:
            made = _play(folder, begun, interrupts, console)
        except (IngestError, OSError):
            _show_log(folder)
            raise
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


def _play(folder: Path, begun: float, interrupts: _Interrupts, console: Console) -> Report:
    """All of it, from the first process to the last; none is left when it returns."""
    with contextlib.ExitStack() as stack:
        said = stack.enter_context(console.status("starting an HTTP server, an S3 server and a database"))
        origins = stack.enter_context(stage.started_origins(folder))
        with interrupts.held():  # an import that is broken off can come back as any error, or as none
            from ingest.demo import report, train
        addresses = origins.addresses()
        said.update("starting Redis and a data node")
        client = stack.enter_context(stage.started_service(folder, addresses))
        stack.callback(interrupts.ignore)
        asked = report.sources(addresses)
        submitted = time.monotonic()
        job = client.submit(asked, name="demo")
        said.update("waiting for the first batch")
        trained = train.train(job, submitted, _teller(job, said))
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


class _Interrupts:
    """Ctrl-C, SIGTERM and a closed terminal as one KeyboardInterrupt, after which nothing disturbs the cleaning up."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._holding = self._due = self._over = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> _Interrupts:
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            before = signal.getsignal(signum)
            if before is not signal.SIG_IGN:  # under nohup it stays ignored
                self._before[signum] = before
                signal.signal(signum, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for signum, before in self._before.items():
            signal.signal(signum, before)

    def ignore(self) -> None:
        self._over = True

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """An interrupt that comes within the block is raised at its end."""
        self._holding = True
        yield
        self._holding = False
        if self._due:
            raise KeyboardInterrupt

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A DataLoader worker, forked with this handler: Ctrl-C goes to the whole group, and we end it in order.
            if signum != signal.SIGINT:
                signal.signal(signum, signal.SIG_DFL)
                signal.raise_signal(signal.Signals(signum))
        elif self._holding:
            self._due = self._over = True
        elif not self._over:
            self._over = True
            raise KeyboardInterrupt
