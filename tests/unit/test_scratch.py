"""A file in the making: it is taken up where an earlier attempt stopped, and no two attempts ever touch one file."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from pathlib import Path

import pytest

from ingest import digests
from ingest.errors import TooLarge
from ingest.model import FileSpec
from ingest.sections import StoreLimits
from ingest.store import Journal, Scratch, Store

KEY, URI = "k" * 40, "https://host/a"


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def interrupted(directory: Path, data: bytes, *, validator: str = "etag", length: int | None = 10) -> None:
    scratch = Scratch(directory, KEY, URI)
    scratch.restart()
    scratch.note(validator, length)
    scratch.write(data)
    scratch.close(discard=False)


def test_bytes_are_counted_and_hashed_on_the_way(tmp_path: Path) -> None:
    told: list[int] = []
    scratch = Scratch(tmp_path, KEY, URI, algorithms=frozenset({"md5", "crc32c"}), on_bytes=told.append)
    for data in (b"one", b"", memoryview(b"two")):
        scratch.write(data)
    scratch.sync()
    assert (scratch.size, told, scratch.path.read_bytes()) == (6, [3, 0, 3], b"onetwo")
    for algorithm in ("sha256", "md5"):
        assert scratch.digest(algorithm) == f"{algorithm}:{hashlib.new(algorithm, b'onetwo').hexdigest()}"
    check = digests.new("crc32c")
    check.update(b"onetwo")
    assert scratch.digest("crc32c") == f"crc32c:{check.hexdigest()}"
    scratch.close(discard=False)
    assert os.listdir(tmp_path) == []  # without a journal nothing of it could be used


@pytest.mark.parametrize("last", [True, False])
def test_the_next_attempt_goes_on_with_a_file_of_its_own(tmp_path: Path, last: bool) -> None:
    interrupted(tmp_path, b"12345")
    (old,) = tmp_path.glob("*.part")
    scratch = Scratch(tmp_path, KEY, URI)
    assert (scratch.size, scratch.journal, scratch.digest()) == (5, Journal("etag", 10), sha(b"12345"))
    assert scratch.path != old and not old.exists()
    scratch.write(b"67890")
    assert scratch.path.read_bytes() == b"1234567890" and scratch.digest() == sha(b"1234567890")
    scratch.close(discard=last)
    assert len(os.listdir(tmp_path)) == (0 if last else 2)


def test_the_one_that_came_furthest_is_taken_and_the_others_go(tmp_path: Path) -> None:
    for n, data in enumerate((b"123", b"12345678", b"1")):
        aside = tmp_path.parent / f"{tmp_path.name}-{n}"
        aside.mkdir()
        interrupted(aside, data, validator=f"v{n}", length=None)
        for path in aside.iterdir():
            path.rename(tmp_path / path.name)
    (tmp_path / f"{KEY}.{9:012}.json").write_text("{")  # its bytes are gone, and it is no JSON
    (tmp_path / f"{'o' * 40}.{9:012}.json").write_text("of another source")
    scratch = Scratch(tmp_path, KEY, URI)
    assert (scratch.size, scratch.journal) == (8, Journal("v1", None))
    assert len([*tmp_path.glob(f"{KEY}.*")]) == 2 and len([*tmp_path.iterdir()]) == 3
    scratch.close(discard=True)


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "5", '{"validator": "v", "ranges": 1}', "{}", "\udcff", '{"validator": "v", "length": 5}']
)
def test_a_damaged_journal_is_no_journal(tmp_path: Path, text: str) -> None:
    interrupted(tmp_path, b"12345")
    (journal,) = tmp_path.glob("*.json")
    journal.write_bytes(text.encode("utf-8", "surrogateescape"))
    scratch = Scratch(tmp_path, KEY, URI)
    assert (scratch.size, scratch.journal) == (0, None) and [*tmp_path.iterdir()] == [scratch.path]
    scratch.close(discard=True)


def test_one_that_is_not_to_be_kept_takes_up_nothing_and_leaves_nothing(tmp_path: Path) -> None:
    interrupted(tmp_path, b"12345")
    scratch = Scratch(tmp_path, KEY, URI, keep=False)
    scratch.note("etag", 10)
    assert scratch.size == 0
    scratch.close(discard=False)
    assert len([*tmp_path.iterdir()]) == 2  # the earlier one's


def test_what_is_longer_than_now_allowed_is_not_taken_up(tmp_path: Path) -> None:
    interrupted(tmp_path, b"12345")
    scratch = Scratch(tmp_path, KEY, URI, max_bytes=4)
    assert scratch.size == 0
    with pytest.raises(TooLarge, match="4 bytes"):
        scratch.write(b"12345")
    assert scratch.size == 0 and scratch.path.read_bytes() == b""
    scratch.close(discard=True)


def test_taking_up_that_fails_leaves_no_second_copy(tmp_path: Path) -> None:
    interrupted(tmp_path, b"12345")
    (part,) = tmp_path.glob("*.part")
    part.unlink()
    part.mkdir()  # has a size, and cannot be read
    before = sorted(tmp_path.iterdir())
    with pytest.raises(IsADirectoryError):
        Scratch(tmp_path, KEY, URI)
    assert sorted(tmp_path.iterdir()) == before


def test_restart_begins_at_nothing(tmp_path: Path) -> None:
    interrupted(tmp_path, b"12345")
    scratch = Scratch(tmp_path, KEY, URI)
    scratch.restart()
    assert (scratch.size, scratch.journal, scratch.digest()) == (0, None, sha(b""))
    scratch.write(b"x")
    assert scratch.path.read_bytes() == b"x" and [*tmp_path.iterdir()] == [scratch.path]
    scratch.close(discard=False)
    assert [*tmp_path.iterdir()] == []


def test_adopting_what_somebody_else_wrote(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, KEY, URI, max_bytes=9)
    other = scratch.path.with_suffix(".other")
    other.write_bytes(b"123456789")
    other.replace(scratch.path)  # another file under the same name, as a Parquet writer may leave it
    scratch.adopt()
    assert (scratch.size, scratch.digest()) == (9, sha(b"123456789"))
    scratch.path.write_bytes(b"1234567890")
    with pytest.raises(TooLarge):
        scratch.adopt()
    scratch.close(discard=True)


def test_a_journal_is_for_what_takes_a_while(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, KEY, URI)
    scratch.note("etag", 10 << 20)
    assert [*tmp_path.iterdir()] == [scratch.path], "nothing has come that could be lost"
    scratch.write(bytes(3 << 20))
    assert scratch.path.with_suffix(".json").exists()
    scratch.close(discard=True)
    assert [*tmp_path.iterdir()] == []


def test_two_at_once_never_touch_each_others_bytes(tmp_path: Path) -> None:
    """A shard may list a source twice: two threads of a process are then at it at once. Both publish, and both are
    right."""
    store = Store.open(StoreLimits(tmp_path, min_free_bytes=0))
    spec = FileSpec(0, 0, URI)
    meet = threading.Barrier(4)
    paths: list[str] = []

    def attempt() -> None:
        with store.scratch(KEY, spec, on_bytes=lambda n: None, max_bytes=1 << 30) as scratch:
            scratch.note("etag", 50_000)
            for n in range(50):
                if n % 10 == 0:
                    meet.wait(10)
                scratch.write(bytes([n]) * 1000)
            paths.append(store.publish(KEY, spec, scratch, version="etag").path)

    threads = [threading.Thread(target=attempt) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(paths) == 4 and len(set(paths)) == 1
    assert (store.root / paths[0]).read_bytes() == b"".join(bytes([n]) * 1000 for n in range(50))
    assert [*(tmp_path / "scratch").iterdir()] == []


def test_what_nobody_writes_any_more_is_taken_over_and_what_somebody_may_write_is_copied(tmp_path: Path) -> None:
    interrupted(tmp_path, b"12345")
    (part,) = tmp_path.glob("*.part")
    inode = part.stat().st_ino
    scratch = Scratch(tmp_path, KEY, URI)
    assert scratch.path.stat().st_ino == inode, "this kernel knows that nobody has it open"
    scratch.close(discard=False)
    with scratch.path.open("r+b"):
        other = Scratch(tmp_path, KEY, URI)
        assert other.path.stat().st_ino != inode and other.path.read_bytes() == b"12345"
        assert scratch.path.exists(), "whoever has it open removes it himself"
        other.close(discard=True)
    again = Scratch(tmp_path, KEY, URI)
    assert again.size == 5 and [*tmp_path.glob("*.part")] == [again.path]
    again.close(discard=True)


@pytest.mark.parametrize(("change", "believed"), [({}, True), ({"synced": True}, True), ({"synced": False}, False)])
def test_what_another_boot_or_machine_left_counts_only_if_it_was_closed_in_order(
    tmp_path: Path, change: dict[str, bool], believed: bool
) -> None:
    interrupted(tmp_path, b"12345")
    (journal,) = tmp_path.glob("*.json")
    inode = journal.with_suffix(".part").stat().st_ino
    if change:
        journal.write_text(json.dumps(json.loads(journal.read_text()) | change | {"writer": "another-boot 1"}))
    scratch = Scratch(tmp_path, KEY, URI)
    assert scratch.size == (5 if believed else 0)
    assert not believed or (scratch.path.stat().st_ino == inode) == (not change), (
        "another kernel's word on open files is not known"
    )
    scratch.close(discard=True)
    assert [*tmp_path.iterdir()] == []


def test_one_that_was_taken_for_dead_and_wakes_up_publishes_nothing_wrong(tmp_path: Path) -> None:
    """It lives in another process, which lost its lease; here its open file stands for it."""
    store = Store.open(StoreLimits(tmp_path, min_free_bytes=0))
    interrupted(tmp_path / "scratch", b"12345")
    (part,) = (tmp_path / "scratch").glob("*.part")
    with (
        part.open("ab") as sleeper,
        store.scratch(KEY, FileSpec(0, 0, URI), on_bytes=lambda n: None, max_bytes=99) as scratch,
    ):
        scratch.write(b"678")
        sleeper.write(b"XXXXXXXX")
        sleeper.flush()
        scratch.write(b"90")
        found = store.publish(KEY, FileSpec(0, 0, URI), scratch, version="etag")
    assert (store.root / found.path).read_bytes() == b"1234567890" and found.digest == sha(b"1234567890")
