"""An object of known length in parallel ranges, pinned to one version, each written to its place as it comes.

How one GET is made is said by a ``Reader`` (``objects``); what the object says of its bytes is checked in
``verify``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress

from ingest.errors import BadResponse, FetchTimeout, SourceChanged, Truncated
from ingest.model import FileSpec
from ingest.store.scratch import Scratch
from workers.fetchers.base import Context, Fetched, Known
from workers.fetchers.s3.answers import NoRange, NotModified
from workers.fetchers.s3.objects import Part, Reader
from workers.fetchers.s3.read import SMALL_BYTES
from workers.fetchers.s3.verify import Check

#: A round trip of 30 ms costs little beside 8 MB.
RANGE_BYTES = 8 << 20
#: Ranges of one object in flight: one connection to S3 gives 50 to 100 MB/s.
RANGES_PER_OBJECT = 4
#: Ranges in flight in this process, whatever the number of objects: more connections bring nothing more.
RANGES_PER_PROCESS = 16
#: Threads that read. Small objects have no range to wait for, so they never wait behind large ones.
THREADS = 64
#: Threads that make digests beside the writing, and that ask what an object says of itself.
DIGESTS, QUESTIONS = 2, 4
#: While bytes are on their way, so often is it asked whether the work is to stop.
TICK_S = 0.2
_HASH_BYTES = 16 << 20

Span = tuple[int, int]


class RangedFetcher:
    """What fetchers of object stores have in common. A subclass says how to read: :meth:`reader`."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="range")
        self._slots = threading.BoundedSemaphore(RANGES_PER_PROCESS)
        self._digests = ThreadPoolExecutor(DIGESTS, thread_name_prefix="digest")
        self._questions = ThreadPoolExecutor(QUESTIONS, thread_name_prefix="stated")

    def reader(self, spec: FileSpec, context: Context) -> Reader:
        """A reader of that object. Raises a FetchError where its profile cannot be used."""
        raise NotImplementedError

    def fetch(self, spec: FileSpec, scratch: Scratch, known: Known | None, context: Context) -> Fetched | None:
        """See :class:`workers.fetchers.base.Fetcher`. The version is the version id that was asked for, else the
        ETag, as the origin wrote it."""
        reader = self.reader(spec, context)
        part = _resume(spec, scratch, reader)
        if part is None:
            try:
                part = _begin(spec, scratch, reader, known)
            except NotModified:
                return None
        try:
            _judge(spec, part)
            scratch.announce(part.total)
            if scratch.journal is None and part.etag:
                scratch.note(part.etag, part.total)
        except BaseException:
            part.close()
            raise
        try:
            with self._checked(spec, part, scratch, reader) as check:
                _Bringing(self, spec.uri, part, scratch, reader, check, context.settings.limits.stall_s).run()
                if scratch.size != part.total:
                    raise Truncated(spec.uri, f"got {scratch.size} bytes of {part.total}")
        except SourceChanged:
            scratch.discard()  # of a version that is gone
            raise
        return Fetched(version=spec.pin or part.etag, validator=part.etag)

    @contextmanager
    def _checked(self, spec: FileSpec, part: Part, scratch: Scratch, reader: Reader) -> Iterator[Check]:
        """Around the writing. What the object says of itself is asked for while its bytes come: that costs no time."""
        check = Check(spec, part, scratch, reader, self._digests)
        if check.must_ask(RANGE_BYTES):
            check.asked = self._questions.submit(reader.stated, part)
        try:
            yield check
            check.compare()
        finally:
            check.close()


class _Over(Exception):
    """Nobody waits for that range any more."""


class _Stream:
    """One range on its way into the file, in a thread of the pool. It writes nothing more once it was stopped."""

    def __init__(self, uri: str, scratch: Scratch, span: Span, begin: Callable[[], Part]) -> None:
        self._uri, self._scratch, self._span, self._begin = uri, scratch, span, begin
        self._lock, self._over = threading.Lock(), False
        self._part: Part | None = None
        self.moved = time.monotonic()

    def run(self) -> None:
        self._part = part = self._begin()
        try:
            self._read(part)
        finally:
            part.close()

    def _read(self, part: Part) -> None:
        at, end = self._span
        for chunk in part.chunks:
            if at + len(chunk) > end:
                raise Truncated(self._uri, f"got more bytes than there are in the range {self._span[0]}-{end - 1}")
            with self._lock:
                if self._over:
                    raise _Over
                self._scratch.place(at, chunk)
            at += len(chunk)
            self.moved = time.monotonic()
        if at != end:
            raise Truncated(self._uri, f"got {at - self._span[0]} bytes of the range {self._span[0]}-{end - 1}")

    def stop(self) -> None:
        with self._lock:
            self._over = True
        if self._part is not None:
            self._part.cut_off()


