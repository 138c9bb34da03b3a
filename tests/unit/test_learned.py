"""What is learned of an origin is believed for a while, of that origin only, and of a bounded number of origins."""

from __future__ import annotations

import pytest

from workers.fetchers.http import learned as module
from workers.fetchers.http.learned import DISTRUST_S, OF_USE_S, ORIGINS, Learned
from workers.fetchers.http.pieces import BEGIN_WITH

FILE, ANOTHER, ELSEWHERE = "https://a.example/1.bin", "https://a.example/2.bin", "https://a.example:8443/1.bin"


class Clock:
    now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_nothing_is_known_at_first() -> None:
    assert Learned().trusts(FILE)
    assert Learned().of_use(FILE) == BEGIN_WITH


def test_what_one_file_taught_holds_for_the_next_of_its_origin_for_a_while(clock: Clock) -> None:
    learned = Learned()
    learned.were_of_use(FILE, 16)
    learned.distrust(FILE)

    assert (learned.of_use(ANOTHER), learned.trusts(ANOTHER)) == (16, False)
    assert (learned.of_use(ELSEWHERE), learned.trusts(ELSEWHERE)) == (BEGIN_WITH, True)
    clock.now += OF_USE_S
    assert (learned.of_use(ANOTHER), learned.trusts(ANOTHER)) == (BEGIN_WITH, False)
    clock.now += DISTRUST_S
    assert learned.trusts(ANOTHER)


def test_the_origins_of_a_long_list_do_not_all_stay() -> None:
    learned = Learned()
    learned.distrust(FILE)
    for number in range(3 * ORIGINS):
        learned.were_of_use(f"https://{number}.example/1.bin", 4)
        if number < ORIGINS:
            learned.were_of_use(ANOTHER, 8)

    assert learned.trusts(FILE), "the one longest not heard of is forgotten"
    known = [n for n in range(3 * ORIGINS) if learned.of_use(f"https://{n}.example/1.bin") == 4]
    assert known == list(range(2 * ORIGINS, 3 * ORIGINS))
