"""A file in the making: bytes go to a scratch file on the store's filesystem, are counted and hashed on the way.

A scratch file is either *unique* (gone when the attempt ends) or *partial* (kept with a journal, so that the next
attempt on this node goes on where this one stopped; what is kept and believed is in ``partial``). Nobody but
:class:`ingest.store.Store` makes or publishes one.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from ingest.errors import DigestMismatch, TooLarge
from ingest.store import partial
from ingest.store.partial import Journal
from ingest.store.room import Room, Taken
from ingest.store.running import RunningDigests
from ingest.store.spans import Span, Spans

#: Hashed between two looks at the control.
_AT_ONCE_BYTES = 16 << 20
#: The journal is written after so many bytes, or so many seconds where they come slowly: what kill -9 may cost, and
#: at the end of an attempt that left something. A small file that comes at once has none.
_JOURNAL_BYTES = 2 << 20
_JOURNAL_S = 0.25

#: Scratch files that this process is writing.
_at_work: set[Path] = set()
_taking_up = threading.Lock()


class Scratch:
    """One file in the making. ``write`` appends; ``size`` and ``digest()`` are of all bytes so far: those from byte 0
    on without a gap.

    ``journal`` holds what an earlier attempt left, or None. A fetcher that can continue sends ``size`` as its offset;
    one that cannot calls ``restart()``. One that writes the file by other means (a Parquet writer) writes to ``path``
    and then calls ``adopt()``. One that has several ranges in flight calls ``reserve()`` and then ``place()``, from
    any thread; ``gaps()`` is what is missing. Everything but ``place`` is for the thread that made it. ``mirrors`` are
    those whose bytes may be taken up without a digest; ``mirror`` is set while it is one of them that brings bytes.

    What is published was written by this attempt alone, or taken over from one that surely writes no more.
    """

    def __init__(
        self,
        directory: Path,
        key: str,
        uri: str,
        *,
        algorithms: frozenset[str] = frozenset(),
        mirrors: Collection[str] = (),
        max_bytes: int = 1 << 62,
        on_bytes: Callable[[int], None] = lambda n: None,
        keep: bool = True,
        fsync: bool = True,
        room: Room | None = None,
    ) -> None:
        self.uri = uri
        self._directory, self._key = directory, key
        self._algorithms = algorithms | {"sha256"}
        self._verified, self._mirrors = bool(algorithms), mirrors
        self.mirror: str | None = None
        self._max_bytes = max_bytes
        self._on_bytes = on_bytes
        self._keep, self._fsync = keep, fsync
        self._lock = threading.Lock()
        self._room, self._taken = room, Taken(room)
        #: Set by a fetcher that knows better than the URI: the file's base name, and how many samples it has.
        self.name: str | None = None
        self.samples: int | None = None
        #: Of a packed file: runs of (first, last) places in the list that was packed.
        self.covers: tuple[tuple[int, int], ...] = ()
        self.pieces: list[Scratch] = []
        self._taken_up = 0
        self._file: FileIO | None = None
        try:
            if keep:
                with _taking_up:  # a shard may list a file twice: two threads are then at it
                    self._take_up()
            if self._file is None:
                self._begin()
            if self._taken_up:
                self._taken.took_up(self.path.stat().st_size)
        except BaseException:  # a disk that is full gets no fuller by it
            self.close(discard=True)
            raise

    def _begin(self, taken: tuple[Path, FileIO, Spans] | None = None) -> None:
        """A fresh file, or one that was taken over."""
        #: Whether there is a journal, which must never be of other bytes than those in the file.
        self._journaled = bool(taken)
        if taken is None:
            path = self._fresh_path()
            taken = path, open(path, "x+b", buffering=0), Spans()  # noqa: SIM115 - closed by close()
        self.path, self._file, self._spans = taken
        _at_work.add(self.path)
        self.journal: Journal | None = None
        self.size = self._spans.prefix
        self._digests = RunningDigests(self._algorithms)
        self._loose = bool(self._spans.total)  # whether anything may lie behind the prefix
        self._discarded = self._settled = False
        self._marked: Spans | None = None  # what ``mark`` claims; else whatever came is claimed
        self._unclaimed, self._claimed_at = 0, time.monotonic()

    def _fresh_path(self) -> Path:
        return self._directory / f"{self._key}.{uuid.uuid4().hex[:12]}.part"

    def _take_up(self) -> None:
        """Go on with what the attempt that came furthest left, and remove what any other left."""
        left = partial.find(self._directory, self._key, _at_work)
        best = max(left, key=lambda each: each.spans.total, default=None)
        if best and best.journal and best.spans.total and self._usable(best.journal, best.spans):
            path = self._fresh_path()
            _at_work.add(path)
            if (file := partial.take_over(best, path)) is not None:
                left.remove(best)
                self._begin((path, file, best.spans))
            else:
                _at_work.discard(path)
                self._begin()
                assert self._file is not None
                self._spans, self._loose = partial.copy(best, self._file, self.check), True
                self.size = self._spans.prefix
            self.journal = best.journal
            self._marked = Spans(self._spans) if best.journal.facts is not None else None
            if best.journal.stated and not self._verified:
                with suppress(ImportError):  # the library for it has been removed since
                    self.expect(best.journal.stated)
            if best.journal.length is None:
                self._fasten()
            self._claim()
            self._taken_up = self._spans.total
        for each in left:
            each.remove()

    def _usable(self, journal: Journal, spans: Spans) -> bool:
        end = max(end for _, end in spans)
        trusted = self._verified or not (journal.mixed or set(journal.mirrors) - set(self._mirrors))
        return trusted and max(end, journal.length or 0) <= self._max_bytes

    @property
    def advanced(self) -> int:
        """Bytes by which this attempt has brought on what the next one will find; below 0 if it fell behind."""
        kept = self._claimable.total if self._keep and self.journal and not self._discarded else 0
        return kept - self._taken_up

    @property
    def held(self) -> int:
        """Bytes that are there, wherever they are in the file."""
        with self._lock:
            return self._spans.total

    @property
    def _claimable(self) -> Spans:
        return self._spans if self._marked is None else self._marked

    def check(self) -> None:
        """Raises whatever the control raises to interrupt us."""
        self._on_bytes(0)

    def announce(self, length: int) -> None:
        """The origin says how many bytes there are. Raises :class:`TooLarge` before any of them is moved."""
        if length > self._max_bytes:
            raise TooLarge(self.uri, f"{length} bytes are announced, {self._max_bytes} are allowed")
        self._taken.reach(length)

    def moved(self) -> None:
        """It is published: its bytes are the store's."""
        self._taken.published(self.size)

    def write(self, data: bytes | memoryview) -> None:
        """Append. Raises :class:`TooLarge` past the byte limit, and whatever the control raises to interrupt us."""
        if self.size + len(data) > self._max_bytes:
            raise TooLarge(self.uri, f"more than the {self._max_bytes} bytes allowed")
        if data:
            self._taken.reach(self.size + len(data))
            self._fasten()
            self._catch_up()
            partial.write_at(self._fileno, self.size, data)
            self._digests.update(data)
            self._landed(self.size, len(data))
        self._on_bytes(len(data))

    def reserve(self, length: int) -> None:
        """Room for a file of that length, before ``place``. It needs a ``note`` first."""
        self._taken.reach(length)
        self._loose = True
        self._claim()  # before the file is longer than what is in it
        partial.preallocate(self._fileno, length)

    def place(self, offset: int, data: bytes | memoryview) -> None:
        """Write there; from any thread. Raises as ``write``. What is written twice must be the same bytes."""
        if offset + len(data) > self._max_bytes:
            raise TooLarge(self.uri, f"more than the {self._max_bytes} bytes allowed")
        self._taken.reach(offset + len(data))
        self._loose = True
        partial.write_at(self._fileno, offset, data)
        self._landed(offset, len(data))
        self._on_bytes(len(data))

    def gaps(self, length: int) -> list[Span]:
        """What is missing of a file of that length, in order."""
        with self._lock:
            return self._spans.gaps(length)

    def cut(self, end: int) -> None:
        """Forget what lies behind the first ``end`` bytes."""
        with self._lock:
            self._spans.cut(end)
            self.size = self._spans.prefix
            assert self._digests.hashed <= self.size, "what is hashed cannot be forgotten"
            self._claim()

    def _fasten(self) -> None:
        """End the file where the prefix ends: whoever appends to it knows of nothing behind it."""
        if self._loose:
            self.cut(self.size)
            os.ftruncate(self._fileno, self.size)
            self._loose = False

    def _landed(self, offset: int, size: int) -> None:
        with self._lock:
            self._spans.add(offset, offset + size)
            self.size = self._spans.prefix
            self._unclaimed += size
            if self.journal and self.mirror and self.mirror not in self.journal.mirrors:
                self.journal = dataclasses.replace(self.journal, mirrors=(*self.journal.mirrors, self.mirror))
            if self._unclaimed >= _JOURNAL_BYTES or time.monotonic() - self._claimed_at >= _JOURNAL_S:
                self._claim()

    def _claim(self, *, synced: bool = False) -> None:
        """Write the journal: after the bytes that it claims, never before."""
        if self._keep and self.journal:
            partial.write_journal(self.path, self.journal, self._claimable, synced=synced)
            self._journaled = True
        self._unclaimed, self._claimed_at = 0, time.monotonic()

    def _restate(self) -> None:
        """The journal says something else by now. One that is there is written anew; the first, when it is due."""
        if self._journaled:
            self._claim()

    def catch_up(self, most: int) -> bool:
        """Hash up to ``most`` more bytes of those that came without passing by (taken up, or out of order). Whether
        there are more."""
        return self._digests.hashed < self.size and self._digests.catch_up(self._fileno, self.size, most)

    def _catch_up(self) -> None:
        while self.catch_up(_AT_ONCE_BYTES):
            self.check()

    def piece(self, name: str) -> Scratch:
        """Another file of the same source, published after this one and in the order in which they are made; no later
        attempt takes it up. ``max_bytes`` bounds each."""
        made = Scratch(
            self._directory, self._key, self.uri, max_bytes=self._max_bytes, on_bytes=self._on_bytes, keep=False,
            fsync=self._fsync, room=self._room,
        )  # fmt: skip
        made.name = name
        self.pieces.append(made)
        return made

    def restart(self) -> None:
        """Back to byte 0, as if nothing had been written: in another file, since somebody may have this one open."""
        self._drop_pieces()
        self._end()
        self.discard()
        self._begin()

    def note(self, validator: str, length: int | None, *, mixed: bool = False) -> None:
        """Say which version the bytes are of, so that a later attempt may go on. Only a strong validator will do.

        ``mixed``: those so far may be of another one; then only an attempt that knows the file's digest goes on.
        """
        earlier = self.journal or Journal(validator)
        with self._lock:
            self.journal = Journal(validator, length, mixed, mirrors=earlier.mirrors, stated=earlier.stated)
            self._marked = None
            self._restate()

    def mark(self, facts: Mapping[str, Any]) -> None:
        """Say that the bytes so far are of use, and how to go on after them: a later attempt takes up just these, and
        finds ``facts`` (which JSON can hold) in ``journal``."""
        with self._lock:
            self.journal, self._marked = Journal("", facts=facts), Spans([(0, self.size)])
            self._claim()

    def replace(self, path: Path) -> None:
        """Become the file that somebody else wrote at ``path``, in the same directory. It cannot be continued."""
        self.journal = None
        partial.remove_journal(self.path)  # first, so that no journal is ever of other bytes
        os.replace(path, self.path)
        self.adopt()

    def adopt(self) -> None:
        """Count and hash what somebody else wrote to ``path``."""
        if self._file is not None:
            self._file.close()
        self._file = open(self.path, "r+b", buffering=0)  # noqa: SIM115 - closed by close()
        self.size, self._loose = os.fstat(self._fileno).st_size, False
        self._spans = Spans([(0, self.size)])
        self._digests.again()
        if self.size > self._max_bytes:
            raise TooLarge(self.uri, f"{self.size} bytes, more than the {self._max_bytes} allowed")
        self._taken.reach(self.size)
        self.digest()

    def came(self, count: int) -> None:
        """So many bytes came otherwise than by ``write``. Raises what the control raises to interrupt us."""
        self._on_bytes(count)

    def digest(self, algorithm: str = "sha256") -> str:
        """``"sha256:<hex>"`` of all bytes so far."""
        if self._spans.total == self.size:
            self._fasten()
        self._catch_up()
        return self._digests.value(algorithm)

    def expect(self, digest: str) -> None:
        """What all bytes will have to come to, learnt while the file is in the making. Raises ImportError where that
        algorithm is not installed."""
        self._digests.expect(digest, self._fileno)
        if self.journal is not None:  # the answers that bring the rest need not say it again
            with self._lock:
                self.journal = dataclasses.replace(self.journal, stated=digest)
                self._restate()

    def verify(self) -> None:
        """Raises :class:`DigestMismatch` where the bytes are not what was expected."""
        for algorithm, value in self._digests.expected.items():
            if (found := self.digest(algorithm)) != f"{algorithm}:{value}":
                raise DigestMismatch(self.uri, f"{algorithm}:{value} (stated by the origin)", found, self.size)

    def settle(self) -> None:
        """All of it is there: hash it and close it, so that thousands of pieces need no open files."""
        self.digest()
        self._settled = True
        if self._file is not None:
            self._file.close()

    def sync(self) -> None:
        """Make it durable. Raises OSError; then nothing of it is kept: the kernel takes for written what it could not
        write, and the next fsync would say that all is well."""
        again = open(self.path, "rb") if self._settled else None  # noqa: SIM115 - closed below
        try:
            os.fsync(again or self._fileno)
        except OSError:
            self.discard()
            raise
        finally:
            if again:
                again.close()

    @property
    def _fileno(self) -> int:
        assert self._file is not None
        return self._file.fileno()

    def close(self, *, discard: bool) -> None:
        """End of the attempt. A partial file with a journal stays unless it is to be discarded."""
        if self._file is None or (self._file.closed and not self._settled):
            return
        self._drop_pieces()
        if not (self._keep and self.journal and self._claimable.total) or discard:
            with suppress(OSError):  # what a disk does not give up is swept later
                self.discard()
        elif not self._discarded:
            with suppress(OSError):  # unless fsync fails, the journal that is there holds as well
                if self._fsync:
                    self.sync()
                self._claim(synced=self._fsync)
            with suppress(OSError):
                self._taken.give_back(os.fstat(self._fileno).st_size)
        self._end()

    def _end(self) -> None:
        if self._file is not None:
            self._file.close()
        _at_work.discard(self.path)

    def discard(self) -> None:
        self._discarded = True
        if self._journaled:
            partial.remove_journal(self.path)  # first, so that no journal is ever without its bytes
        self.path.unlink(missing_ok=True)
        self._taken.give_back(0)

    def _drop_pieces(self) -> None:
        for piece in self.pieces:
            piece.close(discard=True)
        self.pieces.clear()
