"""Parquet, Arrow and CSV: rows in any order, columns, damage, and memory that does not grow with a row group."""

from __future__ import annotations

import gzip
import tempfile
from contextlib import closing, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.dataset import formats
from ingest.dataset.formats import arrow, parquet, tables
from ingest.errors import DataError


def read(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    return list(formats.read(formats.detect(path.name), path, "src", columns))


def table(rows: int) -> pa.Table:
    return pa.table({"id": range(rows), "name": [f"n{n}" for n in range(rows)], "at": [{"x": n} for n in range(rows)]})


# -- values ------------------------------------------------------------------------------------------------------------

numbers = st.integers(-(2**31), 2**31 - 1)
KINDS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int32(), numbers),
    (pa.uint64(), st.integers(0, 2**64 - 1)),
    (pa.float32(), st.floats(width=32, allow_nan=False)),
    (pa.float64(), st.floats(allow_nan=False)),
    (pa.float16(), st.just(1.5)),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text()),
    (pa.large_binary(), st.binary()),
    (pa.string_view(), st.text()),
    (pa.dictionary(pa.int8(), pa.string()), st.sampled_from("abc")),
    (pa.list_(pa.int32()), st.lists(st.none() | numbers)),
    (pa.large_list(pa.list_(pa.string())), st.lists(st.none() | st.lists(st.text()))),
    (pa.list_(pa.float32(), 2), st.lists(st.just(0.5) | st.none(), min_size=2, max_size=2)),
    (pa.list_(pa.int8(), 0), st.just([])),
    (pa.struct({"a": pa.int8(), "b": pa.list_(pa.string())}), st.fixed_dictionaries({"a": st.just(1), "b": st.none()})),
    (pa.map_(pa.string(), pa.int8()), st.just([("k", 1)])),
    (pa.timestamp("us", "UTC"), st.just(datetime.fromisoformat("2024-01-02T03:04:05+00:00"))),
    (pa.decimal128(5, 2), st.just(1).map(lambda _: __import__("decimal").Decimal("1.25"))),
    (pa.date32(), st.just(datetime(2024, 1, 2).date())),
    (pa.null(), st.none()),
]


@settings(max_examples=40, derandomize=True, deadline=None)
@given(st.data())
def test_values_are_those_of_to_pylist(data: st.DataObject) -> None:
    kind, value = data.draw(st.sampled_from(KINDS))
    made = pa.array(data.draw(st.lists(value | st.none(), max_size=8)), kind)
    first = data.draw(st.integers(0, len(made)))
    part = made.slice(first, data.draw(st.integers(0, len(made) - first)))
    found, expected = tables.values(part), part.to_pylist()
    assert found == expected and [type(each) for each in found] == [type(each) for each in expected]
    assert repr(found) == repr(expected)


def test_text_under_a_null_need_not_be_text() -> None:
    ends = pa.array([0, 1, 3, 4], pa.int32()).buffers()[1]
    column = pa.StringArray.from_buffers(3, ends, pa.py_buffer(b"a\xff\xfeb"), pa.py_buffer(b"\x05"))
    assert tables.values(column) == ["a", None, "b"]


TEXTS = ["one", None, "three, which is longer than what a view holds by itself"]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(TEXTS, pa.string_view()),
        pa.array([[text] for text in TEXTS], pa.list_(pa.string_view())),
        pa.DictionaryArray.from_arrays(pa.array([0, 1, 2], pa.int8()), pa.array(TEXTS, pa.string_view())),
    ],
    ids=["view", "list", "dictionary"],
)
def test_what_arrow_cannot_take_rows_of(tmp_path: Path, column: pa.Array) -> None:
    """As it is with views of text, which Polars writes."""
    path = tmp_path / "a.arrow"
    with pa.ipc.new_file(path, pa.schema([("x", column.type)])) as writer:
        writer.write_batch(pa.record_batch([column], names=["x"]))
    with closing(formats.detect(path.name).open(path, "src", None)) as samples:
        assert [row["x"] for row in samples.take([2, 0, 1])] == [column.to_pylist()[n] for n in (2, 0, 1)]


# -- Parquet -----------------------------------------------------------------------------------------------------------


def test_parquet_reads_row_groups_in_order_and_counts_from_the_footer(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(5000), path, row_group_size=1500)
    rows = read(path)
    assert [row["id"] for row in rows] == list(range(5000))
    assert rows[7] == {"id": 7, "name": "n7", "at": {"x": 7}}
    assert formats.count_samples(path) == 5000


def test_parquet_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(3), path)
    assert read(path, ["id", "at.x"])[2] == {"id": 2, "at": {"x": 2}}
    assert read(path, []) == [{}, {}, {}]
    with pytest.raises(DataError, match=r"column 'nope'.*at, id, name"):
        read(path, ["nope"])


