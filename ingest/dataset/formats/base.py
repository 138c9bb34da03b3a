"""What a format is: how its files are told, read and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingest.errors import DataError, UsageError

#: ``read(path, source, columns)``: the samples of one local file, in file order. ``source`` is the URI it came from.
Read = Callable[[Path, str, Sequence[str] | None], Iterator[Any]]


@dataclass(frozen=True)
class Format:
    """``suffixes`` are lower case; ``count`` returns None where counting would mean decoding.

    Both functions raise :class:`~ingest.errors.DataError` for a damaged file.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Read
    count: Callable[[Path], int | None]


def damaged(path: Path, source: str, where: str, reason: object) -> DataError:
    """The error for one bad place in a file: ``where`` names the sample, line or row group."""
    return DataError(str(path), f"{source}: {where}: {reason}")


def no_columns(source: str, columns: Sequence[str] | None) -> None:
    """Refuse ``columns=`` for a format that has none, rather than drop it."""
    if columns is not None:
        raise UsageError(f"columns= selects columns of Parquet files, and {source} is not one")
