"""Stopped for longer than a lease, and clocks that are wrong (5 and 9 of the list)."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import pytest

from tests.faults import journal, schedule
from tests.faults.load import exactly
from tests.faults.origins import Paced
from tests.faults.rig import SHORT_LEASES, Rig, all_processes, send
from tests.faults.test_instants import holder
from tests.servers.clocks import faketime
from tests.servers.node import until
from tests.unit.ledgers import happened

Rigs = Callable[..., Rig]
MB = 1 << 20


@pytest.mark.timeout(1800)
def test_stopped_at_random_and_continued(rigs: Rigs) -> None:
    rig = rigs(workers=3, config=SHORT_LEASES, patience_s=300)
    rig.load.start()
    kinds = {name: 1 for name in schedule.FAULTS if name.startswith("Redis or a worker stopped")}
    schedule.run(rig, max(2, int(os.environ.get("INGEST_FAULTS_KILLS", "200")) // 20), kinds, mean_s=3)


@pytest.mark.parametrize("whole", [False, True], ids=["process", "worker"])
def test_who_lost_its_lease_commits_nothing(rigs: Rigs, whole: bool) -> None:
    """Default leases. What it still renames into place is whole and right: the oracle reads every file."""
    rig = rigs(workers=2)
    size, go = 6 * MB, threading.Event()
    paced = Paced("slept", size, rate=8e6, hold=go, held=MB)
    job = rig.client().submit(rig.origin.on("/slept.bin", paced), placement="any")
    asked = rig.load.follow(job, [exactly("slept", size)])
    until(lambda: paced.sent >= size - MB, "it is under way")
    worker, pid = holder(rig, job)
    fence = rig.record(f"{job.id}.0")["f"]
    pids = all_processes(worker) if whole else [pid]
    name = "Redis or a worker stopped: " + ("a whole worker" if whole else "a process") + ", longer than its lease"
    with rig.fault(name, worker, child=pid):
        send(pids, signal.SIGSTOP)
    until(lambda: rig.record(f"{job.id}.0").get("f") != fence, "another has it", 60)
    mine = rig.record(f"{job.id}.0")["f"]
    go.set()
    until(lambda: asked.waited, "the other one ends it", 60)
    before = rig.record(f"{job.id}.0")
    send(pids, signal.SIGCONT)
    until(lambda: "shard.lost" in worker.log.read_text(), "it is told that it lost", 60)
    assert rig.record(f"{job.id}.0") == before and before["f"] == mine
    assert list(happened(rig.client().ledger, job.id, "shard")) == [("shard", "0", "done")]  # type: ignore[arg-type]


def test_a_pause_of_everyone_discards_nobodys_work(rigs: Rigs) -> None:
    """Redis and all workers stand still for longer than a lease, as on a machine that was suspended."""
    rig = rigs(workers=2)
    size, go = 6 * MB, threading.Event()
    paced = [Paced(f"still{n}", size, rate=8e6, hold=go, held=MB) for n in range(4)]
    jobs = [rig.client().submit(rig.origin.on(f"/{p.name}.bin", p), placement="any") for p in paced]
    for job, p in zip(jobs, paced, strict=True):
        rig.load.follow(job, [exactly(p.name, size)])
    until(lambda: all(p.sent >= size - MB for p in paced), "they are under way")
    tokens = [rig.record(f"{job.id}.0")["f"] for job in jobs]
    pids = [pid for worker in rig.alive() for pid in all_processes(worker)]
    redis = rig.service.redis_server.process.pid
    send([*pids, redis], signal.SIGSTOP)
    end = time.monotonic() + rig.service.settings.limits.lease_s + 3
    until(lambda: time.monotonic() > end, "a lease is over", 60)  # the fault is the time itself
    begun = time.monotonic()
    send([redis, *pids], signal.SIGCONT)
    go.set()
    until(lambda: rig.load.open == 0, "all is done", 60)
    journal.happened("Redis or a worker stopped: everyone", rig.run, time.monotonic() - begun)
    assert [rig.record(f"{job.id}.0")["f"] for job in jobs] == tokens, "each was ended by who had begun it"
    assert all(len(p.starts) == 1 for p in paced), "nothing was asked for twice"


@pytest.mark.parametrize("shift", ["+2h", "-2h"])
def test_the_clock_of_one_worker(rigs: Rigs, shift: str) -> None:
    wrong = {"LD_PRELOAD": faketime(), "FAKETIME": shift, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_NO_CACHE": "1"}
    rig = rigs(workers=1, config=SHORT_LEASES)
    begun = time.monotonic()
    rig.service.start_worker("n2", **wrong)
    rig.load.start()
    journal.happened(f"clock of a worker: {shift}", rig.run, time.monotonic() - begun)
    rig.load.pause(2)
    child = rig.rng.choice(rig.service.workers[1].children())
    with rig.fault("clock of a worker: and a process of it killed", rig.service.workers[1], child=child):
        send([child], signal.SIGKILL)
    until(lambda: sum(bool(a.waited) for a in rig.load.asked) >= 12, "jobs are done", 120)
    assert {f.node for a in list(rig.load.asked) if a.waited for f in a.job.files()} == {"n1", "n2"}
    assert len(rig.client().workers()) == 2, "both are heard"
