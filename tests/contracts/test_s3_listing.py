"""Listings of S3: in flat memory however many keys, and never shorter than what is there: pages that are denied, cut
off, garbled, out of order or without an end.
"""

from __future__ import annotations

import itertools
import re
import tracemalloc
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest import errors
from ingest.model import FileSpec
from ingest.sources import Source
from tests.contracts.s3cases import profile
from tests.servers.simulated import SimulatedS3
from workers.fetchers.base import Context
from workers.fetchers.s3 import S3Fetcher
from workers.fetchers.s3.listing import Page

KEYS = 3500


def context(s3: SimulatedS3, after: str | None = None, **values: object) -> Context:
    found = profile(endpoint=s3.endpoint, key="k", secret="s", **values)
    return Context(found.settings, found.connection, after=after)


def listed(s3: SimulatedS3, uri: str = "s3://bucket/n/", **more: str) -> list[FileSpec]:
    return list(S3Fetcher().expand(Source(uri), context(s3, **more)))


def uri_of(number: int) -> str:
    return f"s3://bucket/n/{number:012d}.bin"


def test_every_key_of_many_pages_once_and_in_order(s3: SimulatedS3) -> None:
    s3.keys = KEYS
    found = listed(s3)
    assert [spec.uri for spec in found] == [uri_of(n) for n in range(KEYS)]
    assert [spec.part for spec in found] == list(range(KEYS))
    assert {spec.size for spec in found} == {1000}
    assert found[7].version == f'"{7:032x}"' and found[7].name == "000000000007.bin"
    assert len(s3.requests) == 4


