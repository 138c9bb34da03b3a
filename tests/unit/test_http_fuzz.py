"""Whatever a header says, reading it raises nothing but our errors; and what servers write is read as it is meant."""

from __future__ import annotations

import base64
import time
import unicodedata
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest import errors
from ingest.model import FileSpec
from ingest.names import MAX_NAME_BYTES
from ingest.sections import Http, Limits
from workers.fetchers.http import answers, found

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
URI = "http://h/a.tar"
#: What http.client can hand us: bytes read as Latin-1, folded lines with their ends in them.
WILD = st.text(st.characters(max_codepoint=255), max_size=120)


def shaped(*pieces: str) -> st.SearchStrategy[str]:
    """Nearly right: pieces of what such a header is made of, in any order, with dirt between them."""
    return st.lists(st.sampled_from(pieces) | st.text(max_size=3) | st.integers().map(str), max_size=14).map("".join)


SHAPES = {
    "Content-Range": shaped("bytes", " ", "-", "/", "*", "0", "99999999999999999999", ","),
    "Content-Length": shaped("0", ",", " ", "+", "-", "1_0", "9" * 5000),
    "Retry-After": shaped("Thu", ", ", "01 Jan 2026", "99999", " 12:00:30", " GMT", " +9999", "-0000", "0", "Feb 30"),
    "Content-Disposition": shaped(
        "attachment", ";", "filename", "*", "=", "utf-8''", "%E6%BC", "%2F", '"', "\\", "..", "/", "punycode'x'"
    ),
    "ETag": shaped("W/", '"', "a", "\r\n ", "\x00"),
    "Last-Modified": shaped("Thu, ", "01 Jan 0001 ", "00:00:00", " GMT", " +2300"),
    "RateLimit": shaped('"a"', ";", "r=", "t=", "0", ", ", "limit=", "remaining=", "reset="),
    "RateLimit-Policy": shaped('"a"', ";", "q=", "w=", "60", ", "),
    "X-RateLimit-Reset": shaped("0", "1767268800", "1767268800000", ".", "-", "9" * 30),
    "X-RateLimit-Remaining": shaped("0", ".", "1"),
    "Repr-Digest": shaped("sha-256", "=", ":", "AAAA", ",", "sha-512", ";"),
    "Digest": shaped("sha-256", "=", "AAAA", ",", "MD5", "unixsum"),
    "Content-MD5": shaped("AAAA", "=", " "),
    "x-goog-hash": shaped("crc32c", "md5", "=", "AAAAAA==", ","),
    "x-amz-checksum-sha256": shaped("AAAA", "=", "-", "3"),
    "Content-Encoding": shaped("gzip", "identity", ", ", " "),
    "Transfer-Encoding": shaped("chunked", "gzip", ",", " "),
    "Content-Type": shaped("text/html", ";", " ", "charset"),
}
HEADERS = st.fixed_dictionaries({}, optional={name: shape | WILD for name, shape in SHAPES.items()})


