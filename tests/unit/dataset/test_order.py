"""The order of an epoch as a pure function: all once, the same whoever asks, and no file before it is needed."""

from __future__ import annotations

from itertools import chain, groupby, islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.dataset.follow import Extent
from ingest.dataset.order import Order, Recipe
from ingest.dataset.shuffle import KINDS, Places, permutation
from tests.unit.dataset.orders import COUNTS, RECIPES, Counts, epoch_of, samples_at


@settings(max_examples=60, deadline=None)
@given(COUNTS, RECIPES, st.data())
def test_all_once_and_the_same_whatever_is_asked_for(counts: list[int], recipe: Recipe, data: st.DataObject) -> None:
    whole = epoch_of(counts, recipe)
    assert sorted(whole) == [(file, n) for file, count in enumerate(counts) for n in range(count)]
    start = data.draw(st.integers(0, len(whole)))
    step = data.draw(st.sampled_from([1, 2, 3, 8]))
    assert samples_at(Order(Counts(counts), recipe), range(start, len(whole) + 9, step)) == whole[start::step]
    order, size = Order(Counts(counts), recipe), data.draw(st.integers(1, 50))
    pieces = [samples_at(order, range(at, at + size)) for at in range(0, len(whole) + size, size)]
    assert list(chain(*pieces)) == whole
    assert order.count() == len(whole)


@settings(max_examples=40, deadline=None)
@given(COUNTS, RECIPES, st.integers(1, 60))
def test_what_is_over_is_over(counts: list[int], recipe: Recipe, size: int) -> None:
    """No file is given from after it was said to be over, and in the end all are."""
    order = Order(Counts(counts), recipe)
    over: set[int] = set()
    for at in range(0, sum(counts) + 1, size):
        now = order.over(at)
        assert not over & set(now)
        over |= set(now)
        given_now = samples_at(order, range(at, at + size))
        assert not over & {file for file, _ in given_now}
        assert {file for file, _ in given_now} <= set(order.streams.read)
    order.count()
    assert over | set(order.over(None)) == set(range(len(counts))) and not order.streams.read


@settings(max_examples=40, deadline=None)
@given(COUNTS, RECIPES, st.data())
def test_the_files_before_a_place_are_told_by_their_fingerprint(
    counts: list[int], recipe: Recipe, data: st.DataObject
) -> None:
    whole = epoch_of(counts, recipe)
    place = data.draw(st.integers(0, len(whole)))
    order = Order(Counts(counts), recipe)
    samples_at(order, range(place))
    files = order.files_before(place)
    later = Order(Counts(counts), recipe)
    later.count()
    assert later.streams.print_of(files) == order.streams.print_of(files)
    if recipe.shuffle in ("none", "files"):
        assert {file for file, _ in whole[:place]} <= set(order.streams.dealt[:files])
    if files and any(counts):
        dealt = order.streams.dealt[data.draw(st.integers(0, files - 1))]
        other = [count + (file == dealt) for file, count in enumerate(counts)]
        changed = Order(Counts(other), recipe)
        changed.count()
        assert changed.streams.print_of(files) != order.streams.print_of(files)


@pytest.mark.parametrize("shuffle", KINDS)
def test_the_first_sample_needs_the_first_file_only(shuffle: str) -> None:
    catalog = Counts([100] * 50)
    order = Order(catalog, Recipe(shuffle=shuffle, window=50))
    (pick,) = order.locate(range(1))
    assert catalog.asked == [pick.position]
    assert (pick.position == 0) == (shuffle == "none")


def test_places_that_need_another_file_are_left_for_the_next_question() -> None:
    catalog = Counts([3, 3])
    order = Order(catalog, Recipe())
    assert [list(pick.numbers) for pick in order.locate(range(6))] == [[0, 1, 2]]
    assert catalog.asked == [0]


def test_kinds_of_shuffle() -> None:
    counts, window = [300] * 40, 256
    in_order = epoch_of(counts, Recipe())
    assert in_order == sorted(in_order)
    files = epoch_of(counts, Recipe(shuffle="files"))
    runs = [(file, [n for _, n in group]) for file, group in groupby(files, key=lambda sample: sample[0])]
    assert all(numbers == list(range(300)) for _, numbers in runs)
    assert [file for file, _ in runs] != sorted(file for file, _ in runs)
    windowed = epoch_of(counts, Recipe(shuffle="window", window=window))
    moved = [abs(at - was) for at, was in ((at, files.index(s)) for at, s in islice(enumerate(windowed), 0, None, 7))]
    assert max(moved) <= 1.5 * window and sum(moved) / len(moved) > window / 4
    blocks = epoch_of(counts, Recipe(shuffle="blocks", window=700))  # three files of 300 each
    assert [{file for file, _ in blocks[at : at + 900]} for at in (0, 900)] == [
        {file for file, _ in files[at : at + 900]} for at in (0, 900)
    ]
    assert len({file for file, _ in blocks[:50]}) == 3


def test_another_seed_or_epoch_is_another_order_and_the_same_is_the_same() -> None:
    counts = [10] * 30
    recipes = [Recipe(seed, epoch, "window") for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(epoch_of(counts, recipe)) for recipe in recipes}) == 4
    assert epoch_of(counts, recipes[0]) == epoch_of(counts, recipes[0])


def test_a_permutation_is_the_same_for_ever() -> None:
    """A checkpoint of this version is to be resumed by the next one, on another Python."""
    assert permutation(8, "0/0/files/0") == [5, 3, 7, 2, 0, 1, 4, 6]


def test_a_window_of_files_is_laid_out_when_they_are_known_not_when_all_are() -> None:
    asked = []

    def extent(at_least: int) -> Extent:
        asked.append(at_least)
        return Extent(at_least, False)

    first = list(islice(Places(extent, 16, "0/0"), 16))
    assert sorted(first) == list(range(16)) and first != sorted(first)
    assert asked == [16]


def test_streams_take_turns_and_the_next_file_goes_to_who_is_first_at_its_end() -> None:
    assert epoch_of([2, 1, 2, 1], Recipe(streams=2)) == [(0, 0), (1, 0), (0, 1), (2, 0), (3, 0), (2, 1)]


def test_what_comes_next_is_told_without_waiting() -> None:
    catalog = Counts([10] * 30, known=20)
    order = Order(catalog, Recipe(shuffle="files", files=8))
    assert order.streams.ahead(30) == list(islice(Places(catalog.extent, 8, "0/0"), 16)), "two windows are known"
    samples_at(order, range(25))
    assert catalog.asked == list(islice(Places(catalog.extent, 8, "0/0"), 3))
    assert [*order.streams.dealt, *order.streams.ahead(2)] == list(islice(Places(catalog.extent, 8, "0/0"), 5))
