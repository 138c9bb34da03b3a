"""gs:// and az:// through obstore, against as much of their servers as the tests have (``servers/simulated``): the same
promises as S3's.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from ingest import errors
from ingest.model import FileSpec
from ingest.sections import Connection, Limits
from ingest.settings import Settings
from ingest.sources import Source
from tests.contracts.contract import FetcherContract
from tests.contracts.s3cases import Scripted, scratch, sha256
from tests.servers.simulated import Object, SimulatedS3
from workers.fetchers import fetcher_for
from workers.fetchers.base import Context, Interrupted
from workers.fetchers.s3 import CloudFetcher
from workers.fetchers.s3.ranges import RANGE_BYTES

BIG = os.urandom(1 << 20) * 29 + b"tail"
BOTH = pytest.mark.parametrize("scheme", ["gs", "az"])


def context(endpoint: str, **values: Any) -> Context:
    limits = Limits(connect_s=1, stall_s=2)
    given = {"account": "acc", "anonymous": True, "endpoint": endpoint} | values
    return Context(Settings(limits=limits), Connection("cloud", {k: v for k, v in given.items() if v is not None}))


class CloudCase(FetcherContract):
    scheme = ""
    odd_names = ("a b.txt", "ü-ñ-漢字.bin", "100%.txt", "a#b?c.txt", "a&b=c;d+e.txt", "-rf", "a%20b.txt", "x" * 180)

    @pytest.fixture(autouse=True)
    def _origin(self, s3: SimulatedS3) -> None:
        self.fetcher, self.s3 = CloudFetcher(), s3

    def context(self, **values: Any) -> Context:
        return context(self.s3.endpoint, **values)

    def put(self, name: str, data: bytes) -> FileSpec:
        self.s3.objects[name] = Object(data)
        return FileSpec(0, 0, f"{self.scheme}://bucket/{name}")

    def missing(self) -> FileSpec:
        return FileSpec(0, 0, f"{self.scheme}://bucket/missing")


class TestGoogle(CloudCase):
    scheme = "gs"


class TestAzure(CloudCase):
    scheme = "az"


def test_they_are_registered() -> None:
    assert {type(fetcher_for(scheme)) for scheme in ("gs", "gcs", "az")} == {CloudFetcher}


@BOTH
def test_a_large_object_in_pinned_ranges(scheme: str, s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["big"] = Object(BIG)
    file = scratch(tmp_path)
    fetched = CloudFetcher().fetch(FileSpec(0, 0, f"{scheme}://bucket/big"), file, None, context(s3.endpoint))
    assert fetched is not None and fetched.version == s3.objects["big"].etag
    assert file.digest() == sha256(BIG)
    asked = [headers for method, _, headers in s3.requests if method == "GET"]
    assert len(asked) == 4 and all(headers.get("if-match") == fetched.version for headers in asked[1:])


@BOTH
def test_a_change_half_way_is_never_mixed(scheme: str, s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["moving"] = Object(BIG)

    def change(handler: Any) -> bool:
        if not handler.headers.get("Range", "").startswith("bytes=0-"):
            s3.objects["moving"].etag = '"another"'
        return False

    s3.gate = change
    file = scratch(tmp_path, keep=True)
    with pytest.raises(errors.SourceChanged):
        CloudFetcher().fetch(FileSpec(0, 0, f"{scheme}://bucket/moving"), file, None, context(s3.endpoint))


@BOTH
def test_it_goes_on_where_it_stopped(scheme: str, s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["big"] = Object(BIG)
    spec, seen = FileSpec(0, 0, f"{scheme}://bucket/big"), [0]

    def stop(count: int) -> None:
        seen[0] += count
        if seen[0] > RANGE_BYTES:
            raise Interrupted("slice")

    first = scratch(tmp_path, keep=True, on_bytes=stop)
    with pytest.raises(Interrupted):
        CloudFetcher().fetch(spec, first, None, context(s3.endpoint))
    first.close(discard=False)
    brought: list[int] = []
    again = scratch(tmp_path, keep=True, on_bytes=brought.append)
    assert CloudFetcher().fetch(spec, again, None, context(s3.endpoint)) is not None
    assert again.digest() == sha256(BIG) and sum(brought) <= len(BIG) - RANGE_BYTES


@BOTH
@pytest.mark.parametrize("version", ["1234567890", "2026-01-01T00:00:00.0000000Z"])
def test_a_version_is_asked_for(scheme: str, version: str, s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["k"] = Object(b"old")
    spec = FileSpec(0, 0, f"{scheme}://bucket/k", pin=version)
    fetched = CloudFetcher().fetch(spec, scratch(tmp_path), None, context(s3.endpoint))
    assert fetched is not None and fetched.version == version
    (path,) = [path for _, path, _ in s3.requests]
    assert ("generation=" if scheme == "gs" else "versionid=") + version.replace(":", "%3A") in path


@BOTH
@pytest.mark.parametrize("glob", [False, True])
def test_a_listing_of_many_pages(scheme: str, glob: bool, s3: SimulatedS3) -> None:
    s3.keys = 2500
    uri = f"{scheme}://bucket/n/" + "*5.bin" * glob
    found = list(CloudFetcher().expand(Source(uri, connection="cloud"), context(s3.endpoint)))
    want = [n for n in range(2500) if not glob or n % 10 == 5]
    assert [spec.uri for spec in found] == [f"{scheme}://bucket/n/{n:012d}.bin" for n in want]
    assert {spec.size for spec in found} == {1000} and found[0].connection == "cloud" and found[0].version
    assert found[0].name == f"{want[0]:012d}.bin"


@BOTH
def test_a_listing_goes_on_after_a_key(scheme: str, s3: SimulatedS3) -> None:
    s3.keys = 2500
    where = context(s3.endpoint)
    where = Context(where.settings, where.connection, after=f"{scheme}://bucket/n/{2399:012d}.bin")
    found = list(CloudFetcher().expand(Source(f"{scheme}://bucket/n/"), where))
    assert [spec.uri for spec in found] == [f"{scheme}://bucket/n/{n:012d}.bin" for n in range(2400, 2500)]


@BOTH
def test_the_marker_of_a_folder_is_no_file(scheme: str, s3: SimulatedS3) -> None:
    s3.keys, s3.key_bytes = 3, 0
    s3.objects = {f"n/{n:012d}.bin": Object(b"") for n in (0, 2)}
    found = [spec.uri[-5:] for spec in CloudFetcher().expand(Source(f"{scheme}://bucket/n/"), context(s3.endpoint))]
    assert found == ["0.bin", "2.bin"]


@BOTH
@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", errors.AccessDenied),
        (401, "", errors.AccessDenied),
        (404, "NoSuchKey", errors.NotFound),
        (404, "ContainerNotFound", errors.NotFound),
        (429, "", errors.Throttled),
        (503, "ServerBusy", errors.Throttled),
        (500, "InternalError", errors.OriginUnavailable),
        (301, "", errors.BadResponse),
        (400, "InvalidQueryParameterValue", errors.BadResponse),
    ],
)
@pytest.mark.parametrize("what", ["k", "list/"])
def test_answers_become_our_errors(
    what: str, status: int, code: str, kind: type[errors.FetchError], scheme: str, scripted: Scripted, tmp_path: Path
) -> None:
    scripted.says(status, code)
    where, uri = context(scripted.endpoint), f"{scheme}://bucket/{what}"
    ask = {
        "k": lambda: CloudFetcher().fetch(FileSpec(0, 0, uri), scratch(tmp_path), None, where),
        "list/": lambda: list(CloudFetcher().expand(Source(uri), where)),
    }
    with pytest.raises(errors.FetchError) as caught:
        ask[what]()
    assert type(caught.value) is kind and caught.value.uri == uri
    assert len(scripted.requests) == 1


@BOTH
@pytest.mark.parametrize("key", ["/lead", "a//b", "a/../b", "..", "trail/"])
def test_a_key_that_cannot_be_said_is_refused(scheme: str, key: str, s3: SimulatedS3, tmp_path: Path) -> None:
    with pytest.raises(errors.Unsupported):
        CloudFetcher().fetch(FileSpec(0, 0, f"{scheme}://bucket/{key}"), scratch(tmp_path), None, context(s3.endpoint))
    assert s3.requests == []


@BOTH
def test_options_of_fsspec_alone_are_refused(scheme: str, tmp_path: Path) -> None:
    where = Context(Settings(), Connection("cloud", {"options": {"token": "x"}}))
    with pytest.raises(errors.BadResponse, match="options are for fsspec"):
        CloudFetcher().fetch(FileSpec(0, 0, f"{scheme}://bucket/k"), scratch(tmp_path), None, where)


def test_a_key_signs_for_azure(s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["k"] = Object(b"x")
    where = context(s3.endpoint, anonymous=None, key="c2VjcmV0LW9mLWF6dXJl")
    CloudFetcher().fetch(FileSpec(0, 0, "az://bucket/k"), scratch(tmp_path), None, where)
    assert s3.requests[-1][2]["authorization"].startswith("SharedKey acc:")
    where = context(s3.endpoint, anonymous=None, sas="?sv=2026&sig=abc")
    CloudFetcher().fetch(FileSpec(0, 0, "az://bucket/k"), scratch(tmp_path), None, where)
    assert "sig=abc" in s3.requests[-1][1]


def test_a_token_signs_for_google(s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["k"] = Object(b"x")
    where = context(s3.endpoint, anonymous=None, account=None, token="bearer-of-google")
    CloudFetcher().fetch(FileSpec(0, 0, "gs://bucket/k"), scratch(tmp_path), None, where)
    assert s3.requests[-1][2]["authorization"] == "Bearer bearer-of-google"
