"""Ten thousand shards that fail at once, an origin that is down for a minute, and no file descriptors left (14 and 15
of the list)."""

from __future__ import annotations

import os
import re
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults import journal
from tests.faults.load import exactly
from tests.faults.origins import Paced
from tests.faults.rig import SHORT_LEASES, Rig
from tests.servers.http import Handler, Origin, status
from tests.servers.node import Worker, until

Rigs = Callable[..., Rig]
SHARDS = int(os.environ.get("INGEST_FAULTS_SHARDS", "10000"))
BUSY = status(503, b"busy")


@pytest.mark.timeout(1800)
def test_all_shards_fail_at_once(rigs: Rigs) -> None:
    """Every one of them backs off in the ledger; other origins are served meanwhile, and when it is over all are done.
    None fails for good, because each is given attempts enough."""
    # What one job asks: each shard a source of its own, all of one origin that says 503 to all until it is well again.
    rig = rigs(workers=2, config=SHORT_LEASES + "[retry]\nattempts = 60\nbase_s = 0.5\ncap_s = 10\n", patience_s=900)
    well = threading.Event()
    good: dict[str, Paced] = {f"/s{n}.bin": Paced(f"s{n}", 200, 0) for n in range(SHARDS)}

    def answer(to: Handler) -> None:
        (good[to.path] if well.is_set() else BUSY)(to)

    with Origin() as ill:
        for path in good:
            ill.on(path, answer)
        job = rig.client().submit([ill.url(path) for path in good], placement="any", shard_files=1)
        asked = rig.load.follow(job, [exactly(f"s{n}", 200) for n in range(SHARDS)])
        until(lambda: ill.count() > 50, "it has been asked")
        begun = time.monotonic()
        probes = []
        for _ in range(5):
            probe = rig.probe()
            until(lambda: probe.waited, "others are served", 90)  # noqa: B023
            probes.append(time.monotonic() - probe.begun)
        for seconds in probes:
            journal.happened("retry storm, origin down: another origin's job", rig.run, seconds)
        until(lambda: job.status().retries >= min(SHARDS, 2000), "many have failed", 300)
        well.set()
        healed = time.monotonic()
        until(lambda: asked.waited, "all are done", 900)
        journal.happened(f"retry storm, origin down: {SHARDS} shards", rig.run, time.monotonic() - healed)
        seconds = time.monotonic() - begun
        print(f"{SHARDS} shards, {ill.count()} requests, {job.status().retries} retries, {seconds:.0f} s")
        assert job.status().state == "done"


@pytest.mark.timeout(900)
def test_an_origin_that_is_down_for_a_minute(rigs: Rigs) -> None:
    """Its port is closed, then open again. What runs out of attempts fails and says so; ``retry`` then has it."""
    rig = rigs(workers=2, config=SHORT_LEASES)
    seconds = float(os.environ.get("INGEST_FAULTS_DOWN", "60"))
    names = [f"d{n}" for n in range(40)]
    down = Origin()
    urls = [down.on(f"/{name}.bin", Paced(name, 50_000)) for name in names]
    port = down.port
    down._server.server_close()  # nobody listens there any more
    rig.load.start()
    job = rig.client().submit(urls, placement="any", shard_files=4)
    begun = time.monotonic()
    worst = 0.0
    while time.monotonic() - begun < seconds:
        probe = rig.probe()
        until(lambda: probe.waited, "other origins are served", 60)  # noqa: B023
        worst = max(worst, time.monotonic() - probe.begun)
    journal.happened("retry storm, origin down: a job of another origin", rig.run, worst)
    with Origin(port=port) as up:
        for name in names:
            up.on(f"/{name}.bin", Paced(name, 50_000))
        back = time.monotonic()
        until(lambda: job.status().state in {"done", "failed"}, "all its shards are over", 120)
        failures = job.failures()
        assert {f.error for f in failures} <= {"ConnectFailed", "FetchTimeout", "TransientFetchError"}, failures
        if failures:
            job.retry()
        rig.load.follow(job, [exactly(name, 50_000) for name in names])
        until(lambda: job.status().state == "done", "and are done once it is back", 120)
        journal.happened("retry storm, origin down: it is back", rig.run, time.monotonic() - back)


def descriptors(pid: int, most: int | None) -> None:
    """Let a process open no more than ``most`` files from now on, counting those it has; None: as many as ever."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard if most is None else most, hard))


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


@pytest.mark.parametrize("whose", ["pool", "agent", "main", "all"])
def test_no_file_descriptors_left(rigs: Rigs, whose: str) -> None:
    """Under load, a worker's processes may open nothing any more; then they may again. They need not be restarted."""
    rig = rigs(workers=2, config=SHORT_LEASES)
    rig.load.start()
    until(lambda: any(a.waited for a in rig.load.asked), "it works", 60)
    worker = rig.victim()
    pids = _whose(worker, whose)
    with rig.fault(f"descriptors, clients exhausted: {whose}", worker) as hurt:
        hurt.units.clear()
        for pid in pids:
            descriptors(pid, open_files(pid) + rig.rng.randint(0, 2))
        rig.load.pause(rig.rng.uniform(3, 6))
        for pid in pids:
            if Path(f"/proc/{pid}").exists():
                descriptors(pid, None)
        hurt.begun = time.monotonic()
    enough = len(rig.load.asked) + 4
    until(lambda: sum(bool(a.waited) for a in rig.load.asked) >= enough, "it works again", 120)
    assert worker.process.poll() is None, worker.log.read_text()[-3000:]
    assert not re.search(r"Traceback.*MemoryError", worker.log.read_text())
    until(lambda: worker.process.pid in {w.pid for w in rig.client().workers()}, "its heart beats", 60)


def _whose(worker: Worker, whose: str) -> list[int]:
    pids = {"pool": worker.children(), "agent": worker.agents(), "main": [worker.process.pid]}
    return [pid for some in pids.values() for pid in some] if whose == "all" else pids[whose]
