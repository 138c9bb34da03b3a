"""Packed files are unpacked to where nothing of them can be left behind, and no room is no damage."""

from __future__ import annotations

import gzip
import os
import resource
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zstandard

from ingest.dataset import formats
from ingest.dataset.formats import content, jsonl
from ingest.errors import DataError, StoreError

LINES = b"".join(b"%d\n" % n for n in range(300_000))


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """The directory for temporary files of this process."""
    before, made = tempfile.tempdir, tmp_path / "scratch"
    made.mkdir()
    tempfile.tempdir = str(made)
    yield made
    tempfile.tempdir = before


@pytest.mark.parametrize("pack", [gzip.compress, zstandard.ZstdCompressor().compress])
def test_what_is_unpacked_has_no_name(tmp_path: Path, scratch: Path, pack: object) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(pack(LINES))  # type: ignore[operator]
    with closing(content.Content.open(path, "src")) as unpacked:
        assert list(scratch.iterdir()) == []
        assert unpacked.size == len(LINES)
        assert unpacked.read(1000, 50) == LINES[1000:1050]
        with pytest.raises(DataError, match=rf"at byte {len(LINES)}: 10 bytes are missing"):
            unpacked.read(len(LINES) - 5, 15)


def test_nothing_is_left_by_a_process_that_is_killed(tmp_path: Path) -> None:
    path, scratch = tmp_path / "a.jsonl.gz", tmp_path / "scratch"
    scratch.mkdir()
    path.write_bytes(gzip.compress(LINES))
    code = (
        "import os, signal\nfrom pathlib import Path\nfrom ingest.dataset.formats import jsonl\n"
        f"samples = jsonl.open_jsonl(Path({str(path)!r}), 'src')\n"
        "assert next(samples.take([299_999])) == 299_999\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(scratch)}, check=False)
    assert ran.returncode == -signal.SIGKILL and list(scratch.iterdir()) == []


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.csv.gz"])
def test_no_room_is_not_a_damaged_file(tmp_path: Path, scratch: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(LINES))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # a disk that takes no more
    try:
        with pytest.raises(StoreError, match=rf"{scratch}: .* after \d+ bytes of {name} \(src\).*TMPDIR") as caught:
            list(formats.read(formats.detect(name), path, "src"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.path == str(scratch)


def test_no_directory_for_temporary_files(tmp_path: Path, scratch: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(LINES))
    scratch.rmdir()
    with pytest.raises(StoreError, match=r"No such file or directory.*TMPDIR"):
        content.Content.open(path, "src")


def test_damage_is_said_with_its_place(tmp_path: Path, scratch: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    packed = bytearray(gzip.compress(LINES))
    packed[-6] ^= 1  # of the length and checksum at its end
    path.write_bytes(packed)
    with pytest.raises(DataError, match=r"src: after \d+ bytes of its content: "):
        content.Content.open(path, "src")
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match=r"src: after \d+ bytes of its content: .*ended before"):
        content.Content.open(path, "src")


def test_an_open_file_outlives_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINES)
    with closing(jsonl.open_jsonl(path, "src")) as samples:
        path.unlink()
        assert list(samples.take([7, 299_999])) == [7, 299_999]
