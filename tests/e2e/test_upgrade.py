"""Nodes and training processes of two versions beside each other, as in an upgrade node by node: what the other one
wrote has fields that are not known here, and lacks some that are."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from ingest import Client, Job
from ingest.app import app_for
from ingest.queues import FETCH_TASK
from ingest.record import pack_json, unpack_json
from tests.servers.http import Origin
from tests.servers.node import running_service, until

NEWS = {"zz_flag": True, "zz_list": [1, {"a": None}], "zz": "of a later version"}


def of_a_later_version(client: Client, job: Job) -> None:
    """All that a submitter writes of a job, as one would that knows more."""
    redis, key = client.ledger.redis, client.ledger.key
    options = json.loads(redis.hget(key("job", job.id), "options"))
    redis.hset(key("job", job.id), mapping={"options": json.dumps(options | NEWS), "zz": "1"})
    for unit, record in redis.hgetall(key("job", job.id, "shard")).items():
        redis.hset(key("job", job.id, "shard"), unit, json.dumps(json.loads(record) | NEWS))
    for unit, spec in redis.hgetall(key("job", job.id, "spec")).items():
        redis.hset(key("job", job.id, "spec"), unit, pack_json([file | NEWS for file in unpack_json(spec)]))


def test_work_of_a_later_version_is_done(tmp_path: Path, origin: Origin) -> None:
    with running_service(tmp_path, workers=0) as service:
        client = service.client()
        urls = [origin.put(f"/{n}.bin", bytes([n]) * 1000) for n in range(6)]
        job = client.submit(urls, require_node=False, placement="any", shard_files=2)
        of_a_later_version(client, job)
        app = app_for(service.settings)
        for name, args, kwargs in (
            (FETCH_TASK, ["ingest.fetch", 7], {"zz": 1}),
            ("ingest.of_a_later_version", ["ingest.fetch"], {}),
        ):
            app.send_task(name, args, kwargs, queue="ingest.fetch", ignore_result=True)
        worker = service.start_worker()
        assert len(job.files(timeout=30)) == 6 and job.failures() == []
        record = json.loads(client.ledger.redis.hget(client.ledger.key("job", job.id, "shard"), "0"))
        assert {name: record[name] for name in NEWS} == NEWS, "what is not known here is kept for those who know it"
        assert worker.process.poll() is None

        done = client.ledger.key("job", job.id, "done")
        for unit, result in client.ledger.redis.hgetall(done).items():
            later = unpack_json(result)
            later["files"] = [file | NEWS for file in later["files"]]
            client.ledger.redis.hset(done, unit, pack_json(later | NEWS))
        assert [file.path.read_bytes() for file in client.job(job.id).files(timeout=5)] == [
            bytes([n]) * 1000 for n in range(6)
        ]


def test_nodes_of_other_versions_are_counted_among_the_living(tmp_path: Path) -> None:
    with running_service(tmp_path, workers=0) as service:
        client = service.client()
        early: dict[str, Any] = {"node": "old", "store": "s1", "slots": 4, "connections": [], "version": "0.0.9"}
        early |= {"free_bytes": 1, "pid": 1, "time": time.time()}
        later = early | NEWS | {"node": "new", "version": "9.0", "unable": "", "unfit": ""}
        for info in (early, later):
            client.ledger.redis.set(client.ledger.key("worker", info["node"]), json.dumps(info), px=60_000)
            now = client.ledger.now_ms()
            client.ledger.redis.zadd(client.ledger.key("workers"), {info["node"]: now + 60_000})
        until(lambda: {w.node for w in client.workers()} == {"old", "new"}, "both are there")
        table = service.run("nodes")
        assert table.returncode == 0 and {line.split()[0] for line in table.stdout.splitlines()[1:]} == {"old", "new"}
        (line,) = (line for line in service.run("doctor").stdout.splitlines() if "different versions" in line)
        assert "0.0.9" in line and "9.0" in line
