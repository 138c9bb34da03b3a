"""Which format a name means, the formats of lines, raw files, and the counts."""

from __future__ import annotations

import gzip
import json
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from ingest.dataset import formats
from ingest.dataset.formats import jsonl, raw, text
from ingest.errors import DataError, UsageError

LINES = b'{"n": 1}\n\n  \r\n{"n": 2}\r\n{"n": 3}'
ROWS = [{"n": 1}, {"n": 2}, {"n": 3}]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("https://host/a.tar?sig=x/y.parquet", "tar"),
        ("s3://b/A.TAR.GZ", "tar"),
        ("x.tgz", "tar"),
        ("a.b.parquet", "parquet"),
        ("k.pq", "parquet"),
        ("https://host/l%2Ejsonl", "jsonl"),
        ("l.ndjson.zst", "jsonl"),
        ("l.jsonl.gz", "jsonl"),
        ("t.csv", "csv"),
        ("t.tsv.zst", "csv"),
        ("t.feather", "arrow"),
        ("shard.00000.mds.zstd", "mds"),
        ("l.json", "raw"),
        ("l.txt", "raw"),
        ("tar", "raw"),
        ("[x.gz", "raw"),
        ("", "raw"),
    ],
)
def test_the_extension_of_the_readable_name_decides(name: str, found: str) -> None:
    assert formats.detect(name).name == found


def test_the_local_name_helps_where_the_source_has_none() -> None:
    assert formats.detect("sql://warehouse/samples", "samples-0.parquet").name == "parquet"


def test_an_unknown_format_names_those_there_are() -> None:
    with pytest.raises(UsageError, match="tar, parquet, jsonl, csv, arrow, mds, text, raw"):
        formats.by_name("xml")


def packed(name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(LINES[:10]) + gzip.compress(LINES[10:])
    if name.endswith(".zst"):
        compressor = zstandard.ZstdCompressor()
        return compressor.compress(LINES[:10]) + compressor.compress(LINES[10:])
    return LINES


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.ndjson.zst"])
def test_json_lines_plain_and_packed_also_in_several_frames(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(packed(name))
    assert list(formats.read(jsonl.FORMAT, path, "src")) == ROWS
    assert formats.count_samples(path) == 3


def test_a_gz_that_the_server_unpacked_is_read_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(LINES)
    assert list(formats.read(jsonl.FORMAT, path, "src")) == ROWS


def test_a_bad_line_names_file_source_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n\n{"n": \n{"n": 3}\n')
    samples = formats.read(jsonl.FORMAT, path, "https://host/a.jsonl")
    assert next(samples) == {"n": 1}
    with pytest.raises(DataError, match="line 3") as caught:
        next(samples)
    assert caught.value.path == str(path) and "https://host/a.jsonl" in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_packed_file_that_is_cut_off_is_an_error_and_no_count(tmp_path: Path, name: str) -> None:
    lines = "".join(json.dumps({"n": n, "text": f"{n * n * 7919:x}"}) + "\n" for n in range(20_000)).encode()
    whole = gzip.compress(lines) if name.endswith(".gz") else zstandard.ZstdCompressor().compress(lines)
    path = tmp_path / name
    path.write_bytes(whole[:-20])
    with pytest.raises(DataError, match="src"):
        list(formats.read(jsonl.FORMAT, path, "src"))
    assert formats.count_samples(path) is None
    path.write_bytes(whole)
    assert formats.count_samples(path) == 20_000


def test_counting_a_line_longer_than_its_buffer(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'"' + b"x" * (3 << 20) + b'"\n' + b" " * (2 << 20) + b"\n1")
    assert formats.count_samples(path) == 2 == len(list(formats.read(jsonl.FORMAT, path, "src")))


def test_blank_lines_have_no_number_and_do_not_shift_that_of_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"".join(b" \n" * (n % 3) + b"%d\n" % n for n in range(4000)) + b"\n{\n\n7")
    with closing(jsonl.open_jsonl(path, "src")) as samples:
        assert len(samples) == 4002 == formats.count_samples(path)
        assert list(samples.take([4001, 0, 2500])) == [7, 0, 2500]
        with pytest.raises(DataError, match="line 8001:"):
            list(samples.take([4000]))
        assert list(samples.take(range(3999, 4000))) == [3999]


def test_lines_longer_than_what_is_read_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    long = b'"' + b"x" * (3 << 20) + b'"'
    path.write_bytes(b"\n".join([b"1", long, b" " * (2 << 20), b"2", long]))
    assert [len(str(sample)) for sample in formats.read(jsonl.FORMAT, path, "src")] == [1, 3 << 20, 1, 3 << 20]
    assert formats.count_samples(path) == 4


@pytest.mark.parametrize("name", ["a.txt", "a.txt.gz", "a.txt.zst"])
def test_text_is_a_line_a_sample_where_it_is_asked_for(tmp_path: Path, name: str) -> None:
    lines = "one\r\n\n  \ntwo\u2028\x0b\rü".encode()
    path = tmp_path / name
    pack = {".txt": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[path.suffix]
    path.write_bytes(pack(lines))
    assert list(formats.read(formats.by_name("text"), path, "src")) == ["one", "", "  ", "two\u2028\x0b\rü"]
    assert text.FORMAT.count(path) == 4
    path.write_bytes(pack(lines + b"\n"))
    assert text.FORMAT.count(path) == 4 == len(list(formats.read(text.FORMAT, path, "src")))


def test_text_that_is_not_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"one\n\n\xfc\nthree")
    with closing(text.open_text(path, "https://host/a.txt")) as samples:
        with pytest.raises(DataError, match=r"https://host/a\.txt: line 3: .*utf-8"):
            list(samples.take(range(4)))
        assert list(samples.take([3])) == ["three"]


def test_raw_gives_path_and_bytes_and_no_count(tmp_path: Path) -> None:
    path = tmp_path / "cat.v1.jpg"
    path.write_bytes(b"\xff\xd8")
    (sample,) = formats.read(raw.FORMAT, path, "https://host/cat.v1.jpg")
    assert sample == {"__key__": "cat", "__url__": "https://host/cat.v1.jpg", "path": str(path), "bytes": b"\xff\xd8"}
    assert formats.count_samples(path) is None and raw.FORMAT.count(path) == 1


@pytest.mark.parametrize(
    "name", ["gone.tar", "gone.parquet", "gone.jsonl", "gone.csv", "gone.arrow", "gone.mds", "gone.bin"]
)
def test_counting_what_is_not_there_raises_nothing(tmp_path: Path, name: str) -> None:
    assert formats.count_samples(tmp_path / name) is None


def test_columns_of_a_file_without_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    with pytest.raises(UsageError, match="columns="):
        list(formats.read(jsonl.FORMAT, path, "src", ["n"]))


def test_what_is_taken_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    with closing(jsonl.open_jsonl(path, "src")) as samples:
        for numbers in ([3], [-1], range(1, 4), [0, 1, 2, 3]):
            with pytest.raises(IndexError, match="of 3"):
                list(samples.take(numbers))
