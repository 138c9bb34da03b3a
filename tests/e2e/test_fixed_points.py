"""What others rely on, as the design promises it: the names of Python, environment and queues, against ``ingest up`` in
another process."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest.app import app_for
from tests.e2e.test_up import Up, up
from tests.servers.http import Origin
from tests.servers.node import Service, until
from tests.servers.postgres import postgres_server
from tests.servers.s3 import s3_server

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Up, dict[str, str]]]:
    """``ingest up`` where S3 and a warehouse are configured, and the environment of those who use it."""
    root = tmp_path_factory.mktemp("fixed")
    with s3_server() as s3, postgres_server() as postgres:
        postgres.execute("CREATE TABLE samples AS SELECT i AS id FROM generate_series(1, 100) AS i")
        rows = io.BytesIO()
        pq.write_table(pa.table({"id": list(range(100, 110))}), rows)
        s3.put("bucket", {f"train/{n}.parquet": rows.getvalue() for n in range(3)})
        profile = "\n".join(f"{key} = {json.dumps(value)}" for key, value in s3.profile(match="s3://").items())
        config = root / "ingest.toml"
        config.write_text(f"[connections.lake]\n{profile}\n[connections.warehouse]\nurl = {json.dumps(postgres.url)}\n")
        with up(root, "--no-flower", INGEST_CONFIG=str(config), PYTHONPATH=str(ROOT)) as started:
            started.until_working()
            env = {k: v for k, v in os.environ.items() if not k.startswith("INGEST_")}
            env |= {"INGEST_REDIS_URL": started.url, "INGEST_STORE": str(root / "store"), "PYTHONPATH": str(ROOT)}
            yield started, env


def python(env: dict[str, str], code: str, *args: str) -> Any:
    """What the program printed, as JSON."""
    done = subprocess.run(
        [sys.executable, "-c", code, *args], env=env, capture_output=True, text=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


#: The Python of the design, with URIs that exist.
PROMISED = """
import json, pathlib, sys
import ingest

HTTP, DIGEST, URL, INTO = sys.argv[1:]
client = ingest.Client()
paths = client.fetch(HTTP + "/a-{000..127}.jsonl", timeout=600)
assert len(paths) == 128 and all(type(p) is type(pathlib.Path()) and p.is_absolute() for p in paths)
assert [p.name for p in paths] == [f"a-{n:03}.jsonl" for n in range(128)]
assert ingest.Client(redis_url=URL).fetch(HTTP + "/a-000.jsonl", timeout=60) == paths[:1]

job = client.submit(["s3://bucket/train/*.parquet", ingest.Source(HTTP + "/b.parquet", digest=DIGEST),
                     ingest.Sql("warehouse", table="samples", partition_on="id", partitions=8)], name="imagenet")
status = job.wait(timeout=600)
facts = {"id": job.id, "state": status.state, "name": job.status().name, "bytes": status.bytes, "rate": status.rate,
         "eta": status.eta_s, "shards": dict(status.shards)}
facts["landed"] = [(str(f.path), f.size, f.digest, f.source, f.node) for f in job.as_completed(timeout=600)]
assert [f.path for f in job.files()] == job.paths()
assert sorted(f[0] for f in facts["landed"]) == sorted(map(str, job.paths()))
facts["sources"] = [f.source for f in job.files()]
facts["tasks"] = job.task_ids()
assert job.failures() == [] and job.retry().wait(timeout=60).state == "done"
job.cancel()
same = client.job(job.id)
assert same.status().state == "done" and same.paths() == job.paths()
facts["into"] = [str(p) for p in client.fetch("s3://bucket/train/", into=INTO, timeout=60)]

facts["plain"] = ingest.download.delay(HTTP + "/a-001.jsonl", into=INTO).get(timeout=10)

import torch
from ingest.dataset import StreamingDataset

if __name__ == "__main__":
    loader = torch.utils.data.DataLoader(StreamingDataset(job, shuffle=True, seed=0), batch_size=64, num_workers=2)
    facts["ids"] = sorted(int(i) for batch in loader for i in batch["id"])
    print(json.dumps(facts))
"""


def test_the_python_of_the_design(running: tuple[Up, dict[str, str]], origin: Origin, tmp_path: Path) -> None:
    for n in range(128):
        origin.put(f"/a-{n:03}.jsonl", b'{"id": %d}\n' % n)
    rows = io.BytesIO()
    pq.write_table(pa.table({"id": [1000]}), rows)
    origin.put("/b.parquet", rows.getvalue())
    digest = f"sha256:{hashlib.sha256(rows.getvalue()).hexdigest()}"
    started, env = running
    into = tmp_path / "into"
    facts = python(env, PROMISED, origin.url(), digest, started.url, str(into))
    assert (facts["state"], facts["name"], facts["shards"]) == ("done", "imagenet", {"done": 12})
    assert len(facts["tasks"]) == 12 and facts["tasks"][0] == f"{facts['id']}.0"
    assert facts["bytes"] == sum(size for _, size, *_ in facts["landed"]) and facts["rate"] > 0 and facts["eta"] is None
    for path, size, found, source, node in facts["landed"]:
        assert path.startswith(env["INGEST_STORE"]) and Path(path).stat().st_size == size
        assert found == f"sha256:{hashlib.sha256(Path(path).read_bytes()).hexdigest()}" and isinstance(source, str)
        assert node.startswith("fixed")
    assert facts["sources"][:4] == [*(f"s3://bucket/train/{n}.parquet" for n in range(3)), origin.url("/b.parquet")]
    assert all(source.startswith("sql://warehouse/samples") for source in facts["sources"][4:])
    assert facts["into"] == [str(into / f"{n}.parquet") for n in range(3)]
    assert facts["plain"] == {"paths": [str(into / "a-001.jsonl")]}
    assert facts["ids"] == sorted([*range(1, 101), *list(range(100, 110)) * 3, 1000])


def test_importing_it_is_light(running: tuple[Up, dict[str, str]]) -> None:
    code = """
import json, sys, time
begun = time.process_time()
import ingest
seconds = time.process_time() - begun
heavy = {"torch", "pyarrow", "s3fs", "obstore", "sqlalchemy", "fsspec", "celery"} & set(sys.modules)
print(json.dumps([seconds, sorted(heavy & {"torch", "pyarrow", "s3fs", "obstore", "sqlalchemy"})]))
"""
    seconds, heavy = python(running[1], code)
    assert heavy == [] and seconds < 0.5


def test_a_worker_without_flags_is_a_data_node(service: Service) -> None:
    inspect = app_for(service.settings).control.inspect(["ingest@n1"], timeout=2, limit=1)
    # The ledger hears of a node a moment before it listens to questions.
    until(inspect.ping, "it answers")
    name = "ingest@n1"
    queues = inspect.active_queues()[name]
    own = {"ingest.fetch.n1", "ingest.plan.n1", "ingest.canary.n1"}
    assert {q["name"] for q in queues} == {"ingest.fetch", "ingest.plan", *own}
    assert {"ingest.fetch", "ingest.plan", "ingest.download"} <= set(inspect.registered()[name])
    conf = inspect.conf()[name]
    assert conf["accept_content"] == ["json"] and conf["worker_pool"] == "prefork"


def test_the_store_has_an_identity_that_nodes_advertise(service: Service) -> None:
    (worker,) = service.client().workers()
    assert worker.store == (Path(service.env["INGEST_STORE"]) / "STORE_ID").read_text().strip()
    assert worker.node == "n1"
