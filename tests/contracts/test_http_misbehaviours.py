"""Every misbehaviour of an HTTP origin that we know of: each ends in the exact bytes or in the right typed error,
within its deadline, and leaves nothing in the store. ``docs/sources.md`` has the same list, and a test keeps it so.

What goes wrong only while several ranges are in flight is in ``test_http_ranges``.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ingest import errors
from tests.contracts import test_http_hosts
from tests.contracts.rig import DATA, QUICK, ROWS, Rig
from tests.servers import http as server
from tests.servers.http import Behaviour, Origin, answered

OTHER = DATA[::-1]
#: Where a first attempt is broken off, and what it says of itself.
AT = 200_000
TAG: dict[str, Any] = {"etag": '"v1"', "accept_ranges": "bytes"}
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
#: Everything must end in a fraction of this, also on a machine that is busy with other things.
DEADLINE_S = 30.0


@dataclass(frozen=True)
class Case:
    """``what`` the origin does, as docs/sources.md says it; then the error and its reason, or the bytes."""

    what: str
    behaviour: Callable[[], Behaviour]
    error: type[errors.FetchError] | None = None
    says: str = ""
    data: bytes = DATA
    attempts: int = 1
    path: str = "/data.bin"
    settings: dict[str, Any] = field(default_factory=dict)
    spec: dict[str, Any] = field(default_factory=dict)
    partial: bool = False  # whether something stays that the next attempt goes on with


def cut(*then: Behaviour, **headers: str) -> Behaviour:
    """Broken off at AT, then what follows."""
    return server.sequence(server.truncated(DATA, AT, **(headers or TAG)), *then)


def part(content_range: str | None, body: bytes = DATA[AT:], **headers: str) -> Behaviour:
    fields = {"etag": '"v1"', **headers} | ({"content_range": content_range} if content_range else {})
    return server.status(206, body, **fields)


WHOLE = server.file(DATA, etag='"v1"')
REST = f"bytes {AT}-{len(DATA) - 1}/{len(DATA)}"
CHUNKED = "HTTP/1.1 200 OK\nTransfer-Encoding: chunked"
LENGTH = f"Content-Length: {len(DATA)}"
IN_BASE64 = base64.b64encode(hashlib.sha256(DATA).digest()).decode()
ZIPPED = gzip.compress(DATA + bytes(100_000), mtime=0)


def seconds(text: str) -> Callable[[], Behaviour]:
    return lambda: server.status(429, retry_after=text)


RESUMED = [
    Case("200 to a resume", lambda: cut(server.file(DATA, etag='"v1"', ranges=False)), attempts=2),
    Case("a resume answered with a range that is not the one asked for",
         lambda: cut(part(f"bytes {AT + 1}-{len(DATA) - 1}/{len(DATA)}", DATA[AT + 1 :]), WHOLE), attempts=2),
    Case("a resume answered with a range that overlaps what is there",
         lambda: cut(part(f"bytes {AT - 9}-{len(DATA) - 1}/{len(DATA)}", DATA[AT - 9 :]), WHOLE), attempts=2),
    Case("206 to a resume without `Content-Range`", lambda: cut(part(None), WHOLE), attempts=2),
    Case("206 to a resume with a `Content-Range` of another length",
         lambda: cut(part(f"bytes {AT}-{len(DATA) - 1}/{len(DATA) + 1}"), WHOLE), attempts=2),
    Case("`multipart/byteranges` to a resume",
         lambda: cut(part(None, b"--x\r\n\r\n" + DATA[AT:], content_type="multipart/byteranges; boundary=x"), WHOLE),
         attempts=2),
    Case("an encoded range to a resume", lambda: cut(part(REST, OTHER[AT:], content_encoding="gzip"), WHOLE),
         attempts=2),
    Case("another ETag at a resume", lambda: cut(server.file(OTHER, etag='"v2"')), data=OTHER, attempts=2),
    Case("206 to a resume with another ETag",
         lambda: cut(part(REST, OTHER[AT:], etag='"v2"'), server.file(OTHER, etag='"v2"')), data=OTHER, attempts=2),
    Case("a weak ETag, broken off",
         lambda: cut(WHOLE, etag='W/"v1"', accept_ranges="bytes"), attempts=2),
    Case("no ETag, broken off", lambda: cut(server.file(DATA, etag=None), accept_ranges="bytes"), attempts=2),
    Case("`If-Range` refused",
         lambda: cut(server.unless("If-Range", WHOLE, server.status(412))), attempts=2),
    Case("no `Accept-Ranges`, broken off", lambda: cut(WHOLE, etag='"v1"'), attempts=2),
    Case("`Accept-Ranges` that lies",
         lambda: cut(part(f"bytes 0-{len(DATA) - 1}/{len(DATA)}", DATA), server.file(DATA, ranges=False)), attempts=2),
    Case("416 on a complete file",
         lambda: server.sequence(server.chunked(DATA, finish=False, **TAG), WHOLE), attempts=2),
    Case("416 on an incomplete file",
         lambda: cut(server.status(416, content_range="bytes */7"), WHOLE), attempts=2),
    Case("403 at a resume: a signed URL that has expired", lambda: cut(server.status(403)), errors.AccessDenied,
         "403 Forbidden", attempts=2, partial=True),
]  # fmt: skip

BODIES = [
    Case("a reset in the body", lambda: server.reset(DATA, AT), errors.ConnectionLost, "reset"),
    Case("a reset in the body, then a server that can continue",
         lambda: server.sequence(
             answered(f"HTTP/1.1 200 OK\n{LENGTH}\nETag: \"v1\"\nAccept-Ranges: bytes", DATA[:AT], reset=True), WHOLE),
         attempts=2),
    Case("a body shorter than its `Content-Length`", lambda: server.truncated(DATA, AT), errors.Truncated,
         f"ended before|of {len(DATA)} bytes"),
    Case("a body longer than its `Content-Length`",
         lambda: answered("HTTP/1.1 200 OK\nContent-Length: 1000", DATA[:1500]), errors.Truncated,
         "more bytes came than were announced"),
    Case("no `Content-Length`", lambda: answered("HTTP/1.0 200 OK", DATA)),
    Case("chunks", lambda: server.chunked(DATA[:7], DATA[7:])),
    Case("a chunk whose size is no number",
         lambda: answered(CHUNKED, b"5\r\nhello\r\nzz\r\nworld\r\n0\r\n\r\n"),
         errors.Truncated, "chunk"),
    Case("a chunk of a negative size",
         lambda: answered(CHUNKED, b"5\r\nhello\r\n-5\r\nworld\r\n0\r\n\r\n"),
         errors.Truncated, "chunk"),
    Case("a chunk longer than its size",
         lambda: answered(CHUNKED, b"5\r\nhello!!5\r\nworld\r\n0\r\n\r\n"),
         errors.Truncated, "chunk"),
    Case("chunks cut off", lambda: server.chunked(DATA[:AT], finish=False), errors.Truncated, "ended before"),
    Case("chunks cut off in a size", lambda: answered(CHUNKED, b"5\r\nhello\r\n1"),
         errors.Truncated, "ended before"),
    Case("gzip on the fly with the length of what was packed",
         lambda: answered(f"HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: {len(DATA) + 100_000}", ZIPPED),
         errors.Truncated, "ended before|bytes"),
    Case("gzip on the fly with a length that is too short",
         lambda: answered("HTTP/1.1 200 OK\nContent-Encoding: gzip\nContent-Length: 999", ZIPPED[:2000]),
         errors.Truncated, "more bytes came"),
    Case("gzip on the fly", lambda: server.status(200, ZIPPED, content_encoding="gzip"), data=ZIPPED),
    Case("a `.gz` that is labelled gzip", lambda: server.status(200, ZIPPED, content_encoding="x-gzip"), data=ZIPPED,
         path="/data.gz"),
    Case("a `Transfer-Encoding` that nobody asked for",
         lambda: answered("HTTP/1.1 200 OK\nTransfer-Encoding: gzip, chunked", b"5\r\nhello\r\n0\r\n\r\n"),
         errors.BadResponse, "Transfer-Encoding"),
    Case("an endless body", server.endless, errors.TooLarge, "allowed"),
    Case("an endless end of a chunked body",
         lambda: server.endless_headers(b"X: y\r\n", CHUNKED.replace("\n", "\r\n").encode() + b"\r\n\r\n0\r\n"),
         errors.BadResponse, "headers of more than 256 KiB"),
    Case("a drip of one byte a second", lambda: server.drip(DATA, every_s=1.0), errors.FetchTimeout,
         "next to no data for 1 s", settings={"limits": QUICK}),
    Case("silence after the headers", lambda: server.silent_after_headers(DATA), errors.FetchTimeout,
         "next to no data for 1 s", settings={"limits": QUICK}),
    Case("corrupt bytes of the right length, a digest given", lambda: server.file(OTHER), errors.DigestMismatch,
         "nothing was published", spec={"digest": DIGEST}),
    Case("corrupt bytes of the right length, a digest stated",
         lambda: server.file(OTHER, repr_digest=f"sha-256=:{IN_BASE64}:"),
         errors.DigestMismatch, "stated by the origin"),
    Case("another size than `size=`", lambda: server.file(DATA), errors.BadResponse, "were expected",
         spec={"size": 5}),
]  # fmt: skip

ANSWERS = [
    Case("silence before the headers", server.silent, errors.FetchTimeout, "next to no data for 1 s",
         settings={"limits": QUICK}),
    Case("the connection ends without an answer", lambda: server.raw(b""), errors.ConnectionLost, "connection"),
    Case("something that is not HTTP", lambda: server.raw(b"SSH-2.0-OpenSSH_9.2\r\n"), errors.BadResponse, "not HTTP"),
    Case("endless headers", lambda: server.endless_headers(b"X-Long: " + b"y" * 60_000 + b"\r\n"), errors.BadResponse,
         "headers of more than 256 KiB"),
    Case("more than 100 headers", lambda: server.endless_headers(b"X: y\r\n"), errors.BadResponse, "100 headers"),
    Case("a header line without end", lambda: server.endless_headers(b"y" * 1000), errors.BadResponse, "64 KiB"),
    Case("a line among the headers that is none",
         lambda: answered(f"HTTP/1.1 200 OK\nthis is none\n{LENGTH}", DATA[:AT]), errors.BadResponse, "headers"),
    Case("100, 102 and 103 before the answer",
         lambda: answered("HTTP/1.1 100 Continue\n\nHTTP/1.1 102 Processing\n\nHTTP/1.1 103 Early Hints\nLink: </a>"
                          f"\n\nHTTP/1.1 200 OK\n{LENGTH}", DATA)),
    Case("interim answers without end", lambda: server.endless_headers(b"HTTP/1.1 103 Early Hints\r\n\r\n", b""),
         errors.BadResponse, "interim answers|256 KiB"),
    Case("100 without end", lambda: server.endless_headers(b"HTTP/1.1 100 Continue\r\n\r\n", b""),
         errors.BadResponse, "256 KiB"),
    Case("two `Content-Length` that differ",
         lambda: answered(f"HTTP/1.1 200 OK\n{LENGTH}\nContent-Length: 7", DATA), errors.BadResponse, "contradict"),
    Case("two `Content-Length` that agree", lambda: answered(f"HTTP/1.1 200 OK\n{LENGTH}\n{LENGTH}", DATA)),
    Case("a `Content-Length` that is no number", lambda: answered("HTTP/1.1 200 OK\nContent-Length: 0x10", DATA),
         errors.BadResponse, "makes no sense"),
    Case("304 that was not asked for", lambda: server.status(304, etag='"v1"'), errors.BadResponse, "304"),
    Case("206 that was not asked for", lambda: part(f"bytes 0-9/{len(DATA)}", DATA[:10]), errors.BadResponse, "206"),
    Case("HEAD forbidden", lambda: server.only("GET", WHOLE)),
    Case("an HTML page where a digest was given", lambda: server.status(200, b"<html>login", content_type="text/html"),
         errors.DigestMismatch, "nothing was published", spec={"digest": DIGEST}),
    Case("an HTML page where data was meant",
         lambda: server.status(200, b"<html>login", content_type="text/html; charset=utf-8"), errors.BadResponse,
         r"an HTML page \(a login page\?\) where a .tar was expected", path="/train/a.TAR"),
    Case("an HTML page", lambda: server.status(200, DATA, content_type="text/html"), path="/index.html"),
    Case("401, 403 or 407", lambda: server.status(403), errors.AccessDenied, r"\[connections.NAME\]"),
    Case("404 or 410", lambda: server.status(410), errors.NotFound, "410 Gone"),
    Case("451", lambda: server.status(451), errors.BadResponse, "legal reasons"),
    Case("any other status", lambda: server.status(418), errors.BadResponse, "418"),
    Case("202, 408, 425, 500, 502, 504 …", lambda: server.status(502), errors.OriginUnavailable, "502 Bad Gateway"),
    Case("one of these with `Retry-After`", lambda: server.status(502, retry_after="7"), errors.Throttled, "502"),
    Case("429 with `Retry-After` in seconds", seconds("7"), errors.Throttled, "429"),
    Case("429 with `Retry-After` as a date", seconds("Fri, 31 Dec 2199 23:59:59 GMT"), errors.Throttled, "429"),
    Case("429 with `Retry-After` in the past", seconds("Thu, 01 Jan 1970 00:00:00 GMT"), errors.Throttled, "429"),
    Case("429 with a `Retry-After` that makes no sense", seconds("soon"), errors.Throttled, "429"),
    Case("429 with `RateLimit` headers", lambda: server.status(429, ratelimit='"day";r=0;t=7'), errors.Throttled,
         "429"),
    Case("403 with `X-RateLimit-Remaining: 0`", lambda: server.status(403, x_ratelimit_remaining="0"), errors.Throttled,
         "403"),
    Case("503 without anything", lambda: server.status(503), errors.Throttled, "503 Service Unavailable"),
    Case("a redirect in a circle", lambda: server.redirect("/data.bin"), errors.BadResponse, "circle"),
    Case("a redirect to `file://`", lambda: server.redirect("file:///etc/passwd"), errors.BadResponse, "'file'"),
    Case("a redirect to a link-local address", lambda: server.redirect("http://169.254.169.254/latest"),
         errors.EgressDenied, "metadata"),
    Case("a redirect without `Location`", lambda: server.status(302), errors.BadResponse, "without a Location"),
]  # fmt: skip

CASES = [*RESUMED, *BODIES, *ANSWERS]


@pytest.mark.parametrize("case", CASES, ids=[case.what for case in CASES])
def test_misbehaviour(case: Case, origin: Origin, tmp_path: Path) -> None:
    rig = Rig(tmp_path, **case.settings)
    url = origin.on(case.path, case.behaviour())
    began = time.monotonic()
    if case.error is None:
        rig.gets(case.data, url, case.attempts, **case.spec)
    else:
        rig.fails(case.error, url, case.says, case.attempts, **case.spec)
        assert case.partial or rig.left("scratch") == []
    assert time.monotonic() - began < DEADLINE_S
    assert {asked.method for asked in origin.log} == {"GET"}


@pytest.mark.parametrize(
    ("text", "after"),
    [("7", 7), ("Thu, 01 Jan 1970 00:00:00 GMT", None), ("soon", None), ("-5", None), ("", None), ("7.5", None)],
)
@pytest.mark.parametrize("code", [429, 503])
def test_how_long_the_origin_wants_to_be_left_alone(
    text: str, after: float | None, code: int, origin: Origin, tmp_path: Path
) -> None:
    url = origin.on("/x", server.status(code, retry_after=text))
    assert Rig(tmp_path).fails(errors.Throttled, url).retry_after_s == after
    soon = origin.on("/y", server.status(code, retry_after=server.http_date(time.time() + 1000)))
    assert 900 < Rig(tmp_path).fails(errors.Throttled, soon).retry_after_s <= 1000


# -- the table in the documents ----------------------------------------------------------------------------------------


def test_the_documents_have_every_misbehaviour_and_no_other() -> None:
    text = (Path(__file__).parents[2] / "docs" / "sources.md").read_text()
    table = text.split("### What a misbehaving server comes to\n")[1].split("\n## ")[0].split("\n### ")[0]
    documented = {}
    for what, error in re.findall(r"^\| (.+?) \| (.+?) \| .*\|$", table, re.MULTILINE):
        if what != "what the server does" and not what.startswith("---"):
            documented[what] = error
    assert test_http_hosts, "imported, so that its rows are there"
    tested = {case.what: case.error for case in CASES} | ROWS
    assert set(documented) == set(tested)
    for what, error in tested.items():
        said = f"`{error.__name__}`" if error else "none"
        assert documented[what].startswith(said), f"{what}: the test says {said}, the document {documented[what]}"
