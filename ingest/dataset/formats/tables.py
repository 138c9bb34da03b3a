"""Rows of Arrow's record batches as dicts, for the formats that are tables: which rows, in which order, and how the
values are made. Where the batches come from is theirs. pyarrow and numpy are imported when a table is opened."""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Generic, TypeVar

from ingest.dataset.formats.base import Reader, check, damaged, no_column, runs

#: Rows are made for so many bytes at once: enough to hide what a call costs, and no more than a cache holds.
STEP_BYTES = 512 << 10
_MOST_ROWS = 1024

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


def arrow(what: str) -> Any:
    """pyarrow, with the parts that formats use."""
    try:
        import pyarrow
        import pyarrow.csv
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"reading {what} needs pyarrow: pip install pyarrow") from error
    return pyarrow


@cache
def _numpy() -> Any:
    """numpy, which pyarrow works without; then None."""
    try:
        import numpy
    except ImportError:
        return None
    return numpy


class Table(Reader):
    """A dict a row: column → Python value, as ``to_pylist`` gives them."""

    def __init__(self, path: Path, source: str, rows: int, row_bytes: int) -> None:
        super().__init__(path, source)
        self._rows = rows
        self._step = max(1, min(_MOST_ROWS, STEP_BYTES // max(1, row_bytes)))

    def __len__(self) -> int:
        return self._rows

    @abstractmethod
    def find(self, number: int) -> tuple[int, Any]:
        """The record batch that row is in, and the number of the batch's first row. DataError where it is damaged."""

    def take(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        if isinstance(numbers, range) and numbers.step == 1:
            for first, last in runs(numbers, self._rows):
                yield from self._run(first, last)
            return
        for at in range(0, len(numbers), self._step):
            yield from self._scattered([check(int(number), self._rows) for number in numbers[at : at + self._step]])

    def _run(self, first: int, last: int) -> Iterator[dict[str, Any]]:
        while first < last:
            start, batch = self.find(first)
            end = min(last, start + batch.num_rows, first + self._step)
            yield from self._made(first, batch.slice(first - start, end - first))
            first = end

    def _scattered(self, numbers: list[int]) -> Iterator[dict[str, Any]]:
        """Read in the order of the file, given in the order that was asked for."""
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        out: list[Any] = [None] * len(numbers)
        at = 0
        while at < len(order):
            start, batch = self.find(numbers[order[at]])
            end = at + 1
            while end < len(order) and numbers[order[end]] < start + batch.num_rows:
                end += 1
            places = order[at:end]
            picked = self._picked(start, [numbers[place] for place in places], batch)
            for place, row in zip(places, picked, strict=True):
                out[place] = row
            at = end
        yield from out

    def _picked(self, start: int, numbers: list[int], batch: Any) -> list[dict[str, Any]]:
        pa = arrow("tables")
        try:
            return self._made(numbers[0], batch.take(pa.array([number - start for number in numbers], pa.int64())))
        except pa.ArrowException:  # it cannot take rows of some types: of views of text, which Polars writes
            return [row for number in numbers for row in self._made(number, batch.slice(number - start, 1))]

    def _made(self, first: int, batch: Any) -> list[dict[str, Any]]:
        try:
            return rows(batch)
        except (arrow("tables").ArrowException, ValueError) as error:
            raise damaged(self.path, self.source, f"row {first} or after", error) from error


def select(path: Path, source: str, wanted: Sequence[str] | None, names: Sequence[str]) -> list[str]:
    """The columns to read, of those of a file. DataError for one that is not there, or that a dict cannot hold."""
    for column in wanted or ():
        if column not in names:
            raise no_column(path, source, column, names)
    chosen = [name for name in names if wanted is None or name in wanted]
    for name, times in Counter(chosen).items():
        if times > 1:
            raise damaged(path, source, f"column {name!r}", f"is there {times} times")
    return chosen


def rows(batch: Any) -> list[dict[str, Any]]:
    names = batch.schema.names
    if len(names) == 1:
        (name,) = names
        return [{name: value} for value in values(batch.column(0))]
    if not names:
        return [{} for _ in range(batch.num_rows)]
    return [dict(zip(names, row, strict=True)) for row in zip(*map(values, batch.columns), strict=True)]


def values(column: Any) -> list[Any]:
    """What ``to_pylist`` gives, by way of the column's buffers for the types where that is the same and several times
    faster. ``to_numpy`` would be, too, but imports pandas: half a second in each DataLoader worker."""
    if not _numpy() or not len(column):
        return list(column.to_pylist())
    try:
        return _fast(column)
    except (UnicodeDecodeError, arrow("tables").ArrowException):
        # What lies under a null need not be text; and not every dictionary can be decoded as a whole.
        return list(column.to_pylist())


def _fast(column: Any) -> list[Any]:
    is_ = arrow("tables").types
    kind = column.type
    if is_.is_string(kind) or is_.is_binary(kind):
        return _with_nulls(column, _texts(column, "i4"))
    if is_.is_large_string(kind) or is_.is_large_binary(kind):
        return _with_nulls(column, _texts(column, "i8"))
    if is_.is_integer(kind) or is_.is_float32(kind) or is_.is_float64(kind):
        sign = "f" if is_.is_floating(kind) else "i" if is_.is_signed_integer(kind) else "u"
        return _with_nulls(column, _numbers(column, 1, f"{sign}{kind.bit_width // 8}").tolist())
    if is_.is_boolean(kind):
        return _with_nulls(column, _bits(column, 1).astype(bool).tolist())
    if is_.is_dictionary(kind):
        return values(column.dictionary_decode())
    if is_.is_list(kind) or is_.is_large_list(kind):
        ends = values(column.offsets)
        flat = values(column.values.slice(ends[0], ends[-1] - ends[0]))
        return _with_nulls(column, [flat[a - ends[0] : b - ends[0]] for a, b in pairwise(ends)])
    if is_.is_fixed_size_list(kind) and not column.null_count:
        flat, size = values(column.flatten()), kind.list_size
        return [flat[at : at + size] for at in range(0, size * len(column), size)] if size else [[] for _ in column]
    return list(column.to_pylist())


def _numbers(column: Any, buffer: int, kind: str, more: int = 0) -> Any:
    """The numbers of a column in one of its buffers, and ``more`` behind them. All are there, whatever is null."""
    np = _numpy()
    size = np.dtype(kind).itemsize
    return np.frombuffer(column.buffers()[buffer], kind, len(column) + more, column.offset * size)


def _bits(column: Any, buffer: int) -> Any:
    np = _numpy()
    bits = np.unpackbits(np.frombuffer(column.buffers()[buffer], "u1"), bitorder="little")
    return bits[column.offset : column.offset + len(column)]


def _texts(column: Any, offsets: str) -> list[Any]:
    """Text or bytes: pieces of one string, where each of its characters is a byte."""
    is_ = arrow("tables").types
    ends = _numbers(column, 1, offsets, 1).tolist()
    content = column.buffers()[2]
    data = b"" if content is None else content.slice(ends[0], ends[-1] - ends[0]).to_pybytes()
    if is_.is_binary(column.type) or is_.is_large_binary(column.type):
        return [data[a - ends[0] : b - ends[0]] for a, b in pairwise(ends)]
    if data.isascii():
        text = data.decode("ascii")
        return [text[a - ends[0] : b - ends[0]] for a, b in pairwise(ends)]
    return [data[a - ends[0] : b - ends[0]].decode() for a, b in pairwise(ends)]


def _with_nulls(column: Any, out: list[Any]) -> list[Any]:
    if column.null_count:
        for at in (_bits(column, 0) == 0).nonzero()[0].tolist():
            out[at] = None
    return out


class Recent(Generic[K, V]):
    """What was used last, while all of it is no more than ``most`` by its own measure; the last one is always kept."""

    def __init__(self, most: int, size: Callable[[V], int]) -> None:
        self.most, self._size = most, size
        self._kept: OrderedDict[K, V] = OrderedDict()

    def get(self, key: K, make: Callable[[K], V]) -> V:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        value = self._kept[key] = make(key)
        while len(self._kept) > 1 and sum(map(self._size, self._kept.values())) > self.most:
            self._kept.popitem(last=False)
        return value

    def clear(self) -> None:
        self._kept.clear()
