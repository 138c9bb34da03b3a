"""The job's files as one iterator sees them: how many samples each has, and the open ones. What failed is said here."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from ingest.dataset import formats
from ingest.dataset.follow import Extent, Follower, Landed, Missing
from ingest.dataset.formats import decoders
from ingest.dataset.formats.base import Format, Samples
from ingest.dataset.formats.decoders import Decoder
from ingest.dataset.options import SKIPPED, Files
from ingest.dataset.order import Entry
from ingest.errors import DataError, JobFailed, StoreError

log = logging.getLogger(__name__)


class Library:
    """A catalog for an order, and the samples that the order picks. One iterator's, not to be shared. ``waiting`` is
    told of each file before it is waited for."""

    def __init__(
        self, follower: Follower, options: Files, waiting: Callable[[int], None] = lambda position: None
    ) -> None:
        self._follower, self._options, self._job = follower, options, follower.job
        self._waiting = waiting
        self._open: OrderedDict[int, _Shelf] = OrderedDict()
        self._most_open = options.most_open
        self._table = decoders.table(options.decode)
        self._landed: list[Path] = []

    # -- the catalog -------------------------------------------------------------------------------------------------

    def extent(self, at_least: int) -> Extent:
        extent = self._follower.extent(at_least)
        if isinstance(extent, Missing):
            raise JobFailed([], [extent.failure])
        if extent.failures and self._options.on_failure == "raise":
            raise JobFailed([], extent.failures)
        return extent

    def entry(self, position: int) -> Entry:
        self._waiting(position)
        found = self._follower.files(position)
        if isinstance(found, Missing):
            # A cancelled job is never skipped over: an epoch that ends early without a word is worse than an error.
            if found.cancelled or self._options.on_failure == "raise":
                raise JobFailed(self._landed, [found.failure])
            log.warning("dataset.skipped %s", found.failure, extra={"job": self._job, "source": found.failure.source})
            return Entry(0, f"- {found.failure.source}")
        counts = [self._known(file) for file in found]
        count = len(self._shelf(position)) if None in counts else sum(filter(None, counts))
        return Entry(count, " ".join(f"{file.source} {file.digest}" for file in found))

    def _known(self, file: Landed) -> int | None:
        """How many samples it has, where that is known without opening it."""
        if self._options.read is not None:
            return None
        found, is_told = self._format(file)
        return 1 if found.name == "raw" else file.samples if is_told else None

    def _format(self, file: Landed) -> tuple[Format, bool]:
        """How a file is read, and whether that is what its name tells: then it was counted so, too."""
        told = formats.detect(file.name)
        found = formats.by_name(self._options.format) if self._options.format else told
        return found, found is told

    # -- reading -----------------------------------------------------------------------------------------------------

    def take(self, position: int, numbers: Sequence[int]) -> Iterator[Any]:
        """These samples of the file there, in the order of the numbers; SKIPPED for one that is left out."""
        shelf = self._shelf(position)
        return shelf.take(numbers) if self._options.on_bad == "raise" else self._forgiving(shelf, numbers)

    def _forgiving(self, shelf: _Shelf, numbers: Sequence[int]) -> Iterator[Any]:
        done = 0
        while done < len(numbers):
            try:
                for sample in shelf.take(numbers[done:]):
                    done += 1
                    yield sample
            except DataError as error:
                done += 1
                yield self._instead(error)

    def _instead(self, error: DataError) -> Any:
        if callable(self._options.on_bad):
            return self._options.on_bad(error)
        log.warning("dataset.bad_sample %s", error, extra={"job": self._job, "reason": str(error)})
        return SKIPPED

    def _shelf(self, position: int) -> _Shelf:
        shelf = self._open.get(position)
        if shelf is not None:
            self._open.move_to_end(position)
            return shelf
        found = self._there(position)
        shelf = _Shelf([self._opened(path, file) for file, path in found], self._table)
        self._landed += [path for _, path in found]
        tally = self._follower.tally
        tally.files += len(found)
        tally.bytes += sum(file.size for file, _ in found)
        tally.hits += sum(file.reused for file, _ in found)
        self._follower.report()
        self._open[position] = shelf
        if len(self._open) > self._most_open:
            self._open.popitem(last=False)[1].close()
        return shelf

    def _there(self, position: int, *, again: bool = True) -> list[tuple[Landed, Path]]:
        """The files there; one that is gone from the store, or damaged, is fetched again, once."""
        try:
            found = self._follower.paths(position, verify=self._options.verify)
        except StoreError as error:
            if not again:
                raise
            log.warning("dataset.gone %s", error, extra={"job": self._job, "reason": str(error)})
            self._follower.doubt(position)
            return self._there(position, again=False)
        if isinstance(found, Missing):
            raise JobFailed(self._landed, [found.failure])
        return found

    def _opened(self, path: Path, file: Landed) -> Samples:
        options = self._options
        if options.read is not None:
            return Given(options.read, path, file.source)
        found, is_told = self._format(file)
        opened = formats.open_samples(found, path, file.source, options.columns, formats.index_of(path))
        if is_told and file.samples is not None and len(opened) != file.samples:
            opened.close()
            raise DataError(
                str(path), f"{file.source}: it has {len(opened)} samples, and was counted as {file.samples}"
            )
        return opened

    def forget(self, position: int) -> None:
        """That file is needed no more."""
        shelf = self._open.pop(position, None)
        if shelf is not None:
            shelf.close()

    def close(self) -> None:
        for position in list(self._open):
            self.forget(position)


class Given:
    """What the user's function gives of a file, listed in memory."""

    def __init__(self, read: Callable[[Path], Iterable[Any]], path: Path, source: str) -> None:
        self.path, self.source = path, source
        try:
            self._all = list(read(path))
        except Exception as error:
            error.add_note(f"while the dataset's read= was reading {path} ({source})")
            raise

    def __len__(self) -> int:
        return len(self._all)

    def take(self, numbers: Sequence[int]) -> Iterator[Any]:
        return map(self._all.__getitem__, numbers)

    def kind(self, field: str) -> str | None:
        return None

    def close(self) -> None:
        self._all = []


class _Shelf:
    """What is at one place of the order: mostly one file; of what became several, all of them one behind another.
    Samples leave it decoded."""

    def __init__(self, files: Sequence[Samples], table: Mapping[str, Decoder]) -> None:
        self._files, self._table = files, table
        self._starts = [0, *accumulate(len(file) for file in files)]

    def __len__(self) -> int:
        return self._starts[-1]

    def take(self, numbers: Sequence[int]) -> Iterator[Any]:
        if len(self._files) == 1:
            yield from self._of(self._files[0], numbers)
            return
        for number in numbers:
            at = bisect_right(self._starts, number) - 1
            yield from self._of(self._files[at], [number - self._starts[at]])

    def _of(self, file: Samples, numbers: Sequence[int]) -> Iterator[Any]:
        samples = file.take(numbers)
        if not self._table:
            return samples
        return (
            decoders.apply(self._table, file, number, sample) for number, sample in zip(numbers, samples, strict=True)
        )

    def close(self) -> None:
        for file in self._files:
            file.close()
