"""HTTP connections that are judged before they speak and watched while they are silent. What is said is not here.

They hook into urllib3 at its documented seams: pool classes, connection classes, the response class of http.client.
Where http.client forgives what would end in a damaged file (chunks that are none, headers that are lost), we do not.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from email.errors import FirstHeaderLineIsContinuationDefect, MissingHeaderBodySeparatorDefect
from typing import Any

import urllib3
from requests import PreparedRequest
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.util import wait_for_read

from workers.egress import Trail, parse_address
from workers.fetchers.http.answers import Damaged, Malformed

#: How long a silent connection is waited for before the caller is asked whether to go on: a cancel is seen that soon.
TICK_S = 1.0
#: One system call fetches this much of headers and small bodies; larger reads bypass the buffer.
_BUFFER_BYTES = 64 << 10
#: RFC 9110 §15.2 allows any number of interim answers; more than these is an origin that never answers.
_MAX_INTERIM = 100
#: The header of an answer and of the interim ones before it, in all; also what may come after the last chunk. Ten times
#: what the most talkative origins send. (http.client itself bounds one line at 64 KiB, and their number at 100.)
MAX_HEADER_BYTES = 256 << 10
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9a-fA-F]{1,15})[ \t]*(?:;[^\r\n]*)?\r?\n")
_MAX_LINE_BYTES = 64 << 10
_LOST_HEADERS = (MissingHeaderBodySeparatorDefect, FirstHeaderLineIsContinuationDefect)


class Watch:
    """One exchange's interest in its connection. ``trail`` judges where it leads; ``idle`` is called about every second
    of waiting and may raise to stop; waiting ends with TimeoutError when fewer than ``least_bytes`` came in ``stall_s``
    of it: a read timeout alone never sees a slow drip."""

    def __init__(self, trail: Trail, idle: Callable[[], None], stall_s: float, least_bytes: int = 1024) -> None:
        self.trail, self.idle, self.stall_s, self._least_bytes = trail, idle, stall_s, least_bytes
        self.restart()

    def restart(self) -> None:
        """A new phase begins (the body after the headers): slowness before it does not count."""
        self._waited_s, self._bytes = 0.0, 0

    def waited(self, seconds: float, received: int) -> None:
        self._waited_s += seconds
        self._bytes += received
        if self._bytes >= self._least_bytes:
            self.restart()
        elif self._waited_s >= self.stall_s:
            raise TimeoutError(f"{self._bytes} bytes in {self._waited_s:.0f} s")


#: The exchange that this thread is in. Connections are made deep inside urllib3, which has no way to hand it down.
WATCH: ContextVar[Watch] = ContextVar("watch")


@contextmanager
def watched(watch: Watch) -> Iterator[None]:
    """What this thread says and reads over judged connections in here is ``watch``'s."""
    token = WATCH.set(watch)
    try:
        yield
    finally:
        WATCH.reset(token)


class _WatchedReader(io.RawIOBase):
    """The receiving side of a socket, waiting in ticks. ``held`` is the socket's own file, which keeps it open."""

    def __init__(self, sock: socket.socket, held: io.BufferedIOBase, watch: Watch) -> None:
        self._sock, self._held, self._watch = sock, held, watch
        self._ticked = time.monotonic()
        self._over = False
        #: The TLS connection ended without saying so: somebody on the way may have cut it.
        self.ragged = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if self._over:
            return 0
        timeout = self._sock.gettimeout()
        self._sock.settimeout(min(TICK_S, self._watch.stall_s))
        try:
            while True:
                began = time.monotonic()
                try:
                    received = self._sock.recv_into(buffer)
                except TimeoutError:
                    received = -1
                except ssl.SSLEOFError:
                    self.ragged, received = True, 0
                now = time.monotonic()
                if received != 0:
                    self._watch.waited(now - began, max(received, 0))
                if now - self._ticked >= TICK_S:
                    self._ticked = now
                    self._watch.idle()
                if received >= 0:
                    return received
        finally:
            self._sock.settimeout(timeout)

    def hang_up(self, buffered: Any) -> bool:
        """The answer is over: read no more. Whether more has come all the same; then the connection is ended, so that
        nobody takes it for the next answer (RFC 9112 §6.3)."""
        self._over = True
        with suppress(OSError, ValueError):
            if buffered.peek(1) or self._more_waits():
                self._sock.shutdown(socket.SHUT_RDWR)
                return True
        return False

    def _more_waits(self) -> bool:
        if isinstance(self._sock, ssl.SSLSocket):
            return self._sock.pending() > 0
        return wait_for_read(self._sock, timeout=0) and self._sock.recv(1, socket.MSG_PEEK) != b""

    def close(self) -> None:
        self._held.close()
        super().close()


