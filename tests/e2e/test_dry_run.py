"""Dry runs through the whole service: what is counted is what submitting then does, and nothing is fetched for it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

import ingest
from tests.servers.http import Origin
from tests.servers.node import Service, running_service, until
from tests.servers.s3 import S3Server, s3_server


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("dry")
    with closing(sqlite3.connect(root / "db.sqlite")) as db:
        db.execute("CREATE TABLE t (id INTEGER)")
        db.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(100)])
        db.commit()
    profile = {"lake": s3.profile(match="s3://"), "lite": {"url": f"sqlite:///{root}/db.sqlite"}}
    lines = []
    for name, values in profile.items():
        lines += [f"[connections.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    with running_service(root, config="\n".join(lines)) as started:
        yield started


def test_literal_sources_before_and_after(service: Service, origin: Origin) -> None:
    urls = [origin.put(f"/l/{n}", b"x" * n) for n in range(10)]
    client = service.client()
    sources = [*urls[:5], ingest.Source(urls[5], size=5), origin.url("/l/{6..9}")]
    plan = client.plan(sources, timeout=30)
    assert (plan.files, plan.shards, plan.bytes, plan.unsized, plan.here) == (10, 10, 5, 9, 0)
    assert plan.requests == {"list": 0, "check": 0, "fetch": 10} and plan.whole and not plan.failures
    assert origin.count() == 0, "nobody was asked for anything"
    job = client.submit(sources)
    assert job.wait(timeout=30).state == "done" and sum(job.status().shards.values()) == plan.shards
    plan = client.plan(sources, timeout=30)
    assert (plan.here, plan.here_bytes, plan.bytes, plan.unsized) == (10, 45, 45, 0)
    assert plan.requests == {"list": 0, "check": 0, "fetch": 0}
    plan = client.plan(sources, timeout=30, fresh_s=0, shard_files=4)
    assert plan.requests == {"list": 0, "check": 10, "fetch": 0} and plan.here == 0 and plan.shards == 3
    assert origin.count() == 10


def test_what_has_to_be_listed(service: Service, origin: Origin, s3: S3Server, tmp_path: Path) -> None:
    s3.put("dry", {f"p/{n}.bin": b"x" * (n + 1) for n in range(7)})
    for n in range(3):
        (tmp_path / f"{n}.txt").write_text("ab")
    listed = origin.put("/list.csv", b"uri,size\n" + b"".join(b"https://h/%d,100\n" % n for n in range(400)))
    client = service.client()
    sources = ["s3://dry/p/", f"file://{tmp_path}/*.txt", ingest.Manifest(listed), ingest.Sql("lite", table="t")]
    plan = client.plan(sources, timeout=60)
    assert plan.files == 7 + 3 + 400 + 1 and plan.bytes == 28 + 6 + 40_000 and plan.unsized == 1
    assert plan.requests == {"list": 1 + 0 + 0 + 1, "check": 0, "fetch": 7 + 0 + 400 + 1}
    assert plan.manifests == 1 and not plan.failures
    assert client.fetch("s3://dry/p/", timeout=30)
    plan = client.plan("s3://dry/p/", timeout=30)
    assert (plan.here, plan.here_bytes, plan.requests["fetch"]) == (7, 28, 0)


def test_a_dry_run_leaves_nothing_behind(service: Service, origin: Origin, tmp_path: Path) -> None:
    url = origin.put("/n/a", b"a")
    client = service.client()
    client.fetch(url, timeout=30)
    jobs, files = [job.id for job in client.jobs()], set((service.root / "store" / "data").rglob("*"))
    plan = client.plan([url, origin.put("/n/b", b"b")], into=tmp_path / "into", timeout=30)
    assert (plan.files, plan.here) == (2, 1)
    assert not (tmp_path / "into").exists() and set((service.root / "store" / "data").rglob("*")) == files
    assert [job.id for job in client.jobs()] == jobs
    outbox = client.ledger.key("outbox")
    until(lambda: client.ledger.redis.zcard(outbox) == 0, "nobody waits for its Celery results")


def test_what_cannot_be_planned_is_said(service: Service, origin: Origin, tmp_path: Path) -> None:
    listed = origin.put("/half.txt", b"https://h/a\nnonsense\n")
    sources = ["s3://dry/none/", ingest.Manifest(listed), ingest.Manifest(origin.url("/gone.txt")), "s3://no-bucket/*"]
    plan = service.client().plan(sources, timeout=60)
    assert plan.files == 1 and plan.requests["fetch"] == 1
    assert [(f.index[0], f.error) for f in plan.failures] == [
        (0, "NothingMatched"), (1, "BadResponse"), (2, "NotFound"), (3, "NotFound"),
    ]  # fmt: skip


def test_the_command(service: Service, origin: Origin, s3: S3Server, tmp_path: Path) -> None:
    s3.put("dry", {"p/0.bin": b"x"})
    urls = [origin.put(f"/c/{n}", b"c") for n in range(3)]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    for command in ("submit", "fetch"):
        done = service.run(command, "--dry-run", "--manifest", str(tmp_path / "list.txt"), urls[0])
        assert done.returncode == 0 and origin.count() == 0, done.stderr
        assert "files     4, 0 B, and 4 files of unknown size" in done.stdout and "4 to fetch" in done.stdout
        assert "fetched" not in done.stdout, "the list was read here"
    done = service.run("submit", "--dry-run", "--json", "s3://dry/none/", urls[0])
    found = json.loads(done.stdout)
    assert found["files"] == 1 and found["failures"][0]["error"] == "NothingMatched"
    assert done.returncode == 1 and "no object lies under it" in done.stderr
    listed = origin.put("/list.txt", "\n".join(urls).encode())
    assert "fetched   1 manifest" in service.run("fetch", "--dry-run", "--manifest", listed).stdout
