"""``ingest health``: whether this node's worker does its work, for systemd, Kubernetes and other supervisors. It reads
the ledger, and imports little: a probe runs every few seconds."""

from __future__ import annotations

import click

from ingest.cli import complain
from ingest.errors import LedgerUnavailable
from ingest.ledger import JobLedger
from ingest.settings import current


@click.command()
@click.option("--node", help="Another node than this one ($INGEST_NODE, else the host's name).")
@click.option("--live", is_flag=True, help="Fail only where a new worker would help: for liveness probes.")
def health(node: str | None, live: bool) -> None:
    """Whether this node's worker is alive and able to work. Exit status 1 and a line if it is not.

    With --live, a Redis that does not answer and a store that cannot be worked in are no failures: to start the worker
    again would mend neither.
    """
    settings = current()
    name = node or settings.node
    try:
        found = [worker for worker in JobLedger(settings, retries=0).workers() if worker.node == name]
    except LedgerUnavailable as error:
        if live:
            return
        complain(str(error))
        raise click.exceptions.Exit(1) from None
    if not found:
        why = f"not heard for {settings.limits.lease_s:g} s: no worker of that name is alive"
    else:
        # Of two workers of one name, the one that is well answers.
        why = min((worker.unable if live else worker.trouble for worker in found), key=bool)
    if why:
        complain(f"node {name}: {why}")
        raise click.exceptions.Exit(1)
