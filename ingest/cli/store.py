"""``ingest store ls | du | verify``: the store of this machine, read from its disk; no service is needed."""

from __future__ import annotations

import dataclasses

import click

from ingest.cli import complain
from ingest.cli.output import json_option, show_json, show_table, size
from ingest.errors import StoreError
from ingest.settings import current
from ingest.store import Store, audit


def _here() -> Store:
    limits = current().store
    found = Store.attach(limits)
    if found is None:
        raise StoreError(str(limits.root), "there is no store; set INGEST_STORE, or start a data node, which makes one")
    return found


@click.group()
def store() -> None:
    """The store of this machine (INGEST_STORE)."""


@store.command()
@json_option
def ls(as_json: bool) -> None:
    """Every file: size, samples, source, path."""
    here = _here()
    found = (record for _, record in audit.records(here))
    if as_json:
        for record in found:
            for piece in record.outputs:
                show_json(record.to_json() | dataclasses.asdict(piece) | {"path": str(here.root / piece.path)})
        return
    rows = (
        (size(piece.size), "-" if piece.samples is None else piece.samples, record.uri, piece.path)
        for record in found
        for piece in record.outputs
    )
    show_table(("SIZE>", "SAMPLES>", "SOURCE", "PATH"), rows)


@store.command()
@json_option
def du(as_json: bool) -> None:
    """How much it holds, and how much room is left."""
    here = _here()
    usage = audit.usage(here)
    if as_json:
        show_json({"root": str(here.root), "id": here.id, **dataclasses.asdict(usage)})
        return
    click.echo(f"{here.root}  ({here.id})")
    click.echo(f"{usage.files} files, {size(usage.bytes)}; {size(usage.scratch_bytes)} in the making")
    click.echo(f"{size(usage.free_bytes)} free on the disk")


@store.command()
@click.option(
    "--remove", is_flag=True, help="Take damaged files out of the store; they are fetched again when next asked for."
)
@json_option
def verify(remove: bool, as_json: bool) -> None:
    """Read every file again and compare it with its record. Exit status 1 if one is damaged."""
    here = _here()
    damaged = list(audit.verify(here, remove=remove))
    if as_json:
        show_json({"damaged": [dataclasses.asdict(d) for d in damaged]})
    else:
        for damage in damaged:
            complain(f"{damage.uri}: {damage.path} {damage.reason}{'; removed' if remove else ''}")
        if not damaged:
            click.echo(f"{audit.usage(here).files} files are as they should be")
    if damaged:
        raise click.exceptions.Exit(1)
