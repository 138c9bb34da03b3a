"""``ingest doctor``: what a deployment is likely to have wrong, checked from here, each with what to do about it."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import click

from ingest.cli.output import json_option, show_json
from ingest.errors import IngestError
from ingest.ledger import JobLedger
from ingest.queues import FETCH_QUEUE, PLAN_QUEUE
from ingest.sections import Connection
from ingest.settings import Settings, current
from ingest.store import Store

#: Clocks further apart than this make logs and signed requests confusing; leases do not mind, they use Redis's clock.
SKEW_S = 5.0
#: Parts of a limit of Redis's from which on it is said, and is bad.
NEARLY, FULL = 0.8, 0.95
#: For the connection to an origin.
REACH_S = 3.0
#: Where a URL names none.
PORTS = {"http": 80, "https": 443, "postgresql": 5432, "postgres": 5432, "mysql": 3306, "mariadb": 3306,
         "mssql": 1433, "oracle": 1521, "sftp": 22, "ssh": 22, "ftp": 21}  # fmt: skip


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
    yield from _origins(settings)
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
    for what in ("aof_last_write_status", "rdb_last_bgsave_status"):
        if info.get(what, "ok") != "ok":
            yield Finding(
                "bad", f"Redis cannot write to its disk ({what}: {info[what]})", "make room on Redis's machine"
            )
    if info.get("role") == "slave":
        yield Finding("bad", "this Redis is a replica: it cannot be written", "point INGEST_REDIS_URL at the primary")
    # Without a limit of its own, it is the machine's that ends it, and with SIGKILL.
    most = int(info.get("maxmemory") or info.get("total_system_memory") or 0)
    yield from _nearly(
        "memory",
        int(info["used_memory"]),
        most,
        "MiB",
        1 << 20,
        "raise maxmemory, lower keep_s, or give it more memory",
    )
    clients, at_most = int(info["connected_clients"]), int(info.get("maxclients") or 0)
    yield from _nearly("connections", clients, at_most, "clients", 1, "CONFIG SET maxclients to more")
    level = "ok" if skew < SKEW_S else "warn"
    yield Finding(level, f"clock: {skew:.1f} s from Redis's", "" if level == "ok" else "run NTP on both machines")


def _nearly(what: str, used: int, most: int, unit: str, per: int, cure: str) -> Iterator[Finding]:
    """Redis refuses what goes beyond a limit of its own: said before it does."""
    if most and used >= NEARLY * most:
        level = "bad" if used >= FULL * most else "warn"
        yield Finding(level, f"Redis's {what}: {used // per} of {most // per} {unit}", cure)


def _nodes(ledger: JobLedger) -> Iterator[Finding]:
    workers = ledger.workers()
    if not workers:
        yield Finding("bad", "no data node is alive", "start one: celery -A workers worker, or ingest up")
    for worker in workers:
        level = "ok" if worker.age_s < ledger.settings.limits.lease_s else "warn"
        yield Finding(level, f"node {worker.node}: {worker.slots} slots, heard {worker.age_s:.1f} s ago")
        if worker.unfit:
            yield Finding("bad", f"node {worker.node} is unfit: {worker.unfit}", "it is fit again by itself after that")
        if worker.unable:
            cure = "its log; it is restarted after [limits] restart_s, or restart it now"
            yield Finding("bad", f"node {worker.node} is not able to work: {worker.unable}", cure)
        if abs(worker.skew_s) >= SKEW_S:
            which = "ahead of" if worker.skew_s > 0 else "behind"
            what = f"node {worker.node}: its clock is {abs(worker.skew_s):.0f} s {which} Redis's"
            yield Finding("warn", what, "run NTP there: TLS and signed requests fail")
    for queue in (PLAN_QUEUE, FETCH_QUEUE) if workers else ():
        if not any(queue in worker.queues for worker in workers):
            yield Finding("bad", f"no live node consumes the queue {queue}", "see the -Q of the workers")
    for node, count in Counter(worker.node for worker in workers).items():
        if count > 1:
            yield Finding("warn", f"{count} workers are called {node}", "give each an INGEST_NODE of its own")
    versions = {worker.version for worker in workers}
    if len(versions) > 1:
        yield Finding("warn", f"nodes run different versions: {', '.join(sorted(versions))}", "finish the upgrade")


def _origins(settings: Settings) -> Iterator[Finding]:
    """Whether the origins of the connections that are configured here take connections; nothing is asked of them."""
    places = {name: place for name, c in settings.connections.items() if (place := _place_of(c)) is not None}
    if not places:
        return
    with ThreadPoolExecutor(min(16, len(places))) as threads:
        found = dict(zip(places, threads.map(_unreachable, places.values()), strict=True))
    for name, why in found.items():
        if why:
            host, port = places[name]
            what = f"connection {name}: {host}:{port} cannot be reached from here ({why})"
            yield Finding(
                "warn", what, "look at its address, the firewall and the name server, or at the origin itself"
            )
    if not any(found.values()):
        yield Finding(
            "ok", f"origins of the connections: {len(found)} of {len(settings.connections)} asked, all answer"
        )


def _place_of(connection: Connection) -> tuple[str, int] | None:
    """Host and port of a connection's origin; None where its configuration does not say, or a proxy is in between."""
    for value in (connection.get(key) for key in ("url", "endpoint", "match")):
        if not isinstance(value, str) or "://" not in value:
            continue
        try:
            parts = urlsplit(value)
            host, port = parts.hostname, parts.port or PORTS.get(parts.scheme.partition("+")[0])
        except ValueError:
            continue
        if host and port and not (parts.scheme in getproxies() and not proxy_bypass(host)):
            return host, port
    return None


def _unreachable(place: tuple[str, int]) -> str:
    try:
        socket.create_connection(place, timeout=REACH_S).close()
    except OSError as error:
        return error.strerror or str(error) or type(error).__name__
    return ""


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