class _Bringing:
    """One object, from its first answer to its last byte: the thread that waits hashes what has come."""

    def __init__(
        self, of: RangedFetcher, uri: str, first: Part, scratch: Scratch, reader: Reader, check: Check, stall_s: float
    ) -> None:
        self._of, self._uri, self._first, self._scratch, self._reader = of, uri, first, scratch, reader
        self._check, self._stall_s = check, stall_s
        self._running: dict[Future[None], _Stream] = {}
        self._todo = self._spans()

    def _spans(self) -> Iterator[Span]:
        """What is missing beside the first answer."""
        if not self._first.etag or self._first.length == self._first.total:
            return
        begun = self._first.start + self._first.length
        for start, end in self._scratch.gaps(self._first.total):
            for at in range(max(start, begun) if start < begun else start, end, RANGE_BYTES):
                yield at, min(at + RANGE_BYTES, end)

    def run(self) -> None:
        first = self._first
        if first.bounded and first.length == first.total <= SMALL_BYTES:
            return self._at_once()
        if not first.length:
            first.close()
        else:
            if first.etag and first.length < first.total:
                self._scratch.reserve(first.total)
            self._start((first.start, first.start + first.length), lambda: first, slot=False)
        try:
            self._fill()
            while self._running:
                more = self._scratch.catch_up(_HASH_BYTES)
                self._check.advance()
                self._scratch.check()
                done, _ = wait(self._running, 0 if more else TICK_S, FIRST_COMPLETED)
                for future in done:
                    del self._running[future]
                    future.result()
                if not done:
                    self._watch()
                self._fill()
        finally:
            for future, stream in self._running.items():
                if not future.cancel():
                    stream.stop()

    def _at_once(self) -> None:
        """A small object, in this thread: another one would cost as much as all the rest."""
        first, scratch = self._first, self._scratch
        for chunk in first.chunks:
            if scratch.size + len(chunk) > first.total:
                raise Truncated(self._uri, f"got more than the {first.total} bytes that there are")
            scratch.write(chunk)
            self._check.take(chunk)
        if scratch.size < first.total:
            raise Truncated(self._uri, f"got {scratch.size} bytes of {first.total}")

    def _fill(self) -> None:
        while len(self._running) < RANGES_PER_OBJECT and self._slots(wait_for_it=not self._running):
            span = next(self._todo, None)
            if span is None:
                self._of._slots.release()
                return
            self._start(span, lambda span=span: _open(self._uri, self._reader, span, self._first), slot=True)  # type: ignore[misc]

    def _slots(self, *, wait_for_it: bool) -> bool:
        """Whether one more range may begin. Who has none on its way waits, and hears meanwhile that it is to stop."""
        while not self._of._slots.acquire(timeout=TICK_S if wait_for_it else 0):
            if not wait_for_it:
                return False
            self._scratch.check()
        return True

    def _start(self, span: Span, begin: Callable[[], Part], *, slot: bool) -> None:
        stream = _Stream(self._uri, self._scratch, span, begin)
        future = self._of._pool.submit(stream.run)
        self._running[future] = stream
        if slot:
            future.add_done_callback(lambda _: self._of._slots.release())

    def _watch(self) -> None:
        """The client libraries see silence, but not a drip: a byte now and then keeps a connection for hours."""
        quiet_s = time.monotonic() - max(stream.moved for stream in self._running.values())
        if quiet_s > self._stall_s:
            raise FetchTimeout(self._uri, f"hardly any data for {self._stall_s:g} s")


def _resume(spec: FileSpec, scratch: Scratch, reader: Reader) -> Part | None:
    """Go on with what an earlier attempt left; None, with the scratch back at 0, when that cannot be."""
    journal = scratch.journal
    if (
        journal
        and journal.validator
        and journal.length
        and not journal.mixed
        and spec.version in {None, journal.validator}
    ):
        gaps = scratch.gaps(journal.length)
        # All is there: the last byte once more tells whether it is still that version.
        start, end = gaps[0] if gaps else (journal.length - 1, journal.length)
        with suppress(SourceChanged, NoRange):
            part = reader.open((start, min(end, start + RANGE_BYTES)), journal.validator)
            if part.etag == journal.validator and part.total == journal.length:
                if gaps:
                    return part
                part.close()
                return Part(part.etag, part.total, 0, 0, iter(()))
            part.close()
    if journal or scratch.size:
        scratch.restart()
    return None


def _begin(spec: FileSpec, scratch: Scratch, reader: Reader, known: Known | None) -> Part:
    """The first range, which for a small object is all of it; one plain GET where ranges cannot be had or pinned."""
    none_match = known.validator if known else None
    if spec.size != 0:
        with suppress(NoRange):
            part = reader.open((0, RANGE_BYTES), spec.version, none_match)
            if part.etag or part.length == part.total:
                return part
            part.close()
    return reader.open(None, spec.version, none_match)


def _judge(spec: FileSpec, part: Part) -> None:
    """Whether the first answer is of what was asked for."""
    if spec.version and part.etag and part.etag != spec.version:
        raise SourceChanged(spec.uri, f"it was {spec.version} when it was listed, and is {part.etag} now")
    if spec.size is not None and part.total != spec.size:
        if spec.version:
            raise SourceChanged(spec.uri, f"it had {spec.size} bytes when it was listed, and has {part.total} now")
        raise BadResponse(spec.uri, f"it has {part.total} bytes, {spec.size} were expected; nothing was downloaded")


def _open(uri: str, reader: Reader, span: Span, first: Part) -> Part:
    """One more range of the version that the first answer was of."""
    try:
        part = reader.open(span, first.etag)
    except NoRange as error:
        raise SourceChanged(uri, f"it had {first.total} bytes, and now ends before byte {span[0]}") from error
    if part.etag != first.etag or part.total != first.total:
        raise SourceChanged(uri, f"it changed from {first.etag} to {part.etag} while it was read")
    if (part.start, part.length) != (span[0], span[1] - span[0]):
        raise BadResponse(uri, f"asked for bytes {span[0]}-{span[1] - 1}, got {part.length} from {part.start} on")
    return part
