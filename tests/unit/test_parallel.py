"""Several files at once: each of them once, and nobody waits for one that hangs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from workers.parallel import each

FILES = list(range(40))


class Control:
    """What ``each`` needs of one."""

    def __init__(self) -> None:
        self.why = ""

    def interrupt(self, why: str) -> None:
        self.why = why


def run(work: Callable[[int], Any], files: list[int] = FILES, at_once: int = 8) -> dict[int, Any]:
    found = dict(each(files, work, at_once, Control()))  # type: ignore[arg-type]
    assert sorted(found) == files, "each of them, once"
    return found


def test_as_many_at_once_as_may_be() -> None:
    together = threading.Barrier(8)

    def meet(_: int) -> int:
        together.wait(20)
        return threading.get_ident()

    assert len(set(run(meet).values())) == 8


def test_nobody_waits_for_one_that_hangs() -> None:
    others, answered = threading.Event(), iter(range(1, len(FILES) + 1))

    def work(number: int) -> bool:
        if number == 0:
            return others.wait(20)
        if next(answered) == len(FILES) - 1:
            others.set()
        return True

    assert all(run(work).values())


@pytest.mark.parametrize(("files", "at_once"), [(FILES[:1], 8), (FILES, 1)])
def test_one_file_or_one_at_a_time_needs_no_thread(files: list[int], at_once: int) -> None:
    assert set(run(lambda number: threading.get_ident(), files, at_once).values()) == {threading.get_ident()}
