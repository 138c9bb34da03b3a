"""What a user writes, cut into units; and everything that is refused where the user is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.client.request import fingerprint
from ingest.client.submission import Unit, check, cut, needs_origin, positive
from ingest.cuts import MOST, shard_size
from ingest.errors import BadSource, UsageError
from ingest.model import FileSpec
from ingest.sources import AnySource, Manifest, Source, Sql, as_sources

SHA = "sha256:" + "a" * 64
SQL = Sql("lake", table="t")


def flat(units: list[Unit]) -> list[tuple[int, int, str]]:
    return [(f["source"], f["part"], f["uri"]) for u in units for f in u.files]


class TestCutting:
    def test_in_the_order_of_the_sources(self) -> None:
        sources: list[AnySource] = [
            Source("s3://b/a-{2..3}.tar", connection="c"),
            Source("https://h/x", SHA.upper(), 5),
            Source("s3://b/*"),
            SQL,
            Source("https://h/y"),
            Manifest("s3://b/m.txt"),
        ]
        units = [*cut(sources, None)]
        assert [(u.index, len(u.files), u.source) for u in units] == [
            (0, 1, None),
            (0, 1, None),
            (1, 1, None),
            (2, 0, sources[2]),
            (3, 0, SQL),
            (4, 1, None),
            (5, 0, sources[5]),
        ]
        assert units[1].files == (FileSpec(0, 1, "s3://b/a-3.tar", connection="c").to_json(),)
        # A digest travels as everybody writes it.
        assert units[2].files == (FileSpec(1, 0, "https://h/x", SHA, 5).to_json(),)

    def test_a_shard_holds_files_of_several_sources_but_reaches_over_no_planning(self) -> None:
        sources = [
            Source("https://h/a-{0..3}"),
            Source("https://h/b"),
            Source("s3://b/*"),
            Source("https://h/c"),
            Source("https://h/d"),
        ]
        units = [*cut(sources, 3)]
        assert [(u.index, [(f["source"], f["part"]) for f in u.files]) for u in units] == [
            (0, [(0, 0), (0, 1), (0, 2)]),
            (0, [(0, 3), (1, 0)]),
            (2, []),
            (3, [(3, 0), (4, 0)]),
        ]

    @pytest.mark.parametrize(
        ("files", "size"),
        [(1, 1), (64, 1), (65, 2), (1024, 16), (4096, 16), (4097, 17), (65_536, 256), (65_537, 256), (10**8, 256)],
    )
    def test_shards_grow_when_there_are_many(self, files: int, size: int) -> None:
        assert shard_size(files, None) == size <= MOST and shard_size(files, 7) == 7

    @pytest.mark.parametrize(
        ("files", "slots", "size"), [(1000, 8, 16), (1000, 200, 1), (1024, 64, 4), (10**6, 800, 256)]
    )
    def test_every_process_of_a_fleet_has_work(self, files: int, slots: int, size: int) -> None:
        assert shard_size(files, None, slots) == size and shard_size(files, 7, slots) == 7

    @given(
        st.lists(
            st.integers(0, 40).map(lambda n: Source(f"https://h/{{0..{n}}}"))
            | st.just(Source("s3://b/"))
            | st.just(SQL),
            max_size=12,
        ),
        st.none() | st.integers(1, 9),
    )
    def test_every_file_is_in_one_shard_and_in_order(self, sources: list[AnySource], wanted: int | None) -> None:
        units = [*cut(sources, wanted)]
        places = [(f[0], f[1]) for f in flat(units)]
        assert places == sorted(set(places))
        listed = sum(int(s.uri.split("..")[1][:-1]) + 1 for s in sources if isinstance(s, Source) and ".." in s.uri)
        assert len(places) == listed
        assert [u.index for u in units] == sorted(u.index for u in units)
        assert [u.source for u in units if u.source] == [s for s in sources if needs_origin(s)]
        assert all(len(u.files) <= (wanted or MOST) for u in units)

    def test_a_huge_range_is_cut_as_it_is_read(self) -> None:
        units = cut([Source("https://h/{00000000..99999999}")], None)
        assert len(next(units).files) == 256

    def test_mirrors_and_checksums_go_along(self) -> None:
        given = Source("https://h/a", mirrors=["https://m/a", "s3://b/a"], checksums="beside")  # type: ignore[arg-type]
        ((file,),) = (unit.files for unit in cut([given], None))
        spec = FileSpec.from_json(json.loads(json.dumps(file)))
        assert (spec.mirrors, spec.checksums) == (("https://m/a", "s3://b/a"), "beside")


class TestBraces:
    @pytest.mark.parametrize(
        ("uri", "names"),
        [
            ("s3://b/{000..002}", ["000", "001", "002"]),
            ("s3://b/{8..11}", ["8", "9", "10", "11"]),
            ("s3://b/{0..10..5}", ["0", "5", "10"]),
            ("s3://b/{a..c}", ["a", "b", "c"]),
            ("s3://b/{x,y,}", ["x", "y", ""]),
            (r"s3://b/\{x\}", ["{x}"]),
            ("s3://b/{0..1}-{a,b}", ["0-a", "0-b", "1-a", "1-b"]),
        ],
    )
    def test_ranges(self, uri: str, names: list[str]) -> None:
        check(Source(uri))
        assert [u for _, _, u in flat([*cut([Source(uri)], None)])] == [f"s3://b/{name}" for name in names]


REFUSED: list[tuple[AnySource, str]] = [
    (Source(""), "empty"),
    (Source("a.tar"), "scheme"),
    (Source("nope://h/a"), "'nope' is unknown"),
    (Source("sql://lake/t"), "ingest.Sql"),
    (Source("file://host/a"), "file:///path"),
    (Source("file://a"), "file:///path"),
    (Source("https://user:pw@h/a"), "connection='NAME'"),
    (Source("https://h/*.tar"), "HTTP cannot list"),
    (Source("https://h/dir/"), "HTTP cannot list"),
    (Source("https://h/{3..1}"), "ends before it starts"),
    (Source("s3://b/{3..1}"), "ends before it starts"),
    (Source("https://h/{1..3"), "not closed"),
    (Source("https://h/{}"), "empty braces"),
    (Source("https://h/{x}"), "neither"),
    (Source("https://h/{{1..2}}"), "inside"),
    (Source("https://h/{1..9..0}"), "step"),
    (Source("https://h/{0..999999}{0..999999}"), "1,000,000,000,000 URIs"),
    (Source("https://h/a", "sha256:abc"), "64 hexadecimal"),
    (Source("https://h/a", "sha3:abc"), "ALGORITHM:HEX"),
    (Source("https://h/a", ""), "ALGORITHM:HEX"),
    (Source("https://h/{1..2}", SHA), "belongs to one file"),
    (Source("s3://b/*", SHA), "belongs to one file"),
    (Source("s3://b/", size=5), "belongs to one file"),
    (Source("https://h/a", size=-1), "-1 bytes"),
    (Manifest("m.txt"), "scheme"),
    (Manifest("s3://b/m", format="xml"), "known: txt, csv, jsonl"),
    (Sql("lake"), "either table= or query="),
    (Sql("lake", table="t", query="q"), "either table= or query="),
    (Sql("", table="t"), "name the connection"),
    (Sql("lake", table="t", partition_on="id", partitions=0), "partitions=0"),
    (Sql("lake", table="t", partition_on="id", partitions=100_001), "100001"),
    (Sql("lake", query="q", partitions=2), "partition_on="),
    (Sql("lake", table="t", row_group_rows=0), "row_group_rows=0"),
    (Sql("lake", table="t", file_bytes=0), "file_bytes=0"),
    (Sql("lake", table="t", order_by="id"), "must be columns"),  # type: ignore[arg-type]
    (Sql("lake", table="t", order_by=(" ",)), "must be columns"),
    (Sql("lake", table="t", order_by=None), "must be columns"),  # type: ignore[arg-type]
    (Sql("lake", table="t", columns="id"), "must be columns"),  # type: ignore[arg-type]
    (Sql("lake", table="t", columns=("\ud800",)), "Unicode"),
    (Sql("lake", table=5), "must be text"),  # type: ignore[arg-type]
    (Sql("lake", table="t", where=" "), "where= is empty"),
    (Sql("lake", query="SELECT '\ud800'"), "query= is no Unicode"),
    (Sql("lake", table="\ud800"), "table= is no Unicode"),
    (Sql("lake", table="t", partitions="4"), "partitions='4' must be a whole number"),  # type: ignore[arg-type]
    (Sql("lake", table="t", partitions=2.5), "whole number"),  # type: ignore[arg-type]
    (Sql("lake", table="t", row_group_rows=1 << 64), "row_group_rows="),
    (Sql("lake", table="t", incremental_on="i", since=float("nan")), "since=nan"),
    (Sql("lake", table="t", incremental_on="i", since=[1]), "since=[1]"),
    (Source("https://h/{0..1}", mirrors=("https://m/a",)), "one file"),
    (Source("s3://b/*.tar", mirrors=("https://m/a",)), "one file"),
    (Source("https://h/a", mirrors=("https://m/{0..1}",)), "https://m/{0..1} is a range"),
    (Source("https://h/a", mirrors=("https://m/a", "s3://b/x/")), "s3://b/x/ is a range or pattern"),
    (Source("https://h/a", mirrors=("https://u:p@m/a",)), "password"),
    (Source("https://h/a", mirrors=("nonsense",)), "scheme"),
    (Source("https://h/a", mirrors=("nope://m/a",)), "'nope' is unknown"),
    (Source("https://h/a", mirrors="https://m/a"), "list of URIs"),  # type: ignore[arg-type]
    (Source("s3://b/a", version="v", mirrors=("https://m/a",)), "version="),
]


@pytest.mark.parametrize(("source", "reason"), REFUSED, ids=lambda value: str(value)[:60])
def test_refused_where_the_user_is(source: AnySource, reason: str) -> None:
    with pytest.raises(UsageError) as raised:
        check(source)
    assert reason in str(raised.value)


@pytest.mark.parametrize(
    "source",
    [
        Source("https://h/a", SHA, 0),
        Source("https://h/a?x=*&y=[1]"),
        Source("s3://b/a/**/*.tar"),
        Source("s3://b"),
        Source("file:///data/"),
        Source("memory://a"),
        Source("HTTPS://h/a"),
        Source("https://h/a", mirrors=("s3://b/a", "file:///data/a", "https://m/a?x=1")),
        SQL,
        Manifest("https://h/m", "csv"),
        Sql("lake", query="select 1", partition_on="id", partitions=100_000),
    ],
    ids=str,
)
def test_what_may_be(source: AnySource) -> None:
    check(source)


@given(st.text(max_size=30) | st.from_regex(r"\A(https|s3|file)://[a-z/{}.,*0-9]{0,20}\Z"))
def test_what_is_taken_can_be_cut(uri: str) -> None:
    try:
        check(Source(uri))
    except BadSource:
        return
    assert next(cut([Source(uri)], None)).index == 0


@given(st.from_regex(r"\A(https?|s3)://[a-z0-9.]{1,9}(:[0-9]{1,3})?/[!-~]{0,20}\Z") | st.text(max_size=30))
def test_a_plain_uri_means_what_its_source_means(uri: str) -> None:
    (item,) = as_sources(uri)
    if isinstance(item, str):
        check(Source(uri))
        assert not needs_origin(Source(uri))
        assert [*cut([uri], None)] == [*cut([Source(uri)], None)]


def test_a_plain_list_is_the_request_that_its_sources_are() -> None:
    uris = ["https://h/a", "s3://b/c/d.tar", "http://h:80/e~f"]
    assert as_sources(uris) == uris
    assert fingerprint(uris, {}) == fingerprint([Source(uri) for uri in uris], {})


@pytest.mark.parametrize("value", [0, -1, 0.0, float("nan")])
def test_a_limit_that_means_nothing(value: float) -> None:
    with pytest.raises(UsageError, match="timeout="):
        positive("timeout", value)
    positive("timeout", None)
    positive("timeout", 0.1)
