"""``ingest store ls | du | verify | evict``: the store of this machine, read from its disk. Who holds its files is
asked of the ledger; the others need no service."""

from __future__ import annotations

import dataclasses
import time

import click

from ingest.cli import complain
from ingest.cli.output import json_option, show_json, show_table, size
from ingest.errors import LedgerUnavailable, StoreError
from ingest.ledger import JobLedger
from ingest.settings import current
from ingest.space import YOUNG, YOUNG_S, Evictor
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
    """How much it holds, for whom, and how much room is left."""
    here = _here()
    usage = audit.usage(here)
    most = here.limits.max_bytes
    try:
        ledger = JobLedger(current(), retries=0)
        space, hold = ledger.space(here.id), Evictor(ledger, here).looked()
    except LedgerUnavailable:
        space, hold = None, None
    if as_json:
        told = {"max_bytes": most, "min_free_bytes": here.limits.min_free_bytes}
        told |= {"reserved_bytes": space.reserved, "waiting": space.waiting} if space else {}
        by = {"held": [{"by": who, "bytes": count} for who, count in hold.by]} if hold else {}
        show_json({"root": str(here.root), "id": here.id, **dataclasses.asdict(usage), **told, **by})
        return
    click.echo(f"{here.root}  ({here.id})")
    click.echo(f"{usage.files} files, {size(usage.bytes)}; {size(usage.scratch_bytes)} in the making")
    if most:
        reserved = f", {size(space.reserved)} reserved" if space else ""
        waiting = f", and {space.waiting} shards wait for space" if space and space.waiting else ""
        click.echo(f"{size(most)} may be used (max_bytes){reserved}{waiting}")
    for who, count in hold.by if hold else []:
        click.echo(f"{size(count)} held by {who}")
    if hold is None:
        click.echo("who holds files is not known: there is no ledger")
    click.echo(f"{size(usage.free_bytes)} free on the disk")


@store.command()
@click.option("--to", "target", type=click.IntRange(0), required=True, help="Bytes that it is to hold at most.")
@json_option
def evict(target: int, as_json: bool) -> None:
    """Remove what is least recently used and held by no job. Exit status 1 if more stays than --to allows."""
    here = _here()
    ledger = JobLedger(current())
    evictor = Evictor(ledger, here)
    end = time.monotonic() + YOUNG_S + 5
    while (made := evictor.make_room(lambda: (ledger.space(here.id).used or 0) - target)).why == YOUNG:
        if time.monotonic() > end:
            break
        time.sleep(0.5)
    usage = audit.usage(here)
    if as_json:
        show_json({"freed_bytes": made.freed, "bytes": usage.bytes})
    else:
        click.echo(f"{size(made.freed)} freed, {size(usage.bytes)} stay")
    if made.why:
        complain(f"no more may go now: {made.why}")
        raise click.exceptions.Exit(1)


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
