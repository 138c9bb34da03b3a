"""The fault suite's short form: a few of its faults, of those that the seed picks, with its rig and its oracle. The
whole of it is ``make faults``. INGEST_FAULTS_SEED is the seed."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.faults import schedule
from tests.faults.load import exactly
from tests.faults.rig import MANY_LIVES, SHORT_LEASES, running_rig
from tests.faults.test_messages import spoilt
from tests.servers.http import Handler, Origin
from tests.servers.http.good import file
from tests.servers.node import Service, until

#: One of each of these.
KINDS = (
    ("kill -9 of a worker", "SIGTERM, SIGQUIT, a second signal: SIGQUIT"),
    ("kill -9 of a pool child, any", "kill -9 of an agent"),
    ("Redis or a worker stopped: a process", "Redis or a worker stopped: a whole worker"),
)


def test_a_sample_of_faults(tmp_path: Path) -> None:
    with running_rig(tmp_path, name="sampled", config=SHORT_LEASES + MANY_LIVES, jobs=5, swept_s=15) as rig:
        rig.load.start()
        until(lambda: any(asked.waited for asked in rig.load.asked), "it works")
        for kinds in rig.rng.sample(KINDS, 2):
            schedule.run(rig, 1, {rig.rng.choice(kinds): 1.0}, mean_s=0.5)


def test_what_is_no_message_is_dropped_and_the_worker_lives(tmp_path: Path) -> None:
    """Three of them by chance, and that which ended workers: no JSON."""
    with running_rig(tmp_path, name="messages", workers=1, config=SHORT_LEASES, swept_s=10) as rig:
        (worker,) = rig.alive()
        bad = spoilt("ingest.fetch")
        key = f"{rig.service.settings.prefix}celery:ingest.fetch"
        for name in ["no JSON", "no id", *rig.rng.sample(sorted(bad), 3)]:
            with rig.meddler.still():  # the worker is to have it
                rig.client().ledger.redis.rpush(key, bad[name])
                until(lambda: bad[name] not in rig.client().ledger.redis.lrange(key, 0, -1), f"{name} is taken")  # noqa: B023
            asked = rig.probe()
            until(lambda: asked.waited, f"work goes on after {name}")  # noqa: B023
            assert worker.process.poll() is None, name
        events = [json.loads(line) for line in worker.log.read_text().splitlines() if line.startswith("{")]
        assert sum(event["event"] == "message.refused" for event in events) >= 2


@pytest.mark.parametrize("cancelled", [False, True], ids=["", "cancelled and tried again"])
def test_a_flight_of_who_died_after_its_rename_is_over(tmp_path: Path, cancelled: bool) -> None:
    """Its shard finds the file in the store, and never takes off; so nobody else would say that the flight is over."""
    config = SHORT_LEASES + "progress_s = 30\n"
    with running_rig(tmp_path, name="flight", workers=1, config=config, swept_s=10) as rig:
        job = rig.client().submit(rig.load.http("f", 300_000, rate=1e6), placement="any")
        rig.load.follow(job, [exactly("f", 300_000)])
        until(lambda: rig.origin.count("/f.bin"), "it is under way")
        (pid,) = rig.held_by(job.id)
        redis = rig.client().ledger.redis
        redis.execute_command("CLIENT", "PAUSE", 20_000, "WRITE")
        try:
            data = tmp_path / "store" / "data"
            until(lambda: list(data.glob("*/*/*.json")), "it is published, and cannot be committed")
            schedule.send([pid], signal.SIGKILL)
        finally:
            redis.execute_command("CLIENT", "UNPAUSE")
        if cancelled:
            job.cancel()
            assert job.wait(timeout=30).state == "cancelled"
            job.retry()
        job.wait(timeout=30)
        assert rig.origin.count("/f.bin") == 1, "it is used as it lies there"
        ledger = rig.client().ledger
        until(lambda: not list(redis.scan_iter(ledger.key("flight:*"))), "no flight is left")


def test_a_long_job_in_one_queue_keeps_nobody_waiting_in_another(service: Service, origin: Origin) -> None:
    """The node's own queue always has something due; a job of the shared queue has its turn all the same."""
    client = service.client()
    whole = file(b"x")

    def slow(to: Handler) -> None:
        if to.wait(0.05):
            whole(to)

    long = client.submit([origin.on(f"/long{n}.bin", slow) for n in range(600)], placement="n1", shard_files=1)
    until(lambda: long.status().files_done > 8, "it is under way")
    small = client.submit([origin.on(f"/small{n}.bin", slow) for n in range(5)], placement="any", shard_files=1)
    small.wait(timeout=60)
    assert long.status().files_done < 300, long.status()
    long.cancel()
    long.wait(timeout=60)
