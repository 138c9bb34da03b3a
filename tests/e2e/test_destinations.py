"""``into=`` a bucket through the whole service: from the origin by the store to where the user wants it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ingest
from ingest.app import app_for
from ingest.errors import JobFailed, UsageError
from tests.servers.http import Origin
from tests.servers.node import Service, running_service
from tests.servers.s3 import S3Server, s3_server
from tests.unit.converting import zip_of


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        server.put("mine", {})
        server.put("readable", {"raw/a.txt": b"a", "raw/d/b.txt": b"b"})
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> Iterator[Service]:
    profile = f'endpoint = "{s3.endpoint}"\nkey = "{s3.key}"\nsecret = "{s3.secret}"\n'
    config = f'[connections.mine]\nmatch = "s3://mine/"\n{profile}'
    config += f'[connections.readable]\nmatch = "s3://readable/"\nread_only = true\n{profile}'
    config += f'[connections.lost]\nmatch = "s3://lost/"\n{profile}'
    with running_service(tmp_path_factory.mktemp("into"), config=config) as started:
        yield started


def objects(s3: S3Server, prefix: str) -> dict[str, Any]:
    listed = s3.client.list_objects_v2(Bucket="mine", Prefix=prefix).get("Contents", [])
    return {o["Key"]: s3.client.get_object(Bucket="mine", Key=o["Key"])["Body"].read() for o in listed}


def test_many_files_once(service: Service, origin: Origin, s3: S3Server) -> None:
    client = service.client()
    bodies = {f"many/{n}.bin": hashlib.sha256(b"%d" % n).digest() * 100 for n in range(40)}
    urls = [origin.put(f"/{key.split('/')[1]}", body) for key, body in bodies.items()]
    job = client.submit(urls, into="s3://mine/many", shard_files=10)
    assert job.wait(timeout=60).state == "done", job.failures()
    assert [file.into for file in job.files()] == [f"s3://mine/{key}" for key in bodies]
    assert objects(s3, "many/") == bodies
    assert job.files()[3].path.read_bytes() == bodies["many/3.bin"], "they are in the store as well"
    before = {o["Key"]: o["LastModified"] for o in s3.client.list_objects_v2(Bucket="mine", Prefix="many/")["Contents"]}
    asked = origin.count()
    assert client.fetch(urls, into="s3://mine/many/", timeout=60) == [f"s3://mine/{key}" for key in bodies]
    after = {o["Key"]: o["LastModified"] for o in s3.client.list_objects_v2(Bucket="mine", Prefix="many/")["Contents"]}
    assert after == before and origin.count() == asked, "neither fetched nor uploaded again"


def test_from_a_bucket_to_a_bucket_with_folders_and_steps(service: Service, origin: Origin, s3: S3Server) -> None:
    client = service.client()
    assert client.fetch("s3://readable/raw/", into="s3://mine/copy/", timeout=60) == [
        "s3://mine/copy/a.txt", "s3://mine/copy/d/b.txt",
    ]  # fmt: skip
    url = origin.put("/set.zip", zip_of([("x.txt", b"x"), ("y/z.txt", b"z")]))
    client.fetch(url, into="s3://mine/steps/", convert="unpack", timeout=60)
    assert objects(s3, "steps/") == {"steps/set/x.txt": b"x", "steps/set/y/z.txt": b"z"}


def test_a_newer_version_does_not_replace_the_older(service: Service, origin: Origin, s3: S3Server) -> None:
    client = service.client()
    url = origin.put("/v.txt", b"first")
    client.fetch(url, into="s3://mine/v/", timeout=60)
    origin.put("/v.txt", b"second")
    (found,) = client.fetch(url, into="s3://mine/v/", timeout=60, fresh_s=0)
    assert found.startswith("s3://mine/v/v-") and objects(s3, "v/")["v/v.txt"] == b"first"
    assert objects(s3, "v/")[found.removeprefix("s3://mine/")] == b"second"


def test_failures_name_the_destination(service: Service, origin: Origin, s3: S3Server) -> None:
    client = service.client()
    url = origin.put("/f.txt", b"f")
    for into, error, words in (
        ("s3://readable/x/", "AccessDenied", "connection 'readable' is read_only"),
        ("s3://lost/x/", "NotFound", "no such bucket"),
        ("nope://x/", None, "nothing can be written to nope://"),
    ):
        if error is None:
            with pytest.raises(UsageError, match=words):
                client.submit(url, into=into)
            continue
        with pytest.raises(JobFailed) as caught:
            client.fetch(url, into=into, timeout=60)
        (failure,) = caught.value.failures
        assert failure.error == error and failure.source == url
        assert into in failure.reason and words in failure.reason
    assert origin.count() == 1, "the file itself was in the store"


def test_a_bucket_that_comes_back_is_tried_again(service: Service, origin: Origin, s3: S3Server) -> None:
    client = service.client()
    s3.client.create_bucket(Bucket="lost")
    try:
        assert client.fetch(origin.put("/l.txt", b"l"), into="s3://lost/", timeout=60) == ["s3://lost/l.txt"]
    finally:
        s3.client.delete_object(Bucket="lost", Key="l.txt")
        s3.client.delete_bucket(Bucket="lost")


def test_with_celery_alone_and_the_command_line(service: Service, origin: Origin, s3: S3Server, tmp_path: Path) -> None:
    url = origin.put("/c.txt", b"c")
    result = app_for(service.settings).send_task("ingest.download", (url, "s3://mine/celery/"))
    assert result.get(timeout=30) == {"paths": ["s3://mine/celery/c.txt"]}
    done = service.run("fetch", url, "--into", "s3://mine/cli/")
    assert done.returncode == 0 and done.stdout.strip() == "s3://mine/cli/c.txt", done.stderr
    assert objects(s3, "cli/") == {"cli/c.txt": b"c"}
    (path,) = service.client().fetch(url, into=f"file://{tmp_path}/a%20b/", timeout=30)
    assert path == tmp_path / "a b" / "c.txt" and path.read_bytes() == b"c"


@pytest.mark.parametrize(
    "into",
    ["", "https://host/x", "sql://x/", "s3:///x", "s3://b/../c", "simplecache::s3://b/", "s3://u:p@b/x", "file://h/x"],
)
def test_what_can_be_no_destination(service: Service, into: str) -> None:
    with pytest.raises(UsageError):
        service.client().submit("https://host/a", into=into)


def test_a_reader_believes_no_uri_that_lies_elsewhere() -> None:
    from ingest.client.into import inside
    from ingest.errors import StoreError

    assert inside("s3://mine/x/a", "s3://mine/x/") == "s3://mine/x/a"
    for found in ("s3://theirs/x/a", "s3://mine/xa", "s3://mine/x/../y", "/etc/passwd"):
        with pytest.raises(StoreError):
            inside(found, "s3://mine/x/")
    assert ingest.Client  # what a user sees of it is fetch()
