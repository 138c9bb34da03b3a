"""The header loop, held against the standard library's tarfile as the writer of every dialect."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from ingest.dataset import formats
from ingest.dataset.formats import tar
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
    return [{k: v for k, v in sample.items() if k != "__url__"} for sample in formats.read(tar.FORMAT, path, "src")]


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
    samples = formats.read(tar.FORMAT, path, "src")
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


def test_an_archive_of_many_dialects_and_sizes(tmp_path: Path) -> None:
    """Headers that are read by the hundred between those that take thought, small samples between large ones."""
    path = tmp_path / "a.tar"
    made: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path, "w") as archive:
        for n in range(400):
            archive.format = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)[n % 3]
            key = f"{n:03}" if n % 7 else f"{LONG}/{n:03}ü"
            for extension, size in (("bin", n * n % 3001 if n % 50 else 300_000), ("cls", n % 2)):
                info = tarfile.TarInfo(f"{key}.{extension}")
                info.size = size
                info.mtime = n if n % 5 else n + 0.5
                body = bytes([n % 251]) * size
                archive.addfile(info, io.BytesIO(body))
                made.setdefault(key, {})[extension] = body
    expected = [{"__key__": key, **fields} for key, fields in made.items()]
    assert fields(path) == expected and formats.count_samples(path) == 400
    with closing(tar.open_tar(path, "src")) as samples:
        picked = [399, 0, 50, 51, 52, 7, 7]
        assert [s["__key__"] for s in samples.take(picked)] == [expected[n]["__key__"] for n in picked]


def test_headers_that_are_no_ascii_or_no_octal(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    old = tarfile.TarInfo("größe.txt")
    large = tarfile.TarInfo("b.txt")
    old.size, large.size = 3, 2
    header = bytearray(large.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\x80" + (2).to_bytes(11, "big")  # base 256, as GNU tar writes the size of a huge file
    header[148:156] = b"%06o\0 " % (sum(header[:148]) + sum(header[156:]) + 8 * ord(" "))
    body = old.tobuf(tarfile.GNU_FORMAT, "latin-1") + b"abc".ljust(512, b"\0") + bytes(header) + b"de".ljust(512, b"\0")
    path.write_bytes(body)
    assert fields(path) == [{"__key__": "gr\udcf6\udcdfe", "txt": b"abc"}, {"__key__": "b", "txt": b"de"}]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    members = [(f"{n}.{extension}", b"%d" % n * n) for n in range(50) for extension in ("txt", "cls")[: 1 + n % 2]]
    return write(tmp_path / "a.tar", members)


def taken(path: Path, index: Path | None) -> list[dict[str, object]]:
    with closing(tar.open_tar(path, "src", None, index)) as samples:
        return list(samples.take(range(len(samples))))


def test_an_index_is_made_once_and_kept(archive: Path, tmp_path: Path) -> None:
    index = tmp_path / "kept" / "a.index"
    expected = taken(archive, None)
    assert taken(archive, index) == expected and not index.exists()  # there is no such directory: no error
    index.parent.mkdir()
    assert taken(archive, index) == expected
    made = index.read_bytes()
    assert taken(archive, index) == expected and index.read_bytes() == made
    assert [path.name for path in index.parent.iterdir()] == ["a.index"]
    # It is the index that is read: the headers are not looked at again.
    damaged, times = bytearray(archive.read_bytes()), archive.stat()
    damaged[damaged.index(b"ustar", 8192)] ^= 1  # in a header, neither at the beginning nor at the end
    archive.write_bytes(damaged)
    os.utime(archive, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert len(taken(archive, index)) == 50
    # A file that was fetched again has another time: what is known of the old one does not count.
    os.utime(archive)
    with pytest.raises(DataError, match="checksum"):
        taken(archive, index)


def test_an_index_that_does_not_fit_is_made_again(archive: Path, tmp_path: Path) -> None:
    index = tmp_path / "a.index"
    expected = taken(archive, index)
    whole = index.read_bytes()
    other = tmp_path / "other.index"
    taken(write(tmp_path / "b.tar", [("a.txt", b"x")]), other)
    wrong = [b"", b"x" * 500, whole[:-1], whole[:40], whole.replace(b"index 2", b"index 1"), other.read_bytes()]
    wrong += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(0, len(whole), 29)]
    for content in wrong:
        index.write_bytes(content)
        assert taken(archive, index) == expected
        assert index.read_bytes() == whole


def test_an_index_of_an_archive_of_the_same_size(tmp_path: Path) -> None:
    index = tmp_path / "index"
    assert taken(write(tmp_path / "a.tar", [("a.txt", b"x")]), index)[0]["__key__"] == "a"
    assert taken(write(tmp_path / "b.tar", [("b.txt", b"x")]), index)[0]["__key__"] == "b"


def test_an_index_of_a_packed_archive(archive: Path, tmp_path: Path) -> None:
    packed, index = tmp_path / "b.tar.gz", tmp_path / "b.index"
    packed.write_bytes(gzip.compress(archive.read_bytes()))
    assert taken(packed, index) == taken(archive, None) == taken(packed, index)


def test_counting_leaves_an_index_to_those_who_read(archive: Path, tmp_path: Path) -> None:
    index = formats.index_of(archive)
    assert formats.count_samples(archive) == 50 and not index.exists()
    assert formats.count_samples(archive, index=index) == 50
    made = index.read_bytes()
    taken(archive, other := tmp_path / "other.index")
    assert made == other.read_bytes()
    packed = tmp_path / "b.tar.gz"
    packed.write_bytes(gzip.compress(archive.read_bytes()))
    assert formats.count_samples(packed, index=formats.index_of(packed)) == 50
    assert not formats.index_of(packed).exists(), "to unpack it takes room on disk, which counting has none of"
