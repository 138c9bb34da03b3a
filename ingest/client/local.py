"""Manifests that are files of the machine that submits. They are read twice, in flat memory: for what is wrong with
them and how long they are, before anything is submitted, and then for their files.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ingest.errors import BadSource, FetchError, MissingExtra, UsageError
from ingest.manifests import OnBad, Reading
from ingest.model import FileSpec
from ingest.sources import Manifest

#: So many of the rows that cannot be right are shown.
SHOWN = 5


@dataclass(frozen=True)
class Survey:
    """How many files a manifest lists, and what tells it from one that was changed. ``digest`` is of its bytes, where
    it was asked for."""

    files: int
    state: tuple[int, ...]
    digest: str


def check_local(source: Manifest) -> None:
    """Raises :class:`BadSource` for what is no file that can be read here."""
    try:
        mode = os.stat(source.uri).st_mode
        with open(source.uri, "rb") if stat.S_ISREG(mode) else open(os.devnull, "rb"):
            pass
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "not a path"
        raise BadSource(
            source.uri, f"cannot be read here ({why}), and has no scheme; a file of a data node is file:///path"
        ) from None
    if not stat.S_ISREG(mode):
        raise BadSource(source.uri, "is not a regular file")


def survey(source: Manifest, *, digest: bool) -> Survey:
    """Read all of it. Raises :class:`BadSource` naming the first rows that cannot be right: nothing is submitted."""
    bad: dict[int, str] = {}
    count = 0

    def on_bad(row: int, error: Exception) -> None:
        nonlocal count
        count += 1
        if len(bad) < SHOWN:
            bad[row] = str(error)

    state, files = _state(source), 0
    for _ in _specs(source, 0, on_bad):
        files += 1
    if bad:
        shown = "; ".join(f"line {row}: {why}" for row, why in bad.items())
        raise BadSource(source.uri, shown + (f"; and {count - len(bad)} more" if count > len(bad) else ""))
    if not files:
        raise BadSource(source.uri, "lists nothing")
    return Survey(files, state, _digest(source) if digest else "")


def listed(source: Manifest, index: int, known: Survey) -> Iterator[FileSpec]:
    """Its files. Raises :class:`UsageError` if it is not what was surveyed."""
    for number, spec in enumerate(_specs(source, index, _changed)):
        if number % 100_000 == 0:
            _check_same(source, known)
        yield spec
    _check_same(source, known)


def _specs(source: Manifest, index: int, on_bad: OnBad) -> Iterator[FileSpec]:
    try:
        yield from Reading(Path(source.uri), source, index).specs(on_bad)
    except MissingExtra as error:
        raise BadSource(source.uri, f"reading it here needs a library: pip install {error.extra!r}") from None
    except FetchError as error:
        raise BadSource(source.uri, error.reason) from None


def _changed(row: int, error: Exception) -> None:
    """A row that was right a moment ago: the file is another one, which the next check says."""


def _check_same(source: Manifest, known: Survey) -> None:
    if _state(source) != known.state:
        raise UsageError(f"{source.uri} changed while it was submitted; submit it again")


def _state(source: Manifest) -> tuple[int, ...]:
    found = os.stat(source.uri)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _digest(source: Manifest) -> str:
    with open(source.uri, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
