"""What ``submit`` and ``fetch`` have in common: which sources, and how they are asked for."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import click

from ingest.cli import complain
from ingest.cli.output import show_json, size
from ingest.client.plan import Plan
from ingest.errors import UsageError
from ingest.sources import Manifest, Pack, Source


@dataclass(frozen=True)
class Asked:
    """``options`` are those of ``Client.submit``."""

    sources: list[Source | Manifest]
    options: dict[str, Any]
    dry_run: bool


def asking(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the arguments and options of a request, which it gets as one :class:`Asked`."""

    @functools.wraps(command)
    def run(**given: Any) -> None:
        columns = {name: given.pop(name) for name in _COLUMNS}
        what = {name: given.pop(name) for name in ("uris", "digest", "connection", "manifests")}
        sources = _sources(**what, columns=columns)
        options = {name: given.pop(name) for name in ("into", "convert", "placement", "fresh_s")}
        options["pack"] = _pack(*(given.pop(name) for name in ("pack", "pack_samples", "pack_bytes", "max_failed")))
        command(Asked(sources, options, given.pop("dry_run")), **given)

    options = (
        click.argument("uris", nargs=-1, metavar="URI…"),
        click.option(
            "--digest", help="Expected digest of the one file, as sha256:HEX (or md5, sha1, sha512, blake3, crc32c …)."
        ),
        click.option("--connection", help="Profile of the data node's ingest.toml to use for all sources."),
        click.option(
            "--manifest",
            "manifests",
            multiple=True,
            metavar="URI",
            help="A file that lists sources (txt, csv, tsv, jsonl, parquet): its URI, or a path here.",
        ),
        click.option("--uri-column", help="Its column with the URIs (default: uri)."),
        click.option("--digest-column", help="… with their digests (default: digest, if there is one)."),
        click.option("--size-column", help="… with their sizes in bytes (default: size, if there is one)."),
        click.option("--key-column", help="… with the keys of the samples (default: key, if there is one)."),
        click.option("--metadata", multiple=True, metavar="COLUMN", help="Hand this column on with each sample."),
        click.option("--dry-run", is_flag=True, help="Say what it would be and cost; fetch nothing but manifests."),
        click.option(
            "--into",
            type=click.Path(file_okay=False),
            help="Make the files appear in this directory as well, or upload them to this URI.",
        ),
        click.option(
            "--convert",
            multiple=True,
            metavar="STEP",
            help="A step that every file goes through: decompress, unpack, parquet, tar (STEP:key=value,key=value).",
        ),
        click.option("--pack", type=click.Choice(["tar", "parquet"]), help="Make few files of many small ones."),
        click.option("--pack-samples", type=int, help="… of so many at a time (default: 10000)."),
        click.option("--pack-bytes", type=int, help="… about so large (default: 256 MiB)."),
        click.option("--max-failed", type=float, help="… of which this share may fail (default: 0.1)."),
        click.option("--placement", help="here, any, spread, or a node's name."),
        click.option(
            "--fresh", "fresh_s", type=float, help="Use a copy validated within so many seconds (0: ask the origin)."
        ),
    )
    for option in reversed(options):  # as with decorators, the last is the first
        run = option(run)
    return run


_COLUMNS = ("uri_column", "digest_column", "size_column", "key_column", "metadata")


def _sources(
    uris: tuple[str, ...],
    digest: str | None,
    connection: str | None,
    manifests: tuple[str, ...],
    columns: dict[str, Any],
) -> list[Source | Manifest]:
    if digest and len(uris) != 1:
        raise UsageError("--digest goes with exactly one URI")
    named = {name: value for name, value in columns.items() if value}
    if named and not manifests:
        raise UsageError(f"--{next(iter(named)).replace('_', '-')} goes with --manifest")
    found: list[Source | Manifest] = [Source(uri, digest=digest, connection=connection) for uri in uris]
    return found + [Manifest(uri, connection=connection, **named) for uri in manifests]


def _pack(format: str | None, samples: int | None, size: int | None, max_failed: float | None) -> Pack | None:
    told = {"samples": samples, "bytes": size, "max_failed": max_failed}
    told = {name: value for name, value in told.items() if value is not None}
    if format is None:
        if told:
            raise UsageError("how to pack goes with --pack tar or --pack parquet")
        return None
    return Pack(format, **told)  # type: ignore[arg-type]  # each under its own name


def show_plan(plan: Plan, as_json: bool) -> None:
    """What a dry run found. Exit status 1 if there is something that cannot be had."""
    if as_json:
        show_json(plan.to_json())
    else:
        least = "" if plan.whole else "at least "
        unsized = f", and {plan.unsized:,} files of unknown size" if plan.unsized else ""
        requests = plan.requests
        click.echo(f"files     {least}{plan.files:,}, {size(plan.bytes)}{unsized}")
        click.echo(f"shards    {least}{plan.shards:,}")
        click.echo(f"here      {plan.here:,} files, {size(plan.here_bytes)}: no request")
        click.echo(
            f"requests  at least {sum(requests.values()):,}: {requests['list']:,} to list, "
            f"{requests['check']:,} to ask whether a copy is still right, {requests['fetch']:,} to fetch"
        )
        if plan.manifests:
            click.echo(f"fetched   {plan.manifests:,} manifests, to read them; nothing else")
    for failure in plan.failures:
        complain(str(failure))
    if plan.failures:
        raise click.exceptions.Exit(1)
