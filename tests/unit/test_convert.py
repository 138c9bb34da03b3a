"""``decompress``, ``unpack`` and ``tar``: whole and right, or a typed error and nothing; how a request names steps."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import random
import stat
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import zstandard

from ingest import errors
from ingest.dataset import formats
from ingest.steps import as_steps, parameters
from tests.unit.converting import Bench, special, tar_of, zip_of
from workers.convert import zips
from workers.convert.plain import Damaged, Unpackable, kind_of, plain
from workers.fetchers.base import Interrupted

TEXT = hashlib.shake_128(b"text").digest(300_000).hex().encode() * 2  # 1.2 MB
TREE = [("a.txt", b"a"), ("d/ü-漢.txt", b"u" * 1000), ("d/e/empty", b""), ("big.bin", TEXT)]


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "scratch")


def seekable_zstd(data: bytes) -> bytes:
    """Several frames, some with a checksum, and what a reader is to skip between them."""
    skip = b"\x5e\x2a\x4d\x18" + struct.pack("<I", 5) + b"table"
    plain_frame = zstandard.ZstdCompressor(write_checksum=False, write_content_size=False)
    first = zstandard.ZstdCompressor(write_checksum=True).compress(data[:1000])
    return skip + first + skip + plain_frame.compress(data[1000:]) + skip


def xz(data: bytes) -> bytes:
    """At the level that takes the least time; what it is read as is the same."""
    return lzma.compress(data, preset=0)


PACKED: dict[str, Any] = {
    "a.gz": gzip.compress,
    "members.gz": lambda data: gzip.compress(data[:10]) + gzip.compress(b"") + gzip.compress(data[10:]),
    "padded.gz": lambda data: gzip.compress(data) + bytes(1000),
    "a.bz2": bz2.compress,
    "streams.bz2": lambda data: bz2.compress(data[:10]) + bz2.compress(data[10:]),
    "a.xz": xz,
    "streams.xz": lambda data: xz(data[:10]) + bytes(8) + xz(data[10:]),
    "a.zst": zstandard.ZstdCompressor(write_checksum=True).compress,
    "seekable.zst": seekable_zstd,
}


class TestDecompress:
    @pytest.mark.parametrize("name", PACKED)
    @pytest.mark.parametrize("data", [TEXT, b"", b"x", bytes(3 << 20)], ids=["text", "empty", "one", "zeros"])
    def test_by_its_first_bytes(self, bench: Bench, name: str, data: bytes) -> None:
        step = {"step": "decompress", "max_ratio": 1e6}
        packed = PACKED[name](data)
        assert bench.made(name, packed, step) == {name.rpartition(".")[0]: data}
        assert bench.made("no-suffix", packed, step) == {"no-suffix": data}

    def test_names(self, bench: Bench) -> None:
        data = gzip.compress(b"x")
        for name, becomes in (("a.tgz", "a.tar"), ("A.CSV.GZ", "A.CSV"), (".gz", ".gz"), ("a.txt", "a.txt")):
            assert list(bench.made(name, data, "decompress")) == [becomes]

    @pytest.mark.parametrize("name", PACKED)
    def test_cut_off_anywhere(self, bench: Bench, name: str) -> None:
        packed = PACKED[name](TEXT[:5000]).rstrip(b"\0")
        whole = {len(packed), *boundaries(name, TEXT[:5000])}
        for end in sorted({*range(6, 30), *range(len(packed) - 30, len(packed)), len(packed) // 2} - whole):
            assert "damaged" in bench.fails(errors.BadResponse, name, packed[:end], "decompress"), end

    @pytest.mark.parametrize("name", PACKED)
    def test_something_else_behind_it(self, bench: Bench, name: str) -> None:
        for garbage in (b"garbage", b"\0\0\0garbage", b"\x1f"):
            bench.fails(errors.BadResponse, name, PACKED[name](TEXT[:5000]) + garbage, "decompress")

    @pytest.mark.parametrize("name", PACKED)
    def test_a_flipped_bit_is_never_published(self, bench: Bench, name: str) -> None:
        data = TEXT[:3000]
        packed = bytearray(PACKED[name](data))
        for at in random.Random(name).sample(range(len(packed)), 40):
            packed[at] ^= 0x10
            unchecked = name == "seekable.zst"  # a frame without a checksum says nothing of its bytes
            with suppress(errors.BadResponse, errors.Unsupported):
                (found,) = bench.made(name, bytes(packed), "decompress").values()
                assert found == data or unchecked, f"byte {at} of {name}"
            packed[at] ^= 0x10

    def test_what_is_not_packed(self, bench: Bench) -> None:
        assert "others='keep'" in bench.fails(errors.BadResponse, "a.gz", b"plain", "decompress")
        bench.fails(errors.BadResponse, "a.gz", b"", "decompress")
        keep = {"step": "decompress", "others": "keep"}
        assert bench.made("a.gz", b"plain", keep) == {"a.gz": b"plain"}
        assert bench.made("a.gz", gzip.compress(b"x"), keep, keep) == {"a": b"x"}

    def test_limits(self, bench: Bench) -> None:
        bomb = gzip.compress(bytes(30 << 20))
        assert "max_ratio=1000" in bench.fails(errors.TooLarge, "b.gz", bomb, "decompress")
        bench.made("b.gz", bomb, "decompress:max_ratio=2000")
        told = bench.fails(errors.TooLarge, "b.gz", bomb, "decompress:max_ratio=2000,max_bytes=20000000")
        assert "max_bytes=20000000" in told
        with pytest.raises(errors.TooLarge):
            bench.made("b.gz", bomb, "decompress:max_ratio=2000", max_bytes=1 << 20)

    @pytest.mark.parametrize("name", ["a.gz", "a.bz2", "a.xz", "a.zst", "rle.zst"])
    def test_no_step_of_a_bomb_takes_more_than_a_little_memory(self, name: str) -> None:
        # Blocks of one repeated byte: 4 bytes make 128 KiB.
        rle = b"\x28\xb5\x2f\xfd\x00\x58" + ((128 << 10) << 3 | 1 << 1).to_bytes(3, "little").ljust(4, b"x") * 4000
        packed = rle if name == "rle.zst" else PACKED[name](bytes(64 << 20))
        tracemalloc.start()
        try:
            with pytest.raises(Damaged) if name == "rle.zst" else open(os.devnull):
                most = max(map(len, plain(io.BufferedReader(io.BytesIO(packed)), kind_of(packed) or "")))  # type: ignore[arg-type]
                assert most <= 1 << 20
            assert tracemalloc.get_traced_memory()[1] < 12 << 20
        finally:
            tracemalloc.stop()

    def test_what_needs_gigabytes_to_unpack(self) -> None:
        filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 29, "mode": lzma.MODE_FAST, "mf": lzma.MF_HC3}]
        # A header alone says how much memory it takes.
        header = lzma.LZMACompressor(lzma.FORMAT_XZ, filters=[{**filters[0], "dict_size": 4096}])
        small = header.compress(b"x" * 100) + header.flush()
        # Block header: size, flags, filter id 0x21, its size 1, the dictionary's code, padding, CRC32.
        block = bytearray(small[12:24])
        assert block[2] == 0x21
        block[4] = 38  # 2 GiB
        block[8:12] = struct.pack("<I", zlib.crc32(bytes(block[:8])))
        packed = small[:12] + bytes(block) + small[24:]
        with pytest.raises(Unpackable, match="memory"):
            list(plain(io.BufferedReader(io.BytesIO(packed)), "xz"))  # type: ignore[arg-type]

    def test_interruption_passes_through(self, bench: Bench) -> None:
        def stop(count: int) -> None:
            raise Interrupted("cancelled")

        with pytest.raises(Interrupted):
            bench.made("a.gz", gzip.compress(TEXT), "decompress", on_bytes=stop)


def boundaries(name: str, data: bytes) -> set[int]:
    """Where a packed file may end and be whole: behind a stream of several."""
    if name == "members.gz":
        first = len(gzip.compress(data[:10]))
        return {first, first + len(gzip.compress(b""))}
    if name == "streams.bz2":
        return {len(bz2.compress(data[:10]))}
    if name == "streams.xz":
        first = len(xz(data[:10]))
        return set(range(first, first + 9))
    if name == "seekable.zst":
        skip, first = 13, len(zstandard.ZstdCompressor(write_checksum=True).compress(data[:1000]))
        return {skip, skip + first, skip + first + skip, len(seekable_zstd(data)) - skip}
    return set()


class TestUnpack:
    @pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2", "w:xz"])
    @pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
    def test_tar(self, bench: Bench, mode: str, format: int) -> None:
        found = bench.made("set.tar.gz", tar_of(TREE, mode, format), "unpack")
        assert list(found.items()) == [(f"set/{name}", body) for name, body in TREE]

    def test_tar_zst(self, bench: Bench) -> None:
        packed = zstandard.compress(tar_of(TREE))
        assert bench.made("set.tzst", packed, "unpack:folder=false") == dict(TREE)

    @pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    def test_zip(self, bench: Bench, method: int) -> None:
        found = bench.made("set.zip", zip_of([("d/", b""), *TREE], method), "unpack")
        assert list(found.items()) == [(f"set/{name}", body) for name, body in TREE]

    def test_zip64_and_streamed(self, bench: Bench) -> None:
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, body in TREE:
                with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as member:
                    member.write(body)
        assert bench.made("set.zip", out.getvalue(), "unpack:folder=false") == dict(TREE)

        class Pipe(io.RawIOBase):
            """One that cannot be sought in: sizes come after the bytes."""

            def writable(self) -> bool:
                return True

            def write(self, data: Any) -> int:
                return out.write(data)

        out = io.BytesIO()
        with zipfile.ZipFile(Pipe(), "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[arg-type]
            for name, body in TREE:
                archive.writestr(name, body)
        assert bench.made("set.zip", out.getvalue(), "unpack:folder=false") == dict(TREE)

    def test_more_than_65535_members(self) -> None:
        packed = zip_of(((f"{n}", b"") for n in range(66_000)), zipfile.ZIP_STORED)
        assert sum(1 for _ in zips.members(io.BytesIO(packed), 66_000)) == 66_000

    def test_members_long_names(self, bench: Bench) -> None:
        name = "/".join(["deep" * 10] * 6) + "/" + "漢" * 60 + ".txt"
        for packed in (
            tar_of([(name, b"x")]),
            tar_of([(name, b"x")], format=tarfile.GNU_FORMAT),
            zip_of([(name, b"x")]),
        ):
            assert bench.made("a.x", packed, "unpack:folder=false") == {name: b"x"}

    @pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "..", "a/..", "\\x", "..\\x", "C:\\x", "C:/x"])
    def test_nothing_leads_out(self, bench: Bench, name: str) -> None:
        archives = [tar_of([("good", b"g"), (name, b"x")])]
        if not name.endswith("/"):
            archives.append(zip_of([("good", b"g"), (name, b"x")]))
        for packed in archives:
            assert "leads out" in bench.fails(errors.BadResponse, "a.tar", packed, "unpack")

    @pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\u202egnp.exe", " a ", "x" * 250])
    def test_odd_names_are_made_safe(self, bench: Bench, name: str) -> None:
        (found,) = bench.made("a.tar", tar_of([(name, b"x")]), "unpack:folder=false")
        assert found and len(found) <= 200 and found.isprintable() and found == found.strip()

    @pytest.mark.parametrize(
        "names", [["a", "a"], ["a", "a/b"], ["a/b", "a"], ["a/b", "./a//b"], ["x\x01", "x\x02"]], ids=str
    )
    def test_two_for_one_name(self, bench: Bench, names: list[str]) -> None:
        packed = tar_of([(name, name.encode()) for name in names])
        assert "two files" in bench.fails(errors.BadResponse, "a.tar", packed, "unpack")

    @pytest.mark.parametrize(
        "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE]
    )
    def test_only_regular_files(self, bench: Bench, kind: bytes) -> None:
        packed = tar_of([("a", b"a"), ("b", special(kind, "/etc/passwd")), ("c", b"c")])
        assert "'b'" in bench.fails(errors.BadResponse, "a.tar", packed, "unpack")
        assert bench.made("a.tar", packed, "unpack:others=skip,folder=false") == {"a": b"a", "c": b"c"}

    def test_links_in_a_zip(self, bench: Bench) -> None:
        link = zipfile.ZipInfo("link")
        link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
        packed = zip_of([("a", b"a"), (link, b"/etc/passwd")])
        assert "symbolic link" in bench.fails(errors.BadResponse, "a.zip", packed, "unpack")
        assert bench.made("a.zip", packed, "unpack:others=skip,folder=false") == {"a": b"a"}

    def test_folders_alone_are_nothing(self, bench: Bench) -> None:
        for packed in (tar_of([]), tar_of([("d", special(tarfile.DIRTYPE))]), zip_of([]), zip_of([("d/", b"")])):
            assert "without files" in bench.fails(errors.NothingMatched, "a.tar", packed, "unpack")

    @pytest.mark.parametrize(
        "data", [b"", b"plain text", bytes(100), b"PK\x03\x04", b"7z\xbc\xaf\x27\x1c", b"x" * 5000]
    )
    def test_no_archive(self, bench: Bench, data: bytes) -> None:
        bench.fails(errors.BadResponse, "a.tar", data, "unpack")
        bench.fails(errors.BadResponse, "a.tar.gz", gzip.compress(data), "unpack")

    def test_archives_within_are_left_as_they_are(self, bench: Bench) -> None:
        inner = tar_of([("x", b"x")])
        packed = tar_of([("inner.tar", inner), ("b.gz", gzip.compress(b"b"))])
        assert bench.made("a.tar", packed, "unpack")["a/inner.tar"] == inner
        both = bench.made("a.tar", packed, "unpack", "decompress:others=keep")
        assert both == {"a/inner.tar": inner, "a/b": b"b"}

    def test_cut_off_or_followed_by_something(self, bench: Bench) -> None:
        packed = tar_of(TREE)
        end = len(packed.rstrip(b"\0"))
        marks = -(-end // 512) * 512  # where the mark at the end begins
        for at in (100, 512, 513, 1024, 2000, end - 1, marks):
            bench.fails(errors.BadResponse, "a.tar", packed[:at], "unpack")
            bench.fails(errors.BadResponse, "a.tar", gzip.compress(packed[:at]), "unpack")
        assert bench.made("a.tar", packed[: marks + 512], "unpack:folder=false") == dict(TREE), "one block will do"
        for more in (packed + packed, packed + b"x"):
            assert "follows its end" in bench.fails(errors.BadResponse, "a.tar", more, "unpack")
        zipped = zip_of(TREE)
        for at in (50, len(zipped) // 2, len(zipped) - 1, len(zipped) - 23):
            bench.fails(errors.BadResponse, "a.zip", zipped[:at], "unpack")

    def test_sparse_is_refused(self, bench: Bench) -> None:
        block = bytearray(tarfile.TarInfo("s").tobuf())
        block[156:157] = b"S"
        block[148:156] = b"        "
        block[148:156] = b"%06o\0 " % sum(block)
        assert "sparse" in bench.fails(errors.Unsupported, "a.tar", bytes(block) + bytes(1024), "unpack")

    def test_encrypted_and_unknown_methods(self, bench: Bench) -> None:
        packed = bytearray(zip_of([("a", b"aaaa")]))
        at = packed.index(b"PK\x01\x02")
        for offset, value, word in ((8, 1, "encrypted"), (10, 99, "method 99")):
            changed = bytearray(packed)
            struct.pack_into("<H", changed, at + offset, value)
            assert word in bench.fails(errors.Unsupported, "a.zip", bytes(changed), "unpack")

    @pytest.mark.parametrize("field", ["crc", "smaller", "larger", "name", "offset"])
    def test_a_directory_that_lies(self, bench: Bench, field: str) -> None:
        packed = bytearray(zip_of([("aaaa", TEXT[:1000]), ("bbbb", b"b")]))
        at = packed.index(b"PK\x01\x02")
        if field == "name":
            packed[30:34] = b"cccc"
        else:
            place, value = {"crc": (16, 1), "smaller": (24, 999), "larger": (24, 1001), "offset": (42, 7)}[field]
            struct.pack_into("<I", packed, at + place, value)
        bench.fails(errors.BadResponse, "a.zip", bytes(packed), "unpack")

    def test_members_that_share_their_bytes(self, bench: Bench) -> None:
        packed = bytearray(zip_of([("a", TEXT[:5000]), ("b", TEXT[:5000])]))
        first = packed.index(b"PK\x01\x02")
        second = packed.index(b"PK\x01\x02", first + 4)
        packed[second + 42 : second + 46] = packed[first + 42 : first + 46]
        assert "overlaps" in bench.fails(errors.BadResponse, "bomb.zip", bytes(packed), "unpack")

    def test_limits(self, bench: Bench) -> None:
        many = [(f"f{n}", b"x") for n in range(20)]
        for packed in (tar_of(many), zip_of(many)):
            assert "max_files=19" in bench.fails(errors.TooLarge, "a", packed, "unpack:max_files=19")
            assert len(bench.made("a", packed, "unpack:max_files=20")) == 20
        deep, long = tar_of([("/".join("abc"), b"")]), tar_of([("x" * 100, b"")])
        assert "max_depth=2" in bench.fails(errors.TooLarge, "a", deep, "unpack:max_depth=2")
        assert "max_path=99" in bench.fails(errors.TooLarge, "a", long, "unpack:max_path=99")
        zeros = [("z", bytes(8 << 20))]
        for packed in (tar_of(zeros, "w:xz"), zip_of(zeros, zipfile.ZIP_BZIP2)):
            bench.fails(errors.TooLarge, "a", packed, "unpack")
            bench.made("a", packed, "unpack:max_ratio=1000000")
            assert "max_bytes=8000000" in bench.fails(
                errors.TooLarge, "a", packed, "unpack:max_ratio=1000000,max_bytes=8000000"
            )
        bomb = zip_of([(f"{n}", bytes(1 << 20)) for n in range(3)])
        assert "max_ratio" in bench.fails(errors.TooLarge, "a", bomb, "unpack:max_ratio=100")

    def test_a_directory_of_more_entries_than_may_be(self, bench: Bench) -> None:
        packed = zip_of(((f"d{n}/", b"") for n in range(1200)), zipfile.ZIP_STORED)
        assert "entries" in bench.fails(errors.BadResponse, "a.zip", packed, "unpack:max_files=10")

    def test_a_directory_that_would_fill_the_memory(self, bench: Bench) -> None:
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as made:
            for number in range(600):
                info = zipfile.ZipInfo(f"{number}")
                info.comment = bytes(60_000)
                made.writestr(info, b"")
        assert "its directory has" in bench.fails(errors.BadResponse, "a.zip", packed.getvalue(), "unpack")

    def test_many_members_need_no_open_files(self, bench: Bench) -> None:
        before = len(os.listdir("/proc/self/fd"))
        seen = []

        def look(count: int) -> None:
            seen.append(len(os.listdir("/proc/self/fd")))

        packed = tar_of((f"{n}", b"x") for n in range(500))
        assert len(bench.made("a", packed, "unpack", on_bytes=look)) == 500
        assert max(seen) <= before + 6

    def test_random_bytes_are_an_error_of_ours(self, bench: Bench) -> None:
        rng = random.Random(7)
        for packed in (tar_of(TREE[:3]), zip_of(TREE[:3]), gzip.compress(tar_of(TREE[:3]))):
            for _ in range(150):
                broken = bytearray(packed)
                for _ in range(rng.randint(1, 4)):
                    broken[rng.randrange(len(broken))] = rng.randrange(256)
                with suppress(errors.PermanentFetchError):
                    bench.made("a", bytes(broken), "unpack")


class TestTar:
    def test_the_same_bytes_each_time_and_webdataset_reads_them(self, bench: Bench, tmp_path: Path) -> None:
        tree = [("a.jpg", b"1"), ("b.jpg", b"2"), ("d/c.jpg", b"3"), ("a.cls", b"7"), ("b.cls", b"8"), ("readme", b"r")]
        tree.append(("d/" + "漢" * 60 + ".txt", b"long"))
        made = [bench.made("s.zip", packed, "unpack:folder=false", "tar") for packed in (zip_of(tree), tar_of(tree))]
        assert made[0] == made[1] and list(made[0]) == ["s.tar"]
        path = tmp_path / "s.tar"
        path.write_bytes(made[0]["s.tar"])
        assert len(made[0]["s.tar"]) % 10240 == 0
        with tarfile.open(path) as opened:
            infos = opened.getmembers()
            assert {(i.mtime, i.uid, i.gid, i.uname, i.gname, i.mode) for i in infos} == {(0, 0, 0, "", "", 0o644)}
            assert [i.name for i in infos][:4] == ["a.jpg", "a.cls", "b.jpg", "b.cls"], "samples are together"
            assert {i.name: opened.extractfile(i).read() for i in infos} == dict(tree)  # type: ignore[union-attr]
        samples = list(formats.read(formats.by_name("tar"), path, "s"))
        assert samples[0] == {"__key__": "a", "__url__": "s", "jpg": b"1", "cls": b"7"} and len(samples) == 4

    def test_one_file_and_its_name(self, bench: Bench) -> None:
        assert list(bench.made("a.txt", b"x", "tar")) == ["a.txt.tar"]
        assert list(bench.made("a.txt", b"x", "tar:name=all.tar")) == ["all.tar"]

    def test_two_fields_of_one_sample(self, bench: Bench) -> None:
        packed = zip_of([("a.txt", b"1"), ("a.TXT", b"2")])
        assert "two fields 'txt'" in bench.fails(errors.BadResponse, "a.zip", packed, "unpack", "tar")


class TestChains:
    def test_steps_in_order(self, bench: Bench) -> None:
        packed = gzip.compress(b"a,b\n1,x\n")
        (name,) = bench.made("t.csv.gz", packed, "decompress", "parquet")
        assert name == "t.parquet"

    def test_what_fails_leaves_nothing(self, bench: Bench) -> None:
        packed = tar_of([("a", gzip.compress(b"x")), ("b", b"no gzip")])
        bench.fails(errors.BadResponse, "a.tar", packed, "unpack", "decompress")

    def test_pieces_of_a_fetcher_go_through_too(self, bench: Bench) -> None:
        from ingest.model import FileSpec
        from workers.convert import convert

        with bench.scratch(gzip.compress(b"1")) as scratch:
            scratch.piece("second.gz").write(gzip.compress(b"2"))
            convert(FileSpec(0, 0, "x://"), scratch, "first.gz", as_steps("decompress"))
            assert [(p.name, p.path.read_bytes()) for p in scratch.pieces] == [("first", b"1"), ("second", b"2")]


class TestRequests:
    def test_equal_requests_have_equal_forms(self) -> None:
        forms = [
            as_steps("unpack"),
            as_steps(["unpack"]),
            as_steps({"step": "unpack", "max_files": 20_000, "folder": True, "max_bytes": None}),
            as_steps("unpack:max_files=20000,folder=true"),
            as_steps('{"step": "unpack", "others": "error"}'),
        ]
        assert all(form == ({"step": "unpack"},) for form in forms)
        assert as_steps("decompress:max_ratio=10.0") == ({"step": "decompress", "max_ratio": 10},)
        types = as_steps({"step": "parquet", "types": {"b": "decimal( 9, 2)", "a": "int64"}})
        assert list(types[0]["types"].items()) == [("a", "int64"), ("b", "decimal(9,2)")]
        assert as_steps(None) == () == as_steps([])
        assert parameters({"step": "tar"}) == {"name": None}

    @pytest.mark.parametrize(
        ("given", "words"),
        [
            ("nope", "known: decompress, unpack, parquet, tar"),
            ("unpack:nope=1", "max_files"),
            ("unpack:max_files=0", "1 or more"),
            ("unpack:max_files=true", "whole number"),
            ("unpack:max_files=200001", "at most 200000"),
            ("unpack:max_files=1.5", "whole number"),
            ("unpack:folder=1", "true or false"),
            ("unpack:others=maybe", "error, skip"),
            ("unpack:max_files", "key=value"),
            ("unpack:max_files=1,max_files=2", "each key once"),
            ("parquet:delimiter=ab", "one ASCII character"),
            ({"step": "parquet", "types": {"a": "int8"}}, "decimal"),
            ({"step": "parquet", "types": {"a": "decimal(80,1)"}}, "decimal"),
            ({"step": "parquet", "columns": "a"}, "list of texts"),
            ({"step": "parquet", "columns": ["a", "a"]}, "twice"),
            ({"step": "tar", "name": "../x"}, "name of a file"),
            ({"unpack": 1}, "no step"),
            (7, "no list of steps"),
            ([7], "no step"),
            ("{broken", "not JSON"),
            ("x-", "operator's step"),
            ("x-UP", "operator's step"),
            ({"step": "x-a", "f": ...}, "JSON"),
            ({"step": "x-a", "not a name": 1}, "identifiers"),
            (["unpack"] * 17, "more than 16"),
        ],
        ids=str,
    )  # fmt: skip
    def test_what_cannot_be_right_is_refused_where_the_user_is(self, given: Any, words: str) -> None:
        with pytest.raises(errors.UsageError, match=words):
            as_steps(given)

    def test_an_operators_step_is_known_on_data_nodes_only(self) -> None:
        assert as_steps("x-resize:size=256") == ({"step": "x-resize", "size": 256},)
        assert as_steps({"step": "x-resize", "b": [1, {"y": 1, "x": None}], "a": 1}) == (
            {"step": "x-resize", "a": 1, "b": [1, {"x": None, "y": 1}]},
        )


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution of an operator's, as pip would have installed it."""
    from workers.convert import steps

    (tmp_path / "operators_steps.py").write_text(
        "import os\n"
        "def upper(files, work, *, suffix=''):\n"
        "    for file in files:\n"
        "        with work.create(file.name + suffix) as out:\n"
        "            out.write(file.path.read_bytes().upper())\n"
        "def by_path(files, work):\n"
        "    for file in files:\n"
        "        with work.create('by/path') as out:\n"
        "            out.path.write_bytes(b'whole')\n"
        "            out.adopt()\n"
        "def picky(files, work):\n"
        "    for file in files:\n"
        "        try:\n"
        "            with work.create('half') as out:\n"
        "                out.write(b'half')\n"
        "                raise KeyError('left out')\n"
        "        except KeyError:\n"
        "            work.keep(file)\n"
        "def fails(files, work):\n"
        "    raise ValueError('not a picture')\n"
        "def missing(files, work):\n"
        "    open('/nowhere/at/all')\n"
        "def needs(files, work):\n"
        "    import not_installed_anywhere\n"
        "def nothing(files, work):\n"
        "    pass\n"
        "number = 7\n"
    )
    made = tmp_path / "operators_steps-1.dist-info"
    made.mkdir()
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: operators-steps\nVersion: 1\n")
    names = ("upper", "by_path", "picky", "fails", "missing", "needs", "nothing", "number")
    lines = [f"x-{name} = operators_steps:{name}" for name in names] + ["x-broken = operators_steps:nowhere"]
    (made / "entry_points.txt").write_text("[ingest.steps]\n" + "\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    steps._installed.cache_clear()
    yield
    steps._installed.cache_clear()


@pytest.mark.usefixtures("installed")
class TestOperators:
    def test_steps_that_an_operator_installs(self, bench: Bench) -> None:
        packed = gzip.compress(b"shout")
        assert bench.made("a.txt.gz", packed, "decompress", "x-upper:suffix=.up") == {"a.txt.up": b"SHOUT"}
        assert bench.made("a", b"x", "x-by_path") == {"by/path": b"whole"}
        assert bench.made("a", b"x", "x-picky") == {"a": b"x"}

    @pytest.mark.parametrize(
        ("step", "kind", "words"),
        [
            ("x-nowhere", errors.Unsupported, "not installed on this data node (known: x-broken, x-by_path"),
            ("x-broken", errors.PermanentFetchError, "operators_steps:nowhere and cannot be loaded"),
            ("x-number", errors.PermanentFetchError, "not a function"),
            ("x-fails", errors.BadResponse, "step 'x-fails' failed: ValueError: not a picture"),
            ("x-missing", errors.BadResponse, "FileNotFoundError"),
            ("x-needs", errors.MissingExtra, "not_installed_anywhere"),
            ("x-upper:nope=1", errors.BadResponse, "unexpected keyword"),
            ("x-nothing", errors.NothingMatched, "made no file"),
        ],
    )
    def test_a_broken_one_is_a_clear_error(
        self, bench: Bench, step: str, kind: type[errors.FetchError], words: str
    ) -> None:
        assert words in bench.fails(kind, "a", b"x", step)
