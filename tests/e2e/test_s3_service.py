"""S3 through the whole service: versions that are asked for or go away, objects that change, listings of any length,
kill -9 in the middle of a large object.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import ingest
from ingest.errors import BadSource, JobFailed
from tests.e2e.test_large import Watch
from tests.servers.node import Service, running_service, until
from tests.servers.s3 import S3Server, s3_server
from tests.servers.simulated import Object, SimulatedS3, simulated_s3

KEYS = int(os.environ.get("INGEST_TEST_KEYS", "50000"))
#: Ten million are planned in about a quarter of it.
PLANNING_S = 200 + KEYS / 5000
MOST_RESIDENT_MB = 300


@pytest.fixture(scope="module")
def simulated() -> Iterator[SimulatedS3]:
    with simulated_s3() as running:
        yield running


@pytest.fixture
def s3(simulated: SimulatedS3) -> SimulatedS3:
    simulated.reset()
    return simulated


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(scope="module")
def service(simulated: SimulatedS3, moto: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    config = f"""
[retry]
attempts = 3
base_s = 0.01
[connections.simulated]
endpoint = "{simulated.endpoint}"
anonymous = true
[connections.moto]
endpoint = "{moto.endpoint}"
key = "{moto.key}"
secret = "{moto.secret}"
"""
    with running_service(tmp_path_factory.mktemp("service"), config=config) as started:
        yield started


def listed_and_replaced(s3: SimulatedS3, keys: int) -> dict[str, bytes]:
    """Objects that are not what the listing says: of another ETag and size."""
    s3.keys = keys
    bodies = {f"n/{n:012d}.bin": os.urandom(500 + n) for n in range(keys)}
    s3.objects = {key: Object(body) for key, body in bodies.items()}
    return bodies


# -- versions --------------------------------------------------------------------------------------------------------


def test_two_versions_of_a_key_in_one_job(service: Service, moto: S3Server) -> None:
    moto.put("versioned", {})
    moto.client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    old, new = (
        moto.client.put_object(Bucket="versioned", Key="k", Body=body)["VersionId"] for body in (b"old", b"newer")
    )
    sources = [ingest.Source("s3://versioned/k", connection="moto", version=version) for version in (old, new)]
    client = service.client()
    assert [path.read_bytes() for path in client.fetch(sources, timeout=60)] == [b"old", b"newer"]
    moto.client.delete_object(Bucket="versioned", Key="k", VersionId=old)
    job = client.submit(sources, fresh_s=0)
    files = job.files(timeout=60)
    assert [file.path.read_bytes() for file in files] == [b"old", b"newer"], "a version never changes"
    gone = ingest.Source("s3://versioned/k", connection="moto", version=old.swapcase()[::-1])
    with pytest.raises(JobFailed, match=r"NotFound|BadResponse"):
        client.fetch(gone, timeout=60)


def test_a_version_belongs_to_one_object_of_a_store_that_keeps_them() -> None:
    client = ingest.Client()
    for uri in ("https://host/k", "s3://bucket/k/", "s3://bucket/k-{0..3}", "file:///k"):
        with pytest.raises(BadSource, match="version"):
            client.submit(ingest.Source(uri, version="v1"))


# -- change ----------------------------------------------------------------------------------------------------------


def test_what_changed_since_it_was_listed_comes_as_it_is_now(service: Service, s3: SimulatedS3) -> None:
    bodies = listed_and_replaced(s3, 5)
    job = service.client().submit(ingest.Source("s3://changed/n/", connection="simulated"))
    files = job.files(timeout=60)
    assert job.failures() == []
    assert [file.path.read_bytes() for file in files] == list(bodies.values())


def test_what_changes_all_the_time_is_an_error(service: Service, s3: SimulatedS3) -> None:
    s3.objects["restless"] = Object(b"\0" * (20 << 20))
    count = iter(range(10_000))

    def anew(handler: object) -> bool:
        s3.objects["restless"].etag = f'"{next(count)}"'
        return False

    s3.gate = anew
    job = service.client().submit(ingest.Source("s3://changed/restless", connection="simulated"))
    assert job.files(timeout=60) == []
    (failure,) = job.failures()
    assert failure.error == "SourceChanged" and failure.attempts == 3
    assert service.scratch() == []


# -- kill ------------------------------------------------------------------------------------------------------------


def test_kill_9_in_the_middle_costs_little(s3: SimulatedS3, simulated: SimulatedS3, tmp_path: Path) -> None:
    """Ranges that were on their way are continued, each where it stopped."""
    data = os.urandom(1 << 20) * 64
    s3.objects["big"] = Object(data)
    sent, held, go = [0], threading.Event(), threading.Event()

    def slowly(handler: object) -> bool:
        """Every range stops half way, until it is told to go on."""
        wanted = handler.headers.get("Range", "")  # type: ignore[attr-defined]
        if handler.command == "HEAD" or not wanted or go.is_set():  # type: ignore[attr-defined]
            if wanted:
                low, _, high = wanted.removeprefix("bytes=").partition("-")
                sent[0] += int(high) - int(low) + 1
            return False
        low, _, high = wanted.removeprefix("bytes=").partition("-")
        first, end = int(low), int(high) + 1
        half = (first + end) // 2
        head = f"HTTP/1.1 206 Partial\r\nETag: {s3.objects['big'].etag}\r\nContent-Length: {end - first}\r\n"
        head += "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        head += f"Content-Range: bytes {first}-{end - 1}/{len(data)}\r\n\r\n"
        handler.wfile.write(head.encode() + data[first:half])  # type: ignore[attr-defined]
        sent[0] += half - first
        held.set()
        go.wait(60)
        handler.close_connection = True  # type: ignore[attr-defined]
        return True

    s3.gate = slowly
    config = f'[connections.simulated]\nendpoint = "{simulated.endpoint}"\nanonymous = true\n'
    with running_service(tmp_path, config=config) as service:
        job = service.client().submit(ingest.Source("s3://bucket/big", connection="simulated"))
        until(held.is_set, "the first range is half here")
        until(lambda: sent[0] >= 15 << 20, "four ranges are half here")
        until(lambda: job.status().bytes > 14 << 20, "they are written")
        service.workers[0].kill()
        go.set()
        service.start_worker("n1")
        (file,) = job.files(timeout=90)
        assert file.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
        file.path.unlink()
    assert sent[0] - len(data) < 4 << 20, f"{(sent[0] - len(data)) >> 20} MB came twice"


# -- listings --------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(PLANNING_S + 40)
def test_a_long_listing_in_flat_memory(s3: SimulatedS3, simulated: SimulatedS3, tmp_path: Path) -> None:
    """Planned for a node that is not there, so that nothing is fetched."""
    s3.keys = KEYS
    config = f"[limits]\nplan_ahead = {KEYS}\n"
    config += f'[connections.simulated]\nendpoint = "{simulated.endpoint}"\nanonymous = true\n'
    with running_service(tmp_path, config=config) as service, Watch(service) as watch:
        source = ingest.Source("s3://bucket/n/", connection="simulated")
        job = service.client().submit(source, placement="nowhere", require_node=False)
        until(lambda: job.status().files == KEYS and job.status().state == "running", "all is planned", PLANNING_S)
        job.cancel()
    print(f"{watch.peak_mb:.0f} MB resident at most", flush=True)
    assert watch.peak_mb < MOST_RESIDENT_MB, f"{watch.peak_mb:.0f} MB"
