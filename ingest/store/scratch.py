"""A file in the making: bytes go to a scratch file on the store's filesystem, are counted and hashed on the way.

A scratch file is either *unique* (gone when the attempt ends) or *partial* (kept with a journal, so that the next
attempt on this node goes on where this one stopped). Nobody but :class:`ingest.store.Store` makes or publishes one.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ingest import digests
from ingest.errors import TooLarge

_READ_BYTES = 1 << 20

#: Scratch files that this process is writing.
_at_work: set[Path] = set()


@dataclass(frozen=True)
class Journal:
    """What makes a partial file resumable: the validator of the version its bytes are of, and the whole length if
    known."""

    validator: str
    length: int | None = None


class Scratch:
    """One file in the making. ``write`` appends; ``size`` and ``digest()`` are of all bytes so far.

    ``journal`` holds what an earlier attempt left, or None. A fetcher that can continue sends ``size`` as its offset;
    one that cannot calls ``restart()``. One that writes the file by other means (a Parquet writer) writes to ``path``
    and then calls ``adopt()``.

    Every attempt writes a file of its own, and what an earlier one left is copied, never appended to: a process that
    was stopped and wakes up after its lease has ended may still hold the old file open.
    """

    def __init__(
        self,
        directory: Path,
        key: str,
        uri: str,
        *,
        algorithms: frozenset[str] = frozenset(),
        max_bytes: int = 1 << 62,
        on_bytes: Callable[[int], None] = lambda n: None,
        keep: bool = True,
    ) -> None:
        self.uri = uri
        self._directory, self._key = directory, key
        self._algorithms = algorithms | {"sha256"}
        self._max_bytes = max_bytes
        self._on_bytes = on_bytes
        self._keep = keep
        #: Set by a fetcher that knows better than the URI: the file's base name, and how many samples it has.
        self.name: str | None = None
        self.samples: int | None = None
        self.pieces: list[Scratch] = []
        self._begin()
        try:
            if keep:
                self._take_up()
        except BaseException:  # a disk that is full gets no fuller by it
            self.close(discard=True)
            raise

    def _begin(self) -> None:
        self.path = self._directory / f"{self._key}.{uuid.uuid4().hex[:12]}.part"
        self._journal_path = self.path.with_suffix(".json")
        self._file = open(self.path, "x+b", buffering=0)  # noqa: SIM115 - closed by close()
        _at_work.add(self.path)
        self.size = 0
        self.journal: Journal | None = None
        self._digests = {name: digests.new(name) for name in self._algorithms}

    def _take_up(self) -> None:
        """Copy what the attempt that came furthest left, and remove what any left."""
        left: list[tuple[int, Path, Journal | None]] = []
        for journal_path in self._directory.glob(f"{self._key}.*.json"):
            part = journal_path.with_suffix(".part")
            if part in _at_work:
                continue  # a shard may list a file twice: another thread is at it
            try:
                left.append((part.stat().st_size, part, Journal(**json.loads(journal_path.read_text()))))
            except (OSError, ValueError, TypeError):
                left.append((0, part, None))
        if not left:
            return
        size, best, journal = max(left, key=lambda found: found[0])
        if journal and 0 < size <= self._max_bytes:
            with open(best, "rb", buffering=0) as earlier:
                while block := earlier.read(_READ_BYTES):
                    self._append(block)
            self.note(journal.validator, journal.length)
        for _, part, _ in left:
            _remove(part)

    def _append(self, data: bytes | memoryview) -> None:
        view = memoryview(data)
        while view:  # a raw write may take less than it is given, on a nearly full disk
            view = view[self._file.write(view) :]
        self._count(data)

    def _count(self, data: bytes | memoryview) -> None:
        for digest in self._digests.values():
            digest.update(data)
        self.size += len(data)

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises :class:`TooLarge` past the byte limit, and whatever the control raises to interrupt us."""
        if self.size + len(data) > self._max_bytes:
            raise TooLarge(self.uri, f"more than the {self._max_bytes} bytes allowed")
        self._append(data)
        self._on_bytes(len(data))

    def piece(self, name: str) -> Scratch:
        """Another file of the same source, published after this one and in the order in which they are made; no later
        attempt takes it up. ``max_bytes`` bounds each."""
        made = Scratch(
            self._directory, self._key, self.uri, max_bytes=self._max_bytes, on_bytes=self._on_bytes, keep=False
        )
        made.name = name
        self.pieces.append(made)
        return made

    def restart(self) -> None:
        """Back to byte 0, as if nothing had been written."""
        self._drop_pieces()
        self._file.close()
        self.discard()
        _at_work.discard(self.path)
        self._begin()

    def note(self, validator: str, length: int | None) -> None:
        """Say which version the bytes are of, so that a later attempt may go on. Only a strong validator will do."""
        self.journal = Journal(validator, length)
        if self._keep:
            text = json.dumps({"validator": validator, "length": length})
            temporary = self._journal_path.with_suffix(".json.new")
            temporary.write_text(text)
            temporary.replace(self._journal_path)

    def adopt(self) -> None:
        """Count and hash what somebody else wrote to ``path``."""
        self._file.close()
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115 - closed by close()
        self.size = 0
        self._digests = {name: digests.new(name) for name in self._algorithms}
        while block := self._file.read(_READ_BYTES):
            self._count(block)
        if self.size > self._max_bytes:
            raise TooLarge(self.uri, f"{self.size} bytes, more than the {self._max_bytes} allowed")

    def digest(self, algorithm: str = "sha256") -> str:
        """``"sha256:<hex>"`` of all bytes so far."""
        return f"{algorithm}:{self._digests[algorithm].hexdigest()}"

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self, *, discard: bool) -> None:
        """End of the attempt. A partial file with a journal stays unless it is to be discarded."""
        self._drop_pieces()
        self._file.close()
        if discard or not (self._keep and self.journal):
            self.discard()
        _at_work.discard(self.path)

    def discard(self) -> None:
        _remove(self.path)

    def _drop_pieces(self) -> None:
        for piece in self.pieces:
            piece.close(discard=True)
        self.pieces.clear()

    def __repr__(self) -> str:
        return f"<Scratch {self.path.name} {self.size} bytes>"


def _remove(part: Path) -> None:
    """A scratch file and its journal; the journal first, so that no journal is ever without its bytes."""
    for path in (part.with_suffix(".json"), part):
        with suppress(FileNotFoundError):
            path.unlink()