@pytest.mark.parametrize("letter", ["a", "-", " ", "=", ":", ",", ";", "a=", "a=:", ", ", '"', "\\", "; a"])
def test_no_long_header_takes_long(letter: str) -> None:
    """One of 64 KiB, where a search that begins anew at each letter takes more than a minute."""
    headers, began = dict.fromkeys(SHAPES, letter * (60_000 // len(letter))), time.process_time()
    with suppress(errors.FetchError):
        answers.content_length(URI, headers)
    found.stated(200, headers)
    answers.content_range(headers), answers.disposition_name(headers), answers.validator(headers)
    answers.retry_after_s(headers), answers.rate_limit_reset_s(headers)
    assert time.process_time() - began < 10


@given(HEADERS, st.integers(100, 999))
@example({"Content-Length": "9" * 5000}, 200)
@example({"Retry-After": "Mon, 01 Jan 0001 00:00:00 +2359"}, 503)
@example({"Content-Disposition": "a; filename*=idna''%ff"}, 200)
def test_no_header_makes_it_stumble(headers: dict[str, str], status: int) -> None:
    for read in (
        answers.strong_etag,
        answers.validator,
        answers.content_range,
        answers.retry_after_s,
        answers.rate_limit_reset_s,
        answers.disposition_name,
        answers.content_coding,
    ):
        read(headers)  # type: ignore[operator]  # each takes them
    answers.conditional(answers.validator(headers))
    with suppress(errors.BadResponse):
        length = answers.content_length(URI, headers)
        assert length is None or 0 <= length < 10**19
    assert isinstance(answers.status_error(URI, status, headers, None), errors.FetchError)
    for digest in found.stated(status, headers):
        assert digest.partition(":")[0] in {"sha256", "sha512", "sha384", "sha1", "md5", "crc32c"}
    with suppress(errors.BadResponse):
        found.judge(FileSpec(0, 0, URI), Http(), headers)


@given(HEADERS)
def test_what_is_read_is_within_its_bounds(headers: dict[str, str]) -> None:
    for seconds in (answers.retry_after_s(headers, NOW), answers.rate_limit_reset_s(headers, NOW)):
        assert seconds is None or 0 <= seconds < 1e15
    first, last, total = answers.content_range(headers)
    assert all(part is None or 0 <= part < 10**19 for part in (first, last, total)) and (first is None) == (
        last is None
    )
    for value in answers.conditional(answers.validator(headers)).values():
        assert not any(unicodedata.category(c) == "Cc" and ord(c) < 128 for c in value), "it could not be sent"


@given(WILD | shaped(*"a/\\.%\"' ;", "..", "\u202e", "漢", "\x00", "filename*=UTF-8''"))
def test_no_name_leaves_its_folder(text: str) -> None:
    for header in (f'attachment; filename="{text}"', f"attachment; filename*=UTF-8''{quote(text, safe='')}", text):
        name = answers.disposition_name({"Content-Disposition": header})
        if name is not None:
            assert name not in {"", ".", ".."} and not set(name) & set("/\\\0\r\n")
            assert len(name.encode()) <= MAX_NAME_BYTES


@given(st.integers(0, 5 << 40), st.integers(0, 5 << 40), st.integers(0, 5 << 40) | st.none())
def test_a_range_is_read_as_it_is_written(first: int, more: int, total: int | None) -> None:
    text = f"bytes {first}-{first + more}/{'*' if total is None else total}"
    assert answers.content_range({"Content-Range": text}) == (first, first + more, total)
    if total is not None:
        assert answers.content_range({"Content-Range": f"bytes */{total}"}) == (None, None, total)
        assert answers.content_length(URI, {"Content-Length": f"{total}, {total}"}) == total


@given(st.integers(1, 10**8))
def test_a_wait_is_read_as_it_is_written(seconds: int) -> None:
    date = format_datetime(NOW + timedelta(seconds=seconds), usegmt=True)
    assert answers.retry_after_s({"Retry-After": str(seconds)}, NOW) == seconds
    assert answers.retry_after_s({"Retry-After": date}, NOW) == seconds
    limits: list[dict[str, str]] = [
        {"RateLimit": f'"day";r=0;t={seconds}'},
        {"RateLimit": f"limit=5, remaining=0, reset={seconds}"},
        {"RateLimit-Remaining": "0", "RateLimit-Reset": str(seconds)},
        {"X-RateLimit-Reset": str(int(NOW.timestamp()) + seconds)},
    ]
    assert [answers.rate_limit_reset_s(headers, NOW) for headers in limits] == [seconds] * 4


@given(st.sampled_from([("sha256", "sha-256", 32), ("sha512", "sha-512", 64), ("md5", "md5", 16)]), st.data())
def test_a_digest_is_read_as_it_is_written(kind: tuple[str, str, int], data: Any) -> None:
    ours, theirs, size = kind
    raw: bytes = data.draw(st.binary(min_size=size, max_size=size))
    text = base64.b64encode(raw).decode()
    for headers in (
        {"Repr-Digest": f"x=:AA==:, {theirs}=:{text}:;p"},
        {"Digest": f"unixsum=1, {theirs.upper()}={text}"},
    ):
        assert found.stated(206, headers) == [f"{ours}:{raw.hex()}"]


@given(st.text(st.characters(categories=("L", "N")), min_size=1, max_size=60))
def test_a_name_is_read_as_it_is_written(name: str) -> None:
    assert answers.disposition_name({"Content-Disposition": f"inline; filename*=UTF-8''{quote(name)}"}) == name
    sent = name.encode().decode("latin-1")  # UTF-8, as http.client reads it
    assert answers.disposition_name({"Content-Disposition": f'inline; filename="{sent}"'}) == name


@pytest.mark.parametrize("kind", [OSError, ValueError, TimeoutError, answers.Malformed, answers.Damaged, KeyError])
def test_every_exception_has_an_error_of_ours(kind: type[Exception]) -> None:
    wrapped = RuntimeError("outside", kind("secret=s3cret"))
    error = answers.client_error(URI, wrapped, Limits())
    assert isinstance(error, errors.FetchError) and error.reason
