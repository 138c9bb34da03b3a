"""Cancelled, at every state (17 of the list), and two nodes with one store (16)."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest

import ingest
from ingest import Job
from ingest.model import TERMINAL_JOB
from tests.faults import journal, schedule
from tests.faults.load import exactly
from tests.faults.origins import Paced
from tests.faults.rig import SHORT_LEASES, Rig, send
from tests.servers.http import silent, status
from tests.servers.node import until

Rigs = Callable[..., Rig]


def in_state(rig: Rig, number: int, wanted: str, go: threading.Event) -> Job:
    """A job of one shard (or of planning) that is in that state now."""
    client, origin = rig.client(), rig.origin
    url = origin.url(f"/c{number}.bin")
    submit = lambda what=url, **how: client.submit(what, placement="any", **how)  # noqa: E731
    if wanted == "planning":
        job = submit(ingest.Manifest(origin.on(f"/list{number}.txt", silent())))
        until(lambda: rig.record(f"{job.id}.p0").get("s") == "leased", "it is being listed")
        return job
    if wanted == "delayed":
        origin.on(f"/c{number}.bin", status(503, b"", retry_after="300"))
        job = submit()
        until(lambda: rig.record(f"{job.id}.0").get("nb"), "it backs off")
        return job
    if wanted == "quarantined":
        origin.on(f"/c{number}.bin", Paced(f"c{number}", 100_000, hold=go))
        job = submit()
        while rig.record(f"{job.id}.0").get("s") != "quarantined":
            send(list(rig.held_by(job.id)), schedule.signal.SIGKILL)
            rig.load.pause(0.05)
        return job
    if wanted == "failed":
        origin.on(f"/c{number}.bin", status(404))
        job = submit()
        job.wait(60)
        return job
    if wanted == "waits for another":
        held = in_state(rig, number, "leased", go)
        rig.load.follow(held, [exactly(f"c{number}", 500_000)], ends=("done",))
        job = submit(fresh_s=0)
        until(lambda: rig.record(f"{job.id}.0").get("nb"), "it waits for what the other one fetches")
        return job
    paced = Paced(f"c{number}", 500_000, rate=0, hold=None if wanted == "done" else go, held=1000)
    origin.on(f"/c{number}.bin", paced)
    if wanted == "done":
        job = submit()
        job.wait(60)
        return job
    if wanted == "due":
        for worker in rig.alive():
            send([worker.process.pid], schedule.signal.SIGSTOP)
        try:
            job = submit()
            job.cancel()
        finally:
            for worker in rig.alive():
                send([worker.process.pid], schedule.signal.SIGCONT)
        return job
    job = submit()
    until(lambda: paced.sent >= 499_000 and rig.held_by(job.id), "it is under way")
    return job


def test_at_every_state(rigs: Rigs) -> None:
    rig = rigs(workers=2, config=SHORT_LEASES)
    ends = {"done": "done", "failed": "failed", "quarantined": "failed"}
    states = ["planning", "due", "leased", "delayed", "waits for another", "done", "failed", "quarantined"]
    events = []
    for number, wanted in enumerate(states):
        go = threading.Event()
        events.append(go)
        job = in_state(rig, number, wanted, go)
        asked = rig.load.follow(job, [], ends=(ends.get(wanted, "cancelled"),), within_s=60)
        begun = time.monotonic()
        job.cancel()
        job.cancel()
        until(lambda: asked.waited, f"its waiter is told, {wanted}", 40)  # noqa: B023
        journal.happened(f"cancel: {wanted}", rig.run, time.monotonic() - begun)
        go.set()


def cancelled(job: Job) -> tuple[str, ...]:
    """Cancel a job of which no source fails. Returns the states that it may end in, by where it was.

    What is over stays as it is. What was due ends there and then, a shard or a piece of planning, and so the job can
    only be cancelled. Where all that was left is in somebody's hands, either is right: who has its last byte commits
    it, who is told before that does not.
    """
    before = job.status().state
    job.cancel()
    after = job.status()
    if before in TERMINAL_JOB:
        assert after.state == before, "what is over is not cancelled"
        return (before,)
    assert not after.shards.get("due"), "nothing of it will begin"
    stopped = any(failure.error == "Cancelled" for failure in job.failures())
    if after.state in TERMINAL_JOB:
        assert after.state == ("cancelled" if stopped else "done")
        return (after.state,)
    return ("cancelled",) if stopped else ("cancelled", "done")


@pytest.mark.timeout(900)
def test_at_random_instants_with_kills(rigs: Rigs) -> None:
    """Jobs of the load are cancelled whatever they are at, and some tried again, while processes are killed."""
    rig = rigs(workers=2, config=SHORT_LEASES)
    rig.load.start()
    for _ in range(int(os.environ.get("INGEST_FAULTS_KILLS", "200")) // 5):
        rig.load.pause(rig.rng.expovariate(2))
        open_ = [a for a in rig.load.asked if not a.waited and not a.job.id.startswith("probe")]
        if not open_:
            continue
        asked = rig.rng.choice(open_)
        begun, ends = time.monotonic(), cancelled(asked.job)
        tried_again = rig.rng.random() < 0.3
        if tried_again:
            asked.job.retry()
            ends = ("done",)
        for each in rig.load.asked:  # one that was tried again before is asked for by several
            if each.job.id == asked.job.id:
                each.ends = ends
        if tried_again:
            rig.load.follow(asked.job, asked.right)
        else:
            until(lambda: asked.waited, "its waiter is told", 60)  # noqa: B023
            journal.happened("cancel: at random", rig.run, time.monotonic() - begun)
        if rig.rng.random() < 0.2:
            schedule.kill_child(rig, "kill -9 of a pool child, any")


@pytest.mark.timeout(900)
def test_two_nodes_with_one_store_fetch_the_same(rigs: Rigs) -> None:
    """Each source is on its way once, wherever it was asked for; also when who fetches it is killed."""
    rig = rigs(workers=2, config=SHORT_LEASES)
    for round_ in range(6):
        paced = [Paced(f"both{round_}-{n}", 400_000, rate=1e6) for n in range(3)]
        urls = [rig.origin.on(f"/{p.name}.bin", p) for p in paced]
        jobs = [rig.client().submit(urls, placement=node, require_node=False) for node in ("n1", "n2") * 2]
        waits = [rig.load.follow(job, [exactly(p.name, p.size) for p in paced]) for job in jobs]
        begun = time.monotonic()
        killed = round_ % 2 == 1
        if killed:
            until(lambda: any(p.sent for p in paced), "it is under way")  # noqa: B023
            schedule.kill_child(rig, "kill -9 of a pool child, any")
        until(lambda: all(w.waited for w in waits), "all four are done", 120)  # noqa: B023
        journal.happened("two nodes, one store" + (", one killed" * killed), rig.run, time.monotonic() - begun)
        assert killed or all(len(p.starts) == 1 for p in paced), [p.starts for p in paced]
        paths = [job.paths() for job in jobs]
        assert all(p == paths[0] for p in paths)
