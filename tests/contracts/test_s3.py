"""S3Fetcher against moto's server, and against a scripted one for what moto never does: 5xx, stalls, no ranges."""

from __future__ import annotations

import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from ingest import errors
from ingest.model import FileSpec
from ingest.settings import Connection, Limits, Settings
from ingest.sources import Source
from ingest.store.scratch import Scratch
from tests.contracts.contract import FetcherContract
from tests.servers.s3 import S3Server, s3_server
from workers.fetchers.base import Context, Interrupted, Known
from workers.fetchers.s3.fetcher import RANGE_BYTES, RANGES_PER_PROCESS, S3Fetcher
from workers.fetchers.s3.read import plain

BIG = os.urandom(1 << 20) * 29 + b"tail"  # four ranges, the last one short


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def context(server: S3Server) -> Context:
    return profile(**server.profile())


@pytest.fixture
def fetcher() -> S3Fetcher:
    return S3Fetcher()


def profile(*, limits: Limits | None = None, **values: object) -> Context:
    return Context(Settings(limits=limits or Limits()), Connection("lake", values))


_open: list[Scratch] = []


def scratch(path: Path, *, keep: bool = False, on_bytes: Callable[[int], None] = lambda n: None) -> Scratch:
    _open.append(Scratch(path, "file", "s3://x/y", on_bytes=on_bytes, keep=keep))
    return _open[-1]


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    while _open:
        _open.pop().close(discard=True)


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


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
    changed = threading.Event()

    def change(_: int) -> None:
        if not changed.is_set():
            changed.set()
            server.put("versions", {"moving": bytes(len(BIG) * 3)})

    with pytest.raises(errors.SourceChanged):
        fetcher.fetch(FileSpec(0, 0, "s3://versions/moving"), scratch(tmp_path, on_bytes=change), None, context)


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
    had = again.size
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
    monkeypatch.setattr("workers.fetchers.s3.fetcher.PAGE_KEYS", 50)
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


# -- errors --------------------------------------------------------------------------------------------------------


