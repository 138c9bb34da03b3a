"""A large file over several connections, every byte of one version: the first answer, and ranges beside it.

Who brings which bytes is decided in ``pieces``; what one request is, in ``exchange``. The thread that called fetch
steers and hashes; the others bring bytes, and none of them is left when :meth:`Download.run` is over.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

import requests

from ingest.errors import FetchError, OriginUnavailable, SourceChanged, Throttled, Truncated
from ingest.store.scratch import Scratch
from workers.fetchers.http import answers
from workers.fetchers.http.exchange import CLIENT_ERRORS, Exchange, new_session, release
from workers.fetchers.http.pieces import Pace, Piece, Plan
from workers.fetchers.http.wire import Reply, watched

#: What servers say that do not want Range or If-Range.
NO_RANGE = frozenset({400, 412, 501})
#: How soon a stop, a lost connection or more room for connections is seen.
_TICK_S = 0.05
_HASH_BYTES = 16 << 20


class RangesRefused(Exception):
    """The origin gives no ranges after all, or other bytes than were asked for. ``why`` is for a log."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class _Stopped(Exception):
    """The download is over, or goes on without this connection."""


class Spare:
    """The sessions of the connections that a process has beside the first one of each file, kept from file to file."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: list[requests.Session] = []
        self.lent = 0

    def borrow(self, most: int) -> requests.Session | None:
        """None when there are ``most`` of them."""
        with self._lock:
            if self.lent >= most:
                return None
            self.lent += 1
            return self._idle.pop() if self._idle else new_session()

    def give_back(self, session: requests.Session) -> None:
        with self._lock:
            self.lent -= 1
            self._idle.append(session)


@dataclass(eq=False)
class _Connection:
    """One thread's. ``answer`` is the first one's open answer; ``on``: it goes on behind its piece. ``session`` is
    given back at the end."""

    exchange: Exchange
    piece: Piece
    answer: Reply | None = None
    on: bool = False
    session: requests.Session | None = None
    stop: bool = False
    thread: threading.Thread = field(init=False)


class Download:
    """``total`` bytes of the version ``validator``, into ``scratch``, over as many connections of ``spare`` as ``pace``
    says. ``first`` is an answer whose body begins at the first missing byte; ``on``: it goes to the end of the file."""

    def __init__(
        self,
        exchange: Exchange,
        scratch: Scratch,
        first: Reply,
        *,
        validator: str,
        total: int,
        on: bool,
        pace: Pace,
        spare: Spare,
    ) -> None:
        self._exchange, self._scratch, self._spare = exchange, scratch, spare
        self._validator, self._total = validator, total
        self._http = exchange.settings.http
        self._changed = threading.Condition()  # guards all that follows
        self._plan = Plan(scratch.gaps(total), self._http.range_bytes)
        self._pace, self._brought = pace, 0
        piece = self._plan.take(time.monotonic())
        assert piece is not None, "nothing is missing"
        self._first = _Connection(exchange, piece, first, on)
        exchange.watch.idle = lambda: self._go_on(self._first)
        self._alive: list[_Connection] = []
        self._threads: list[threading.Thread] = []
        self._over = False
        self._alone = False
        #: From here on the others' bytes are about to be forgotten, as soon as none of them works any more.
        self._forget_from: int | None = None
        #: Why the first answer had to bring the rest alone, where it had to.
        self.refused: str | None = None
        self._fatal: BaseException | None = None
        self._last_error: FetchError | None = None

    def run(self) -> None:
        """Raises a FetchError, :class:`RangesRefused`, or what interrupts the scratch; what came is in it."""
        try:
            self._scratch.reserve(self._total)
            self._start(self._first)
            while self._steer():
                if not self._scratch.catch_up(_HASH_BYTES):
                    with self._changed:
                        self._changed.wait(_TICK_S)
                self._scratch.check()
            while self._scratch.catch_up(_HASH_BYTES):
                self._scratch.check()
        finally:
            self._over = True
            self._join()
            self._forget()
            self._exchange.watch.idle = self._scratch.check

    def _join(self) -> None:
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _steer(self) -> bool:
        """One look at how it goes; whether it goes on. Raises why it cannot."""
        if not self._scratch.gaps(self._total):
            return False
        with self._changed:
            if isinstance(self._fatal, RangesRefused):
                self._go_alone(self._fatal)
            elif self._fatal is not None:
                raise self._fatal
            if not self._alive and self._scratch.gaps(self._total):
                came = f"{self._scratch.size} of {self._total} bytes came"
                raise self._last_error or Truncated(self._exchange.uri, came)
            target = self._pace.step(time.monotonic(), self._brought, len(self._alive))
            wanted = 0 if self._alone else target - len(self._alive)
        for _ in range(wanted):
            if not self._add():
                break
        return True

    def _go_alone(self, refused: RangesRefused) -> None:
        """No ranges any more: if the first answer still goes on, it brings all that follows it, by itself. What came by
        ranges is forgotten: they were not to be trusted. Raises RangesRefused where it does not go on."""
        first = self._first
        at_end = first.piece.end == self._total
        if first not in self._alive or not first.on or not (at_end or self._wanted(first)):
            raise refused
        self._alone, self.refused = True, refused.why
        self._pace.limited(1)
        for connection in self._alive:
            connection.stop = connection is not first
        others = [connection.thread for connection in self._alive if connection is not first]
        self._forget_from = first.piece.end  # it waits there
        self._changed.release()  # they need it to end
        try:
            for thread in others:
                thread.join()
        finally:
            self._changed.acquire()
        if self._fatal is refused:
            self._fatal = None
        self._forget()

    def _forget(self) -> None:
        """What the others brought, none of whom works any more: it is for the first one to bring."""
        with self._changed:
            if (end := self._forget_from) is not None:
                self._scratch.cut(end)
                self._plan.free = [(end, self._total)] if end < self._total else []
                self._forget_from = None
                self._changed.notify_all()

    def _add(self) -> bool:
        session = self._spare.borrow(self._http.ranges)
        if session is None:
            return False
        with self._changed:
            now = time.monotonic()
            piece = self._plan.take(now) or self._plan.steal(now)
        if piece is None:
            self._spare.give_back(session)
            return False
        made = _Connection(self._exchange, piece, session=session)
        made.exchange = self._exchange.another(session, lambda: self._go_on(made))
        self._start(made)
        return True

    def _start(self, connection: _Connection) -> None:
        connection.thread = threading.Thread(target=self._bring, args=(connection,), name="http-range", daemon=True)
        with self._changed:
            self._alive.append(connection)
        self._threads.append(connection.thread)
        try:
            connection.thread.start()
        except RuntimeError:  # no more threads to be had
            self._end(connection, Truncated(self._exchange.uri, "the node has no thread left to read it"))

    def _go_on(self, connection: _Connection) -> None:
        if self._over or connection.stop:
            raise _Stopped

    # -- in the connections' threads -----------------------------------------------------------------------------------

    def _bring(self, connection: _Connection) -> None:
        failed: BaseException | None = None
        try:
            with watched(connection.exchange.watch):
                self._work(connection)
        except _Stopped:
            pass
        except BaseException as error:  # noqa: BLE001 - the thread that steers raises it
            failed = error
        finally:
            self._end(connection, failed)

    def _end(self, connection: _Connection, failed: BaseException | None) -> None:
        if connection.answer is not None:
            connection.answer.close()
        if connection.session is not None:
            self._spare.give_back(connection.session)
        with self._changed:
            self._plan.drop(connection.piece)
            self._alive.remove(connection)
            if failed is not None:
                self._failed(failed)
            self._changed.notify_all()

    def _failed(self, error: BaseException) -> None:
        if isinstance(error, SourceChanged | RangesRefused) or not isinstance(error, FetchError):
            self._fatal = self._fatal or error
            return
        self._last_error = error
        if isinstance(error, Throttled | OriginUnavailable):
            self._pace.limited(len(self._alive))
        else:
            self._pace.lost(len(self._alive), time.monotonic())

    def _work(self, connection: _Connection) -> None:
        while True:
            if connection.answer is None:
                connection.answer = self._open(connection)
            self._read(connection, connection.answer)
            release(connection.answer)
            connection.answer, connection.on = None, False
            with self._changed:
                if connection.piece.left:
                    raise Truncated(
                        self._exchange.uri, f"a range broke off {connection.piece.left} bytes before its end"
                    )
                if self._alone or len(self._alive) > self._pace.target:
                    raise _Stopped
                now = time.monotonic()
                piece = self._plan.take(now) or self._plan.steal(now)
                if piece is None:
                    raise _Stopped
                self._plan.drop(connection.piece)
                connection.piece = piece

    def _open(self, connection: _Connection) -> Reply:
        """Exactly that range of exactly that version, or an error."""
        with self._changed:
            start, end = connection.piece.at, connection.piece.end
        if start == end:
            raise _Stopped  # another one was quicker
        asked = {"Range": f"bytes={start}-{end - 1}", "If-Range": self._validator}
        response = connection.exchange.get(asked, also=NO_RANGE)
        try:
            self._judge(response, start, end)
        except BaseException:
            release(response)
            raise
        return response

    def _judge(self, response: Reply, start: int, end: int) -> None:
        status, headers = response.status_code, response.headers
        tag = answers.strong_etag(headers)
        if status in {200, 206} and tag not in (None, self._validator):
            raise SourceChanged(self._exchange.uri, f"it changed from {self._validator} to {tag} while it was read")
        if status != 206:
            raise RangesRefused(f"{status} to a range")
        if tag is None:
            raise RangesRefused("a range without its ETag")
        if answers.content_range(headers) != (start, end - 1, self._total):
            raise RangesRefused(f"Content-Range {headers.get('Content-Range', '')[:80]!r} to bytes {start}-{end - 1}")
        if answers.content_coding(headers):
            raise RangesRefused("an encoded range")
        if answers.content_length(self._exchange.uri, headers) not in (None, end - start):
            raise RangesRefused("a Content-Length that is not the range's")

    def _read(self, connection: _Connection, response: Reply) -> None:
        """The body, into its place, as far as the piece goes."""
        exchange = connection.exchange
        exchange.watch.restart()
        while self._wanted(connection):
            self._go_on(connection)
            try:
                data: bytes = response.raw.read1(self._http.chunk_bytes, decode_content=False)
            except CLIENT_ERRORS as error:
                exchange.fail(error)
            if not data:
                return
            view = memoryview(data)
            while view and self._wanted(connection):
                with self._changed:
                    at = connection.piece.at
                    count = self._plan.claim(connection.piece, len(view), time.monotonic())
                    self._brought += count
                self._scratch.place(at, view[:count])
                view = view[count:]

    def _wanted(self, connection: _Connection) -> bool:
        """Whether the next byte is this connection's to bring."""
        with self._changed:
            while connection.on and not connection.piece.left and self._forget_from is not None and not self._over:
                self._changed.wait(_TICK_S)
            return bool(connection.piece.left) or (connection.on and self._plan.grow(connection.piece))
