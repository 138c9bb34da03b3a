"""What is said of a unit to those who know only Celery: its result under its own task id, now or later."""

from __future__ import annotations

import json
import os
import time
import zlib
from typing import Any

from celery import Celery, states
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from ingest.errors import IngestError, UnknownJob
from ingest.ledger import Result, WorkLedger, numbers_of
from ingest.model import TERMINAL_SHARD, FileRecord
from ingest.record import VERSION
from ingest.store import Store
from ingest.store.disk import is_disk
from workers.logs import log

#: A result backend that took nothing is left alone for so long by a process that has other things to do: one that hangs
#: would hold it up with each shard.
AWAY_S = 60.0
#: How many results an agent takes at once; for how long it writes; after how long others may try what it could not.
AT_ONCE, BUDGET_S, AGAIN_S = 100, 10.0, 15.0
#: Beyond so many, a result names the shard's manifest instead of every path: results are read whole, by every waiter.
MOST_PATHS = 300


def write_result(app: Celery, ledger: WorkLedger, store: Store, member: str) -> None:
    """Write the Celery result of a settled unit, or of a whole job that asked for one (``ingest.download``).

    ``member`` is in the ledger's outbox until it is written; writing it twice is harmless.
    """
    job, _, number = member.rpartition(".")
    units, task = [number], member
    if not job:
        job, number, meta = member, "", ledger.meta(member)
        units = numbers_of(meta)
        # A whole job is asked for by the task that made it, whose id may be no job's id.
        task = json.loads(meta["options"]).get("reply_to") or member
    records = [r for r in ledger.units(job, units) if r]
    if not records:
        raise UnknownJob(job)
    if any(r.state not in TERMINAL_SHARD for r in records):
        return  # tried again meanwhile: its next end writes the result
    results = [Result.unpacked(packed) for packed in ledger.results(job, units)]
    files = sorted((f for r in results for f in r.files), key=lambda f: f.place)
    failures = [f for r in results for f in r.failures]
    bad = next((r for r in records if r.state in {"failed", "cancelled", "quarantined"}), None)
    if failures:
        value: Any = failures[0].exception()
    elif bad is not None:
        value = IngestError(f"shard {bad.unit} was {bad.state} {bad.reason}".strip())
    else:
        value = _paths(files, store, job, number)
    if any(r.again for r in records):
        app.backend.forget(task)  # it was over before, and a SUCCESS is never overwritten
    app.backend.store_result(task, value, states.FAILURE if isinstance(value, Exception) else states.SUCCESS)
    ledger.reported(member)


def manifest(job: str, shard: str, result: Result, increment: dict[str, Any] | None = None) -> bytes:
    """The lasting record of a shard: JSON with path, size, digest, source, version and samples of each file, the
    failures, and of an increment the column and the values between which it lies."""
    files = [f.to_json() for f in result.files]
    failures = [f.to_json() for f in result.failures]
    said: dict[str, Any] = {"v": VERSION, "job": job, "shard": shard, "files": files, "failures": failures}
    return json.dumps(said | ({"increment": increment} if increment else {}), indent=1).encode()


def _paths(files: list[FileRecord], store: Store, job: str, number: str) -> dict[str, Any]:
    if len(files) > MOST_PATHS:
        path = store.manifest_path(job, number or "all")
        if not number:  # each shard has a manifest already; the whole job gets one here
            path = store.write_manifest(job, "all", manifest(job, "all", Result(tuple(files))))
        return {"manifest": str(path), "count": len(files)}
    return {"paths": [f.into or os.path.join(f.root, f.path) for f in files]}


_away_until = 0.0


def report(app: Celery, ledger: WorkLedger, store: Store, member: str) -> None:
    """Write a result at once, unless the backend is away: the member stays in the outbox, which an agent empties."""
    global _away_until
    if time.monotonic() >= _away_until and not try_to_report(app, ledger, store, member):
        _away_until = time.monotonic() + AWAY_S


def try_to_report(app: Celery, ledger: WorkLedger, store: Store, member: str) -> bool:
    """:func:`write_result`. False if the backend takes nothing now. A result that only the disk here stands in the way
    of stays in the outbox, and says nothing of the others."""
    try:
        write_result(app, ledger, store, member)
    except UnknownJob:
        ledger.reported(member)  # it has expired: nobody can ask for it any more
    except (ValueError, KeyError, TypeError, zlib.error) as error:
        ledger.reported(member)  # what the ledger holds of it is damaged, and stays so
        log.error("result.damaged", extra={"shard": member, "error": type(error).__name__, "reason": str(error)})
    except (IngestError, OperationalError, RedisError, OSError) as error:
        log.warning("result.delayed", extra={"shard": member, "error": type(error).__name__, "reason": str(error)})
        return isinstance(error, OSError) and is_disk(error, store.root)
    return True


class Outbox:
    """One per agent, in a thread of its own: a result backend that hangs keeps nothing else waiting."""

    def __init__(self, app: Celery, ledger: WorkLedger, store: Store) -> None:
        self._app, self._ledger, self._store = app, ledger, store

    def step(self) -> None:
        """Write what nobody has written, for ``BUDGET_S`` or until one cannot be written. Raises
        :class:`LedgerUnavailable`."""
        end = time.monotonic() + BUDGET_S
        while members := self._ledger.outbox(AT_ONCE, AGAIN_S):
            for member in members:
                if not try_to_report(self._app, self._ledger, self._store, member) or time.monotonic() > end:
                    return
