"""S3Fetcher against two real servers, moto's and Ceph's object gateway: the same tests for both."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest import errors
from ingest.model import FileSpec
from ingest.sources import Source
from tests.contracts.contract import FetcherContract
from tests.contracts.s3cases import profile, scratch, sha256
from tests.servers import ceph
from tests.servers.s3 import S3Server, s3_server
from workers.fetchers.base import Context, Interrupted, Known
from workers.fetchers.s3 import S3Fetcher
from workers.fetchers.s3.ranges import RANGE_BYTES, RANGES_PER_PROCESS
from workers.fetchers.s3.read import plain

BIG = os.urandom(1 << 20) * 29 + b"tail"  # four ranges, the last one short


@pytest.fixture(scope="module", params=["moto", pytest.param("ceph", marks=pytest.mark.long)])
def server(request: pytest.FixtureRequest) -> Iterator[S3Server]:
    if request.param == "ceph" and (absent := ceph.missing()):
        pytest.skip(f"no {', '.join(absent)} here: apt-get install --no-install-recommends {ceph.PACKAGES}")
    with s3_server() if request.param == "moto" else ceph.ceph_server() as running:
        yield running


@pytest.fixture
def context(server: S3Server) -> Context:
    return profile(**server.profile())


class TestContract(FetcherContract):
    """What every fetcher keeps to."""

    @pytest.fixture(autouse=True)
    def _origin(self, server: S3Server) -> None:
        self.fetcher, self.server = S3Fetcher(), server

    def context(self, **values: object) -> Context:
        return profile(**self.server.profile(**values))

    def put(self, name: str, data: bytes) -> FileSpec:
        self.server.put("contract", {name: data})
        return FileSpec(0, 0, f"s3://contract/{name}")

    def missing(self) -> FileSpec:
        self.server.put("contract", {})
        return FileSpec(0, 0, "s3://contract/missing")


# -- bytes ---------------------------------------------------------------------------------------------------------


ODD_KEYS = [
    "plain.txt", "a b", "a+b", "a%20b", "a%b", "%2F", "ü/ñ", "é\u0301", "\U0001f600", "a#b", "a?b", "a*b", "a[b]",
    "a~b", "a\\b", "a&b=c;d,e", "a'b\"c<d>", "a|b^c`d{e}",
    "/lead", "trail/", "a//b", "./a", "a/../b", "a/./b", "..", "a/..", "//", "s3://x",
]  # fmt: skip


@pytest.mark.parametrize("key", ODD_KEYS)
def test_a_key_is_taken_literally(
    key: str, server: S3Server, context: Context, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    etags = server.put("odd-keys", {key: f"content of {key}".encode()})
    file = scratch(tmp_path)
    fetched = fetcher.fetch(FileSpec(0, 0, f"s3://odd-keys/{key}"), file, None, context)
    assert fetched is not None and fetched.version == etags[key] == fetched.validator
    assert file.path.read_bytes() == f"content of {key}".encode()


def test_keys_that_obstore_cannot_say_are_known() -> None:
    assert [key for key in ODD_KEYS if not plain(key)] == [
        "/lead", "trail/", "a//b", "./a", "a/../b", "a/./b", "..", "a/..", "//", "s3://x",
    ]  # fmt: skip


@pytest.mark.parametrize("key", ["big", "dir//big"])
def test_a_large_object_arrives_whole_in_pinned_ranges(
    key: str, server: S3Server, context: Context, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    server.put("large", {key: BIG})
    file = scratch(tmp_path)
    fetcher.fetch(FileSpec(0, 0, f"s3://large/{key}"), file, None, context)
    assert file.size == len(BIG) > 3 * RANGE_BYTES
    assert file.digest() == sha256(BIG)
    assert fetcher._slots._value == RANGES_PER_PROCESS


@pytest.mark.parametrize("size", [0, 1, RANGE_BYTES - 1, RANGE_BYTES, RANGE_BYTES + 1])
@pytest.mark.parametrize("told", [False, True])
def test_sizes_at_the_edges(
    size: int, told: bool, server: S3Server, context: Context, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    body = os.urandom(size)
    etag = server.put("edges", {f"{size}": body})[f"{size}"]
    file = scratch(tmp_path)
    spec = FileSpec(0, 0, f"s3://edges/{size}", size=size if told else None, version=etag if told else None)
    assert fetcher.fetch(spec, file, None, context) is not None
    assert file.size == size and file.digest() == sha256(body)


def test_many_threads_share_the_slots(server: S3Server, context: Context, fetcher: S3Fetcher, tmp_path: Path) -> None:
    server.put("large", {"big": BIG})
    digests: list[str] = []

    def one(n: int) -> None:
        (tmp_path / str(n)).mkdir()
        file = scratch(tmp_path / str(n))
        fetcher.fetch(FileSpec(0, n, "s3://large/big"), file, None, context)
        digests.append(file.digest())

    threads = [threading.Thread(target=one, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert digests == [sha256(BIG)] * 6


# -- versions ------------------------------------------------------------------------------------------------------


def test_unchanged_is_none_and_changed_is_fetched(
    server: S3Server, context: Context, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    etag = server.put("versions", {"k": b"one", "d//k": b"one"})["k"]
    for key in ("k", "d//k"):
        file, spec = scratch(tmp_path), FileSpec(0, 0, f"s3://versions/{key}")
        assert fetcher.fetch(spec, file, Known(etag, 3, etag), context) is None
        assert file.size == 0
        server.put("versions", {key: b"other"})
        changed = fetcher.fetch(spec, file, Known(etag, 3, etag), context)
        assert changed is not None and changed.version != etag and file.digest() == sha256(b"other")


def test_an_object_that_changed_after_the_listing_is_refused(
    server: S3Server, context: Context, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    etag = server.put("versions", {"listed": b"one"})["listed"]
    server.put("versions", {"listed": b"two"})
    with pytest.raises(errors.SourceChanged):
        fetcher.fetch(FileSpec(0, 0, "s3://versions/listed", version=etag), scratch(tmp_path), None, context)


def test_an_object_that_changes_half_way_is_never_mixed(
    server: S3Server, context: Context, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    server.put("versions", {"moving": BIG * 3})
    changed, lock = threading.Event(), threading.Lock()

    def change(_: int) -> None:
        with lock:  # nobody writes on before it has changed
            if not changed.is_set():
                server.put("versions", {"moving": bytes(len(BIG) * 3)})
                changed.set()

    with pytest.raises(errors.SourceChanged):
        fetcher.fetch(FileSpec(0, 0, "s3://versions/moving"), scratch(tmp_path, on_bytes=change), None, context)


@pytest.mark.parametrize("key", ["pinned", "dir//pinned"])
def test_a_version_that_was_asked_for_is_read_though_there_is_a_newer(
    key: str, server: S3Server, context: Context, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    server.put("versioned", {})
    server.client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    old = server.client.put_object(Bucket="versioned", Key=key, Body=BIG)["VersionId"]
    lock, changed = threading.Lock(), threading.Event()

    def change(_: int) -> None:
        with lock:
            if not changed.is_set():
                server.put("versioned", {key: b"newer"})
                changed.set()

    file = scratch(tmp_path, on_bytes=change)
    fetched = fetcher.fetch(FileSpec(0, 0, f"s3://versioned/{key}", pin=old), file, None, context)
    assert fetched is not None and fetched.version == old and changed.is_set()
    assert file.digest() == sha256(BIG)
    latest = fetcher.fetch(FileSpec(0, 0, f"s3://versioned/{key}"), scratch(tmp_path), None, context)
    assert latest is not None and latest.version != old
    for other in (old[::-1], "nonsense"):
        with pytest.raises((errors.NotFound, errors.BadResponse)):
            fetcher.fetch(FileSpec(0, 0, f"s3://versioned/{key}", pin=other), scratch(tmp_path), None, context)


# -- resume --------------------------------------------------------------------------------------------------------


def _stop_after(count: int) -> Callable[[int], None]:
    seen = [0]

    def on_bytes(n: int) -> None:
        seen[0] += n
        if seen[0] >= count:
            raise Interrupted("slice")

    return on_bytes


@pytest.mark.parametrize("key", ["big", "dir//big"])
@pytest.mark.parametrize("stop_at", [1, RANGE_BYTES + 1, len(BIG)])
def test_it_goes_on_where_it_stopped(
    key: str, stop_at: int, server: S3Server, context: Context, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    server.put("large", {key: BIG})
    spec = FileSpec(0, 0, f"s3://large/{key}")
    file = scratch(tmp_path, keep=True, on_bytes=_stop_after(stop_at))
    with pytest.raises(Interrupted):
        fetcher.fetch(spec, file, None, context)
    file.close(discard=False)
    brought: list[int] = []
    again = scratch(tmp_path, keep=True, on_bytes=brought.append)
    had = len(BIG) - sum(end - start for start, end in again.gaps(len(BIG)))
    assert had >= stop_at
    assert fetcher.fetch(spec, again, None, context) is not None
    assert again.digest() == sha256(BIG)
    assert sum(brought) == len(BIG) - had


def test_a_partial_file_of_another_version_is_begun_anew(
    server: S3Server, context: Context, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    server.put("large", {"begun": BIG})
    file = scratch(tmp_path, keep=True, on_bytes=_stop_after(RANGE_BYTES + 1))
    with pytest.raises(Interrupted):
        fetcher.fetch(FileSpec(0, 0, "s3://large/begun"), file, None, context)
    file.close(discard=False)
    server.put("large", {"begun": b"short now"})
    again = scratch(tmp_path, keep=True)
    fetcher.fetch(FileSpec(0, 0, "s3://large/begun"), again, None, context)
    assert again.digest() == sha256(b"short now")
    assert again.journal is not None and again.journal.length == 9


# -- listing -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def listed(server: S3Server) -> dict[str, bytes]:
    objects = {f"train/part-{n:04}.parquet": b"x" * (n % 7) for n in range(120)}
    objects |= {
        "train/": b"",
        "train/sub/": b"",
        "train/sub/deep/a.parquet": b"1",
        "train/z//odd": b"2",
        "trainer/no": b"3",
    }
    server.put("listed", objects)
    return objects


def test_a_prefix_is_listed_in_key_order_over_many_pages(
    listed: dict[str, bytes], context: Context, fetcher: S3Fetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.fetchers.s3.listing.PAGE_KEYS", 50)
    found = list(fetcher.expand(Source("s3://listed/train/", connection="lake"), context))
    want = sorted(key for key in listed if key.startswith("train/") and key not in {"train/", "train/sub/"})
    assert [spec.uri for spec in found] == [f"s3://listed/{key}" for key in want]
    assert [spec.part for spec in found] == list(range(len(want)))
    assert [spec.name for spec in found] == [key.removeprefix("train/") for key in want]
    assert [spec.size for spec in found] == [len(listed[key]) for key in want]
    assert all(spec.connection == "lake" and spec.version for spec in found)


@pytest.mark.parametrize(
    ("glob", "names"),
    [
        ("train/part-000[0-2].parquet", ["part-0000.parquet", "part-0001.parquet", "part-0002.parquet"]),
        ("train/part-012?.parquet", None),
        ("train/**/a.*", ["sub/deep/a.parquet"]),
        ("*/no", ["trainer/no"]),
        ("train/sub/*", None),
        ("train/s*/", ["sub/deep/a.parquet"]),
    ],
)
def test_globs(
    glob: str, names: list[str] | None, listed: dict[str, bytes], context: Context, fetcher: S3Fetcher
) -> None:
    if names is None:
        with pytest.raises(errors.NothingMatched):
            list(fetcher.expand(Source(f"s3://listed/{glob}"), context))
    else:
        assert [spec.name for spec in fetcher.expand(Source(f"s3://listed/{glob}"), context)] == names


def test_what_is_listed_can_be_fetched(
    listed: dict[str, bytes], context: Context, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    for spec in fetcher.expand(Source("s3://listed/train/z/"), context):
        file = scratch(tmp_path)
        fetcher.fetch(spec, file, None, context)
        assert file.digest() == sha256(b"2")


@pytest.mark.parametrize(
    ("uri", "error"),
    [
        ("s3://listed/nothing/", errors.NothingMatched),
        ("s3://no-such-bucket/x/", errors.NotFound),
        ("s3://listed/a**b/x", errors.BadResponse),
        ("s3://*/x", errors.BadResponse),
    ],
)
def test_a_listing_that_fails_raises(
    uri: str, error: type[Exception], listed: dict[str, bytes], context: Context, fetcher: S3Fetcher
) -> None:
    with pytest.raises(error):
        list(fetcher.expand(Source(uri), context))


def test_no_secret_in_any_repr(server: S3Server, context: Context) -> None:
    from workers.fetchers.s3.client import Profile

    assert server.secret not in repr(Profile.of(context)) + repr(context)