class Scripted:
    """A server that answers every GET and HEAD as ``answer`` says, and remembers the requests."""

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: None
        self.requests: list[dict[str, str]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                script.requests.append({name.lower(): value for name, value in self.headers.items()})
                script.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def says(
        self, status: int, code: str = "", body: bytes | None = None, length: int | None = None, **headers: str
    ) -> None:
        xml = (
            f"<Error><Code>{code}</Code><Message>no</Message><Region>eu-west-9</Region></Error>".encode()
            if code
            else b""
        )
        payload = xml if body is None else body

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("Content-Length", str(len(payload) if length is None else length))
            handler.end_headers()
            handler.wfile.write(payload)
            handler.close_connection = length is not None

        self.answer = answer


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    script = Scripted()
    thread = threading.Thread(target=script.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield script
    script.server.shutdown()
    script.server.server_close()
    thread.join(5)


ANSWERS = [
    (403, "AccessDenied", errors.AccessDenied, "[connections.lake]"),
    (403, "InvalidAccessKeyId", errors.AccessDenied, "InvalidAccessKeyId"),
    (403, "SignatureDoesNotMatch", errors.AccessDenied, "SignatureDoesNotMatch"),
    (403, "RequestTimeTooSkewed", errors.AccessDenied, "clock"),
    (400, "ExpiredToken", errors.AccessDenied, "expired"),
    (401, "", errors.AccessDenied, "401"),
    (404, "NoSuchKey", errors.NotFound, "key"),
    (404, "NoSuchBucket", errors.NotFound, "bucket"),
    (503, "SlowDown", errors.Throttled, "SlowDown"),
    (429, "TooManyRequests", errors.Throttled, "429"),
    (500, "InternalError", errors.OriginUnavailable, "500"),
    (503, "ServiceUnavailable", errors.OriginUnavailable, "503"),
    (502, "", errors.OriginUnavailable, "502"),
    (400, "AuthorizationHeaderMalformed", errors.BadResponse, "eu-west-9"),
    (400, "InvalidArgument", errors.BadResponse, "InvalidArgument"),
]


@pytest.mark.parametrize("key", ["k", "/k"])
@pytest.mark.parametrize(("status", "code", "error", "says"), ANSWERS)
def test_answers_become_our_errors(
    key: str,
    status: int,
    code: str,
    error: type[Exception],
    says: str,
    scripted: Scripted,
    fetcher: S3Fetcher,
    tmp_path: Path,
) -> None:
    scripted.says(status, code)
    context = profile(endpoint=scripted.endpoint, key="AKIAKEY", secret="hush-hush")
    with pytest.raises(error) as caught:
        fetcher.fetch(FileSpec(0, 0, f"s3://bucket/{key}"), scratch(tmp_path), None, context)
    assert type(caught.value) is error
    assert says in str(caught.value) and len(str(caught.value)) < 200
    assert "hush-hush" not in str(caught.value) and "AKIAKEY" not in str(caught.value)
    follows_region = (
        key == "/k" and code == "AuthorizationHeaderMalformed"
    )  # botocore asks once more, in the region named
    assert len(scripted.requests) == 1 + follows_region, "the client library retried by itself"


def test_a_denied_listing_raises(scripted: Scripted, fetcher: S3Fetcher) -> None:
    scripted.says(403, "AccessDenied")
    with pytest.raises(errors.AccessDenied):
        list(fetcher.expand(Source("s3://bucket/x/"), profile(endpoint=scripted.endpoint, anonymous=True)))


@pytest.mark.parametrize("key", ["k", "/k"])
def test_a_body_that_ends_early_is_truncated(key: str, scripted: Scripted, fetcher: S3Fetcher, tmp_path: Path) -> None:
    scripted.says(206, body=b"five!", length=50, ETag='"e"', Content_Range="bytes 0-49/50")
    with pytest.raises(errors.TransientFetchError) as caught:
        fetcher.fetch(
            FileSpec(0, 0, f"s3://bucket/{key}"),
            scratch(tmp_path),
            None,
            profile(endpoint=scripted.endpoint, anonymous=True),
        )
    assert type(caught.value) in {errors.Truncated, errors.ConnectionLost}


@pytest.mark.parametrize("key", ["k", "/k"])
@pytest.mark.parametrize("after_headers", [False, True])
def test_a_stalled_origin_times_out(
    key: str, after_headers: bool, scripted: Scripted, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    done = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        if after_headers:
            head = (
                'HTTP/1.1 206 Partial\r\nETag: "e"\r\nContent-Length: 50\r\nContent-Range: bytes 0-49/50\r\n\r\nfive!'
            )
            handler.wfile.write(head.encode())
        done.wait(10)
        handler.close_connection = True

    scripted.answer = answer
    context = profile(limits=Limits(connect_s=0.2, stall_s=0.4), endpoint=scripted.endpoint, anonymous=True)
    begun = time.monotonic()
    try:
        with pytest.raises(errors.FetchTimeout, match=r"0\.4 s"):
            fetcher.fetch(FileSpec(0, 0, f"s3://bucket/{key}"), scratch(tmp_path), None, context)
        assert time.monotonic() - begun < 5
    finally:
        done.set()


@pytest.mark.parametrize("key", ["k", "/k"])
@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:1", "http://no-such-host.invalid"])
def test_nobody_there(key: str, endpoint: str, fetcher: S3Fetcher, tmp_path: Path) -> None:
    with pytest.raises(errors.ConnectionLost):
        fetcher.fetch(
            FileSpec(0, 0, f"s3://bucket/{key}"), scratch(tmp_path), None, profile(endpoint=endpoint, anonymous=True)
        )


@pytest.mark.parametrize("key", ["k", "/k"])
def test_a_server_without_ranges_or_etags_is_read_in_one_go(
    key: str, scripted: Scripted, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    scripted.says(200, body=b"all of it")
    file = scratch(tmp_path)
    fetched = fetcher.fetch(
        FileSpec(0, 0, f"s3://bucket/{key}"), file, None, profile(endpoint=scripted.endpoint, anonymous=True)
    )
    assert fetched is not None and fetched.version is None
    assert file.digest() == sha256(b"all of it")


# -- profiles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["k", "/k"])
def test_the_profile_decides_who_signs(
    key: str, scripted: Scripted, fetcher: S3Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FROMENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "env-token")
    scripted.says(404, "NoSuchKey")

    def seen(**values: object) -> dict[str, str]:
        with pytest.raises(errors.NotFound):
            fetcher.fetch(
                FileSpec(0, 0, f"s3://bucket/{key}"),
                scratch(tmp_path),
                None,
                profile(endpoint=scripted.endpoint, **values),
            )
        return scripted.requests[-1]

    assert "authorization" not in seen(anonymous=True)
    own = seen(key="OWN", secret="s")
    assert "OWN/" in own["authorization"] and "x-amz-security-token" not in own
    assert seen(key="OWN", secret="s", token="t")["x-amz-security-token"] == "t"
    chain = seen(region="eu-north-1")
    assert "FROMENV/" in chain["authorization"] and "/eu-north-1/" in chain["authorization"]
    assert chain["x-amz-security-token"] == "env-token"
    assert seen(key="OWN", secret="s", requester_pays=True)["x-amz-request-payer"] == "requester"


def test_no_credentials_anywhere_is_said(fetcher: S3Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    context = profile(
        endpoint="http://127.0.0.1:1", region="test-1"
    )  # a region of its own: nothing made before fits it
    with pytest.raises(errors.AccessDenied, match=r"anonymous = true in \[connections.lake\]"):
        fetcher.fetch(FileSpec(0, 0, "s3://bucket/k"), scratch(tmp_path), None, context)


def test_a_shared_profile_by_name(
    scripted: Scripted, fetcher: S3Fetcher, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "credentials").write_text("[lab]\naws_access_key_id = LABKEY\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    scripted.says(404, "NoSuchKey")
    for key in ("k", "/k"):
        with pytest.raises(errors.NotFound):
            fetcher.fetch(
                FileSpec(0, 0, f"s3://bucket/{key}"),
                scratch(tmp_path),
                None,
                profile(endpoint=scripted.endpoint, profile="lab"),
            )
        assert "LABKEY/" in scripted.requests[-1]["authorization"]
    with pytest.raises(errors.AccessDenied):
        fetcher.fetch(
            FileSpec(0, 0, "s3://bucket/k"),
            scratch(tmp_path),
            None,
            profile(endpoint=scripted.endpoint, profile="nobody"),
        )


def test_no_secret_in_any_repr(server: S3Server, context: Context) -> None:
    from workers.fetchers.s3.client import Profile

    assert server.secret not in repr(Profile.of(context)) + repr(context)
