"""``ingest nodes``: who is alive, and what they have."""

from __future__ import annotations

import dataclasses

import click

from ingest.cli import complain
from ingest.cli.output import duration, json_option, show_json, show_table, size
from ingest.client import Client
from ingest.queues import queues_of


@click.command()
@json_option
def nodes(as_json: bool) -> None:
    """The live data nodes, and whether they can work. Exit status 1 if none is alive."""
    found = Client().workers()
    if as_json:
        show_json([dataclasses.asdict(worker) for worker in found])
    elif found:
        rows = (
            (
                w.node,
                w.store,
                w.slots,
                size(w.free_bytes),
                ", ".join(w.connections) or "-",
                "all" if set(w.queues) >= set(queues_of(w.node)) else ", ".join(w.queues),
                duration(w.age_s),
                "-" if w.able_s is None else duration(w.able_s),
                w.pid,
                w.trouble or "ok",
            )
            for w in found
        )
        columns = ("NODE", "STORE", "SLOTS>", "FREE>", "CONNECTIONS", "QUEUES", "HEARD>", "ABLE>", "PID>", "STATE")
        show_table(columns, rows)
    if not found:
        complain("no data node is alive; start one with `celery -A workers worker` or `ingest up`")
        raise click.exceptions.Exit(1)
