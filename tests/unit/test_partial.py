"""Ranges of a file, and what is left of them when the process that wrote them is killed at any point."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.errors import TooLarge
from ingest.store import Scratch
from ingest.store.partial import find
from ingest.store.spans import Spans

KEY, URI = "k" * 40, "https://host/a"
LENGTH = 4000
DATA = hashlib.shake_128(b"partial").digest(LENGTH)

spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)))


def of(given: list[tuple[int, int]]) -> set[int]:
    return {byte for start, end in given for byte in range(start, end)}


class TestSpans:
    @given(spans, st.integers(0, 60), st.integers(0, 60))
    def test_they_are_a_set_of_bytes(self, given: list[tuple[int, int]], cut: int, length: int) -> None:
        found, there = Spans(given), of(given)
        assert of(list(found)) == there and found.total == len(there)
        assert all(a < b < c < d for (a, b), (c, d) in zip(list(found), list(found)[1:], strict=False)), "none touch"
        assert found.prefix == next(n for n in range(62) if n not in there)
        assert of(found.gaps(length)) == set(range(length)) - there
        found.cut(cut)
        assert of(list(found)) == {byte for byte in there if byte < cut}


class TestRanges:
    def reserved(self, folder: Path, **options: object) -> Scratch:
        scratch = Scratch(folder, KEY, URI, **options)  # type: ignore[arg-type]
        if scratch.journal is None:
            scratch.note("etag", LENGTH)
        scratch.reserve(LENGTH)
        return scratch

    def test_in_any_order_from_any_thread(self, tmp_path: Path) -> None:
        told: list[int] = []
        scratch = self.reserved(tmp_path, on_bytes=told.append, algorithms=frozenset({"md5"}))
        threads = [
            threading.Thread(
                target=lambda n=n: [scratch.place(at, DATA[at : at + 10]) for at in range(n * 10, LENGTH, 80)]
            )
            for n in reversed(range(8))
        ]
        for thread in threads:
            thread.start()
        while scratch.catch_up(64) or any(thread.is_alive() for thread in threads):
            pass
        for thread in threads:
            thread.join()
        assert scratch.size == sum(told) == LENGTH and scratch.gaps(LENGTH) == []
        assert scratch.digest() == "sha256:" + hashlib.sha256(DATA).hexdigest()
        assert scratch.digest("md5") == "md5:" + hashlib.md5(DATA).hexdigest()
        assert scratch.path.read_bytes() == DATA
        scratch.close(discard=True)

    def test_the_next_attempt_knows_what_is_missing(self, tmp_path: Path) -> None:
        scratch = self.reserved(tmp_path)
        scratch.place(1000, DATA[1000:2000])
        scratch.place(0, DATA[:500])
        assert (scratch.size, scratch.held, scratch.advanced) == (500, 1500, 1500)
        scratch.close(discard=False)
        again = self.reserved(tmp_path)
        assert (again.size, again.held, again.advanced) == (500, 1500, 0)
        assert again.gaps(LENGTH) == [(500, 1000), (2000, LENGTH)]
        again.place(500, DATA[500:1000])
        assert again.size == 2000 and again.advanced == 500
        again.cut(1500)
        assert (again.size, again.advanced) == (1500, 0)
        again.close(discard=True)

    def test_who_appends_knows_of_nothing_behind(self, tmp_path: Path) -> None:
        scratch = self.reserved(tmp_path)
        scratch.place(0, DATA[:500])
        scratch.place(1000, b"x" * 100)
        scratch.write(DATA[500:600])
        assert scratch.path.read_bytes() == DATA[:600]
        assert scratch.digest() == "sha256:" + hashlib.sha256(DATA[:600]).hexdigest()
        scratch.close(discard=True)

    def test_a_file_that_was_reserved_for_more_ends_where_its_bytes_end(self, tmp_path: Path) -> None:
        scratch = self.reserved(tmp_path)
        scratch.place(0, DATA[:500])
        scratch.digest()
        assert scratch.path.read_bytes() == DATA[:500]
        scratch.close(discard=True)

    def test_limits(self, tmp_path: Path) -> None:
        scratch = self.reserved(tmp_path, max_bytes=LENGTH - 1)
        with pytest.raises(TooLarge, match=str(LENGTH)):
            scratch.announce(LENGTH)
        scratch.announce(LENGTH - 1)
        scratch.place(LENGTH - 2, b"x")
        with pytest.raises(TooLarge):
            scratch.place(LENGTH - 1, b"x")
        scratch.close(discard=True)

    def test_what_is_mixed_is_for_those_who_know_the_digest(self, tmp_path: Path) -> None:
        def left() -> int:
            scratch = Scratch(tmp_path, KEY, URI, algorithms=frozenset({"md5"}))
            scratch.note("etag", LENGTH, mixed=True)
            scratch.write(DATA[:500])
            scratch.close(discard=False)
            return scratch.size

        left()
        assert left() == 1000
        plain = Scratch(tmp_path, KEY, URI)
        assert (plain.size, plain.journal) == (0, None)
        plain.close(discard=True)

    def test_what_was_marked_is_taken_up_and_no_byte_more(self, tmp_path: Path) -> None:
        scratch = Scratch(tmp_path, KEY, URI)
        scratch.write(b"page one, ")
        scratch.mark({"next": 2})
        scratch.write(b"half of pa")
        assert scratch.advanced == 10
        scratch.close(discard=False)
        again = Scratch(tmp_path, KEY, URI)
        assert again.journal is not None and again.journal.facts == {"next": 2}
        assert again.path.read_bytes() == b"page one, " and again.size == 10
        again.write(b"page two")
        assert again.digest() == "sha256:" + hashlib.sha256(b"page one, page two").hexdigest()
        again.close(discard=True)
        assert [*tmp_path.iterdir()] == []


#: What an attempt does: places a range, or appends (None).
steps = st.lists(st.one_of(st.tuples(st.integers(0, LENGTH - 1), st.integers(1, 900)), st.none()), max_size=12)
#: … and when it is killed: before so many calls that change names, or when it writes so far into its file.
deaths = st.one_of(st.tuples(st.integers(1, 60), st.none()), st.tuples(st.just(0), st.integers(600, LENGTH)))
attempts = st.lists(st.tuples(steps, deaths, st.booleans()), min_size=1, max_size=5)


def attempt(folder: Path, todo: list[tuple[int, int] | None], *, ordered: bool = False, reserve: bool = True) -> None:
    """One attempt's writes; ``ordered`` ends it as an interrupted one."""
    scratch = Scratch(folder, KEY, URI, fsync=False)
    if scratch.journal is None:
        scratch.note("etag", LENGTH)
    if reserve:
        scratch.reserve(LENGTH)
    for step in todo:
        if step is None:
            scratch.write(DATA[scratch.size : scratch.size + 300])
        else:
            scratch.place(step[0], DATA[step[0] : step[0] + step[1]])
        scratch.note("etag", LENGTH)  # a journal after every write
    if ordered:
        scratch.close(discard=False)


