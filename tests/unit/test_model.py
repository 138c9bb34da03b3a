"""The nouns and their JSON form; what a source's text and digest may be."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.errors import BadSource, UsageError
from ingest.model import Failure, FileRecord, FileSpec, JobOptions, origin_of, source_key
from ingest.record import Record, pack, unpack
from ingest.sources import (
    DIGEST_HEX,
    Api,
    Manifest,
    Source,
    Sql,
    as_sources,
    check_source_text,
    parse_digest,
    source_from_json,
    source_to_json,
)

# Lone surrogates stand for the bytes of file names that are not UTF-8.
TEXT = st.text(max_size=20)
ODD_TEXT = st.text(st.characters(exclude_categories=()), max_size=20)
MAYBE = st.none() | ODD_TEXT
NUMBER = st.integers(0, 1 << 50)

RECORDS: list[st.SearchStrategy[Record]] = [
    st.builds(Source, ODD_TEXT, MAYBE, st.none() | NUMBER, MAYBE),
    st.builds(Sql, ODD_TEXT, MAYBE, MAYBE, st.lists(TEXT, max_size=3).map(tuple), MAYBE, MAYBE, NUMBER, NUMBER),
    st.builds(Manifest, ODD_TEXT, MAYBE, MAYBE, ODD_TEXT),
    st.builds(Api, ODD_TEXT, ODD_TEXT, body=st.none() | st.just({"a": [1]}), records=ODD_TEXT | st.just(("a.b", "c"))),
    st.builds(
        FileSpec,
        NUMBER,
        NUMBER,
        ODD_TEXT,
        MAYBE,
        st.none() | NUMBER,
        MAYBE,
        MAYBE,
        MAYBE,
        st.none() | st.just({"a": [1, "b"]}),
    ),
    st.builds(
        FileRecord,
        NUMBER,
        NUMBER,
        ODD_TEXT,
        ODD_TEXT,
        NUMBER,
        TEXT,
        TEXT,
        TEXT,
        TEXT,
        TEXT,
        st.none() | NUMBER,
        MAYBE,
        st.booleans(),
    ),
    st.builds(
        Failure,
        ODD_TEXT,
        TEXT,
        ODD_TEXT,
        NUMBER,
        TEXT,
        TEXT,
        st.tuples(NUMBER, NUMBER),
        st.lists(TEXT, max_size=2).map(tuple),
    ),
    st.builds(
        JobOptions, TEXT, TEXT, MAYBE, st.none() | st.floats(0, 9), st.none() | NUMBER, st.none() | st.floats(0, 9)
    ),
]


@given(st.one_of(RECORDS))
@settings(max_examples=300, deadline=None)
def test_a_record_is_the_same_after_json_and_after_packing(record: Record) -> None:
    assert type(record).from_json(json.loads(json.dumps(record.to_json()))) == record
    assert unpack(type(record), pack([record, record])) == [record, record]


@given(st.one_of(RECORDS[:3]))
@settings(max_examples=100, deadline=None)
def test_a_source_is_the_same_after_its_way(source: Any) -> None:
    assert source_from_json(json.loads(json.dumps(source_to_json(source)))) == source


def test_defaults_are_left_out_and_unknown_fields_ignored() -> None:
    assert Source("s3://b/k").to_json() == {"uri": "s3://b/k"}
    assert Source.from_json({"uri": "s3://b/k", "of_tomorrow": 1}) == Source("s3://b/k")
    assert JobOptions().to_json() == {}
    assert FileSpec(0, 0, "u", size=0).to_json()["size"] == 0  # 0 is not "unknown"


def test_a_regular_list_packs_small() -> None:
    specs = [FileSpec(0, n, f"https://host.example/data/shard-{n:06}.tar") for n in range(2000)]
    assert len(pack(specs)) < 2000 * 14


@pytest.mark.parametrize("algorithm", DIGEST_HEX)
def test_a_digest_of_each_algorithm(algorithm: str) -> None:
    value = "0123456789abcdef" * 8
    right = value[: DIGEST_HEX[algorithm]]
    assert parse_digest(f"{algorithm}:{right}") == (algorithm, right)
    assert parse_digest(f"{algorithm.upper()}: {right.upper()} ") == (algorithm, right)
    for wrong in (right[:-1], right + "0", "g" + right[1:], "", "é" + right[1:]):
        with pytest.raises(UsageError) as raised:
            parse_digest(f"{algorithm}:{wrong}")
        assert algorithm in str(raised.value)


def test_a_digest_may_have_a_hyphen_as_http_writes_it() -> None:
    assert parse_digest("SHA-256:" + "a" * 64) == ("sha256", "a" * 64)


@pytest.mark.parametrize("text", ["", "a" * 64, "sha256", "sha3:" + "a" * 64, ":" + "a" * 64, "sha256-" + "a" * 64])
def test_what_is_no_digest(text: str) -> None:
    with pytest.raises(UsageError, match="ALGORITHM:HEX"):
        parse_digest(text)


@pytest.mark.parametrize(
    "uri",
    [
        "https://host/a.tar",
        "HTTPS://Host:8443/a%20b?x=1#y",
        "s3://bucket/a b/ü.tar",
        "file:///tmp/a",
        "s3://bucket/a@b:c",
        "http://[::1]:8080/a",
        "memory://a",
        "https://token@host/a",
        "gs://b/" + "x" * 5000,
        "file:///tmp/\udcff",
    ],
)
def test_texts_that_may_be(uri: str) -> None:
    check_source_text(uri)


@pytest.mark.parametrize(
    ("uri", "reason"),
    [
        ("", "empty"),
        (" https://h/a", "white space"),
        ("https://h/a\n", "white space"),
        ("https://h/a\x00b", "control"),
        ("https://h/a\x7f", "control"),
        ("a.tar", "scheme"),
        ("/tmp/a", "scheme"),
        ("C:/a", "scheme"),
        ("s3:bucket/a", "scheme"),
        ("s3:b/a://b", "scheme"),
        ("https:///a", "host"),
        ("http://", "host"),
        ("https://h:port/a", "host or port"),
        ("https://h:70000/a", "host or port"),
        ("http://[::1/a", "host or port"),
        ("s3://b\udcff/a", "host or port"),
    ],
)
def test_texts_that_cannot_be(uri: str, reason: str) -> None:
    with pytest.raises(BadSource, match=reason):
        check_source_text(uri)


@pytest.mark.parametrize(
    "uri",
    [
        "https://user:hunter2@host/a",
        "https://:hunter2@host/a",
        "s3://key:hunter2@bucket/a",
        "https://user:hunter2@host:99999/a",
        "https://user:hunter2@host/a ",
        "https://user:hunter2@host/\x01",
        "https://user:hun/ter2@host/a",
        "https://u:hunter2#@h/a",
        "https://u:hunter2?@h/a",
        "https://user:@host/a",
    ],
)
def test_a_password_is_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(BadSource) as raised:
        check_source_text(uri)
    assert "hunter2" not in str(raised.value) and "ter2" not in str(raised.value)


@given(st.text(st.characters(exclude_categories=()), max_size=40) | st.from_regex(r"\A[a-z0-9]{1,6}://.{0,30}\Z"))
@settings(max_examples=400, deadline=None)
def test_any_text_is_taken_or_refused(uri: str) -> None:
    """Never another error; and what is taken can be named, keyed and sent."""
    try:
        check_source_text(uri)
    except BadSource:
        return
    assert json.loads(json.dumps(origin_of(uri)).encode()) == origin_of(uri)
    origin_of(uri).encode()
    assert len(source_key(uri, None)) == 40


def test_an_origin_is_a_host_bucket_or_database_without_its_user() -> None:
    assert origin_of("https://token@host:81/a/b") == "https://host:81"
    assert origin_of("s3://bucket/a") == "s3://bucket"
    assert origin_of("file:///a/b") == "file://"
    assert origin_of(Sql("lake", table="t").uri) == "sql://lake"


def test_a_key_tells_profiles_and_questions_apart() -> None:
    keys = [
        source_key("s3://b/k", None),
        source_key("s3://b/k", "a"),
        source_key("s3://b/k", "b"),
        source_key("s3://b/k", "None"),
        source_key("s3://b/k", None, {"q": 1}),
        source_key("s3://b/k", None, {"q": 2}),
        source_key("s3://b/k2", None),
    ]
    assert len(set(keys)) == len(keys)
    assert source_key("u", None, {"a": 1, "b": 2}) == source_key("u", None, {"b": 2, "a": 1})


def test_a_failure_is_a_sentence() -> None:
    assert str(Failure("u", "NotFound", "404", 1, "j.0", "n1")) == "u: 404 (NotFound after 1 attempt on node n1)"
    assert str(Failure("u", "Truncated", "short", 3, "j.0")) == "u: short (Truncated after 3 attempts)"


def test_a_time_to_begin_after_is_told_in_utc() -> None:
    """Not every database looks at the zone of a time, or for every type."""
    noon = datetime(2026, 1, 2, 12, tzinfo=timezone(timedelta(hours=2)))
    assert Sql("lake", table="t", incremental_on="at", since=noon).since == "2026-01-02 10:00:00+00:00"
    assert Sql("lake", table="t", incremental_on="at", since=noon.replace(tzinfo=None)).since == "2026-01-02 12:00:00"


def test_what_may_be_submitted() -> None:
    assert as_sources("s3://b/k*") == [Source("s3://b/k*")]
    assert as_sources("s3://b/k") == ["s3://b/k"]
    sql = Sql("lake", table="t")
    assert as_sources(sql) == [sql]
    assert as_sources(("s3://b/", sql, Manifest("s3://b/m"))) == [Source("s3://b/"), sql, Manifest("s3://b/m")]
    for wrong in ([], [1], ["s3://b/k", None], [b"s3://b/k"]):
        with pytest.raises(UsageError):
            as_sources(wrong)  # type: ignore[arg-type]
