"""Who brings which bytes of a file, and over how many connections."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from ingest.store.spans import Spans
from workers.fetchers.http.pieces import SILENT_S, STEAL_BYTES, Pace, Piece, Plan

MB = 1 << 20


class Bringing(RuleBasedStateMachine):
    """Connections come and go, steal and break off: every missing byte is somebody's or free, and brought once."""

    def __init__(self) -> None:
        super().__init__()
        self.gaps = [(3 * MB, 9 * MB), (10 * MB, 10 * MB + 5), (20 * MB, 31 * MB)]
        self.plan = Plan(self.gaps, 2 * MB)
        self.brought = Spans()
        self.total = 0
        self.now = 0.0

    pick = st.integers(0, 20)

    def one(self, number: int) -> Piece:
        return self.plan.busy[number % len(self.plan.busy)]

    @rule()
    def take(self) -> None:
        piece = self.plan.take(self.now)
        assert piece is None or 0 < piece.left <= 3 * MB

    @rule(later=st.booleans())
    def steal(self, later: bool) -> None:
        self.now += SILENT_S * later
        silent = any(piece.left and self.now - piece.touched >= SILENT_S for piece in self.plan.busy)
        before = sum(piece.left for piece in self.plan.busy)
        piece = self.plan.steal(self.now)
        assert before == sum(piece.left for piece in self.plan.busy)
        assert piece is None or silent or piece.left >= STEAL_BYTES

    @precondition(lambda self: self.plan.busy)
    @rule(number=pick, size=st.integers(1, 3 * MB))
    def bring(self, number: int, size: int) -> None:
        piece = self.one(number)
        at = piece.at
        count = self.plan.claim(piece, size, self.now)
        assert count == min(size, piece.end - at)
        self.brought.add(at, at + count)
        self.total += count

    @precondition(lambda self: self.plan.busy)
    @rule(number=pick)
    def grow(self, number: int) -> None:
        piece = self.one(number)
        end = piece.end
        assert self.plan.grow(piece) == (piece.end > end)

    @precondition(lambda self: self.plan.busy)
    @rule(number=pick)
    def drop(self, number: int) -> None:
        self.plan.drop(self.one(number))

    @invariant()
    def nothing_is_lost_and_nothing_comes_twice(self) -> None:
        pending = [*self.plan.free, *((piece.at, piece.end) for piece in self.plan.busy)]
        assert Spans([*self.brought, *pending]) == Spans(self.gaps)
        assert self.total + sum(end - start for start, end in pending) == Spans(self.gaps).total


TestBringing = Bringing.TestCase
TestBringing.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def grown(most: int, rate: Callable[[int], float], seconds: float) -> list[int]:
    """Numbers of connections, second for second, where ``rate`` is what so many bring in all."""
    pace, now, brought, alive, seen = Pace(most, 0.0), 0.0, 0.0, 1, []
    while now < seconds:
        alive = pace.step(now, int(brought), alive)  # they come and go at once
        brought += rate(alive) * 0.05
        now += 0.05
        seen.append(alive)
    return seen


def test_as_many_as_bring_more() -> None:
    assert max(grown(8, lambda n: n * MB, 20)) == 8
    assert max(grown(6, lambda n: n * MB, 20)) == 6
    assert grown(8, lambda n: n * MB, 20)[-1] == 8


def test_no_more_than_bring_more() -> None:
    seen = grown(64, lambda n: min(n, 5) * MB, 15)
    assert max(seen) == 16 and seen[-1] == 8, "four were better than two, eight than four, sixteen no better than eight"
    seen = grown(64, lambda n: 10 * MB, 15)
    assert max(seen) == 4 and seen[-1] == 2


def test_it_is_tried_again_later() -> None:
    seen = grown(8, lambda n: 10 * MB, 60)
    assert sum(a < b for a, b in pairwise(seen)) >= 3


def test_what_was_refused_is_not_tried_again() -> None:
    pace = Pace(8, 0.0)
    pace.limited(3)
    assert {pace.step(t / 10, t * MB, 3) for t in range(1000)} == {3}


@given(st.integers(0, 9))
def test_after_a_loss_it_waits(alive: int) -> None:
    pace = Pace(8, 0.0)
    pace.lost(alive, 100.0)
    least = max(1, alive)
    assert {pace.step(100 + t / 10, t * MB, least) for t in range(190)} == {least}


@pytest.mark.parametrize("most", [1, 2])
def test_a_limit_of_few(most: int) -> None:
    assert max(grown(most, lambda n: n * MB, 20)) == most
