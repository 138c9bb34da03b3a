"""What a format is: how its files are told, opened and counted; and what an open file can do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ingest.errors import DataError, UsageError


class Samples(Protocol):
    """The samples of one open local file, by number: 0 is the first, and numbers never change.

    ``take`` and ``open`` raise :class:`~ingest.errors.DataError` for a damaged file, and
    :class:`~ingest.errors.StoreError` where there is no room to unpack it. After an error ``take`` may be called again
    with other numbers. Processes that were forked may go on with it, each for itself: no file offset is shared.
    """

    path: Path
    source: str

    def __len__(self) -> int: ...

    def take(self, numbers: Sequence[int]) -> Iterator[Any]:
        """The samples of these numbers, in the order of ``numbers``: any order, repeats allowed, each a value of its
        own. A ``range`` with step 1 is the fast path. IndexError for a number that is not there."""
        ...

    def kind(self, field: str) -> str | None:
        """What the bytes of a sample's field are: a key of ``decoders.DECODERS``; None where they are not to be
        decoded."""
        ...

    def close(self) -> None:
        """Let go of the file. May be called again."""
        ...


#: ``open(path, source, columns)``; ``source`` is the URI it came from, for errors and ``__url__``.
Open = Callable[[Path, str, Sequence[str] | None], Samples]
#: The same, with the path of an index that is used where it fits, and written where it does not.
OpenIndexed = Callable[[Path, str, Sequence[str] | None, Path | None], Samples]


@dataclass(frozen=True)
class Format:
    """``suffixes`` are lower case; ``count(path)`` is ``len(open(…))`` in flat memory and without room on disk.

    ``open_indexed`` and ``count_indexed`` are there where finding the samples takes a pass over the file that is worth
    keeping. All of them raise :class:`~ingest.errors.DataError` for a damaged file.
    """

    name: str
    suffixes: tuple[str, ...]
    open: Open
    count: Callable[[Path], int | None]
    open_indexed: OpenIndexed | None = None
    count_indexed: Callable[[Path, Path | None], int | None] | None = None


class Reader:
    """What the readers of all formats have in common."""

    def __init__(self, path: Path, source: str) -> None:
        self.path, self.source = path, source

    def kind(self, field: str) -> str | None:
        return None


def read(format: Format, path: Path, source: str, columns: Sequence[str] | None = None) -> Iterator[Any]:
    """Every sample of one local file, in file order."""
    with closing(format.open(path, source, columns)) as samples:
        yield from samples.take(range(len(samples)))


def runs(numbers: Sequence[int], length: int) -> Iterator[tuple[int, int]]:
    """``[7, 8, 9, 3]`` → ``(7, 10), (3, 4)``: the stretches that can be read in one go. IndexError for what is not
    there."""
    if not len(numbers):
        return
    if isinstance(numbers, range) and numbers.step == 1:
        check(numbers[0], length)
        check(numbers[-1], length)
        yield numbers.start, numbers.stop
        return
    first = last = check(numbers[0], length)
    for number in numbers[1:]:
        check(number, length)
        if number != last + 1:
            yield first, last + 1
            first = number
        last = number
    yield first, last + 1


def check(number: int, length: int) -> int:
    if not 0 <= number < length:
        raise IndexError(f"sample {number} of {length}")
    return number


def damaged(path: Path, source: str, where: str, reason: object) -> DataError:
    """The error for one bad place in a file: ``where`` names the sample, line or row group."""
    return DataError(str(path), f"{source}: {where}: {reason}")


def no_column(path: Path, source: str, column: str, columns: Iterable[str]) -> DataError:
    return damaged(path, source, f"column {column!r}", f"not there; it has {', '.join(sorted(columns))}")


def no_columns(source: str, columns: Sequence[str] | None) -> None:
    """Refuse ``columns=`` for a format that has none, rather than drop it."""
    if columns is not None:
        raise UsageError(f"columns= selects columns of Parquet, Arrow, CSV and MDS files, and {source} is none of them")
