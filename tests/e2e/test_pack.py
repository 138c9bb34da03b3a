"""Packed shards: thousands of small files as WebDataset tars, by a real worker from a real origin."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from webdataset.tariterators import group_by_keys, tar_file_expander

import ingest
from tests.servers.http import Origin, file, flaky, silent, status
from tests.servers.node import Service, running_service, until

#: The whole of what docs/sources.md says takes minutes: INGEST_TEST_PACK=100000.
SAMPLES = int(os.environ.get("INGEST_TEST_PACK", "1500"))


def body(n: int) -> bytes:
    return hashlib.sha256(str(n).encode()).digest() * (3 + n % 5)


def serve(origin: Origin, count: int, missing: Sequence[int] = ()) -> list[str]:
    for n in set(range(count)) - set(missing):
        origin.put(f"/s{n:06}.bin", body(n))
    return [origin.url(f"/s{n:06}.bin") for n in range(count)]


def read(paths: list[Path]) -> Iterator[dict[str, Any]]:
    """By the webdataset library itself, one file after the other (its url_opener leaves files open)."""
    for path in paths:
        with open(path, "rb") as stream:
            yield from group_by_keys(tar_file_expander([{"url": str(path), "stream": stream}]))


def numbers(paths: list[Path]) -> list[int]:
    """Which samples are there, in their order; their bytes are checked on the way."""
    found = []
    for sample in read(paths):
        facts = json.loads(sample["json"])
        number = int(facts["uri"].rpartition("/")[2][1:].removesuffix(".bin"))
        assert sample["bin"] == body(number)
        assert facts["digest"] == f"sha256:{hashlib.sha256(sample['bin']).hexdigest()}"
        assert facts["key"] == sample["__key__"] and facts["status"] == "ok"
        found.append(number)
    return found


def test_many_files_become_tars_in_order_and_a_rerun_fetches_just_what_failed(
    service: Service, origin: Origin, tmp_path: Path
) -> None:
    dead = list(range(7, SAMPLES, 100))
    urls = serve(origin, SAMPLES, missing=dead)
    manifest = tmp_path / "list.txt"
    manifest.write_text("\n".join(urls))
    client = service.client()
    pack = ingest.Pack(samples=max(400, SAMPLES // 20), bytes=64 << 20)
    job = client.submit(ingest.Manifest(manifest.as_uri()), pack=pack)
    assert job.wait(timeout=60 + SAMPLES / 50).state == "done"
    files = job.files()
    assert sum(file.samples or 0 for file in files) == SAMPLES - len(dead)
    alive = [n for n in range(SAMPLES) if n not in set(dead)]
    assert numbers([file.path for file in files]) == alive
    assert [(f.source, f.error) for f in job.failures()] == [(urls[n], "NotFound") for n in dead]
    assert all("404" in failure.reason for failure in job.failures())

    for n in dead:
        origin.put(f"/s{n:06}.bin", body(n))
    asked = len(origin.log)
    assert job.retry().wait(timeout=60).state == "done"
    assert sorted(request.path for request in origin.log[asked:]) == [f"/s{n:06}.bin" for n in dead]
    assert job.failures() == [] and sorted(numbers(job.paths())) == list(range(SAMPLES))
    assert service.scratch() == []


def test_too_many_failures_fail_the_shard_and_what_came_is_kept(service: Service, origin: Origin) -> None:
    urls = serve(origin, 40, missing=range(0, 40, 4))
    job = service.client().submit(urls, pack=ingest.Pack(max_failed=0.2))
    assert job.wait(timeout=60).state == "failed" and len(job.failures()) == 10
    assert numbers(job.paths()) == [n for n in range(40) if n % 4]
    assert service.client().submit(urls, pack=ingest.Pack(max_failed=0.3)).wait(timeout=60).state == "done"


def test_another_job_for_the_same_list_fetches_just_what_the_first_could_not(service: Service, origin: Origin) -> None:
    urls = serve(origin, 30, missing=[3, 4])
    client = service.client()
    assert client.submit(urls, pack="tar").wait(timeout=60).state == "done"
    origin.put("/s000004.bin", body(4))
    asked = len(origin.log)
    job = client.submit(urls, pack="tar")
    assert job.wait(timeout=60).state == "done"
    assert sorted(request.path for request in origin.log[asked:]) == ["/s000003.bin", "/s000004.bin"]
    assert sorted(numbers(job.paths())) == [n for n in range(30) if n != 3]
    assert [failure.source for failure in job.failures()] == [urls[3]]


def test_a_tar_is_cut_at_its_size_and_is_the_same_wherever_it_is_packed(
    service: Service, origin: Origin, tmp_path: Path
) -> None:
    big = os.urandom(300_000)
    urls = [origin.put(f"/big{n}.bin", big) for n in range(8)]
    client = service.client()
    files = client.submit(urls, pack=ingest.Pack(bytes=1_000_000), into=tmp_path / "out").files(timeout=60)
    assert [file.samples for file in files] == [3, 3, 2]
    names = ["000000-000.tar", "000000-001.tar", "000000-002.tar"]
    assert [Path(file.into or "").name for file in files] == names
    again = client.submit(urls, pack=ingest.Pack(bytes=1_000_000), fresh_s=0).files(timeout=60)
    assert [file.digest for file in again] == [file.digest for file in files]


def test_keys_names_and_metadata_come_from_the_manifest(service: Service, origin: Origin, tmp_path: Path) -> None:
    rows = [
        {"url": origin.put("/a.v1.txt", b"one"), "id": "cat/one.v1", "caption": "a cat"},
        {"url": origin.put("/b.json", b"{}"), "id": "two", "caption": None},
        {"url": origin.put("/c", b"three"), "id": "two", "caption": "twice"},
    ]
    manifest = tmp_path / "rows.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = ingest.Manifest(manifest.as_uri(), uri_column="url", key_column="id", metadata=("caption",))
    (path,) = service.client().submit(source, pack="tar").paths(timeout=60)
    first, second, third = read([path])
    assert first["__key__"] == "cat/one_v1" and first["txt"] == b"one"
    assert json.loads(first["json"])["metadata"] == {"caption": "a cat"}
    assert second["content.json"] == b"{}" and second["__key__"] == "two"
    assert third["__key__"].startswith("two_") and third["bin"] == b"three"


def test_parquet_holds_the_same_samples(service: Service, origin: Origin) -> None:
    urls = serve(origin, 20, missing=[5])
    (path,) = service.client().submit(urls, pack="parquet").paths(timeout=60)
    rows = pq.read_table(path).to_pylist()
    alive = [n for n in range(20) if n != 5]
    assert [row["content"] for row in rows] == [body(n) for n in alive]
    assert [row["uri"] for row in rows] == [urls[n] for n in alive]
    assert rows[0]["digest"] == f"sha256:{hashlib.sha256(body(0)).hexdigest()}" and rows[0]["extension"] == "bin"


def test_a_source_listed_twice_is_fetched_once_and_one_in_the_store_not_at_all(
    service: Service, origin: Origin
) -> None:
    urls = serve(origin, 3)
    client = service.client()
    client.fetch(urls[0], timeout=60)
    asked = len(origin.log)
    job = client.submit([urls[0], urls[1], urls[1], urls[2]], pack="tar")
    assert numbers(job.paths(timeout=60)) == [0, 1, 1, 2]
    assert sorted(request.path for request in origin.log[asked:]) == ["/s000001.bin", "/s000002.bin"]


def test_transient_failures_are_tried_again_and_keep_their_place(service: Service, origin: Origin) -> None:
    urls = serve(origin, 12)
    origin.on("/s000004.bin", flaky(2, status(503), file(body(4))))
    job = service.client().submit(urls, pack="tar")
    assert numbers(job.paths(timeout=60)) == list(range(12))
    assert origin.count("/s000004.bin") == 3


@pytest.mark.long
def test_killed_half_way_another_process_goes_on_with_what_has_come(tmp_path: Path) -> None:
    with Origin() as origin, running_service(tmp_path) as service:
        urls = serve(origin, 60)
        origin.on("/s000055.bin", flaky(1, silent(), file(body(55))))
        job = service.client().submit(urls, pack="tar")
        lists = (tmp_path / "store" / "scratch").glob
        until(lambda: sum(len(path.read_text().splitlines()) for path in lists("*.list")) == 59, "all others came")
        service.workers[0].kill()
        service.start_worker()
        assert numbers(job.paths(timeout=60)) == list(range(60))
        assert origin.count() == 61
        until(lambda: service.scratch() == [], "nothing is left")


def test_what_cannot_be_packed_is_said_at_once(service: Service) -> None:
    client = service.client()
    for wrong in (
        "zip",
        ingest.Pack(samples=0),
        ingest.Pack(samples=100_001),
        ingest.Pack(samples=2.5),  # type: ignore[arg-type]
        ingest.Pack(bytes=0),
        ingest.Pack(max_failed=2),
    ):
        with pytest.raises(ingest.UsageError):
            client.submit("http://127.0.0.1/a", pack=wrong)
    with pytest.raises(ingest.UsageError, match="database"):
        client.submit(ingest.Sql("db", table="t"), pack="tar")


def test_a_row_that_nobody_could_hold(service: Service, origin: Origin, tmp_path: Path) -> None:
    large = tmp_path / "large.bin"
    with open(large, "wb") as made:
        made.truncate((128 << 20) + 1)
    urls = [*serve(origin, 3), f"file://{large}"]
    job = service.client().submit(urls, pack=ingest.Pack("parquet", max_failed=0.5))
    (path,) = job.paths(timeout=60)
    assert pq.read_table(path)["uri"].to_pylist() == urls[:3]
    (failure,) = job.failures()
    assert failure.source == urls[3] and failure.error == "TooLarge" and "a tar has no such limit" in failure.reason


def test_a_dataset_reads_packed_shards(service: Service, origin: Origin) -> None:
    torch_dataset = pytest.importorskip("ingest.dataset")
    urls = serve(origin, 25, missing=[2])
    job = service.client().submit(urls, pack=ingest.Pack(samples=10))
    found = sorted(json.loads(sample["json"])["uri"] for sample in torch_dataset.StreamingDataset(job, timeout=60))
    assert found == sorted(url for n, url in enumerate(urls) if n != 2)
