"""One iterator over one consumer's share of a job: file by file, each read by its format. No torch here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from ingest.dataset import formats, order
from ingest.dataset.follow import Extent, Follower, Landed, Missing
from ingest.dataset.formats import decoders
from ingest.dataset.formats.decoders import Decoder
from ingest.errors import JobFailed, UsageError

log = logging.getLogger(__name__)

ON_FAILURE = ("raise", "skip")


@dataclass(frozen=True)
class Options:
    """How to read; checked when it is made, in the user's own process. Travels to DataLoader workers by pickle."""

    shuffle: bool = False
    seed: int = 0
    format: str | None = None
    columns: tuple[str, ...] | None = None
    decode: bool | Mapping[str, Decoder] = False
    read: Callable[[Path], Iterable[Any]] | None = None
    timeout_s: float = 300.0
    on_failure: str = "raise"
    keep: bool = True

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise UsageError(f"timeout={self.timeout_s:g}: give the seconds to wait for the next shard, above 0")
        if self.on_failure not in ON_FAILURE:
            raise UsageError(f"on_failure={self.on_failure!r}: use one of {', '.join(ON_FAILURE)}")
        if self.format is not None:
            formats.by_name(self.format)
        if self.read is not None and (self.format, self.columns, self.decode) != (None, None, False):
            raise UsageError("read= gives a file's samples by itself: leave out format=, columns= and decode=")


def columns_of(columns: Sequence[str] | None) -> tuple[str, ...] | None:
    if isinstance(columns, str):
        raise UsageError(f"columns={columns!r}: give a list of names")
    return None if columns is None else tuple(columns)


def stream(follower: Follower, options: Options, job: str, worker: int, workers: int) -> Iterator[Any]:
    """Every sample of consumer (this rank, ``worker`` of ``workers``) for the epoch that the feed says.

    Raises WaitTimeout, JobFailed, DataError, NotLocalError, StoreError and LedgerUnavailable when the order gets there.
    """
    begin = follower.begin()
    consumer, consumers = order.consumer_of(begin.rank, begin.world, worker, workers)
    seed = f"{options.seed}/{begin.epoch}"
    extent = partial(_extent, follower, options.on_failure)
    share = order.Share(consumer, consumers, by_file=extent(consumers).files >= consumers)
    places = order.places(extent, seed if options.shuffle else None)
    if not options.keep:
        places = _told(follower, share, places, worker, workers)
    samples = _in_order(follower, options, job, share, places)
    return order.mixed(samples, f"{seed}/{consumer}/{consumers}") if options.shuffle else samples


def _extent(follower: Follower, on_failure: str, at_least: int) -> Extent:
    extent = follower.extent(at_least)
    if isinstance(extent, Missing):
        raise JobFailed([], [extent.failure])
    if extent.failures and on_failure == "raise":
        raise JobFailed([], extent.failures)
    return extent


def _told(
    follower: Follower, share: order.Share, places: Iterator[tuple[int, int]], worker: int, workers: int
) -> Iterator[tuple[int, int]]:
    """The places, telling the feed which of them are passed: before the next file is asked for, which may wait for
    their space."""
    for place, position in places:
        if share.has_file(place):
            follower.tell(worker, workers)
        yield place, position
        follower.passed(position)
    follower.tell(worker, workers)


def _in_order(
    follower: Follower, options: Options, job: str, share: order.Share, places: Iterator[tuple[int, int]]
) -> Iterator[Any]:
    read_so_far: list[Path] = []
    for place, position in places:
        if not share.has_file(place):
            continue
        found = follower.files(position)
        if isinstance(found, Missing):
            # A cancelled job is never skipped over: an epoch that ends early without a word is worse than an error.
            if found.cancelled or options.on_failure == "raise":
                raise JobFailed(read_so_far, [found.failure])
            log.warning("dataset.skipped %s", found.failure, extra={"job": job, "source": found.failure.source})
            continue
        for file in found:
            read_so_far.append(file.path)
            yield from _samples(file, options, share, place)


def _samples(file: Landed, options: Options, share: order.Share, place: int) -> Iterator[Any]:
    ours = slice(share.first_sample(place), None, share.step)
    if options.read is not None:
        yield from islice(_by_user(options.read, file), ours.start, None, ours.step)
        return
    found = formats.by_name(options.format) if options.format else formats.detect(file.path.name)
    # Decoding comes after the cut: what is another consumer's is not decoded here.
    table = decoders.table(options.decode)
    with closing(found.open(file.path, file.source, options.columns)) as samples:
        numbers = range(len(samples))[ours]
        for number, sample in zip(numbers, samples.take(numbers), strict=True):
            yield decoders.apply(table, samples, number, sample) if table else sample


def _by_user(read: Callable[[Path], Iterable[Any]], file: Landed) -> Iterator[Any]:
    try:
        yield from read(file.path)
    except Exception as error:
        error.add_note(f"while the dataset's read= was reading {file.path} ({file.source})")
        raise
