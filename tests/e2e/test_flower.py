"""A real Flower beside a running service: a task for each unit of work, with its job, shard and origin, and its end."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import ingest
from ingest.embedded.ports import LOOPBACK, free_port
from tests.servers.http import Origin, file, flaky, status
from tests.servers.node import Service, until


class Flower:
    """``port`` on loopback, and what its pages and its API say."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.process, self.port = process, port

    def get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://{LOOPBACK}:{self.port}{path}", timeout=10) as response:
                return str(response.read().decode())
        except (OSError, urllib.error.URLError):
            return ""

    def tasks(self) -> dict[str, dict[str, Any]]:
        # Its table's own data source: /api/tasks wants a password to be configured.
        columns = ["name", "uuid", "state", "args", "kwargs", "result", "received", "started", "runtime", "worker"]
        asked = {f"columns[{n}][data]": name for n, name in enumerate(columns)}
        asked |= {"draw": "1", "start": "0", "length": "100", "search[value]": "", "order[0][column]": "0"}
        text = self.get("/tasks/datatable?" + urllib.parse.urlencode(asked | {"order[0][dir]": "asc"}))
        return {task["uuid"]: task for task in json.loads(text)["data"]} if text else {}


@pytest.fixture(scope="module")
def flower(service: Service) -> Iterator[Flower]:
    """As README and ``ingest up`` start it; only the port is ours."""
    port = free_port()
    log = service.root / "flower.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "workers", "flower", f"--port={port}"],
            env=service.env, cwd=service.root, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    made = Flower(process, port)
    try:
        until(lambda: "ingest@n1" in made.get("/workers?json=1"), "the data node is on the dashboard")
        yield made
    finally:
        process.terminate()
        process.wait(20)
    assert "Traceback" not in log.read_text()


def test_each_fetch_is_a_task_with_job_shard_and_origin(
    service: Service, flower: Flower, origin: Origin, tmp_path: Path
) -> None:
    (tmp_path / "x.bin").write_bytes(b"x")
    sources = [
        origin.put("/good.bin", b"good"),
        origin.url("/bad.bin"),
        f"file://{tmp_path}/*.bin",
        origin.on("/flaky.bin", flaky(1, status(503), file(b"late"))),
    ]
    job = service.client().submit(sources)
    assert job.wait(timeout=40).state == "failed"
    ends = {"SUCCESS", "FAILURE"}

    def shown() -> dict[str, dict[str, Any]]:
        mine = {uuid: task for uuid, task in flower.tasks().items() if uuid.startswith(job.id)}
        return mine if len(mine) == 5 and all(task["state"] in ends for task in mine.values()) else {}

    tasks = until(shown, "all of the job is on the dashboard, and over")
    assert set(tasks) == {*job.task_ids(), f"{job.id}.p0"}
    records = {r.unit: r for r in service.client().ledger.all_units(job.id)}
    for uuid, task in tasks.items():
        number = uuid.rpartition(".")[2]
        for fact in (f"job={job.id} ", f"shard={number} ", f"origin={records[uuid].origin} "):
            assert fact in task["args"], task
        assert task["name"] == ("ingest.plan" if number == "p0" else "ingest.fetch")
        assert task["worker"] == "ingest@n1"
    failed = [task for task in tasks.values() if task["state"] == "FAILURE"]
    assert [origin.url("") in task["args"] for task in failed] == [True]
    (bad,) = job.failures()
    page = flower.get(f"/task/{bad.shard}")
    assert "NotFound" in page and "404" in page and job.id in page
    assert "1 files, 4 bytes" in flower.get(f"/task/{job.id}.0")


def test_doorbells_are_no_tasks_there(service: Service, flower: Flower, origin: Origin) -> None:
    before = set(flower.tasks())
    client: ingest.Client = service.client()
    client.fetch([origin.put(f"/d{n}.bin", b"d") for n in range(10)], timeout=30)
    job = client.jobs(1)[0]
    new = until(lambda: (t := set(flower.tasks()) - before) and len(t) >= 10 and t, "the fetches are on the dashboard")
    assert new == set(job.task_ids())


def test_it_listens_on_loopback_only(flower: Flower) -> None:
    listening = [c for c in psutil.Process(flower.process.pid).net_connections("inet") if c.status == "LISTEN"]
    assert {c.laddr.ip for c in listening} == {LOOPBACK}
