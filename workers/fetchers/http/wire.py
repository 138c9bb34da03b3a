"""HTTP connections that are judged before they speak and watched while they are silent. What is said is not here.

They hook into urllib3 at its documented seams: pool classes, connection classes, the response class of http.client.
"""

from __future__ import annotations

import http.client
import io
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from workers.egress import Trail, parse_address

#: How long a silent connection is waited for before the caller is asked whether to go on: a cancel is seen that soon.
TICK_S = 1.0
#: Fewer bytes than these in all of stall_s is as good as none: a read timeout alone never sees a slow drip.
MIN_BYTES_PER_STALL = 1024
#: One system call fetches this much of headers and small bodies; larger reads bypass the buffer.
_BUFFER_BYTES = 64 << 10
#: RFC 9110 §15.2 allows any number of interim answers; more than these is an origin that never answers.
_MAX_INTERIM = 100


class Watch:
    """One exchange's interest in its connection. ``trail`` judges where it leads; ``idle`` is called about every second
    of waiting and may raise to stop; waiting ends with TimeoutError when fewer than 1 KiB came in ``stall_s`` of it."""

    def __init__(self, trail: Trail, idle: Callable[[], None], stall_s: float) -> None:
        self.trail, self.idle, self.stall_s = trail, idle, stall_s
        self.restart()

    def restart(self) -> None:
        """A new phase begins (the body after the headers): slowness before it does not count."""
        self._waited_s, self._bytes = 0.0, 0

    def waited(self, seconds: float, received: int) -> None:
        self._waited_s += seconds
        self._bytes += received
        if self._bytes >= MIN_BYTES_PER_STALL:
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

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        timeout = self._sock.gettimeout()
        self._sock.settimeout(min(TICK_S, self._watch.stall_s))
        try:
            while True:
                began = time.monotonic()
                try:
                    received = self._sock.recv_into(buffer)
                except TimeoutError:
                    received = -1
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

    def close(self) -> None:
        self._held.close()
        super().close()


class TwoLengths(http.client.HTTPException):
    """Content-Lengths that contradict each other: somebody on the way may cut the stream at the other one."""


class _Response(http.client.HTTPResponse):
    """http.client's response, read through a watched reader, that passes over every interim answer."""

    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_WatchedReader(sock, self.fp, WATCH.get()), _BUFFER_BYTES)

    def _read_status(self) -> tuple[str, int, str]:
        # Python 3.11 skips only 100 and would take a 103 (early hints) for the answer. A 101 was not asked for.
        for _ in range(_MAX_INTERIM):
            version, status, reason = super()._read_status()  # type: ignore[misc]  # not in typeshed
            if not 102 <= status < 200:
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException(f"more than {_MAX_INTERIM} interim answers")

    def begin(self) -> None:
        super().begin()
        lengths = ",".join(self.headers.get_all("Content-Length") or ["0"])
        if len({part.strip() for part in lengths.split(",")}) > 1:  # urllib3 sees it too, but leaves the socket open
            raise TwoLengths


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
    pass


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Judged


class _TlsPool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _JudgedTls


class JudgedAdapter(HTTPAdapter):
    """A requests adapter without retries whose connections, direct or by a proxy, are judged and watched."""

    def __init__(self) -> None:
        super().__init__(max_retries=0, pool_maxsize=1)  # one thread, one exchange at a time

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **kwargs)
        if not proxy.lower().startswith("socks"):  # those need connections of their own kind
            manager.pool_classes_by_scheme = {"http": _Pool, "https": _TlsPool}
        return manager
