"""A real HTTP origin on loopback, in a thread of the test: files with ETags and ranges, a log of what was asked, and
misbehaviour on demand.

    with Origin() as origin:
        url = origin.put("/a.tar", b"...")
        origin.on("/b.tar", flaky(2, status(503), file(b"...")))
        origin.count("/a.tar")
"""

from __future__ import annotations

import hashlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import formatdate, parsedate_to_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import unquote, urlsplit

BLOCK = 1 << 20


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
        (behaviour or status(404))(self)

    do_HEAD = do_GET

    def head(self, code: int, headers: Mapping[str, str]) -> None:
        self.send_response_only(code)
        for name, text in headers.items():
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


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    origin: Origin

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up in the middle is no news here


class Origin:
    """The server. ``log`` has every request in order; ``url(path)`` is where it listens."""

    def __init__(self, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None) -> None:
        self.behaviours: dict[str, Behaviour] = {}
        self.log: list[Asked] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server((host, 0), Handler)
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
        return f"{self._scheme}://{self._host}:{self.port}{path}"

    def on(self, path: str, behaviour: Behaviour) -> str:
        """Answer requests for ``path`` (unquoted) like that; gives its URL."""
        with self.lock:
            self.behaviours[path] = behaviour
        return self.url(path)

    def put(self, path: str, data: bytes, **headers: str) -> str:
        """An ordinary file there."""
        return self.on(path, file(data, **headers))

    def asked(self, path: str) -> list[Asked]:
        with self.lock:
            return [one for one in self.log if unquote(urlsplit(one.path).path) == path]

    def count(self, path: str | None = None) -> int:
        """Requests so far, for that path or in all."""
        return len(self.asked(path)) if path is not None else len(self.log)


