"""What goes into a packed file, and what a spool remembers of an attempt that was killed."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ingest.model import FileSpec
from workers.pack.samples import entries, extension, plain_key, runs
from workers.pack.spool import Sample, Spoilt, Spool


def spec(part: int, key: str | None = None) -> FileSpec:
    return FileSpec(0, part, f"https://h/{part}.jpg", key=key)


def sample(position: int, name: str = "a.jpg") -> Sample:
    return Sample(position, 0, 1, "sha256:00", name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", "jpg"),
        ("a.v2.JPG", "jpg"),
        ("a.tar.gz", "tar.gz"),
        ("a.gz", "gz"),
        ("noextension", "bin"),
        ("a.", "bin"),
        ("a.ünicode", "bin"),
        ("a.b c.zst", "zst"),
    ],
)
def test_the_extension_names_the_field_of_a_sample(name: str, expected: str) -> None:
    assert extension(name) == expected


def test_a_key_ends_at_no_dot_and_leads_nowhere() -> None:
    assert plain_key("cat.1") == "cat_1"
    assert plain_key("../../etc/pass.wd") == "etc/pass_wd"
    assert plain_key("/") == "sample"


def test_keys_are_unique_and_those_without_one_sort_as_the_request_does() -> None:
    specs = [spec(0), spec(1, "x"), spec(2, "x"), spec(3), spec(4)]
    made = [entry.key for entry in entries(specs, {n: sample(n) for n in (0, 1, 2, 4)})]
    assert made == ["0000-000000000", "x", "x_0000-000000002", "0000-000000004"]


def test_a_key_that_looks_like_what_we_make_of_another_one() -> None:
    specs = [spec(0, "x_0000-000000002"), spec(1, "x"), spec(2, "x")]
    made = [entry.key for entry in entries(specs, {n: sample(n) for n in range(3)})]
    assert made == ["x_0000-000000002", "x", "x_0000-000000002_0000-000000002"]


def test_metadata_of_a_manifest_is_in_the_json() -> None:
    (entry,) = entries([FileSpec(0, 0, "s3://b/k", metadata={"caption": "a cat"})], {0: sample(0)})
    assert entry.facts["metadata"] == {"caption": "a cat"} and entry.facts["uri"] == "s3://b/k"


def test_runs() -> None:
    assert runs([(0, 0), (0, 1), (0, 3), (1, 4), (1, 5)]) == [(0, 0, 1), (0, 3, 3), (1, 4, 5)]


def add(spool: Spool, path: Path, data: bytes, *positions: int) -> None:
    path.write_bytes(data)
    spool.add(positions, path, len(data), f"sha256:{hashlib.sha256(data).hexdigest()}", path.name)


def test_what_an_attempt_left_is_taken_up_and_a_torn_line_is_not(tmp_path: Path) -> None:
    first = Spool(tmp_path, "k")
    add(first, tmp_path / "a.bin", b"abc", 0, 5)
    add(first, tmp_path / "b.bin", b"defg", 1)
    first.close(discard=False)
    (listed,) = tmp_path.glob("k.*.list")
    listed.write_bytes(listed.read_bytes() + b'[2,7,4,"sha')  # kill -9 in the middle of a line
    second = Spool(tmp_path, "k")
    assert set(second.samples) == {0, 1, 5}
    add(second, tmp_path / "c.bin", b"", 2)
    assert [b"".join(second.read(second.samples[n])) for n in (0, 1, 2, 5)] == [b"abc", b"defg", b"", b"abc"]
    second.close(discard=True)
    assert [*tmp_path.glob("k.*")] == []


def test_a_late_writer_of_an_earlier_attempt_disturbs_nobody(tmp_path: Path) -> None:
    stopped = Spool(tmp_path, "k")
    add(stopped, tmp_path / "a.bin", b"abc", 0)
    other = Spool(tmp_path, "k")
    add(stopped, tmp_path / "late.bin", b"late", 1)
    add(other, tmp_path / "b.bin", b"right", 1)
    assert b"".join(other.read(other.samples[1])) == b"right" and b"".join(other.read(other.samples[0])) == b"abc"
    for each in (stopped, other):
        each.close(discard=False)


@pytest.mark.parametrize("damage", ["short", "other"])
def test_what_the_disk_lost_is_missing_again(tmp_path: Path, damage: str) -> None:
    first = Spool(tmp_path, "k")
    add(first, tmp_path / "a.bin", b"abcdef", 0)
    first.close(discard=False)
    (bytes_,) = tmp_path.glob("k.*.spool")
    if damage == "short":
        os.truncate(bytes_, 3)
    else:
        bytes_.write_bytes(b"\0" * 6)
    second = Spool(tmp_path, "k")
    if damage == "other":
        with pytest.raises(Spoilt):
            list(second.read(second.samples[0]))
    assert second.samples == {}
    second.close(discard=True)
