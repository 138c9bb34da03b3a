"""The server: takes requests, logs them, and hands each to the behaviour of its path."""

from __future__ import annotations

import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import unquote, urlsplit


@dataclass(frozen=True)
class Asked:
    """One request as it came. ``client`` is the port that it came from: equal ports are one kept connection."""

    method: str
    path: str
    headers: Mapping[str, str]
    client: int


class Handler(BaseHTTPRequestHandler):
    """What a behaviour is given: the request, and the means to answer it well or badly."""

    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 60

    def do_GET(self) -> None:
        origin = self.server.origin
        path = urlsplit(self.path).path
        headers = {name.title(): text for name, text in self.headers.items()}
        with origin.lock:
            origin.log.append(Asked(self.command, self.path, headers, self.client_address[1]))
            behaviour = origin.behaviours.get(unquote(path)) or origin.behaviours.get(path)
        (behaviour or nothing)(self)

    do_HEAD = do_GET

    def head(self, code: int, headers: Mapping[str, str]) -> None:
        """``headers`` may hold several lines of one name, joined by line ends."""
        self.send_response_only(code)
        for name, texts in headers.items():
            for text in texts.split("\n"):
                self.send_header(name, text)
        self.end_headers()

    def send(self, data: bytes) -> None:
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_chunk(self, data: bytes) -> None:
        self.send(b"%x\r\n%b\r\n" % (len(data), data))

    def cut(self) -> None:
        """End the connection as if the body had ended."""
        self.close_connection = True

    def reset(self) -> None:
        """End the connection by RST."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()  # it holds the socket open
        self.connection.close()

    def gone(self) -> bool:
        """Whether the client has hung up."""
        try:
            self.connection.settimeout(0.01)
            return self.connection.recv(1, socket.MSG_PEEK) == b""
        except TimeoutError:
            return False
        except OSError:
            return True
        finally:
            self.connection.settimeout(self.timeout)

    def wait(self, seconds: float) -> bool:
        """Sleep so long, or until the client or the origin goes; whether it is worth going on."""
        end = time.monotonic() + seconds
        while not self.server.origin.closing.wait(min(0.05, max(0.0, end - time.monotonic()))):
            if time.monotonic() >= end:
                return True
            if isinstance(self.connection, ssl.SSLSocket):
                continue
            if self.gone():
                return False
        return False

    def handle(self) -> None:
        try:
            super().handle()
        except (OSError, ssl.SSLError):
            self.close_connection = True  # the client went away: what many of these tests are about

    def log_message(self, *args: object) -> None:
        pass


Behaviour = Callable[[Handler], None]


def nothing(to: Handler) -> None:
    to.head(404, {"Content-Length": "0"})


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    origin: Origin

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up in the middle is no news here


class _Server6(_Server):
    address_family = socket.AF_INET6


class Origin:
    """The server. ``log`` has every request in order; ``url(path)`` is where it listens."""

    def __init__(self, *, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        self.behaviours: dict[str, Behaviour] = {}
        self.log: list[Asked] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = (_Server6 if ":" in host else _Server)((host, port), Handler)
        self._server.origin = self
        self._scheme, self._host = ("https" if tls else "http"), host
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        return int(self._server.server_address[1])

    def url(self, path: str = "") -> str:
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{self._scheme}://{host}:{self.port}{path}"

    def on(self, path: str, behaviour: Behaviour) -> str:
        """Answer requests for ``path`` (unquoted) like that; gives its URL."""
        with self.lock:
            self.behaviours[path] = behaviour
        return self.url(path)

    def put(self, path: str, data: bytes, **headers: str) -> str:
        """An ordinary file there."""
        from tests.servers.http.good import file

        return self.on(path, file(data, **headers))

    def asked(self, path: str) -> list[Asked]:
        with self.lock:
            return [one for one in self.log if unquote(urlsplit(one.path).path) == path]

    def count(self, path: str | None = None) -> int:
        """Requests so far, for that path or in all."""
        return len(self.asked(path)) if path is not None else len(self.log)
