"""How many connections a large file is given, by a clock of the test's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from workers.fetchers.http.pieces import Pace

LOOK_S = 0.05


def follow(
    brings: Callable[[int], float], most: int, seconds: float, burst_s: float = LOOK_S
) -> list[tuple[float, int]]:
    """(time, how many there should be) whenever that changes; ``brings``: bytes a second of so many connections, which
    come all at once every ``burst_s``."""
    pace, brought, due, alive, found = Pace(most, 0.0), 0.0, 0.0, 2, [(0.0, 2)]
    for look in range(1, round(seconds / LOOK_S) + 1):
        now = look * LOOK_S
        due += brings(alive) * LOOK_S
        if look % max(1, round(burst_s / LOOK_S)) == 0:
            brought, due = brought + due, 0.0
        alive = pace.step(now, int(brought), alive)
        if alive != found[-1][1]:
            found.append((now, alive))
    return found


@pytest.mark.parametrize("most", [3, 8, 16])
def test_where_each_is_limited_there_are_soon_as_many_as_may_be(most: int) -> None:
    counts = follow(lambda alive: 20e6 * alive, most, 2.5)
    assert counts[-1][1] == most and [alive for _, alive in counts] == sorted({2, min(4, most), most})


@pytest.mark.parametrize("burst_s", [0.0, 0.1, 0.2, 0.25])
def test_where_they_only_share_it_is_tried_once_and_not_soon_again(burst_s: float) -> None:
    counts = follow(lambda _: 4e6, 16, 20, burst_s)
    assert [alive for _, alive in counts] == [2, 4, 2]
    assert [alive for _, alive in follow(lambda _: 4e6, 16, 30, burst_s)][3:4] == [4], "a line may be better later"


def test_a_little_more_each_is_no_reason_for_four_times_as_many() -> None:
    """A line that gives 50 MB/s, and 8 MB/s to each: four bring 32, eight all of it."""
    counts = follow(lambda alive: min(50e6, 8e6 * alive), 64, 15)
    assert counts[1][1] == 4 and counts[-1][1] <= 16


def test_a_single_one_is_never_joined() -> None:
    assert Pace(1, 0.0).target == 1


def test_what_was_refused_is_not_asked_for_again() -> None:
    pace = Pace(16, 0.0)
    pace.limited(3)
    assert max(pace.step(look * LOOK_S, int(look * 1e6 * 3), 3) for look in range(1, 2000)) == 3
