"""``ingest doctor``: what a deployment is likely to have wrong, checked from here, each with what to do about it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import click

from ingest.cli.output import json_option, show_json
from ingest.errors import IngestError
from ingest.ledger import JobLedger
from ingest.settings import current
from ingest.store import Store

#: Clocks further apart than this make logs and signed requests confusing; leases do not mind, they use Redis's clock.
SKEW_S = 5.0


@dataclass(frozen=True)
class Finding:
    """``level``: ok, warn or bad."""

    level: str
    what: str
    cure: str = ""


def examine() -> Iterator[Finding]:
    """All findings, the good ones too, in the order in which one would look."""
    settings = current()
    config = settings.config_path or "no ingest.toml (set INGEST_CONFIG, or put one in the working directory)"
    yield Finding("ok", f"configuration: {config}")
    ledger = JobLedger(settings, retries=0)
    try:
        ledger.ping()
    except IngestError as error:
        yield Finding("bad", str(error))
        return
    yield Finding("ok", f"ledger: {ledger.url} answers")
    yield from _redis(ledger)
    yield from _nodes(ledger)
    store = Store.attach(settings.store)
    if store is None:
        yield Finding(
            "warn",
            f"store: none at {settings.store.root}",
            "a data node makes it; a trainer elsewhere needs INGEST_STORE",
        )
        return
    free = store.free_bytes()
    level = "ok" if free > 4 * settings.store.min_free_bytes else "bad"
    yield Finding(
        level, f"store: {store.root}, {free >> 20} MiB free", "" if level == "ok" else "make room, or set INGEST_STORE"
    )


def _redis(ledger: JobLedger) -> Iterator[Finding]:
    with ledger.translated():
        info = ledger.redis.info()
        skew = abs(time.time() - ledger.now_ms() / 1000)
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        yield Finding("bad", f"Redis evicts ({policy}): jobs can vanish", "CONFIG SET maxmemory-policy noeviction")
    if not info.get("aof_enabled"):
        yield Finding("warn", "Redis keeps no append-only file: a restart forgets jobs", "CONFIG SET appendonly yes")
    if info.get("role") == "slave":
        yield Finding("bad", "this Redis is a replica: it cannot be written", "point INGEST_REDIS_URL at the primary")
    level = "ok" if skew < SKEW_S else "warn"
    yield Finding(level, f"clock: {skew:.1f} s from Redis's", "" if level == "ok" else "run NTP on both machines")


def _nodes(ledger: JobLedger) -> Iterator[Finding]:
    workers = ledger.workers()
    if not workers:
        yield Finding("bad", "no data node is alive", "start one: celery -A workers worker, or ingest up")
    for worker in workers:
        level = "ok" if worker.age_s < ledger.settings.limits.lease_s else "warn"
        yield Finding(level, f"node {worker.node}: {worker.slots} slots, heard {worker.age_s:.1f} s ago")
    versions = {worker.version for worker in workers}
    if len(versions) > 1:
        yield Finding("warn", f"nodes run different versions: {', '.join(sorted(versions))}", "finish the upgrade")


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """Look for what is commonly wrong. Exit status 1 if something is bad."""
    findings = list(examine())
    if as_json:
        show_json([asdict(f) for f in findings])
    else:
        for finding in findings:
            mark = {"ok": "ok  ", "warn": "warn", "bad": "BAD "}[finding.level]
            click.echo(f"{mark}  {finding.what}{'  → ' + finding.cure if finding.cure else ''}")
    if any(finding.level == "bad" for finding in findings):
        raise click.exceptions.Exit(1)
