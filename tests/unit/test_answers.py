from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from ingest.errors import BadResponse, OriginUnavailable, Throttled
from workers.fetchers.http.answers import (
    conditional,
    content_coding,
    content_length,
    content_range,
    disposition_name,
    rate_limit_reset_s,
    retry_after_s,
    status_error,
    strong_etag,
    validator,
)

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0), ("120", 120), ("Thu, 01 Jan 2026 12:00:30 GMT", 30), ("Thu, 01 Jan 2026 11:00:00 GMT", None),
        ("-1", None), ("1.5", None), ("soon", None), ("", None), ("٣", None),
    ],
)  # fmt: skip
def test_retry_after(text: str, seconds: float | None) -> None:
    assert retry_after_s({"Retry-After": text}, NOW) == seconds


@pytest.mark.parametrize(
    ("text", "coding"), [(None, ""), ("", ""), (" ", ""), ("identity", ""), ("Identity ", ""), ("GZIP", "gzip")]
)
def test_content_coding(text: str | None, coding: str) -> None:
    assert content_coding({} if text is None else {"Content-Encoding": text}) == coding


EPOCH = int(NOW.timestamp())


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"RateLimit": '"default";r=0;t=30'}, 30), ({"RateLimit": '"default";r=5;t=30'}, None),
        ({"RateLimit": '"burst";r=0;t=3, "day";r=0;t=900'}, 900), ({"RateLimit": '"burst";r=0;t=3,"day";r=7;t=900'}, 3),
        ({"RateLimit": '"day";r=0', "RateLimit-Policy": '"burst";q=10;w=1, "day";q=100;w=60'}, 60),
        ({"RateLimit": '"day";r=0'}, None), ({"RateLimit": "limit=10, remaining=0, reset=40"}, 40),
        ({"RateLimit": "limit=10, remaining=3, reset=40"}, None),
        ({"RateLimit-Remaining": "0", "RateLimit-Reset": "50"}, 50), ({"RateLimit-Reset": "50"}, 50),
        ({"RateLimit-Remaining": "1", "RateLimit-Reset": "50"}, None),
        ({"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": str(EPOCH + 70)}, 70),
        ({"X-RateLimit-Reset": str((EPOCH + 70) * 1000)}, 70), ({"X-RateLimit-Reset": str(EPOCH - 70)}, None),
        ({"X-Rate-Limit-Reset": "80"}, 80), ({"X-RateLimit-Reset": "soon"}, None),
        ({"X-RateLimit-Reset": "9" * 40}, None), ({"X-RateLimit-Reset": "0"}, None), ({}, None),
    ],
)  # fmt: skip
def test_rate_limits(headers: dict[str, str], seconds: float | None) -> None:
    found: Any = rate_limit_reset_s(headers, NOW)
    assert found == (pytest.approx(seconds) if seconds else None)


@pytest.mark.parametrize(
    ("status", "headers", "kind", "seconds"),
    [
        (429, {"Retry-After": "3", "X-RateLimit-Reset": "99"}, Throttled, 3),
        (429, {"Retry-After": "soon", "X-RateLimit-Reset": "99"}, Throttled, 99),
        (503, {"RateLimit": '"day";r=0;t=30'}, Throttled, 30), (503, {}, Throttled, None),
        (500, {"Retry-After": "3"}, Throttled, 3), (500, {"X-RateLimit-Reset": "99"}, OriginUnavailable, None),
        (202, {"Retry-After": "5"}, Throttled, 5), (403, {"X-RateLimit-Remaining": "0"}, Throttled, None),
    ],
)  # fmt: skip
def test_how_long_to_wait(status: int, headers: dict[str, str], kind: type[Exception], seconds: float | None) -> None:
    error = status_error("http://h/a", status, headers, None)
    assert type(error) is kind and getattr(error, "retry_after_s", None) == seconds


@pytest.mark.parametrize("text", ["9" * 20, "9" * 5000, "1_0", "+1", " ", "1 0", "٣"])
def test_no_length(text: str) -> None:
    with pytest.raises(BadResponse):
        content_length("http://h/a", {"Content-Length": text})


@pytest.mark.parametrize("text", ['"a\r\n b"', '"a\x00"', "a\x7f"])
def test_what_could_not_be_sent_back_is_no_validator(text: str) -> None:
    assert strong_etag({"ETag": text}) is None and validator({"ETag": text, "Last-Modified": text}) is None


@pytest.mark.parametrize(("text", "tag"), [('"a"', '"a"'), ('W/"a"', None), ("a", None), ("", None), ('"', None)])
def test_strong_etag(text: str, tag: str | None) -> None:
    assert strong_etag({"ETag": text}) == tag


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("bytes 5-9/10", (5, 9, 10)), ("bytes 5-9/*", (5, 9, None)), ("bytes */10", (None, None, 10)),
        ("BYTES 0-0/1", (0, 0, 1)),
        (f"bytes 0-{10**12}/{5 * 10**12}", (0, 10**12, 5 * 10**12)), (f"bytes 0-1/{'9' * 20}", (None, None, None)),
        ("bytes 5-/10", (None, None, None)), ("items 1-2/3", (None, None, None)), ("", (None, None, None)),
    ],
)  # fmt: skip
def test_content_range(text: str, parts: tuple[int | None, ...]) -> None:
    assert content_range({"Content-Range": text}) == parts


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('attachment; filename="a b.tar"', "a b.tar"), ("attachment; filename=a.tar; size=3", "a.tar"),
        ("attachment; filename=\"x.tar\"; filename*=UTF-8''w%C3%A4rme.tar", "wärme.tar"),
        ('inline; filename="a\\"b.tar"', 'a"b.tar'),
        ('attachment; filename="../../etc/passwd"', "passwd"), ('attachment; filename="C:\\\\x\\\\y.tar"', "y.tar"),
        ("attachment; filename*=nope''x; filename=y", "y"), ('attachment; filename="wÃ¤rme.tar"', "wärme.tar"),
        ('attachment; filename="wärme.tar"', "wärme.tar"), ('attachment; filename=".."', None),
        ("attachment", None), ("", None),
        ('attachment; xfilename="no"', None), ("attachment; filename*=UTF-8''%E6%BC%A2%2F%2E%2E%2Fx%00y", "x_y"),
        ("attachment; filename*=unicode_escape''%5Cd", None), ("attachment; filename*=punycode''xn--; filename=y", "y"),
        (f'attachment; filename="{"x" * 300}.tar"', "x" * 196 + ".tar"),
        ("attachment; filename*=utf-8'de'a%E2%80%AEgpj.exe", "a_gpj.exe"),
        ('attachment; filename=".bashrc"', "bashrc"), ('attachment; filename=". .a.tar"', "a.tar"),
    ],
)  # fmt: skip
def test_content_disposition(text: str, name: str | None) -> None:
    assert disposition_name({"Content-Disposition": text}) == name


@pytest.mark.parametrize(
    ("known", "headers"),
    [
        ('"a"', {"If-None-Match": '"a"'}), ('W/"a"', {"If-None-Match": 'W/"a"'}), ("sha256:abc", {}), (None, {}),
        ("Thu, 01 Jan 2026 12:00:00 GMT", {"If-Modified-Since": "Thu, 01 Jan 2026 12:00:00 GMT"}),
    ],
)  # fmt: skip
def test_conditional(known: str | None, headers: dict[str, str]) -> None:
    assert conditional(known) == headers