def file(data: bytes, *, etag: str | None = "", ranges: bool = True, **headers: str) -> Behaviour:
    """As a good server does: ETag, conditional requests, one byte range. ``etag`` as written in the header, or None.

    Further headers are given with ``_`` for ``-`` (``last_modified="…"``).
    """
    tag = f'"{hashlib.sha1(data).hexdigest()}"' if etag == "" else etag
    extra = {name.replace("_", "-").title(): text for name, text in headers.items()}

    def answer(to: Handler) -> None:
        fields = dict(extra)
        if tag:
            fields["ETag"] = tag
        if ranges:
            fields["Accept-Ranges"] = "bytes"
        if _unchanged(to, tag, extra.get("Last-Modified")):
            return to.head(304, fields)
        first = _first(to, tag) if ranges else 0
        if first >= len(data) and first:
            return to.head(416, {**fields, "Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
        if first:
            fields["Content-Range"] = f"bytes {first}-{len(data) - 1}/{len(data)}"
        to.head(206 if first else 200, {**fields, "Content-Length": str(len(data) - first)})
        view = memoryview(data)
        for at in range(first, len(data), BLOCK):
            to.send(view[at : at + BLOCK])  # type: ignore[arg-type]  # as good as bytes to a socket
        return None

    return answer


def _unchanged(to: Handler, tag: str | None, modified: str | None) -> bool:
    if "If-None-Match" in to.headers:
        return bool(tag) and tag.removeprefix("W/") in to.headers["If-None-Match"]
    if "If-Modified-Since" in to.headers and modified:
        return parsedate_to_datetime(modified) <= parsedate_to_datetime(to.headers["If-Modified-Since"])
    return False


def _first(to: Handler, tag: str | None) -> int:
    asked = to.headers.get("Range", "")
    if not asked or ("If-Range" in to.headers and to.headers["If-Range"] != tag):
        return 0
    return int(asked.removeprefix("bytes=").partition("-")[0])


def pattern(size: int) -> Behaviour:
    """A file of ``size`` bytes that is in nobody's memory: one block of random-looking bytes, again and again."""
    block = pattern_block()

    def answer(to: Handler) -> None:
        to.head(200, {"Content-Length": str(size), "ETag": f'"pattern-{size}"'})
        for at in range(0, size, BLOCK):
            to.send(block[: min(BLOCK, size - at)])

    return answer


def pattern_block() -> bytes:
    """The block of ``pattern``."""
    return hashlib.shake_128(b"pattern").digest(BLOCK)


def status(code: int, body: bytes = b"", **headers: str) -> Behaviour:
    def answer(to: Handler) -> None:
        fields = {name.replace("_", "-").title(): text for name, text in headers.items()}
        to.head(code, {"Content-Length": str(len(body)), **fields})
        to.send(body)

    return answer


def redirect(to_url: str, code: int = 302, **headers: str) -> Behaviour:
    return status(code, b"moved", location=to_url, **headers)


def truncated(data: bytes, at: int, **headers: str) -> Behaviour:
    """Announces all of ``data``, sends ``at`` bytes and closes."""

    def answer(to: Handler) -> None:
        fields = {name.replace("_", "-").title(): text for name, text in headers.items()}
        to.head(200, {"Content-Length": str(len(data)), **fields})
        to.send(data[:at])
        to.cut()

    return answer


def reset(data: bytes, at: int) -> Behaviour:
    def answer(to: Handler) -> None:
        to.head(200, {"Content-Length": str(len(data))})
        to.send(data[:at])
        to.reset()

    return answer


def chunked(*chunks: bytes, finish: bool = True, **headers: str) -> Behaviour:
    """Without a length; ``finish=False`` closes before the last chunk."""

    def answer(to: Handler) -> None:
        fields = {name.replace("_", "-").title(): text for name, text in headers.items()}
        to.head(200, {"Transfer-Encoding": "chunked", **fields})
        for chunk in chunks:
            to.send_chunk(chunk)
        if finish:
            to.send(b"0\r\n\r\n")
        else:
            to.cut()

    return answer


def endless() -> Behaviour:
    """Chunk after chunk until the client has had enough."""

    def answer(to: Handler) -> None:
        to.head(200, {"Transfer-Encoding": "chunked"})
        while not to.server.origin.closing.is_set():
            to.send_chunk(b"\0" * 65536)

    return answer


def drip(data: bytes, every_s: float, piece: int = 1) -> Behaviour:
    """``piece`` bytes, a pause, and so on."""

    def answer(to: Handler) -> None:
        to.head(200, {"Content-Length": str(len(data))})
        for at in range(0, len(data), piece):
            to.send(data[at : at + piece])
            if not to.wait(every_s):
                return to.cut()
        return None

    return answer


def silent() -> Behaviour:
    """Takes the request and never answers."""

    def answer(to: Handler) -> None:
        to.wait(60)
        to.cut()

    return answer


def raw(data: bytes) -> Behaviour:
    """These bytes for an answer, whatever they are, and the end."""

    def answer(to: Handler) -> None:
        to.wfile.write(data)
        to.cut()

    return answer


def flaky(times: int, bad: Behaviour, good: Behaviour) -> Behaviour:
    """``bad`` so many times, then ``good``."""
    return sequence(*[bad] * times, good)


def sequence(*behaviours: Behaviour) -> Behaviour:
    """One after the other, the last for ever."""
    left = list(behaviours)
    lock = threading.Lock()

    def answer(to: Handler) -> None:
        with lock:
            one = left.pop(0) if len(left) > 1 else left[0]
        one(to)

    return answer


def slow_start(seconds: float, then: Behaviour) -> Behaviour:
    def answer(to: Handler) -> None:
        if to.wait(seconds):
            then(to)

    return answer


def http_date(timestamp: float) -> str:
    return formatdate(timestamp, usegmt=True)


def self_signed(directory: str) -> tuple[ssl.SSLContext, str]:
    """A context for ``Origin(tls=…)`` with a certificate for 127.0.0.1, and the path of the CA file that trusts it."""
    import datetime
    import ipaddress
    import os

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = os.path.join(directory, "origin.pem")
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with open(path, "wb") as out:
        out.write(pem + secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context, path