def killed(work: Callable[[], None], at: int = 0, limit: int | None = None) -> bool:
    """Do that in a process which is killed, as by kill -9, before the ``at``-th time that it opens, renames, removes or
    cuts off a file, or when it writes a byte at ``limit``. Whether it was killed before it came to its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads, which do nothing here
        pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) or status == 0, "it failed"
        return os.WIFSIGNALED(status)
    code, left = 1, at

    def count(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in {"open", "os.rename", "os.remove", "os.truncate"}:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    try:
        sys.addaudithook(count)
        if limit is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        work()
        code = 0
    finally:
        os._exit(code)


def claims(folder: Path) -> int:
    """The most that is claimed; every claim is looked at."""
    left = [each for each in find(folder, KEY, ()) if each.journal]
    for each in left:
        there = each.part.read_bytes() if each.spans.total else b""
        assert all(there[start:end] == DATA[start:end] for start, end in each.spans)
    return max((each.spans.total for each in left), default=0)


@settings(max_examples=15, deadline=None)
@given(attempts)
def test_killed_at_any_point_it_claims_nothing_that_is_not_there(
    plan: list[tuple[list[tuple[int, int] | None], tuple[int, int | None], bool]],
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        best = 0
        for todo, (at, limit), ordered in plan:
            killed(partial(attempt, folder, todo, ordered=ordered, reserve=limit is None), at, limit)
            held = claims(folder)
            assert held >= best or None in todo, "whoever appends gives up what is behind; else nothing is ever lost"
            best = held
        scratch = Scratch(folder, KEY, URI, fsync=False)
        assert scratch.held == best, "and all of that is taken up"
        for start, end in scratch.gaps(LENGTH):
            scratch.place(start, DATA[start:end])
        assert scratch.digest() == "sha256:" + hashlib.sha256(DATA).hexdigest() and scratch.path.read_bytes() == DATA
        assert len([*folder.glob("*.part")]) == 1
        scratch.close(discard=True)
        assert [*folder.iterdir()] == []
    finally:
        shutil.rmtree(folder)


@pytest.mark.parametrize("how", ["taken over", "copied"])
def test_nothing_is_lost_wherever_taking_up_is_killed(tmp_path: Path, how: str) -> None:
    """Every point of it, one after the other."""
    for at in range(1, 60):
        folder = tmp_path / str(at)
        folder.mkdir()
        attempt(folder, [(0, 500), (1000, 700)], ordered=True)
        if how == "copied":
            (journal,) = folder.glob("*.json")
            journal.write_text(json.dumps(json.loads(journal.read_text()) | {"writer": "another 1", "synced": True}))
        died = killed(partial(attempt, folder, []), at)
        assert claims(folder) == 1200, f"killed before its call number {at}"
        scratch = Scratch(folder, KEY, URI, fsync=False)
        assert scratch.held == 1200 and [*folder.glob("*.part")] == [scratch.path]
        scratch.close(discard=True)
        assert [*folder.iterdir()] == []
        if not died:
            break
    assert not died and at > 5


def test_nothing_is_claimed_before_it_is_written(tmp_path: Path) -> None:
    for limit in range(700, 2000, 97):  # above what a journal takes
        attempt = tmp_path / str(limit)
        attempt.mkdir()

        def work(folder: Path = attempt) -> None:
            scratch = Scratch(folder, KEY, URI, fsync=False)
            scratch.mark({})  # a journal from the beginning on, which every note then writes anew
            for at in range(0, LENGTH, 100):
                scratch.place(at, DATA[at : at + 100])
                scratch.note("etag", LENGTH)

        assert killed(work, limit=limit)
        assert claims(attempt) == limit // 100 * 100
