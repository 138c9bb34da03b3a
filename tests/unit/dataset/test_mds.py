"""MDS, held against shards that MosaicML's own writer made: see data/README.md."""

from __future__ import annotations

import json
import struct
from contextlib import closing
from decimal import Decimal
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy
import pytest

from ingest.dataset import formats
from ingest.dataset.formats import decoders, mds
from ingest.errors import DataError

DATA = Path(__file__).parent / "data"
EVERY = DATA / "every.mds"
NUMBERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
TEXTS = [{"id": n, "text": f"text {n}"} for n in range(5)]


def read(path: Path, columns: list[str] | None = None) -> list[dict[str, Any]]:
    return list(formats.read(formats.detect(path.name), path, "src", columns))


def test_values_of_every_encoding() -> None:
    for n, sample in enumerate(read(EVERY)):
        assert sample["bytes"] == bytes([n]) * n and sample["str"] == "ü" * n and sample["json"] == {"n": [n, None]}
        assert (sample["int"], sample["big"], sample["float"]) == (-n, 10**30 + n, n / 3)
        assert isinstance(sample["decimal"], Decimal) and str(sample["decimal"]) == f"{n}.50"
        for name in NUMBERS:
            assert sample[name] == n + 1 and sample[name].dtype == name


def test_arrays_with_and_without_a_dtype_and_a_shape() -> None:
    for n, sample in enumerate(read(EVERY, ["any", "typed", "shaped"])):
        assert list(sample) == ["any", "shaped", "typed"]
        expected = {
            "any": numpy.arange(301.0) if n == 1 else numpy.full((n + 1, 2), n, "uint8"),
            "typed": numpy.full((2, n + 1), -n, "int16"),
            "shaped": numpy.full((2, 3), n + 0.5, "float32"),
        }
        for name, array in expected.items():
            assert sample[name].dtype == array.dtype and numpy.array_equal(sample[name], array)
            assert sample[name].flags.writeable


def test_images_are_bytes_until_they_are_decoded() -> None:
    names = ["jpeg", "png", "pil", "jpegs", "pngs", "pils", "array"]
    table = decoders.table(True)
    with closing(mds.open_mds(EVERY, "src", names)) as samples:
        for n, sample in enumerate(samples.take(range(3))):
            assert sample["jpeg"].startswith(b"\xff\xd8") and sample["png"].startswith(b"\x89PNG")
            assert [len(sample[name]) for name in ("jpegs", "pngs", "pils", "array")] == [n, n, n, n + 1]
            decoders.apply(table, samples, n, sample)
            assert (sample["jpeg"].size, sample["jpeg"].mode) == ((3, 2), "RGB")
            assert sample["png"].getpixel((1, 1)) == sample["pil"].getpixel((1, 1)) == (7, 7, 7)
            for name, size in (("jpegs", (3, 2)), ("pngs", (2, 2)), ("pils", (3, 2)), ("array", (3, 2))):
                assert all((each.size, each.mode) == (size, "RGB") for each in sample[name])


@pytest.mark.parametrize("name", ["text.mds.zstd", "text.mds.gz"])
def test_packed_shards(name: str) -> None:
    assert read(DATA / name) == TEXTS
    assert formats.count_samples(DATA / name) == 5
    assert read(DATA / name, ["id"]) == [{"id": row["id"]} for row in TEXTS]


def test_columns_that_are_not_there_and_pickles() -> None:
    with pytest.raises(DataError, match=r"src: column 'nope': not there; it has id, text"):
        read(DATA / "text.mds.gz", ["nope"])
    with pytest.raises(DataError, match=r"pickled\.mds: src: column 'thing': it is pickled.*columns="):
        read(DATA / "pickled.mds")
    assert read(DATA / "pickled.mds", ["id"]) == [{"id": 0}, {"id": 1}]
    assert formats.count_samples(DATA / "pickled.mds") == 2


def shard(samples: list[bytes], **config: Any) -> bytes:
    described = {"version": 2, "format": "mds", "column_names": ["x"], "column_encodings": ["str"]}
    head = json.dumps({**described, "column_sizes": [None], **config}).encode()
    offsets = list(accumulate(map(len, samples), initial=4 + 4 * (len(samples) + 1) + len(head)))
    return struct.pack(f"<{len(offsets) + 1}I", len(samples), *offsets) + head + b"".join(samples)


ONE = [struct.pack("<I", 2) + b"ab"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "its head: no MDS file"),
        (b"<html>404</html>", "its head: no MDS file"),
        (shard(ONE * 9)[:30], "its head: no MDS file"),
        (shard(ONE)[:-1], "its head: cut off"),
        (shard(ONE, version=3), "description of the columns: version 3"),
        (shard(ONE, column_names="y"), "description of the columns"),
        (shard(ONE, column_encodings=["str", "int"]), "description of the columns"),
        (shard(ONE, column_sizes=["x"]), "description of the columns: sizes"),
        (shard(ONE, column_encodings=["what"]), "column 'x': encoding 'what' is unknown; known are"),
        (shard(ONE, column_encodings=["ndarray:object"]), "column 'x': arrays of 'object'"),
        (shard([*ONE, b"\2\0\0\0abc"]), "sample 1, column 'x': its columns take 6 bytes, and it has 7"),
        (shard([*ONE, b"\2\0\0\0a"]), "sample 1, column 'x': its columns take 6 bytes, and it has 5"),
        (shard([*ONE, b"\2\0"]), "sample 1: unpack"),
        (shard([b"\1\0\0\0\xff"]), "sample 0, column 'x': 'utf-8' codec"),
        (shard([b"\3\0\0\0\x63\0\0"], column_encodings=["ndarray"]), "sample 0, column 'x': an array of the unknown"),
        (shard([b"\3\0\0\0\x08\x04\x02"], column_encodings=["ndarray"]), "column 'x': 0 bytes for an array of uint8"),
        (shard([b"\1\0\0\0a"], column_encodings=["str_decimal"]), "sample 0, column 'x': b'a' is no decimal"),
    ],
)
def test_what_is_damaged_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.mds"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a\.mds: src: .*{reason}"):
        read(path)


@pytest.mark.parametrize("size", [0, 3, 17, 60, -1])
def test_a_shard_that_is_cut_off_has_no_count(tmp_path: Path, size: int) -> None:
    path = tmp_path / "a.mds"
    path.write_bytes(EVERY.read_bytes()[:size])
    assert formats.count_samples(path) is None
    assert formats.count_samples(EVERY) == 3


def test_a_shard_without_samples(tmp_path: Path) -> None:
    path = tmp_path / "a.mds"
    path.write_bytes(shard([]))
    assert read(path) == [] and formats.count_samples(path) == 0