def test_damaged_parquet_names_file_and_row_group(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(3000), path, row_group_size=1000, compression="zstd")
    content = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(1).column(0).data_page_offset
    content[start : start + 400] = b"\xff" * 400
    path.write_bytes(content)
    with closing(parquet.Parquet(path, "src", None)) as samples:
        rows = samples.take(range(3000))
        assert [next(rows)["id"] for _ in range(1000)] == list(range(1000))
        with pytest.raises(DataError, match="src: row group 1"):
            next(rows)
        assert [row["id"] for row in samples.take([2999, 0])] == [2999, 0]
        with pytest.raises(DataError, match="src: row group 1"):
            list(samples.take([1500]))
    path.write_bytes(content[:-9])
    with pytest.raises(DataError, match="footer"):
        read(path)
    assert formats.count_samples(path) is None


def test_a_large_row_group_is_never_held_as_a_whole(tmp_path: Path) -> None:
    """80 MB decoded, which zstd makes small: read forwards it is held in part, read in any order it is on disk."""
    path = tmp_path / "a.parquet"
    made = pa.table({"n": range(80), "text": [f"{n}" * 500_000 for n in range(80)]})
    # Pages of two rows: a page is the least that can be decoded, and the writer makes them of 1024 rows otherwise.
    pq.write_table(made, path, row_group_size=80, compression="zstd", use_dictionary=False, write_batch_size=2)
    del made
    pa.default_memory_pool().release_unused()
    before = pa.total_allocated_bytes()
    with closing(parquet.Parquet(path, "src", None)) as samples:
        for n, row in enumerate(samples.take(range(80))):
            assert row == {"n": n, "text": f"{n}" * 500_000}
            assert pa.total_allocated_bytes() - before < 48 << 20
        for n in (3, 79, 3, 0, 41):
            (row,) = samples.take([n])
            assert row == {"n": n, "text": f"{n}" * 500_000}
            assert pa.total_allocated_bytes() - before < 48 << 20


def test_a_name_that_two_columns_have(tmp_path: Path) -> None:
    made = pa.table([[1], [2], [3]], names=["a", "b", "a"])
    path, ipc = tmp_path / "a.parquet", tmp_path / "a.arrow"
    pq.write_table(made, path)
    pa.feather.write_feather(made, ipc)
    for each in (path, ipc):
        with pytest.raises(DataError, match="column 'a': is there 2 times"):
            read(each)
        assert read(each, ["b"]) == [{"b": 2}]


# -- Arrow -------------------------------------------------------------------------------------------------------------


def write_arrow(path: Path, made: pa.Table, stream: bool, compression: str | None, rows: int = 700) -> Path:
    options = pa.ipc.IpcWriteOptions(compression=compression, emit_dictionary_deltas=stream)
    new = pa.ipc.new_stream if stream else pa.ipc.new_file
    with new(path, made.schema, options=options) as writer:
        writer.write_table(made, max_chunksize=rows)
    return path


@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
@pytest.mark.parametrize("stream", [False, True])
def test_arrow_files_and_streams(tmp_path: Path, stream: bool, compression: str | None) -> None:
    made = table(3000).append_column("kind", pa.array(["p", None, "q"] * 1000).dictionary_encode())
    path = write_arrow(tmp_path / "a.arrow", made, stream, compression)
    expected = made.to_pylist()
    assert read(path) == expected and formats.count_samples(path) == 3000
    with closing(arrow.Arrow(path, "src", ["kind", "id"])) as samples:
        picked = [2999, 0, 700, 699, 0]
        assert list(samples.take(picked)) == [{"id": expected[n]["id"], "kind": expected[n]["kind"]} for n in picked]
    assert read(path, [])[:2] == [{}, {}]
    with pytest.raises(DataError, match=r"column 'nope': not there; it has at, id, kind, name"):
        read(path, ["nope"])


@pytest.mark.parametrize("stream", [False, True])
def test_an_arrow_file_without_rows(tmp_path: Path, stream: bool) -> None:
    path = write_arrow(tmp_path / "a.arrow", table(0), stream, None)
    assert read(path) == [] and formats.count_samples(path) == 0


@pytest.mark.parametrize("content", [b"", b"<html>404</html>" * 9, b"ARROW1\0\0" + b"x" * 100])
def test_what_is_no_arrow(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.arrow"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.arrow: src: "):
        read(path)
    assert formats.count_samples(path) is None


@pytest.mark.parametrize("compression", [None, "lz4"])
@pytest.mark.parametrize("stream", [False, True])
def test_damaged_arrow_is_an_error_and_no_crash(tmp_path: Path, stream: bool, compression: str | None) -> None:
    """Bytes that are not there, and each hundredth byte turned round: an error or other values, never a crash."""
    path = write_arrow(tmp_path / "a.arrow", table(300), stream, compression, 100)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"a\.arrow: src: "):
        read(path)
    for at in range(8, len(whole), 101):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
        with suppress(DataError):
            read(path)