class _Header:
    """The reader while headers are read: lines, up to a number of bytes in all."""

    def __init__(self, reader: Any) -> None:
        self._reader, self._left = reader, MAX_HEADER_BYTES
        self.close = reader.close

    def readline(self, limit: int) -> bytes:
        line: bytes = self._reader.readline(limit)
        self._left -= len(line)
        if self._left < 0:
            raise Malformed(f"headers of more than {MAX_HEADER_BYTES >> 10} KiB")
        return line


class _Response(http.client.HTTPResponse):
    """http.client's response, read through a watched reader, that passes over every interim answer and takes nothing
    for a body that is not exactly what was framed as one."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._watched = _WatchedReader(sock, self.fp, WATCH.get())
        self._buffered: Any = io.BufferedReader(self._watched, _BUFFER_BYTES)
        self.fp = self._buffered
        self._too_much = False

    def _read_status(self) -> tuple[str, int, str]:
        # Python 3.11 skips only 100 and would take a 103 (early hints) for the answer. A 101 was not asked for.
        for _ in range(_MAX_INTERIM):
            version, status, reason = super()._read_status()  # type: ignore[misc]  # not in typeshed
            if not 102 <= status < 200:
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise Malformed(f"more than {_MAX_INTERIM} interim answers")

    def begin(self, **options: Any) -> None:
        self.fp = _Header(self._buffered)  # type: ignore[assignment]  # as far as headers need one
        try:
            super().begin(**options)
        except http.client.HTTPException as error:
            if type(error) is http.client.HTTPException:  # all that it says in this way
                raise Malformed("more than 100 headers") from None
            raise
        finally:
            if self.fp is not None:
                self.fp = self._buffered
        if any(isinstance(defect, _LOST_HEADERS) for defect in self.headers.defects):
            raise Malformed("a line among the headers is none, and what follows it is lost")
        lengths = ",".join(self.headers.get_all("Content-Length") or ["0"])
        if len({part.strip() for part in lengths.split(",")}) > 1:  # urllib3 sees it too, but leaves the socket open
            raise Malformed("several Content-Lengths that contradict each other")
        self._unframe(",".join(self.headers.get_all("Transfer-Encoding") or []).lower())

    def _unframe(self, encodings: str) -> None:
        """http.client would take a body in any encoding but a lone ``chunked`` for one in none."""
        names = [name.strip() for name in encodings.split(",") if name.strip() not in {"", "identity"}]
        if names not in ([], ["chunked"]):
            raise Malformed(f"a Transfer-Encoding that nobody asked for: {', '.join(names)[:40]!r}")
        if names and not self.chunked:
            self.chunked, self.chunk_left, self.length = True, None, None

    def read(self, amt: int | None = None) -> bytes:
        return self._checked(super().read(amt), amt != 0)

    def read1(self, n: int = -1) -> bytes:
        return self._checked(super().read1(n), n != 0)

    def _checked(self, data: bytes, wanted: bool) -> bytes:
        if self.chunked:
            return data
        if self.length == 0 and self.fp is not None:
            self._close_conn()
        if self._too_much:
            raise Damaged("more bytes came than were announced")
        if not data and wanted and self.length is None and self._watched.ragged:
            raise ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "no length was announced, and TLS ended without its end")
        return data

    def _close_conn(self) -> None:
        self._too_much = self._watched.hang_up(self._buffered) and self.length == 0
        super()._close_conn()  # type: ignore[misc]  # not in typeshed

    def _get_chunk_left(self) -> int | None:
        if self.chunk_left == 0:  # http.client does not look at what it throws away here
            end = self.fp.read(2)
            if len(end) < 2:
                raise http.client.IncompleteRead(end)
            if end != b"\r\n":
                raise Damaged("a chunk is longer than it says")
            self.chunk_left = None
        left: int | None = super()._get_chunk_left()  # type: ignore[misc]  # not in typeshed
        return left

    def _read_next_chunk_size(self) -> int:
        line = self.fp.readline(_MAX_LINE_BYTES)
        if not line.endswith(b"\n") and len(line) < _MAX_LINE_BYTES:
            raise http.client.IncompleteRead(b"")
        found = _CHUNK_SIZE.fullmatch(line)
        if not found:
            raise Damaged("a chunk whose size is no number")
        return int(found[1], 16)

    def _read_and_discard_trailer(self) -> None:
        trailer = _Header(self._buffered)
        while trailer.readline(_MAX_LINE_BYTES) not in (b"\r\n", b"\n", b""):
            pass


class _Judged(HTTPConnection):
    """Judged when it is opened, before a byte is sent, and again at each request: a kept connection to a private
    address that one user may have asked for is not there for another's redirect."""

    response_class = _Response

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        try:
            self._judge(sock)
        except BaseException:
            sock.close()
            raise
        return sock

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is not None:
            self._judge(self.sock)
        super().request(*args, **kwargs)

    def _judge(self, sock: Any) -> None:
        trail = WATCH.get().trail
        if self.proxy is not None:
            return  # the proxy's address is the operator's choice; the adapter has looked at the host behind it
        peer = sock.getpeername()[0]
        address = parse_address(peer)
        if address is None:
            raise OSError(f"connected to {peer!r}, which is no IP address")
        trail.visit(self.host, address)


