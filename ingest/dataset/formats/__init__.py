"""Formats by the extension of a file's readable name: one module each, one table. No torch here; pyarrow, numpy, Pillow
and zstandard are imported when a file needs them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from ingest.dataset.formats import arrow, csvs, jsonl, mds, parquet, raw, tar, text
from ingest.dataset.formats.base import Format, Samples, read
from ingest.errors import DataError, UsageError

__all__ = [
    "FORMATS",
    "Format",
    "Samples",
    "base_name",
    "by_name",
    "count_samples",
    "detect",
    "index_of",
    "open_samples",
    "read",
]

#: Every format that there is. ``raw`` is what remains; ``text`` is never guessed.
FORMATS: tuple[Format, ...] = (
    tar.FORMAT,
    parquet.FORMAT,
    jsonl.FORMAT,
    csvs.FORMAT,
    arrow.FORMAT,
    mds.FORMAT,
    text.FORMAT,
    raw.FORMAT,
)
_BY_NAME = {known.name: known for known in FORMATS}


def by_name(name: str) -> Format:
    """The format of that name. Raises :class:`UsageError` naming those that there are."""
    if name not in _BY_NAME:
        raise UsageError(f"format {name!r} is unknown; use one of {', '.join(_BY_NAME)}, or read=your_function")
    return _BY_NAME[name]


def detect(*names: str) -> Format:
    """The format of the first name (base name, path or URI) whose extension is known, else ``raw``."""
    for name in names:
        lowered = base_name(name).lower()
        for known in FORMATS:
            if lowered.endswith(known.suffixes):
                return known
    return raw.FORMAT


def base_name(name: str) -> str:
    """``"https://host/d/a%20b.tar?sig=1"`` → ``"a b.tar"``."""
    try:
        return PurePosixPath(unquote(urlsplit(name).path)).name
    except ValueError:  # a local path that cannot be read as a URI, "[x" for one
        return PurePosixPath(name).name


def index_of(path: Path) -> Path:
    """Where the index of a file in a store is kept: beside it, to go when it goes."""
    return path.with_name(f".{path.name}.index")


def open_samples(
    format: Format, path: Path, source: str, columns: Sequence[str] | None = None, index: Path | None = None
) -> Samples:
    """``format.open``, with an index that is kept at ``index`` where the format has one to keep."""
    if index is not None and format.open_indexed is not None:
        return format.open_indexed(path, source, columns, index)
    return format.open(path, source, columns)


def count_samples(path: Path, index: Path | None = None) -> int | None:
    """How many samples ``read`` would give, or None where the format is unknown or the file is damaged.

    ``index`` is where to keep an index, if the format has one. One pass at most, in flat memory; whatever is in the
    file, it does not raise. A file of unknown format is no one sample: to the user's own function it may be many.
    """
    found = detect(path.name)
    if found is raw.FORMAT:
        return None
    try:
        return found.count_indexed(path, index) if found.count_indexed else found.count(path)
    except (DataError, OSError, ImportError):
        return None
