"""Splitting and shuffling as pure functions: everything once, the same for all, different by epoch."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice

import pytest

from ingest.dataset import order
from ingest.dataset.follow import Extent


def consumed(files: int, samples: int, world: int, workers: int, shuffle: str | None) -> list[list[tuple[int, int]]]:
    """(file, sample) of every consumer."""
    out = []
    for rank in range(world):
        for worker in range(workers):
            consumer, consumers = order.consumer_of(rank, world, worker, workers)
            share = order.Share(consumer, consumers, by_file=files >= consumers)
            mine = []
            for place, position in order.places(lambda n: Extent(files, True), shuffle):
                if share.has_file(place):
                    mine += [(position, n) for n in islice(range(samples), share.first_sample(place), None, share.step)]
            out.append(mine)
    return out


@pytest.mark.parametrize("shuffle", [None, "0/0"])
@pytest.mark.parametrize("files", [0, 1, 5, 6, 16, 33])
@pytest.mark.parametrize(("world", "workers"), [(1, 1), (2, 3), (3, 4)])
def test_every_sample_exactly_once(files: int, world: int, workers: int, shuffle: str | None) -> None:
    parts = consumed(files, 7, world, workers, shuffle)
    assert sorted(pair for part in parts for pair in part) == [(f, n) for f in range(files) for n in range(7)]
    if files >= world * workers:
        assert all(parts)


def test_few_files_of_one_sample_are_not_all_the_first_consumers() -> None:
    assert [len(part) for part in consumed(5, 1, 2, 3, None)] == [1, 1, 1, 1, 1, 0]


def test_a_window_is_laid_out_when_its_files_are_known_not_when_all_are() -> None:
    asked = []

    def extent(at_least: int) -> Extent:
        asked.append(at_least)
        return Extent(at_least, False)

    first = [position for _, position in islice(order.places(extent, "0/0"), order.WINDOW_FILES)]
    assert sorted(first) == list(range(order.WINDOW_FILES)) and first != sorted(first)
    assert asked == [order.WINDOW_FILES]


def test_another_seed_or_epoch_is_another_order_and_the_same_is_the_same() -> None:
    def positions(seed: str) -> list[int]:
        return [position for _, position in order.places(lambda n: Extent(100, True), seed)]

    assert positions("0/0") == positions("0/0")
    assert len({tuple(positions(seed)) for seed in ("0/0", "0/1", "1/0")}) == 3


def test_the_sample_buffer_gives_all_starts_at_once_and_mixes() -> None:
    read = []

    def source() -> Iterator[int]:
        for n in range(5000):
            read.append(n)
            yield n

    out = order.mixed(source(), "s")
    first = next(out)
    assert len(read) == 1
    rest = list(out)
    assert sorted([first, *rest]) == list(range(5000)) and rest != sorted(rest)
    assert list(order.mixed(iter(range(50)), "s")) == list(order.mixed(iter(range(50)), "s"))


def test_the_sample_buffer_is_bounded_in_samples_and_bytes() -> None:
    def most_held(samples: list[bytes]) -> int:
        given = most = 0
        taken = iter(samples)

        def counting() -> Iterator[bytes]:
            nonlocal given
            for sample in taken:
                given += 1
                yield sample

        for out, _ in enumerate(order.mixed(counting(), "s")):
            most = max(most, given - out)
        return most

    assert most_held([b""] * 5000) <= order.BUFFER_SAMPLES + 1
    block = bytes(order.BUFFER_BYTES // 10)
    assert most_held([block] * random.Random(0).randint(60, 80)) <= 12
