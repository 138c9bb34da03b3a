"""What a reader reads next, from outside: it comes first, it stays while it is read, and it comes again when it is
gone."""

from __future__ import annotations

import io
import os
import random
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest import Client, Job
from ingest.client.reader import JobReader, ShardEnd
from tests.e2e.test_space import body, never_more
from tests.servers.http import Origin, file, slow_start
from tests.servers.node import Service, running_service, until

MOST, SIZE = 2_500_000, 1_000_000
CONFIG = f"[store]\nmax_bytes = {MOST}\nmin_free_bytes = 0\nhold_s = 0\nquiet_s = 0.3\n[limits]\nrenew_s = 0.3\n"
PROCESSES = 3


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("need")
    with (
        running_service(root, config=CONFIG, workers=1, INGEST_CONCURRENCY=str(PROCESSES)) as started,
        never_more(root / "store", MOST),
    ):
        yield started


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    made = service.client()
    yield made
    jobs = made.jobs(9)
    for job in jobs:
        job.cancel()
    until(lambda: not any("leased" in job.status().shards for job in jobs), "the end of all that goes on", 30)
    made.close()


def landed(reader: JobReader, shard: int, within_s: float = 60.0) -> ShardEnd:
    end = time.monotonic() + within_s
    while shard not in reader.ends:
        assert time.monotonic() < end, f"{reader.waiting_for(shard)}; {reader.ends.keys()}"
        reader.poll(0.5)
    return reader.ends[shard]


def read(job: Job, reader: JobReader, order: list[int], names: list[str], window: int = 2) -> None:
    """One epoch in that order. A file is read in two goes, with others coming and going meanwhile."""
    for at, shard in enumerate(order):
        reader.need(order[at : at + window])
        (got,) = landed(reader, shard).files
        with got.path.open("rb") as opened:
            data = opened.read(SIZE // 2)
            reader.poll(0.1)
            assert os.fstat(opened.fileno()).st_nlink == 1, "it was evicted while it was read"
            data += opened.read()
        assert data == body(names[shard], SIZE)


def test_a_job_larger_than_the_store_is_read_twice_in_different_orders(
    service: Service, origin: Origin, client: Client
) -> None:
    names = [f"big-{n}" for n in range(8)]
    job = client.submit([origin.put(f"/{name}", body(name, SIZE)) for name in names], shard_files=1, placement="any")
    reader = job.reader(keep=False)
    orders = [random.Random(seed).sample(range(8), 8) for seed in (1, 2)]
    for order in orders:
        read(job, reader, order, names)
    status = job.status()
    assert (status.state, status.files_done) == ("done", 8)
    assert sum(origin.count(f"/{name}") for name in names) > 8, "what was evicted came again"
    assert len(list(job.as_completed(timeout=5))) == 8, "each once, however often it came"
    assert job.wait(timeout=5).state == "done"
    reader.close()


def test_a_shard_that_was_queued_last_is_the_next_when_it_is_needed(
    service: Service, origin: Origin, client: Client
) -> None:
    urls = [origin.on(f"/slow-{n:03}", slow_start(0.3, file(b"x"))) for n in range(200)]
    job = client.submit([*urls, origin.put("/last", b"last")], shard_files=1, placement="any")
    reader = job.reader(keep=False)
    while not origin.count():
        reader.poll(0.1)
    reader.need([200])
    before = origin.count()  # what is asked from now on was claimed afterwards, but for one in each process
    assert landed(reader, 200).files[0].path.read_bytes() == b"last"
    paths = [asked.path for asked in list(origin.log)]
    assert paths.index("/last") <= before + PROCESSES, paths.index("/last")
    assert "are before it there" in reader.waiting_for(199)
    job.cancel()
    reader.close()


def test_what_is_fetched_again_is_what_it_was_or_fails(service: Service, origin: Origin, client: Client) -> None:
    names = ["same", "other"]
    job = client.submit([origin.put(f"/{name}", body(name)) for name in names], shard_files=1, placement="any")
    reader = job.reader(keep=False)
    for shard in (0, 1):
        landed(reader, shard)
    paths = [reader.ends[n].files[0].path for n in (0, 1)]
    for path in paths:
        path.unlink()
    origin.put("/other", body("changed"))
    reader.need([0, 1])
    same, other = (landed(reader, n) for n in (0, 1))
    assert same.state == "done" and same.files[0].path == paths[0] and paths[0].read_bytes() == body("same")
    (failure,) = other.failures
    assert other.state == "failed" and failure.error == "VersionGone"
    assert "the origin has something else by now" in failure.reason and "submit it again" in failure.reason
    assert job.status().state == "failed" and [f.source for f in job.failures()] == [origin.url("/other")]
    job.retry()
    assert job.wait(timeout=30).state == "done"
    assert again(reader, 1).files[0].path.read_bytes() == body("changed"), "who says so gets what it is now"
    reader.close()


def again(reader: JobReader, shard: int) -> ShardEnd:
    """Its end, once it was taken back and is there again."""
    before = reader.ends.get(shard)
    end = time.monotonic() + 30
    while reader.ends.get(shard) in (before, None):
        assert time.monotonic() < end, reader.waiting_for(shard)
        reader.poll(0.5)
    return reader.ends[shard]


def test_after_the_store_was_emptied_all_of_it_comes_again(
    service: Service, origin: Origin, client: Client, tmp_path: Path
) -> None:
    names = [f"emptied-{n}" for n in range(4)]
    job = client.submit([origin.put(f"/{name}", body(name)) for name in names], shard_files=2, placement="any")
    assert job.wait(timeout=30).state == "done"
    assert service.run("store", "evict", "--to", "0").returncode == 0
    reader = job.reader(keep=False)
    while reader.poll(0.5):
        pass
    reader.need([0, 1])
    found = [got.path.read_bytes() for n in (0, 1) for got in landed(reader, n).files]
    assert found == [body(name) for name in names]
    reader.close()


@pytest.mark.parametrize(
    "options", [{"pack": "tar"}, {"convert": ["unpack"]}, {"shard_files": 3}], ids=["packed", "unpacked", "part"]
)
def test_what_steps_made_comes_again_and_of_a_shard_only_what_is_gone(
    service: Service, origin: Origin, client: Client, options: dict[str, Any]
) -> None:
    names = [f"{n}-{next(iter(options))}.bin" for n in range(3)]
    if "convert" in options:
        names = ["made.tar"]
        origin.put("/made.tar", tar({"a": b"1", "b/c": b"2"}))
    else:
        for name in names:
            origin.put(f"/{name}", body(name, 1000))
    job = client.submit([origin.url(f"/{name}") for name in names], placement="any", **options)
    reader = job.reader(keep=False)
    before = [(f.path, f.path.read_bytes(), f.samples) for f in landed(reader, 0).files]
    asked = origin.count()
    before[-1][0].unlink()
    reader.need([0])
    assert [(f.path, f.path.read_bytes(), f.samples) for f in landed(reader, 0).files] == before
    assert origin.count() - asked == (1 if "shard_files" in options else len(names))
    reader.close()


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as made:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            made.addfile(info, io.BytesIO(data))
    return out.getvalue()