def test_a_large_compressed_batch_is_not_held(tmp_path: Path) -> None:
    made = pa.table({"n": range(90), "text": [f"{n}" * 500_000 for n in range(90)]})
    path = write_arrow(tmp_path / "a.arrow", made, False, "zstd", 90)
    del made
    before = pa.total_allocated_bytes()
    with closing(arrow.Arrow(path, "src", None)) as samples:
        for n in (3, 89, 3, 0):
            assert list(samples.take([n])) == [{"n": n, "text": f"{n}" * 500_000}]
            assert pa.total_allocated_bytes() - before < 8 << 20


# -- CSV ---------------------------------------------------------------------------------------------------------------

CSV = 'id,"the name",x\r\n1,"a\nb",1.5\r\n\r\n2,,\r\n3,"d,""e""",2\r\n'
ROWS = [
    {"id": 1, "the name": "a\nb", "x": 1.5},
    {"id": 2, "the name": "", "x": None},
    {"id": 3, "the name": 'd,"e"', "x": 2.0},
]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.csv.zst", "a.tsv", "a.TSV.gz"])
def test_csv_by_its_header(tmp_path: Path, name: str) -> None:
    content = CSV.replace('"d,', '"d;').replace(",", "\t").replace('"d;', '"d,') if "tsv" in name.lower() else CSV
    pack = {"gz": gzip.compress, "zst": zstandard.ZstdCompressor().compress}.get(name.rpartition(".")[2], bytes)
    path = tmp_path / name
    path.write_bytes(pack(content.encode()))
    assert read(path) == ROWS and formats.count_samples(path) == 3
    assert read(path, ["x", "id"]) == [{"id": row["id"], "x": row["x"]} for row in ROWS]
    assert read(path, []) == [{}, {}, {}]
    with pytest.raises(DataError, match=r"column 'nope': not there; it has id, the name, x"):
        read(path, ["nope"])


@pytest.mark.parametrize(
    ("content", "reason", "count"),
    [
        (b"", "its header or first block: Empty CSV", None),
        (b"a,a\n1,2\n", "column 'a': is there 2 times", 1),
        (b"a,b\n1\n", "Expected 2 columns, got 1", None),
        ("ä,b\n1,ß\n".encode("latin-1"), "its header: 'utf-8'", 1),
        ("a,b\n1,ß\n".encode("latin-1"), "column 'b': it is not UTF-8", 1),
    ],
)
def test_what_is_no_csv(tmp_path: Path, content: bytes, reason: str, count: int | None) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.csv: src: .*{reason}"):
        read(path)
    assert formats.count_samples(path) == count


def test_types_come_from_the_first_block(tmp_path: Path) -> None:
    """A later value that is of another is named; a column that was empty till then is text."""
    path = tmp_path / "a.csv.gz"
    rows = "".join(f"{n},,{'z' * 1000}\n" for n in range(9000))
    path.write_bytes(gzip.compress(f"id,later,text\n{rows}9000,7,x\n".encode(), 1))
    samples = read(path)
    assert (samples[-1], samples[0]["later"]) == ({"id": 9000, "later": "7", "text": "x"}, "")
    path.write_bytes(gzip.compress(f"id,later,text\n{rows}9000,7,x\nnine,,\n".encode(), 1))
    with pytest.raises(DataError, match=r"src: its rows: In column 'id': .*invalid value 'nine'"):
        read(path)
    assert formats.count_samples(path) == 9002


@pytest.mark.parametrize("before", [0, 400_000])
def test_a_row_longer_than_a_block(tmp_path: Path, before: int) -> None:
    path = tmp_path / "a.csv.gz"
    long = '"' + "x\n" * (2 << 20) + '"'
    path.write_bytes(gzip.compress(("a,b\n" + "1,\n" * before + f"2,{long}\n3,y\n").encode(), 1))
    assert formats.count_samples(path) == before + 2
    with closing(formats.open_samples(formats.by_name("csv"), path, "src")) as samples:
        found = list(samples.take([before, before + 1]))
    assert [(row["a"], len(row["b"])) for row in found] == [(2, 4 << 20), (3, 1)]


def test_a_header_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"a,b\n")
    assert read(path) == [] and formats.count_samples(path) == 0


def test_the_rows_of_a_csv_have_no_name_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(CSV)
    before = set(Path(tempfile.gettempdir()).iterdir())
    with closing(formats.open_samples(formats.by_name("csv"), path, "src")) as samples:
        assert not {p for p in set(Path(tempfile.gettempdir()).iterdir()) - before if "ingest" in p.name}
        assert list(samples.take([2, 0])) == [ROWS[2], ROWS[0]]