class _JudgedTls(_Judged, HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        if isinstance(self.sock, ssl.SSLSocket):
            self.sock.suppress_ragged_eofs = False  # type: ignore[attr-defined]  # not in typeshed


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Judged


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _JudgedTls


class Reply:
    """An answer, its body unread. ``close`` ends the connection, unless the body was read to its end."""

    __slots__ = ("headers", "raw", "status_code")

    def __init__(self, raw: urllib3.BaseHTTPResponse) -> None:
        self.raw, self.status_code, self.headers = raw, raw.status, raw.headers

    def close(self) -> None:
        self.raw.close()
        self.raw.release_conn()


class JudgedAdapter(HTTPAdapter):
    """A requests adapter without retries whose connections, direct or by a proxy, are judged and watched."""

    def __init__(self) -> None:
        super().__init__(max_retries=0, pool_maxsize=1)  # one thread, one exchange at a time

    def ask(
        self, request: PreparedRequest, timeout: urllib3.Timeout, verify: Any, cert: Any, proxies: Any
    ) -> urllib3.BaseHTTPResponse:
        """What ``send`` asks, over the connection that it would ask over. What it makes of the answer nobody needs
        here, and it costs a small file a tenth of its time."""
        pool: Any = self.get_connection_with_tls_context(request, verify, proxies=proxies, cert=cert)
        self.cert_verify(pool, str(request.url), verify, cert)  # type: ignore[no-untyped-call]
        answer: urllib3.BaseHTTPResponse = pool.urlopen(
            request.method, self.request_url(request, proxies), body=request.body, headers=request.headers,
            redirect=False, assert_same_host=False, preload_content=False, decode_content=False,
            retries=self.max_retries, timeout=timeout,
        )  # fmt: skip
        return answer

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):  # those need connections of their own kind
            manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager
