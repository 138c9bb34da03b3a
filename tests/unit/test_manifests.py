"""Manifests as files: every format, what is refused and where, going on in the middle, flat memory."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import BadResponse
from ingest.manifests import Reading
from ingest.manifests.marks import Marks
from ingest.model import FileSpec
from ingest.sources import Manifest

HEX = {length: f"{7:0{length}x}" for length in (32, 40, 64, 96, 128)}


def read(path: Path, after: tuple[int, int] | None = None, **columns: Any) -> tuple[list[FileSpec], dict[int, str]]:
    """The files that a manifest lists, and why which rows are none."""
    bad: dict[int, str] = {}
    source = Manifest("https://h/list", **columns)
    specs = list(Reading(path, source).specs(lambda row, error: bad.__setitem__(row, str(error)), after))
    return specs, bad


def places(path: Path, **columns: Any) -> list[tuple[int, str]]:
    specs, bad = read(path, **columns)
    assert not bad
    return [(spec.part, spec.uri) for spec in specs]


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, str | bytes], Path]:
    def make(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return make


Put = Callable[[str, str | bytes], Path]


class TestFormats:
    def test_txt_is_a_uri_a_line_with_comments_and_any_line_end(self, put: Put) -> None:
        path = put("l.txt", "\ufeff# all of it\n\nhttps://h/a\r\n  s3://b/k \nfile:///x/ü")
        assert places(path) == [(3, "https://h/a"), (4, "s3://b/k"), (5, "file:///x/ü")]

    def test_csv_with_a_bom_quotes_and_line_ends_in_values(self, put: Put) -> None:
        body = '\ufeffcaption,uri\r\n"two\nlines, ""quoted""",https://h/a\r\n\r\nplain,"https://h/b,c"\r\n'
        specs, bad = read(put("l.csv", body), metadata=("caption",))
        assert not bad and [(s.part, s.uri) for s in specs] == [(2, "https://h/a"), (4, "https://h/b,c")]
        assert specs[0].metadata == {"caption": 'two\nlines, "quoted"'}

    @pytest.mark.parametrize("name", ["l.tsv", "l.tab"])
    def test_tsv(self, put: Put, name: str) -> None:
        assert places(put(name, "uri\tsize\nhttps://h/a,b\t5\n")) == [(2, "https://h/a,b")]

    def test_jsonl_with_blank_lines(self, put: Put) -> None:
        path = put("l.ndjson", '{"uri": "https://h/\\u00fc", "size": 3}\n\n \n{"uri": "https://h/b", "size": null}')
        assert places(path) == [(1, "https://h/ü"), (4, "https://h/b")]

    def test_parquet_by_row_group_and_only_the_columns_that_are_asked_for(self, tmp_path: Path) -> None:
        path = tmp_path / "l.parquet"
        rows = 25
        table = pa.table({
            "url": pa.array([f"https://h/{n}".encode() for n in range(rows)]),
            "hash": [HEX[32]] * rows,
            "bytes": pa.array([float(n) if n % 2 else None for n in range(rows)]),
            "id": list(range(rows)),
            "caption": pa.array(["eins"] * rows).dictionary_encode(),
            "junk": [b"\x00" * 100] * rows,
        })  # fmt: skip
        pq.write_table(table, path, row_group_size=10)
        names = {"uri_column": "url", "digest_column": "hash", "size_column": "bytes", "key_column": "id"}
        specs, bad = read(path, **names, metadata=("caption",))
        assert not bad and [(s.part, s.uri, s.key) for s in specs] == [
            (n + 1, f"https://h/{n}", str(n)) for n in range(rows)
        ]
        assert (
            specs[1] == FileSpec(0, 2, "https://h/1", f"md5:{HEX[32]}", 1, key="1", metadata={"caption": "eins"})
            and specs[2].size is None
        )

    def test_parquet_is_known_by_its_first_bytes_and_a_format_beats_the_name(self, tmp_path: Path, put: Put) -> None:
        pq.write_table(pa.table({"uri": ["https://h/a"]}), tmp_path / "download")
        assert places(tmp_path / "download") == [(1, "https://h/a")]
        assert places(put("l.csv", "https://h/a\n"), format="txt") == [(1, "https://h/a")]

    @pytest.mark.parametrize("name", ["l.csv.gz", "l.csv.zst", "l.csv"])
    def test_packed_is_told_by_the_bytes_not_by_the_name(self, put: Put, name: str) -> None:
        body = b"uri\nhttps://h/a\n"
        for packed in (gzip.compress(body) * 1, zstandard.ZstdCompressor().compress(body), body):
            assert places(put(name, packed)) == [(2, "https://h/a")]

    def test_packed_in_several_members(self, put: Put) -> None:
        halves = (b'{"uri": "https://h/a"}\n{"uri": "htt', b'ps://h/b"}\n')
        for pack in (gzip.compress, zstandard.ZstdCompressor().compress):
            path = put("l.jsonl.gz", b"".join(pack(half) for half in halves))
            assert places(path) == [(1, "https://h/a"), (2, "https://h/b")]


class TestValues:
    @pytest.mark.parametrize(
        ("written", "means"),
        [
            (f"sha256:{HEX[64].upper()}", f"sha256:{HEX[64]}"),
            (f"blake3:{HEX[64]}", f"blake3:{HEX[64]}"),
            (HEX[32], f"md5:{HEX[32]}"),
            (HEX[40].upper(), f"sha1:{HEX[40]}"),
            (f" {HEX[64]} ", f"sha256:{HEX[64]}"),
            (HEX[96], f"sha384:{HEX[96]}"),
            (HEX[128], f"sha512:{HEX[128]}"),
            ("", None),
        ],
    )
    def test_a_digest_with_and_without_its_algorithm(self, put: Put, written: str, means: str | None) -> None:
        (spec,), bad = read(put("l.csv", f"uri,digest\nhttps://h/a,{written}\n"))
        assert spec.digest == means and not bad

    @pytest.mark.parametrize(("column", "length"), [("blake3", 64), ("SHA-256", 64), ("md5", 32), ("blake2b", 128)])
    def test_a_digest_by_the_name_of_its_column(self, put: Put, column: str, length: int) -> None:
        (spec,), bad = read(put("l.csv", f"uri,{column}\nhttps://h/a,{HEX[length]}\n"), digest_column=column)
        assert spec.digest == f"{column.lower().replace('-', '')}:{HEX[length]}" and not bad

    @pytest.mark.parametrize("digest", ["abcd", "zz" * 32, f"sha256:{HEX[32]}", "deadbeef", "crc32:deadbeef"])
    def test_a_digest_that_cannot_be_right_fails_its_row(self, put: Put, digest: str) -> None:
        specs, bad = read(put("l.csv", f"uri,digest\nhttps://h/a,{digest}\nhttps://h/b,\n"))
        assert [s.uri for s in specs] == ["https://h/b"] and list(bad) == [2] and "digest" in bad[2]

    @pytest.mark.parametrize(
        ("written", "means"),
        [
            ("10", 10),
            ("10.0", 10),
            ("1e3", 1000),
            (" 7 ", 7),
            ("0", 0),
            ("nan", None),
            ("", None),
            (f"{5 << 40}", 5 << 40),
        ],
    )
    def test_a_size_however_it_is_written(self, put: Put, written: str, means: int | None) -> None:
        (spec,), bad = read(put("l.csv", f"uri,size\nhttps://h/a,{written}\n"))
        assert spec.size == means and not bad

    @pytest.mark.parametrize("size", ["-1", "1.5", "ten", "1e999999999", "Infinity", str(1 << 70), "true"])
    def test_a_size_that_cannot_be(self, put: Put, size: str) -> None:
        specs, bad = read(put("l.csv", f"uri,size\nhttps://h/a,{size}\n"))
        assert not specs and "size" in bad[2]

    def test_sizes_and_keys_of_json_and_numbers_that_are_none(self, put: Put) -> None:
        rows = [{"size": 3, "key": 7}, {"size": 3.0}, {"size": float("nan"), "key": ""}, {"size": True}, {"size": [1]}]
        path = put("l.jsonl", "\n".join(json.dumps({"uri": "https://h/a", **row}) for row in rows))
        specs, bad = read(path)
        assert [(s.size, s.key) for s in specs] == [(3, "7"), (3, None), (None, None)] and list(bad) == [4, 5]

    def test_metadata_is_handed_on_as_json_has_it(self, put: Put) -> None:
        row = {"uri": "https://h/a", "a": [1, {"b": None}], "c": "ü", "d": float("inf"), "e": 1.5}
        (spec,), bad = read(put("l.jsonl", json.dumps(row)), metadata=("a", "c", "d", "e"))
        assert not bad and spec.metadata == {"a": [1, {"b": None}], "c": "ü", "d": None, "e": 1.5}
        assert FileSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec

    def test_times_and_decimals_of_parquet_become_text_and_bytes_are_refused(self, tmp_path: Path) -> None:
        table = pa.table({
            "uri": ["https://h/a"],
            "at": pa.array([0], pa.timestamp("us", "UTC")),
            "price": pa.array(["1.10"]).cast(pa.decimal128(9, 2)),
            "blob": [b"\xff"],
        })  # fmt: skip
        pq.write_table(table, tmp_path / "l.parquet")
        (spec,), _ = read(tmp_path / "l.parquet", metadata=("at", "price"))
        assert spec.metadata == {"at": "1970-01-01T00:00:00+00:00", "price": "1.10"}
        specs, bad = read(tmp_path / "l.parquet", metadata=("blob",))
        assert not specs and "'blob' holds bytes" in bad[1]


class TestBadRows:
    @pytest.mark.parametrize("uri", ["h/a", "https://me:secret@h/a", "https://h/a\x00", "https://", "s3:///k", "\x1b"])
    def test_a_uri_that_cannot_be_right_fails_alone(self, put: Put, uri: str) -> None:
        specs, bad = read(put("l.txt", f"https://h/1\n{uri}\nhttps://h/3\n"))
        assert [s.part for s in specs] == [1, 3] and list(bad) == [2] and "secret" not in bad[2]

    def test_what_is_not_utf8_fails_alone(self, put: Put) -> None:
        specs, bad = read(put("l.txt", b"https://h/1\nhttps://h/\xfc\nhttps://h/\xc3\xbc\n"))
        assert [s.uri for s in specs] == ["https://h/1", "https://h/ü"] and bad == {2: "it is not UTF-8 text"}
        specs, bad = read(put("l.jsonl", '{"uri": "https://h/\\udcfc"}\n{"uri": "https://h/1"}\n'))
        assert [s.part for s in specs] == [2] and bad == {1: "it is not UTF-8 text"}

    @pytest.mark.parametrize(
        ("row", "why"),
        [("https://h/a,b,c", "3 values under 2 columns"), ("https://h/a", "1 values under 2"), ('"a"b,c', "csv row")],
    )
    def test_a_csv_row_of_another_length_fails_alone(self, put: Put, row: str, why: str) -> None:
        specs, bad = read(put("l.csv", f"uri,size\nhttps://h/1,1\n{row}\nhttps://h/3,3\n"))
        assert [s.part for s in specs] == [2, 4] and why in bad[3]

    def test_a_quote_that_is_not_closed_swallows_nothing_silently(self, put: Put) -> None:
        specs, bad = read(put("l.csv", 'uri,note\nhttps://h/1,"open\nhttps://h/2,b\nhttps://h/3,c\n'))
        assert not specs and list(bad) == [2] and "unexpected end of data" in bad[2]

    @pytest.mark.parametrize("row", ['{"uri": "http', "[1]", "null", '"x"', "{} {}", "[" * 100_000, '{"uri": 5}', "{}"])
    def test_a_json_line_that_is_no_source_fails_alone(self, put: Put, row: str) -> None:
        specs, bad = read(put("l.jsonl", f'{{"uri": "https://h/1"}}\n{row}\n{{"uri": "https://h/3"}}\n'))
        assert [s.part for s in specs] == [1, 3] and list(bad) == [2]

    def test_a_json_line_without_a_column_that_was_named(self, put: Put) -> None:
        path = put("l.jsonl", '{"uri": "https://h/1", "sha256": null}\n{"uri": "https://h/2", "sha": "x"}\n')
        specs, bad = read(path, digest_column="sha256")
        assert [s.part for s in specs] == [1] and bad[2] == "no column 'sha256'; its columns: 'uri', 'sha'"


class TestNoManifest:
    @pytest.mark.parametrize(
        ("name", "content", "why"),
        [
            ("l.txt", "\ufeffhttps://h/a\n".encode("utf-16-le"), "UTF-16"),
            ("l.txt", b"x" * (2 << 20), "a line is longer than 1048576 bytes"),
            ("l.jsonl", b"[" + b"1," * (1 << 20), "a line is longer than"),
            (
                "l.csv",
                b"url,caption\nhttps://h/a,x\n",
                "no column 'uri'; its columns: 'url', 'caption'; name the column",
            ),
            ("l.csv", b"uri,size,uri\nhttps://h/a,1,b\n", "'uri' is there 2 times"),
            ("l.csv", b'"uri"x\n', "not a readable csv manifest"),
            ("l.csv.gz", gzip.compress(b"uri\nhttps://h/a\n" * 1000)[:-20], "not a readable csv manifest"),
            ("l.csv.gz", gzip.compress(b"uri\nhttps://h/a\n")[:-6] + b"\0" * 6, "not a readable csv manifest"),
            ("l.jsonl.zst", zstandard.ZstdCompressor().compress(b"{}\n" * 1000)[:-3], "not a readable jsonl manifest"),
            ("l.parquet", b"PAR1 but not really PAR1", "not a readable parquet manifest"),
        ],
        ids=lambda value: value if isinstance(value, str) else "",
    )
    def test_is_said_as_a_whole(self, put: Put, name: str, content: bytes, why: str) -> None:
        with pytest.raises(BadResponse) as caught:
            read(put(name, content))
        assert why in caught.value.reason

    def test_columns_of_parquet(self, tmp_path: Path) -> None:
        path = tmp_path / "l.parquet"
        pq.write_table(pa.table({"uri": [1, 2], "b": ["x", "y"]}), path)
        for columns, why in (({}, "is int64"), ({"uri_column": "url"}, "its columns: 'uri', 'b'"),
                             ({"uri_column": "b", "metadata": ("c",)}, "no column 'c'")):  # fmt: skip
            with pytest.raises(BadResponse, match=why):
                read(path, **columns)
        pq.write_table(pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["uri", "uri"]), path)
        with pytest.raises(BadResponse, match="there 2 times"):
            read(path)

    def test_metadata_of_a_txt(self, put: Put) -> None:
        with pytest.raises(BadResponse, match="has no columns"):
            read(put("l.txt", "https://h/a\n"), metadata=("caption",))

    def test_other_compression_is_no_text(self, put: Put) -> None:
        specs, bad = read(put("l.txt", bz2.compress(b"https://h/a\n" * 5)))
        assert not specs and bad

    def test_an_empty_one_lists_nothing(self, put: Put) -> None:
        for name in ("l.txt", "l.csv", "l.jsonl"):
            assert read(put(name, b"")) == ([], {})
        assert read(put("l.csv", b"uri\n")) == ([], {})


# -- going on in the middle ------------------------------------------------------------------------------------------


