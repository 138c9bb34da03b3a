"""Which files and samples an iterator reads, and in which order: pure functions of the job's order, seed and epoch.

Consumers are the DataLoader workers of all ranks. With at least as many files as consumers, the file at place *s* of
the (shuffled) order goes to consumer *s* mod *n*; with fewer, every consumer reads every file and takes every *n*-th
sample. All decide alike, because each waits until *n* files are known or the order is complete. Every rank must
therefore have the same number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from ingest.dataset.follow import Extent

#: Files are shuffled within windows of this many. A window can be laid out as soon as its files are *known*, long
#: before they have landed, so that shuffling never waits for a job to be complete.
WINDOW_FILES = 16
#: Samples are shuffled within a buffer of at most this many and, where sizes can be seen, about this many bytes.
BUFFER_SAMPLES = 1000
BUFFER_BYTES = 64 << 20


@dataclass(frozen=True)
class Share:
    """One consumer's part: number ``consumer`` of ``consumers``, in whole files or in every n-th sample."""

    consumer: int
    consumers: int
    by_file: bool

    def has_file(self, place: int) -> bool:
        return not self.by_file or place % self.consumers == self.consumer

    def first_sample(self, place: int) -> int:
        """The first sample of the file at ``place`` that is ours, of which then every n-th is (all of them, by file).

        It moves on with the place, or files of one sample each would all be the first consumer's.
        """
        return 0 if self.by_file else (self.consumer - place) % self.consumers

    @property
    def step(self) -> int:
        return 1 if self.by_file else self.consumers


def consumer_of(rank: int, world: int, worker: int, workers: int) -> tuple[int, int]:
    """``(consumer, consumers)``; neighbours in the order go to different ranks, so that all of them start early."""
    return worker * world + rank, world * workers


def places(extent: Callable[[int], Extent], shuffle: str | None) -> Iterator[tuple[int, int]]:
    """``(place, position)`` of every file: its place in the order of reading and its position in the job's order.

    ``extent(n)`` waits until n files are known or no more will be; ``shuffle`` seeds permutations; None is no shuffle.
    """
    window = 1 if shuffle is None else WINDOW_FILES
    start = 0
    while True:
        known = extent(start + window)
        positions = list(range(start, min(start + window, known.files)))
        if shuffle is not None:
            Random(f"{shuffle}/{start}").shuffle(positions)
        yield from enumerate(positions, start)
        if len(positions) < window:
            return
        start += window


def _weight(sample: Any) -> int:
    values = sample.values() if isinstance(sample, dict) else (sample,)
    return sum(len(value) for value in values if isinstance(value, bytes | str))


def mixed(samples: Iterator[Any], seed: str) -> Iterator[Any]:
    """The samples through a shuffle buffer that fills while it is read: one sample leaves for every two that enter.

    The first comes out at once, and what comes when depends on the samples alone, never on how fast files land.
    """
    random = Random(seed)
    held: list[Any] = []
    held_bytes = 0
    for number, sample in enumerate(samples):
        held.append(sample)
        held_bytes += _weight(sample)
        due = number % 2 == 0
        while held and (due or len(held) > BUFFER_SAMPLES or held_bytes > BUFFER_BYTES):
            due = False
            taken = _take(held, random)
            held_bytes -= _weight(taken)
            yield taken
    while held:
        yield _take(held, random)


def _take(held: list[Any], random: Random) -> Any:
    place = random.randrange(len(held))
    held[place], held[-1] = held[-1], held[place]
    return held.pop()
