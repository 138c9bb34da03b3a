"""What an object says of its own bytes, and whether they are so: full checksums, checksums of parts, ETags of MD5.

The digest is made from the scratch file, in another thread, while more of it is written. Who asks the origin is the
reader; the SHA-256 that every scratch file has anyway is used where it will do.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Executor, Future, wait
from contextlib import suppress
from dataclasses import replace

from ingest import digests
from ingest.errors import BadResponse, DigestMismatch
from ingest.model import FileSpec
from ingest.store.scratch import Scratch
from workers.fetchers.s3.objects import NOTHING, Part, Policy, Reader, Stated, is_worth, of_etag

_READ_BYTES = 1 << 20
_NEVER = 1 << 63
#: Between two looks at whether the work is to stop: 0.1 s of MD5.
_STEP_BYTES, _TICK_S = 64 << 20, 0.2


class Running:
    """The digest that was stated, over a file that grows; ``advance`` may be called again and again, in order."""

    def __init__(self, stated: Stated) -> None:
        self.stated, self.at, self.over = stated, 0, False
        self._outer = digests.new(stated.algorithm) if stated.parts else None
        self._inner = digests.new(stated.algorithm)
        self._ends = self._part_ends()
        self._end = next(self._ends, _NEVER)

    def _part_ends(self) -> Iterator[int]:
        end = 0
        for size in self.stated.parts:
            yield (end := end + size)

    def advance(self, file: int, end: int) -> None:
        """Take in the file, by its descriptor, up to byte ``end``."""
        while self.at < end and not self.over:
            self._end_parts()
            block = os.pread(file, min(_READ_BYTES, end - self.at, self._end - self.at), self.at)
            if not block:
                raise OSError("a scratch file became shorter")
            self._inner.update(block)
            self.at += len(block)

    def _end_parts(self) -> None:
        while self.at == self._end and self._outer is not None:  # a part may be empty, too
            self._outer.update(bytes.fromhex(self._inner.hexdigest()))
            self._inner = digests.new(self.stated.algorithm)
            self._end = next(self._ends, _NEVER)

    def take(self, data: bytes) -> None:
        """The next bytes, of an object without parts."""
        self._inner.update(data)
        self.at += len(data)

    def found(self) -> Stated:
        self._end_parts()
        return replace(self.stated, value=(self._outer or self._inner).hexdigest())


class Check:
    """Of one attempt at one object. ``asked`` is what the origin is being asked for, if it is."""

    def __init__(self, spec: FileSpec, part: Part, scratch: Scratch, reader: Reader, executor: Executor) -> None:
        self._uri, self._part, self._scratch, self._reader = spec.uri, part, scratch, reader
        # A digest that the user gave is looked at by the store, and says more than the origin.
        self._policy: Policy = False if spec.digest else reader.policy
        self.asked: Future[Stated] | None = None
        self._executor = executor
        self._file: int | None = None
        self._running: Running | None = None
        self._step: Future[None] | None = None

    def must_ask(self, large_bytes: int) -> bool:
        """An MD5 costs more time than all else that is done with a byte here: a large object is worth a request that
        may name something cheaper. A small one with an ETag that looks like an MD5 is not."""
        if not self._policy:
            return False
        return self._part.total > large_bytes or of_etag(self._part.etag) is None

    def take(self, data: bytes) -> None:
        """Digest the next bytes here and now, of a small object whose ETag is an MD5."""
        if self._running is None and self._policy and self.asked is None and (stated := of_etag(self._part.etag)):
            self._running = Running(stated)
        if self._running is not None:
            self._running.take(data)

    def advance(self) -> None:
        """Digest what has been written, beside the writing, if that is not being done already."""
        if not self._policy or (self._step and not self._step.done()) or (self.asked and not self.asked.done()):
            return
        if self._step:
            self._step.result()
        if running := self._begun():
            self._step = self._executor.submit(running.advance, self._open(), self._scratch.size)

    def compare(self) -> None:
        """All has been written: whether it is what the object says. Raises DigestMismatch."""
        if self._policy:
            self._compare()

    def close(self) -> None:
        if self.asked:
            self.asked.cancel()
        if self._running:
            self._running.over = True
        if self._step and not self._step.cancel():
            with suppress(OSError):
                self._step.result()
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _compare(self) -> None:
        stated = self._stated()
        if stated is NOTHING:
            return self._unchecked()
        if self._matches(stated):
            return
        # What looks like an MD5 is none where the object is encrypted with a key of its own, or the server makes its
        # ETags otherwise; and parts need not be as large as the first. Ask before a file is refused.
        if self.asked is None:
            self._running, other = None, self._reader.stated(self._part)
            if other is NOTHING:
                return self._unchecked()
            if other != stated and self._matches(other):
                return
            stated = other
        if not stated.exact:
            exact = self._reader.exactly(self._part, stated)
            if exact is NOTHING:
                return self._unchecked()
            if exact != stated and self._matches(exact):
                return
            stated = exact
        raise DigestMismatch(self._uri, f"{stated} (stated by the origin)", str(self._found(stated)), self._part.total)

    def _unchecked(self) -> None:
        if self._policy == "required":
            raise BadResponse(
                self._uri,
                "the object states nothing that its bytes could be checked by, and its connection wants that: "
                'store it with a checksum, or take checksums = "required" out of the connection',
            )

    def _stated(self) -> Stated:
        stated = self.asked.result() if self.asked is not None else of_etag(self._part.etag) or NOTHING
        return stated if is_worth(self._policy, stated.algorithm, self._part.total) else NOTHING

    def _begun(self) -> Running | None:
        """The running digest; None where there is nothing to run, or the scratch file has it."""
        stated = self._stated()
        if stated is NOTHING or _is_known(stated):
            return None
        if self._running is None or self._running.stated != stated:
            self._running = Running(stated)
        return self._running

    def _found(self, stated: Stated) -> Stated:
        if _is_known(stated):
            return replace(stated, value=self._scratch.digest().partition(":")[2])
        while self._step and not wait([self._step], _TICK_S).done:
            self._scratch.check()
        if self._step:
            self._step.result()
        if self._running is None or self._running.stated != stated:
            self._running = Running(stated)
        while self._running.at < self._scratch.size:
            self._running.advance(self._open(), min(self._running.at + _STEP_BYTES, self._scratch.size))
            self._scratch.check()
        return self._running.found()

    def _matches(self, stated: Stated) -> bool:
        return self._found(stated).value == stated.value

    def _open(self) -> int:
        if self._file is None:
            self._file = os.open(self._scratch.path, os.O_RDONLY)
        return self._file


def _is_known(stated: Stated) -> bool:
    """Every scratch file has its SHA-256."""
    return stated.algorithm == "sha256" and not stated.parts