def made(path: Path, kind: str, rows: int) -> Path:
    values = [(f"https://h/{n}/{'x' * (n % 60 * 400)}", f"a\n{n}" if n % 3 else "b") for n in range(rows)]
    if kind == "parquet":
        columns = {"uri": [uri for uri, _ in values], "note": [note for _, note in values]}
        pq.write_table(pa.table(columns), path, row_group_size=7)
        return path
    if kind == "txt":
        body = "".join(f"{uri}\r\n" + "# more\n" * (n % 4 == 0) for n, (uri, _) in enumerate(values))
    elif kind == "jsonl":
        body = "\n".join(json.dumps({"uri": uri, "note": note}) for uri, note in values)
    else:
        out = io.StringIO()
        csv.writer(out).writerows([("note", "uri"), *((note, uri) for uri, note in values)])
        body = "\ufeff" + out.getvalue()
    data = body.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    if path.suffix == ".zst":
        path.write_bytes(zstandard.ZstdCompressor().compress(data))
    return path


@pytest.mark.parametrize("name", ["l.txt", "l.csv", "l.jsonl", "l.parquet", "l.csv.gz", "l.jsonl.zst"])
def test_going_on_behind_any_row_gives_the_rest_of_the_rows(tmp_path: Path, name: str) -> None:
    """Lines of up to 24 kB, so that there are several blocks."""
    path = made(tmp_path / name, name.split(".")[1], 200)
    whole, _ = read(path)
    assert len(whole) == 200
    offsets = set()
    for stop in range(0, 200, 7):
        reading = Reading(path, Manifest("https://h/list"))
        specs = reading.specs(no_bad)
        for _ in range(stop + 2):  # planners read one row ahead
            next(specs, None)
        mark = reading.mark(whole[stop].part)
        specs.close()  # type: ignore[attr-defined]
        if mark is not None:
            assert mark[0] <= whole[stop].part
            offsets.add(mark[1])
        rest, _ = read(path, after=mark)
        assert [s for s in rest if s.part > whole[stop].part] == whole[stop + 1 :]
    assert len(offsets) > 1, "it goes on near where it stopped"


def no_bad(row: int, error: Exception) -> None:
    raise AssertionError(f"{row}: {error}")


@given(st.lists(st.integers(1, 5), max_size=20), st.lists(st.integers(0, 60), max_size=20))
def test_a_mark_is_the_last_one_not_behind_the_row(steps: list[int], asked: list[int]) -> None:
    marks, rows, all_of_them = Marks(), 0, []
    for step in steps:
        rows += step
        marks.add(rows, rows * 10)
        all_of_them.append((rows, rows * 10))
    for row in sorted(asked):
        assert marks.before(row) == max((m for m in all_of_them if m[0] <= row), default=None)


def test_a_long_list_is_read_in_flat_memory(tmp_path: Path) -> None:
    path = tmp_path / "l.csv.gz"
    with gzip.open(path, "wt", compresslevel=1) as out:
        out.write("uri,note\n")
        for n in range(100_000):
            out.write(f"https://h/{n:032d},{'note' * 20}\n")
    tracemalloc.start()
    try:
        count = sum(1 for _ in Reading(path, Manifest("https://h/list")).specs(no_bad))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count == 100_000 and peak < 8 << 20, f"{peak >> 20} MB for {path.stat().st_size >> 20} MB"


def test_all_of_a_real_list_once_and_in_order(tmp_path: Path) -> None:
    """Across many blocks of the real size."""
    digests = [hashlib.sha256(str(n).encode()).hexdigest() for n in range(20_000)]
    body = "uri,digest\n" + "".join(f"https://h/{d},{d}\n" for d in digests)
    (tmp_path / "l.csv").write_text(body)
    specs, bad = read(tmp_path / "l.csv")
    assert not bad and [s.digest for s in specs] == [f"sha256:{d}" for d in digests]
    assert [s.part for s in specs] == list(range(2, 20_002))
