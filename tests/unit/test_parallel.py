"""Several files at once: each of them once, and nobody waits for one that hangs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from random import Random
from types import FrameType
from typing import Any

import pytest
from billiard.exceptions import SoftTimeLimitExceeded

from workers.parallel import each

FILES = list(range(40))


class Control:
    """What ``each`` needs of one."""

    def interrupt(self, why: str) -> None:
        raise AssertionError(f"nothing interrupts these: {why}")


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


def test_an_error_that_nobody_expected_ends_it_when_nobody_works_any_more() -> None:
    working, begun = set[int](), threading.Semaphore(0)

    def work(number: int) -> None:
        working.add(number)
        begun.release()
        for _ in range(3):  # three are at work when one of them breaks
            begun.acquire()
            begun.release()
        try:
            if number == 1:
                raise ZeroDivisionError
            time.sleep(0.02)
        finally:
            working.discard(number)

    with pytest.raises(ZeroDivisionError):
        run(work, FILES, 3)
    assert not working


def test_a_time_limit_at_any_instant_loses_no_file_and_leaves_nobody_at_work() -> None:
    limits = 0

    def limit(_: int, frame: FrameType | None) -> None:
        while frame is not None:
            if frame.f_code.co_filename == each.__code__.co_filename:
                raise SoftTimeLimitExceeded
            frame = frame.f_back

    class Limited(Control):
        def interrupt(self, why: str) -> None:
            nonlocal limits
            assert why == "slice"
            limits += 1

    looked: dict[int, int] = {}
    working = set[int]()

    def work(number: int) -> int:
        working.add(number)
        looked[number] = looked.get(number, 0) + 1
        working.discard(number)
        return number

    random = Random(1)
    main = threading.get_ident()
    before = signal.signal(signal.SIGUSR1, limit)
    try:
        while limits < 30:  # so many came while it waited or handed out; others as it gave an answer, or too late
            looked.clear()
            given: list[int] = []
            answers = each(FILES, work, 3, Limited())  # type: ignore[arg-type]
            timer = threading.Timer(random.uniform(0, 1e-3), signal.pthread_kill, (main, signal.SIGUSR1))
            timer.start()
            try:
                given.extend(answer for _, answer in answers)
                timer.join()
            except SoftTimeLimitExceeded:  # it came as it gave an answer: the caller hears of it
                timer.join()
            else:
                assert sorted(given) == FILES
            assert not working
            assert set(looked.values()) <= {1}, "each by one thread only"
    finally:
        signal.signal(signal.SIGUSR1, before)