@pytest.mark.parametrize("at", [0, 999, 1000, KEYS - 2])
def test_it_goes_on_after_a_key_without_listing_what_is_before(at: int, s3: SimulatedS3) -> None:
    s3.keys = KEYS
    found = listed(s3, after=uri_of(at))
    assert [spec.uri for spec in found] == [uri_of(n) for n in range(at + 1, KEYS)]
    assert len(s3.requests) == -(-(KEYS - at - 1) // 1000)


def test_nothing_after_the_last_key_is_no_error(s3: SimulatedS3) -> None:
    s3.keys = 10
    assert listed(s3, after=uri_of(9)) == []
    s3.keys = 0
    with pytest.raises(errors.NothingMatched):
        listed(s3)


def test_another_prefix_is_listed_from_its_beginning(s3: SimulatedS3) -> None:
    s3.keys = 5
    assert len(listed(s3, after="s3://other/n/000000000003.bin")) == 5


def test_memory_does_not_grow_with_the_keys(s3: SimulatedS3) -> None:
    s3.keys = 20_000
    found = S3Fetcher().expand(Source("s3://bucket/n/"), context(s3))
    sum(1 for _ in itertools.islice(found, 2000))
    tracemalloc.start()
    try:
        sum(1 for _ in found)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20, f"{peak >> 20} MB for a page at a time"


# -- pages that are wrong --------------------------------------------------------------------------------------------


def cut(body: bytes, at: float) -> bytes:
    return body[: int(len(body) * at)]


def drop(pattern: str, by: str = "") -> Callable[[bytes], bytes]:
    return lambda body: re.sub(pattern.encode(), by.encode(), body, count=1)


TOKEN = "<NextContinuationToken>.*?</NextContinuationToken>"
WRONG: dict[str, tuple[Callable[[bytes], bytes], type[errors.FetchError], str]] = {
    "nothing at all": (lambda body: b"", errors.Truncated, "breaks off"),
    "cut at its end": (lambda body: body[:-1], errors.Truncated, "breaks off"),
    "cut in the middle": (lambda body: cut(body, 0.5), errors.Truncated, "breaks off"),
    "cut in its head": (lambda body: body[:30], errors.BadResponse, "no list"),
    "noise": (lambda body: b"\x00\xff" * 500, errors.BadResponse, "no list"),
    "noise inside": (lambda body: body[:900] + b"\x00<<&" + body[900:], errors.Truncated, "damaged"),
    "a login page": (lambda body: b"<!DOCTYPE html><html><body>Sign in</body></html>", errors.BadResponse, "no list"),
    "another list": (lambda body: b"<ListAllMyBucketsResult/>", errors.BadResponse, "no list"),
    "more, but no token": (drop(TOKEN), errors.BadResponse, "not where"),
    "more, and an empty token": (drop(TOKEN, "<NextContinuationToken/>"), errors.BadResponse, "where"),
    "not said whether more": (drop("<IsTruncated>.*?</IsTruncated>"), errors.BadResponse, "IsTruncated"),
    "perhaps more": (drop("<IsTruncated>true", "<IsTruncated>perhaps"), errors.BadResponse, "IsTruncated"),
    "a circle": (drop(TOKEN, "<NextContinuationToken>1000</NextContinuationToken>"), errors.BadResponse,
                 "repeats itself|circle"),
    "no size": (drop("<Size>.*?</Size>"), errors.BadResponse, "without a key or size"),
    "a size in words": (drop("<Size>.*?</Size>", "<Size>big</Size>"), errors.BadResponse, "without a key or size"),
    "no key": (drop("<Key>.*?</Key>"), errors.BadResponse, "without a key or size"),
    "out of order": (drop("<Key>n/0*1500.bin", "<Key>n/0"), errors.BadResponse, "not in order"),
    "an error in 200": (lambda body: b"<Error><Code>InternalError</Code></Error>", errors.OriginUnavailable, "500"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_a_page_in_the_middle_that_is_wrong_is_an_error(what: str, s3: SimulatedS3) -> None:
    garble, kind, says = WRONG[what]
    s3.keys, s3.page = KEYS, lambda token, page: (200, garble(page) if token == "1000" else page)
    with pytest.raises(errors.FetchError, match=says) as caught:
        listed(s3)
    assert type(caught.value) is kind and caught.value.uri == "s3://bucket/n/"


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (403, "AccessDenied", errors.AccessDenied),
        (500, "InternalError", errors.OriginUnavailable),
        (503, "SlowDown", errors.Throttled),
        (400, "InvalidToken", errors.AccessDenied),
        (404, "NoSuchBucket", errors.NotFound),
    ],
)
@pytest.mark.parametrize("at", ["", "1000", "3000"])
def test_a_page_that_is_refused_is_an_error(
    at: str, status: int, code: str, kind: type[errors.FetchError], s3: SimulatedS3
) -> None:
    refusal = status, f"<Error><Code>{code}</Code></Error>".encode()
    s3.keys, s3.page = KEYS, lambda token, page: refusal if token == at else (200, page)
    with pytest.raises(kind):
        listed(s3)


def test_a_connection_that_breaks_in_a_page_is_an_error(s3: SimulatedS3) -> None:
    def breaks(handler: object) -> bool:
        if "continuation-token=2000" not in handler.path:  # type: ignore[attr-defined]
            return False
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n<ListBucketResult><IsTruncated>false</IsTruncated>"
        handler.wfile.write(head)  # type: ignore[attr-defined]
        handler.close_connection = True  # type: ignore[attr-defined]
        return True

    s3.keys, s3.gate = KEYS, breaks
    with pytest.raises(errors.TransientFetchError):
        listed(s3)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_page_makes_it_stumble(noise: bytes) -> None:
    for body in (noise, b"<ListBucketResult>" + noise, b"<ListBucketResult>" + noise + b"</ListBucketResult>"):
        with pytest.raises((errors.Truncated, errors.BadResponse)):
            Page.of("s3://bucket/n/", body)


@given(st.integers(0, 2000), st.integers(0, 255))
@settings(max_examples=200, deadline=None)
def test_a_page_with_a_wrong_byte_gives_no_key_too_few(at: int, byte: int) -> None:
    """It may give other text, but not fewer keys."""
    s3 = SimulatedS3()
    s3.keys = 10
    _, body = s3.listing({"prefix": ["n/"]})
    at %= len(body)
    body = body[:at] + bytes([byte]) + body[at + 1 :]
    try:
        page = Page.of("s3://bucket/n/", body)
    except errors.FetchError:
        return
    assert len(page.items) == 10
