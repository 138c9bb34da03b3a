"""The header loop, held against the standard library's tarfile as the writer of every dialect."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy
import pytest
import zstandard

from ingest.dataset import formats
from ingest.dataset.formats import decoders, tar
from ingest.errors import DataError

LONG = "d" * 60 + "/" + "e" * 60 + "/" + "f" * 90


def write(path: Path, members: list[tuple[str, bytes]], mode: str = "w", dialect: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, mode, format=dialect) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def fields(path: Path) -> list[dict[str, object]]:
    return [{k: v for k, v in sample.items() if k != "__url__"} for sample in tar.read(path, "src")]


@pytest.mark.parametrize("dialect", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_every_dialect_with_long_names(tmp_path: Path, dialect: int, mode: str) -> None:
    members = [
        ("a.JPG", b"1" * 513),
        ("a.seg.png", b""),
        (f"{LONG}.txt", b"2" * 512),
        ("./x/b.cls", b"7"),
        ("c.txt", b"x"),
    ]
    path = write(tmp_path / ("a.tar" if mode == "w" else "a.tar.gz"), members, mode, dialect)
    assert fields(path) == [
        {"__key__": "a", "jpg": b"1" * 513, "seg.png": b""},
        {"__key__": LONG, "txt": b"2" * 512},
        {"__key__": "./x/b", "cls": b"7"},
        {"__key__": "c", "txt": b"x"},
    ]
    assert formats.count_samples(path) == 4


def test_pax_names_that_are_not_ascii_and_global_headers(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "two\nlines"}) as archive:
        info = tarfile.TarInfo("größe.txt")
        info.size = 3
        info.pax_headers = {"comment": "a = b\n"}
        archive.addfile(info, io.BytesIO(b"abc"))
    assert fields(path) == [{"__key__": "größe", "txt": b"abc"}]


def test_what_is_no_field_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in [("dir.d", tarfile.DIRTYPE), ("l.txt", tarfile.SYMTYPE), ("h.txt", tarfile.LNKTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.txt"
            archive.addfile(info)
        for name in ["README", ".hidden", "._a.txt", "a.txt"]:
            info = tarfile.TarInfo(name)
            info.size = 1
            archive.addfile(info, io.BytesIO(b"x"))
    assert fields(path) == [{"__key__": "a", "txt": b"x"}]
    assert formats.count_samples(path) == 1


def test_zstd_and_an_archive_with_nothing_in_it(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.tar", [("a.txt", b"x"), ("b.txt", b"y" * (3 << 20))])
    packed = tmp_path / "a.tar.zst"
    packed.write_bytes(zstandard.ZstdCompressor().compress(plain.read_bytes()))
    assert [s["__key__"] for s in fields(packed)] == ["a", "b"] and formats.count_samples(packed) == 2
    assert fields(write(tmp_path / "none.tar", [])) == []


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_an_archive_that_is_cut_off(tmp_path: Path, name: str) -> None:
    members = [("a.txt", b"x"), ("b.txt", b"y" * 5000)]
    whole = write(tmp_path / name, members, "w" if name == "a.tar" else "w:gz").read_bytes()
    path = tmp_path / f"cut-{name}"
    path.write_bytes(whole[:4000] if name == "a.tar" else whole[: len(whole) // 2])
    with pytest.raises(DataError, match="src"):
        fields(path)
    assert formats.count_samples(path) is None


def test_a_cut_names_the_last_sample_before_it(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.tar", [("a.txt", b"x"), ("b.txt", b"y"), ("c.txt", b"z" * 5000)]).read_bytes()
    path = tmp_path / "cut.tar"
    path.write_bytes(whole[:4000])
    with pytest.raises(DataError, match=r"cut\.tar: src: after sample 'b': .*cut off"):
        fields(path)


def test_a_damaged_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("a.txt", b"x"), ("b.txt", b"y")])
    content = bytearray(path.read_bytes())
    content[1024 + 130] ^= 1  # a digit of the size of b.txt
    path.write_bytes(content)
    samples = tar.read(path, "src")
    with pytest.raises(DataError, match="after sample 'a': the checksum"):
        list(samples)
    assert formats.count_samples(path) is None


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"x" * 2048])
def test_what_is_no_tar(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(content)
    with pytest.raises(DataError, match="no tar file"):
        fields(path)


def test_a_field_that_comes_twice(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tar", [("a.txt", b"x"), ("a.txt", b"y")])
    with pytest.raises(DataError, match="sample 'a': has two fields 'txt'"):
        fields(path)


def test_decoders() -> None:
    array = io.BytesIO()
    numpy.save(array, numpy.arange(3))
    sample = {
        "__key__": "k",
        "__url__": "u",
        "txt": "é".encode(),
        "a.json": b'{"x": 1}',
        "cls": b"7\n",
        "npy": array.getvalue(),
        "jpg": b"raw",
    }
    decoded = decoders.apply(decoders.table(True), dict(sample), Path("a.tar"), "src")
    assert decoded["txt"] == "é" and decoded["a.json"] == {"x": 1} and decoded["cls"] == 7 and decoded["jpg"] == b"raw"
    assert decoded["npy"].tolist() == [0, 1, 2]
    assert decoders.apply(decoders.table({"jpg": len}), dict(sample), Path("a.tar"), "src")["jpg"] == 3
    assert decoders.table(False) == {}


def test_no_decoder_unpickles() -> None:
    array = io.BytesIO()
    numpy.save(array, numpy.array([object()], dtype=object), allow_pickle=True)
    sample = {"__key__": "k", "__url__": "u", "npy": array.getvalue()}
    with pytest.raises(DataError, match=r"a\.tar: src: sample 'k', field 'npy': .*allow_pickle"):
        decoders.apply(decoders.table(True), sample, Path("a.tar"), "src")
