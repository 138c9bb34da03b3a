"""Formats by the extension of a file's readable name: one module each, one table. No torch here; pyarrow and zstandard
are imported when a file needs them."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from ingest.dataset.formats import jsonl, parquet, raw, tar
from ingest.dataset.formats.base import Format
from ingest.errors import DataError, UsageError

#: Every format that there is. ``raw`` is what remains.
FORMATS: tuple[Format, ...] = (tar.FORMAT, parquet.FORMAT, jsonl.FORMAT, raw.FORMAT)
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


def count_samples(path: Path, name: str | None = None) -> int | None:
    """How many samples ``read`` would give, or None where the format does not tell or the file is damaged.

    ``name`` is the readable name where the path has another. One pass at most, in flat memory; whatever is in the file,
    it does not raise.
    """
    try:
        return detect(name or "", path.name).count(path)
    except (DataError, OSError, ImportError):
        return None
