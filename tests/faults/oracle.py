"""What must hold when all is over, whatever happened before: the same for every fault.

Legitimate in a store at the end: what a killed process left in ``scratch``, which the sweep takes when it is older than
``scratch_ttl_s`` (a partial file of a source that somebody may ask for again; a file without a journal, of a process
that is dead; a journal whose file was published between two steps of its writer). It is swept here, and then nothing
may be left. In the ledger: notes with an expiry, which nothing reads any more once the unit that they name is over.
"""

from __future__ import annotations

import dataclasses
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ingest.errors import IngestError
from ingest.ledger import WorkLedger
from ingest.model import TERMINAL_JOB, TERMINAL_SHARD
from ingest.store import Store
from ingest.store.audit import sweep_scratch, verify
from tests.faults.load import ELSEWHERE
from tests.servers.node import until
from tests.unit.ledgers import check

if TYPE_CHECKING:
    from tests.faults.load import Asked
    from tests.faults.rig import Rig


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
    if not asked.waited:
        verdict.stuck.append(f"{job.id}: not answered {time.monotonic() - asked.deadline:.0f} s after its deadline")
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
    if status.state == "done" and asked.waited and "Error" not in asked.waited and "files" not in asked.waited:
        verdict.stuck.append(f"{job.id}: its waiter was told {asked.waited!r}, and it is done")
    _files(asked, status.state, verdict)


def _files(asked: Asked, state: str, verdict: Verdict) -> None:
    try:
        files = asked.job.files(timeout=30)
    except IngestError as error:
        verdict.wrong.append(f"{asked.job.id}: {error}")
        return
    if asked.right and state == "done" and Counter(f.index[0] for f in files) != Counter(range(len(asked.right))):
        verdict.wrong.append(f"{asked.job.id}: {len(files)} files of {len(asked.right)} sources")
    for file in files:
        try:
            good = not asked.right or asked.right[file.index[0]](file)
        except (IngestError, OSError, ValueError) as error:
            good = False
            verdict.wrong.append(f"{file.source}: {error}")
        if not good:
            verdict.wrong.append(f"{asked.job.id} {file.source}: is not what its origin has")


def _ledger(rig: Rig, verdict: Verdict) -> None:
    """Nothing in anybody's hands, nothing that waits, each end said once."""
    ledger = WorkLedger(rig.service.settings)
    try:
        metas = {job: ledger.meta(job) for job in ledger.recent(1_000_000)}
        # One that was given up counts a failure more than it has shards.
        jobs = [job for job, meta in metas.items() if meta["state"] in TERMINAL_JOB and "error" not in meta]

        def idle() -> bool:
            return not any(ledger.redis.zcard(ledger.key(name)) for name in ("leases", "outbox"))

        try:
            until(idle, "no lease and no unwritten result is left", 30)
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
        verdict.other += [f"left: {path}" for path in (store.root / folder).rglob(".*") if path.is_file()]
    sweep_scratch(Store(store.root, store.id, dataclasses.replace(limits, scratch_ttl_s=0.0)))
    verdict.other += [f"left after the sweep: {path}" for path in _scratch(store.root)]


def _scratch(root: Path) -> list[Path]:
    return list((root / "scratch").iterdir())
