"""Which format a name means, the line and raw formats, Parquet, and the counts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from ingest.dataset import formats
from ingest.dataset.formats import jsonl, parquet, raw
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
        ("l.json", "raw"),
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
    with pytest.raises(UsageError, match="tar, parquet, jsonl, raw"):
        formats.by_name("csv")


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
    assert list(jsonl.read(path, "src")) == ROWS
    assert formats.count_samples(path) == 3


def test_a_gz_that_the_server_unpacked_is_read_all_the_same(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(LINES)
    assert list(jsonl.read(path, "src")) == ROWS


def test_a_bad_line_names_file_source_and_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n": 1}\n\n{"n": \n{"n": 3}\n')
    samples = jsonl.read(path, "https://host/a.jsonl")
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
        list(jsonl.read(path, "src"))
    assert formats.count_samples(path) is None
    path.write_bytes(whole)
    assert formats.count_samples(path) == 20_000


def test_counting_a_line_longer_than_its_buffer(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'"' + b"x" * (3 << 20) + b'"\n' + b" " * (2 << 20) + b"\n1")
    assert formats.count_samples(path) == 2 == len(list(jsonl.read(path, "src")))


def table(rows: int) -> pa.Table:
    return pa.table({"id": range(rows), "name": [f"n{n}" for n in range(rows)], "at": [{"x": n} for n in range(rows)]})


def test_parquet_reads_row_groups_in_order_and_counts_from_the_footer(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(5000), path, row_group_size=1500)
    rows = list(parquet.read(path, "src"))
    assert [row["id"] for row in rows] == list(range(5000))
    assert rows[7] == {"id": 7, "name": "n7", "at": {"x": 7}}
    assert formats.count_samples(path) == 5000


def test_parquet_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(3), path)
    assert list(parquet.read(path, "src", ["id", "at.x"]))[2] == {"id": 2, "at": {"x": 2}}
    with pytest.raises(DataError, match=r"column 'nope'.*at, id, name"):
        list(parquet.read(path, "src", ["nope"]))


def test_damaged_parquet_names_file_and_row_group(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(3000), path, row_group_size=1000, compression="zstd")
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content[start : start + 400] = b"\xff" * 400
    path.write_bytes(content)
    rows = parquet.read(path, "src")
    assert [next(rows)["id"] for _ in range(1000)] == list(range(1000))
    with pytest.raises(DataError, match="src: row group 1"):
        next(rows)
    path.write_bytes(content[:-9])
    with pytest.raises(DataError, match="footer"):
        next(parquet.read(path, "src"))
    assert formats.count_samples(path) is None


def test_raw_gives_path_and_bytes_and_no_count(tmp_path: Path) -> None:
    path = tmp_path / "cat.v1.jpg"
    path.write_bytes(b"\xff\xd8")
    (sample,) = raw.read(path, "https://host/cat.v1.jpg")
    assert sample == {"__key__": "cat", "__url__": "https://host/cat.v1.jpg", "path": str(path), "bytes": b"\xff\xd8"}
    assert formats.count_samples(path) is None


@pytest.mark.parametrize("name", ["gone.tar", "gone.parquet", "gone.jsonl", "gone.bin"])
def test_counting_what_is_not_there_raises_nothing(tmp_path: Path, name: str) -> None:
    assert formats.count_samples(tmp_path / name) is None


def test_columns_of_a_file_without_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    with pytest.raises(UsageError, match="columns="):
        list(jsonl.read(path, "src", ["n"]))
