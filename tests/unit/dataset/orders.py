"""A catalog out of a list of sample counts, and what an order over it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

from ingest.dataset.follow import Extent
from ingest.dataset.order import Entry, Order, Recipe
from ingest.dataset.shuffle import KINDS

T = TypeVar("T")

Sample = tuple[int, int]  # (file, number in it)

COUNTS = st.lists(st.sampled_from([0, 1, 2, 5, 40, 90]), max_size=9)
RECIPES = st.builds(
    Recipe,
    seed=st.integers(0, 3),
    epoch=st.integers(0, 3),
    shuffle=st.sampled_from(KINDS),
    files=st.sampled_from([1, 3, 100]),
    window=st.sampled_from([2, 7, 64, 1000]),
    streams=st.sampled_from([1, 2, 3, 8]),
)


class Counts:
    """``asked`` is the files that somebody wanted to know of, in that order."""

    def __init__(self, counts: Sequence[int], known: int | None = None) -> None:
        self.counts, self.asked = counts, []
        self.known = len(counts) if known is None else known

    def extent(self, at_least: int) -> Extent:
        return Extent(self.known, self.known == len(self.counts))

    def entry(self, position: int) -> Entry:
        self.asked.append(position)
        return Entry(self.counts[position], f"file {position}")


def slots_of(locate: Callable[[range], Iterable[Any]], sample: Callable[[Any, int], T], places: range) -> list[T]:
    """``sample`` of each pick and number at these places, in as many steps as ``locate`` takes."""
    out: list[T] = []
    while places:
        found = {slot: sample(p, n) for p in locate(places) for n, slot in zip(p.numbers, p.slots, strict=True)}
        assert sorted(found) == list(range(len(found)))
        out += [found[slot] for slot in range(len(found))]
        if not found:
            break
        places = places[len(found) :]
    return out


def samples_at(order: Order, places: range) -> list[Sample]:
    """What an order gives at these places."""
    return slots_of(order.locate, lambda pick, n: (pick.position, n), places)


def epoch_of(counts: Sequence[int], recipe: Recipe) -> list[Sample]:
    return samples_at(Order(Counts(counts), recipe), range(sum(counts) + 1))
