from __future__ import annotations

from datetime import UTC, datetime

import pytest

from workers.fetchers.http.answers import conditional, content_range, disposition_name, retry_after_s, strong_etag

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


@pytest.mark.parametrize(("text", "tag"), [('"a"', '"a"'), ('W/"a"', None), ("a", None), ("", None), ('"', None)])
def test_strong_etag(text: str, tag: str | None) -> None:
    assert strong_etag({"ETag": text}) == tag


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("bytes 5-9/10", (5, 9, 10)), ("bytes 5-9/*", (5, 9, None)), ("bytes */10", (None, None, 10)),
        ("BYTES 0-0/1", (0, 0, 1)),
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
        ('attachment; xfilename="no"', None),
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
