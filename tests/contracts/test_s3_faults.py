"""S3Fetcher against a server that answers as it is told: errors, stalls, no ranges; slow and huge
objects."""

from __future__ import annotations

import threading
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from ingest import errors
from ingest.model import FileSpec
from ingest.sections import Limits
from ingest.sources import Source
from tests.contracts.s3cases import Scripted, profile, scratch, sha256, spec_of
from tests.servers.simulated import Object, SimulatedS3
from workers.fetchers.base import Interrupted
from workers.fetchers.s3 import S3Fetcher
from workers.fetchers.s3.answers import NoRange
from workers.fetchers.s3.client import Profile, client_for
from workers.fetchers.s3.read import reader_for

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
    (503, "ServiceUnavailable", errors.Throttled, "503"),
    (503, "", errors.Throttled, "503"),
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
    follows_region = code == "AuthorizationHeaderMalformed"  # once more, in the region that was named
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
    client_for(Profile.of(context))  # botocore takes seconds to be imported on a busy machine
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


# -- slow ones ---------------------------------------------------------------------------------------------------------

STOP = pytest.mark.parametrize("key", ["big", "dir//big"])  # one that obstore can say, and one for botocore


def trickles(s3: SimulatedS3, key: str, size: int, first: int, every_s: float) -> threading.Event:
    """An object of which ``first`` bytes of each range come at once, and then a byte now and then; until it is set."""
    s3.objects[key] = Object(b"", size=size, etag='"slow"')
    over = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> bool:
        low, _, high = handler.headers["Range"].removeprefix("bytes=").partition("-")
        end = min(int(high) + 1, size)
        head = f'HTTP/1.1 206 Partial\r\nETag: "slow"\r\nContent-Length: {end - int(low)}\r\n'
        head += "Last-Modified: Thu, 01 Jan 2026 00:00:00 GMT\r\n"
        handler.wfile.write(f"{head}Content-Range: bytes {low}-{end - 1}/{size}\r\n\r\n".encode() + bytes(first))
        while not over.wait(every_s):
            handler.wfile.write(b"\0")
        handler.close_connection = True
        return True

    s3.gate = lambda handler: handler.command == "GET" and answer(handler)
    return over


@STOP
@pytest.mark.parametrize("size", [50_000, 20 << 20])
def test_a_drip_is_a_stall(key: str, size: int, s3: SimulatedS3, fetcher: S3Fetcher, tmp_path: Path) -> None:
    over = trickles(s3, key, size, 100, 0.05)
    context = profile(limits=Limits(connect_s=0.5, stall_s=1.0), endpoint=s3.endpoint, anonymous=True)
    try:
        with pytest.raises(errors.FetchTimeout, match=r"(hardly any|no) data for 1 s"):
            fetcher.fetch(spec_of(key), scratch(tmp_path), None, context)
    finally:
        over.set()


@STOP
def test_a_cancelled_object_stops_inside_its_ranges(
    key: str, s3: SimulatedS3, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    """Nothing moves any more, and nobody waits for the end of a range."""
    over = trickles(s3, key, 40 << 20, 1 << 20, 0.05)
    moved = [0]

    def advance(count: int) -> None:
        moved[0] += count
        if moved[0] >= 3 << 20 and count == 0:
            raise Interrupted("cancelled")

    context = profile(endpoint=s3.endpoint, anonymous=True)
    begun = time.monotonic()
    try:
        with pytest.raises(Interrupted):
            fetcher.fetch(spec_of(key), scratch(tmp_path, on_bytes=advance), None, context)
        assert time.monotonic() - begun < 30, "half of stall_s"
    finally:
        over.set()


# -- large ones --------------------------------------------------------------------------------------------------------

TB = 1 << 40


@STOP
def test_five_terabytes_in_the_arithmetic(key: str, s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects[key] = Object(b"", size=5 * TB, etag='"huge"')
    context = profile(endpoint=s3.endpoint, anonymous=True)
    reader = reader_for(spec_of(key), context)
    part = reader.open((5 * TB - 10, 5 * TB), '"huge"')
    assert (part.total, part.start, part.length) == (5 * TB, 5 * TB - 10, 10)
    assert b"".join(part.chunks) == bytes(10)
    part.close()
    with pytest.raises(NoRange):
        reader.open((5 * TB, 5 * TB + 1), '"huge"')


@STOP
def test_what_is_too_large_is_refused_before_it_moves(
    key: str, s3: SimulatedS3, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    s3.objects[key] = Object(b"", size=5 * TB, etag='"huge"')
    file = scratch(tmp_path, max_bytes=5 * TB - 1)
    with pytest.raises(errors.TooLarge, match=str(5 * TB)):
        fetcher.fetch(spec_of(key), file, None, profile(endpoint=s3.endpoint, anonymous=True))
    assert file.size == 0 and len(s3.requests) == 1


@STOP
def test_another_size_than_was_asked_for(key: str, s3: SimulatedS3, fetcher: S3Fetcher, tmp_path: Path) -> None:
    s3.objects[key] = Object(b"five!")
    context = profile(endpoint=s3.endpoint, anonymous=True)
    with pytest.raises(errors.BadResponse, match="5 bytes, 6 were expected"):
        fetcher.fetch(spec_of(key, size=6), scratch(tmp_path), None, context)
    etag = s3.objects[key].etag
    with pytest.raises(errors.SourceChanged, match="when it was listed"):
        fetcher.fetch(spec_of(key, size=6, version=etag), scratch(tmp_path), None, context)


@STOP
@pytest.mark.parametrize("lie", ["bytes 0-7/8", "bytes 5-9/20", "bytes 0-9/5", "nonsense", "bytes */10", "bytes 0-9/*"])
def test_a_range_that_is_another_is_never_taken(
    lie: str, key: str, scripted: Scripted, fetcher: S3Fetcher, tmp_path: Path
) -> None:
    scripted.says(206, body=bytes(10), ETag='"e"', Content_Range=lie, Last_Modified="Thu, 01 Jan 2026 00:00:00 GMT")
    file = scratch(tmp_path)
    with pytest.raises(errors.FetchError):
        fetcher.fetch(spec_of(key), file, None, profile(endpoint=scripted.endpoint, anonymous=True))
    assert file.size == 0
