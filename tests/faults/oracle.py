"""What must hold when all is over, whatever happened before: the same for every fault.

It looks, and puts nothing in order. Legitimate in a store at the end: what a killed process left in ``scratch`` (a
partial file of a source that somebody may ask for again; a file without a journal, of a process that is dead; a journal
whose file was published between two steps of its writer). The nodes sweep that, and say within what time: then nothing
may be left. In the ledger: notes with an expiry, which nothing reads any more once the unit that they name is over.
"""

from __future__ import annotations

import dataclasses
import os
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.client.files import LocalFile
from ingest.errors import IngestError
from ingest.ledger import WorkLedger
from ingest.model import TERMINAL_JOB, TERMINAL_SHARD
from ingest.store import Store
from ingest.store.audit import verify
from tests.faults.load import ELSEWHERE
from tests.servers.node import until
from tests.unit.ledgers import check

if TYPE_CHECKING:
    from tests.faults.load import Asked
    from tests.faults.rig import Rig


#: An answer may be so much later than its waiter's deadline: the client's last question to Redis (``follow.GRACE_S``),
#: and a machine that has much else to do.
LATE_S = 5.0
#: Nodes sweep what nobody touched for ``scratch_ttl_s``, four times within that; and a round of theirs takes a moment.
SWEPT_TTLS, SWEPT_S = 1.25, 10.0
#: What readers keep beside a file: it goes with it.
_KEPT = {".checked", ".index"}


@dataclass
class Verdict:
    """``lost`` shards (not in one terminal state, or in one that nothing can have led to), ``wrong`` files, ``stuck``
    waiters, and whatever else is not as it must be."""

    shards: int = 0
    lost: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    other: list[str] = field(default_factory=list)

    @property
    def complaints(self) -> list[str]:
        kinds = {"lost": self.lost, "wrong": self.wrong, "stuck": self.stuck, "": self.other}
        return [f"{kind}: {text}".removeprefix(": ") for kind, texts in kinds.items() for text in texts]


def judge(rig: Rig) -> Verdict:
    verdict = Verdict(other=list(rig.late))
    for asked in rig.load.asked:
        _job(rig, asked, verdict)
    if not verdict.stuck and not verdict.lost:
        _ledger(rig, verdict)
    for root in (None, *(other for other in ELSEWHERE.values() if other.is_relative_to(rig.service.root))):
        _store(rig, verdict, root)
    return verdict


def _job(rig: Rig, asked: Asked, verdict: Verdict) -> None:
    job = asked.job
    late = (asked.answered or time.monotonic()) - asked.deadline
    if asked.answered is None or late > LATE_S:
        verdict.stuck.append(f"{job.id}: {asked.waited or 'not answered'}, {late:.0f} s after its waiter's deadline")
    try:
        status = job.status()
        records = list(rig.client().ledger.all_units(job.id))
    except IngestError as error:
        verdict.lost.append(f"{job.id}: {error}")
        return
    verdict.shards += sum(not record.is_plan for record in records)
    for record in records:
        if record.state not in TERMINAL_SHARD:
            verdict.lost.append(f"{record.unit} is {record.state}: {record.reason} (waited: {asked.waited})")
    if status.state not in asked.ends:
        verdict.lost.append(f"{job.id} is {status.state}, not one of {asked.ends}: {job.failures()[:2]}")
        return
    if isinstance(asked.answer, Exception):
        verdict.stuck.append(f"{job.id}: its waiter was told {asked.waited}, and it is {status.state}")
    _files(asked, status.state, verdict)


def _files(asked: Asked, state: str, verdict: Verdict) -> None:
    try:
        files = asked.job.files(timeout=30)
    except IngestError as error:
        verdict.wrong.append(f"{asked.job.id}: {error}")
        return
    if asked.right and state == "done" and Counter(f.index[0] for f in files) != Counter(range(len(asked.right))):
        verdict.wrong.append(f"{asked.job.id}: {len(files)} files of {len(asked.right)} sources")
    if isinstance(asked.answer, list) and not {_named(f) for f in asked.answer} <= {_named(f) for f in files}:
        verdict.wrong.append(f"{asked.job.id}: its waiter was given other files")
    for file in files:
        try:
            good = not asked.right or asked.right[file.index[0]](file)
        except (IngestError, OSError, ValueError) as error:
            good = False
            verdict.wrong.append(f"{file.source}: {error}")
        if not good:
            verdict.wrong.append(f"{asked.job.id} {file.source}: is not what its origin has")


def _named(file: LocalFile) -> tuple[tuple[int, int], str, str]:
    return file.index, file.source, file.digest


def _ledger(rig: Rig, verdict: Verdict) -> None:
    """Nothing in anybody's hands, nothing that waits, each end said once."""
    ledger = WorkLedger(rig.service.settings)
    try:
        metas = {job: ledger.meta(job) for job in ledger.recent(1_000_000)}
        # One that was given up counts a failure more than it has shards.
        jobs = [job for job, meta in metas.items() if meta["state"] in TERMINAL_JOB and "error" not in meta]

        def idle() -> bool:
            # Also what a message has brought that came late, or twice.
            due = (
                unit for key in ledger.redis.scan_iter(ledger.key("due:*")) for unit in ledger.redis.zrange(key, 0, -1)
            )
            if any(unit.decode(errors="replace").rpartition(".")[0] in metas for unit in due):
                return False
            return not any(ledger.redis.zcard(ledger.key(name)) for name in ("leases", "outbox"))

        try:
            until(idle, "nothing due, no lease and no unwritten result is left", 30)
            check(ledger, *jobs)
        except AssertionError as error:
            verdict.other.append(str(error) or repr(traceback.extract_tb(error.__traceback__)[-1]))
        for pattern in ("held:*", "due:*"):
            verdict.other += [f"left: {key.decode()}" for key in ledger.redis.scan_iter(ledger.key(pattern))]
        for pattern in ("flight:*", "waiting:*"):
            for key in ledger.redis.scan_iter(ledger.key(pattern)):
                if ledger.redis.ttl(key) < 0:
                    verdict.other.append(f"left for ever: {key.decode()}")
        _flights(rig, ledger, verdict)
    finally:
        ledger.close()


def _flights(rig: Rig, ledger: WorkLedger, verdict: Verdict) -> None:
    """Of units that are done none is left; of one that was cancelled or quarantined after its worker died, an entry
    that keeps nobody waiting may be, until it expires."""
    for key in ledger.redis.scan_iter(ledger.key("flight:*")):
        holder = (ledger.redis.get(key) or b"").decode().partition(" ")[0]
        if holder and rig.record(holder).get("s") == "done":
            verdict.other.append(f"a flight of {holder}, which is done, is left: {key.decode()}")


def _store(rig: Rig, verdict: Verdict, root: Path | None = None) -> None:
    limits = rig.service.settings.store
    limits = dataclasses.replace(limits, root=root or limits.root)
    store = Store.attach(limits)
    assert store is not None
    verdict.wrong += [f"{damage.path}: {damage.reason}" for damage in verify(store, remove=False)]
    for folder in ("data", "manifests"):
        hidden = (path for path in (store.root / folder).rglob(".*") if path.is_file())
        verdict.other += [f"left: {path}" for path in hidden if path.suffix not in _KEPT]
    within_s = limits.scratch_ttl_s * SWEPT_TTLS + SWEPT_S
    try:
        until(lambda: not os.listdir(store.root / "scratch"), "its nodes have swept scratch", within_s)
    except AssertionError as error:
        verdict.other += [f"left in scratch, {error}: {name}" for name in os.listdir(store.root / "scratch")]
