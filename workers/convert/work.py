"""What a step is given and what it makes: files in scratch, counted, limited and interruptible as a download is.

An operator's step is written against this module alone; ours are, too.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ingest.errors import BadResponse, TooLarge
from ingest.names import safe_parts
from ingest.store import Scratch

#: A little that unpacks to much is no bomb yet: what a step may give is judged from here on.
_HARMLESS_BYTES = 1 << 20


@dataclass(frozen=True)
class File:
    """One file that a step is given. ``name`` is its name so far, perhaps with folders; its bytes are at ``path``, and
    are not to be changed."""

    name: str
    scratch: Scratch

    @property
    def path(self) -> Path:
        return self.scratch.path

    @property
    def size(self) -> int:
        return self.scratch.size


class Step(Protocol):
    """A step reads ``files`` and makes others, in order, by ``work``. ``told`` are its parameters in the request.

    An error that is none of :mod:`ingest.errors` fails the source with :class:`BadResponse`. A step that reads for long
    without writing calls ``work.check()`` at least every second.
    """

    def __call__(self, files: Sequence[File], work: Work, **told: Any) -> None: ...


class Work:
    """One step at work on one source. ``uri`` is for errors, ``name`` the name of what came from the origin."""

    def __init__(self, uri: str, name: str, root: Scratch) -> None:
        self.uri, self.name = uri, name
        self._root = root
        self._made: list[Scratch] = []
        self._files: set[str] = set()
        self._folders: set[str] = set()

    def check(self) -> None:
        """Raises what interrupts the work: let it pass."""
        self._root.check()

    @contextmanager
    def create(self, name: str) -> Iterator[Scratch]:
        """The next file that the step makes: ``write`` to it, or write to its ``path`` and call ``adopt()``. It is not
        made when the block is left by an error. Raises :class:`BadResponse` for a name that another one has, and
        :class:`TooLarge` past the job's limit for a file."""
        made = self._root.piece(self._take(name))
        try:
            yield made
            made.settle()
        except BaseException:
            made.close(discard=True)
            self._root.pieces.remove(made)
            raise
        self._made.append(made)

    def keep(self, file: File) -> None:
        """Hand on a file as it is."""
        name = self._take(file.name)
        if file.scratch is not self._root:
            file.scratch.name = name
            self._made.append(file.scratch)
            return
        made = self._root.piece(name)
        beside = made.path.with_suffix(".kept")
        try:
            # Nobody writes to the original any more, and one of the two names is soon gone.
            try:
                os.link(file.path, beside)
            except OSError:
                shutil.copyfile(file.path, beside)
            made.replace(beside)
            made.settle()
        finally:
            beside.unlink(missing_ok=True)
        self._made.append(made)

    def finish(self, given: Sequence[File]) -> list[File]:
        """The step is over: what it made is what the next one is given, and what it was given goes."""
        made = {id(scratch) for scratch in self._made}
        for file in given:
            if file.scratch is not self._root and id(file.scratch) not in made:
                file.scratch.close(discard=True)
        self._root.pieces[:] = self._made
        return [File(str(scratch.name), scratch) for scratch in self._made]

    def _take(self, name: str) -> str:
        parts = safe_parts(name)
        if not parts:
            raise BadResponse(self.uri, f"{name[:200]!r} is no name for a file")
        whole = "/".join(parts)
        above = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        if whole in self._files or whole in self._folders or above & self._files:
            raise BadResponse(self.uri, f"there are two files for the name {whole!r}")
        self._files.add(whole)
        self._folders |= above
        return whole


class Meter:
    """What a packed file may unpack to: so many bytes, and so many times its own size."""

    def __init__(self, work: Work, file: File, max_bytes: int | None, max_ratio: float) -> None:
        self._work, self._file = work, file
        self._bytes, self._ratio = max_bytes, max_ratio
        self.total = 0

    def add(self, count: int) -> None:
        """So many bytes more. Raises :class:`TooLarge`, and what interrupts the work."""
        self._work.check()
        self.total += count
        if self._bytes is not None and self.total > self._bytes:
            raise TooLarge(self._work.uri, f"{self._file.name} unpacks to more than max_bytes={self._bytes}")
        if self.total > max(_HARMLESS_BYTES, self._ratio * self._file.size):
            raise TooLarge(
                self._work.uri,
                f"{self._file.name} unpacks to more than max_ratio={self._ratio} times its {self._file.size} bytes",
            )


def stem(name: str) -> str:
    """A name without the suffixes that say how it is packed: ``a.tar.gz`` is ``a``."""
    lowered = name.lower()
    for suffix in (".gz", ".bz2", ".xz", ".zst", ".zstd"):
        if lowered.endswith(suffix):
            name = name[: -len(suffix)]
            break
    short = {".tar", ".zip", ".tgz", ".tbz2", ".tbz", ".txz", ".tzst"}
    base, dot, last = name.rpartition(".")
    return base if dot and base and f".{last.lower()}" in short else name
