"""An S3 that is arithmetic, for what no real one can be in a test: ten million keys, five terabytes, checksums of any
kind, bytes damaged on the way, pages of a listing that are wrong. Not a conforming server: GET, HEAD and list only; as
much of Google's and Azure's as the same client library asks for is in it, because nothing else speaks them here.

    with simulated_s3() as s3: s3.keys = 10_000_000; s3.objects["k"] = Object(data)
    python -m tests.servers.simulated 10000000     # in a process of its own: prints its port
"""

from __future__ import annotations

import base64
import hashlib
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

#: What answers one page of a listing instead of the server: (token, honest page) → (status, body).
Page = Callable[[str, bytes], tuple[int, bytes]]


@dataclass
class Object:
    """``sent`` is what really comes (the same length as ``data``, which the ETag and checksums are of); ``parts`` are
    the sizes of a multipart upload. ``headers`` come with every answer, ``checksums`` only when they are asked for."""

    data: bytes
    sent: bytes | None = None
    parts: tuple[int, ...] = ()
    etag: str = ""
    size: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    tells_parts: bool = True

    def __post_init__(self) -> None:
        if not self.etag:
            self.etag = f'"{multipart(self.data, self.parts)}"'

    @property
    def length(self) -> int:
        return len(self.data) if self.size is None else self.size

    def read(self, first: int, end: int) -> bytes:
        """Of an object that is announced as larger than its data there are zeros after them."""
        return (self.data if self.sent is None else self.sent)[first:end].ljust(end - first, b"\0")


def multipart(data: bytes, parts: tuple[int, ...], algorithm: str = "md5") -> str:
    """An ETag without its quotes, as S3 makes it of a single upload or of one in parts."""
    if not parts:
        return hashlib.new(algorithm, data).hexdigest()
    digests, at = b"", 0
    for size in parts:
        digests += hashlib.new(algorithm, data[at : at + size]).digest()
        at += size
    return f"{hashlib.new(algorithm, digests).hexdigest()}-{len(parts)}"


def b64(hexadecimal: str) -> str:
    """As checksum headers say it: base64, and the number of parts where there is one."""
    value, dash, parts = hexadecimal.partition("-")
    return base64.b64encode(bytes.fromhex(value)).decode() + dash + parts


class SimulatedS3:
    """``keys`` objects ``n/000000000000.bin`` … are listed in every bucket; ``page`` may answer a page instead."""

    def __init__(self) -> None:
        self.endpoint = ""
        self.reset()

    def reset(self) -> None:
        """As it was at first."""
        self.keys, self.key_bytes = 0, 1000
        self.objects: dict[str, Object] = {}
        self.page: Page | None = None
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.gate: Callable[[Any], bool] = lambda handler: False

    def listing(self, query: dict[str, list[str]]) -> tuple[int, bytes]:
        token = query.get("continuation-token", [""])[0]
        prefix, after = query.get("prefix", [""])[0], query.get("start-after", [""])[0]
        most = int(query.get("max-keys", ["1000"])[0])
        first = int(token) if token else self._after(after)
        last = min(first + most, self.keys)
        rows = "".join(
            f"<Contents><Key>n/{n:012d}.bin</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f'<ETag>&quot;{n:032x}&quot;</ETag><Size>{self.key_bytes}</Size>'
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for n in range(first, last)
        )  # fmt: skip
        more = f"<NextContinuationToken>{last}</NextContinuationToken>" if last < self.keys else ""
        page = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>bucket</Name><Prefix>{prefix}</Prefix><KeyCount>{last - first}</KeyCount><MaxKeys>{most}</MaxKeys>"
            f"<EncodingType>url</EncodingType><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{rows}"
            "</ListBucketResult>"
        ).encode()
        return self.page(token, page) if self.page else (200, page)

    def azure(self, query: dict[str, list[str]]) -> bytes:
        """A page of Azure's ``List Blobs``."""
        first = int(query.get("marker", ["0"])[0] or 0)
        last = min(first + 1000, self.keys)
        rows = "".join(
            f"<Blob><Name>n/{n:012d}.bin</Name><Properties><Last-Modified>Thu, 01 Jan 2026 00:00:00 GMT"
            f"</Last-Modified><Etag>0x{n:X}</Etag><Content-Length>{self.key_bytes}</Content-Length>"
            "<Content-Type>x</Content-Type></Properties></Blob>"
            for n in range(first, last)
        )
        more = str(last) if last < self.keys else ""
        return (
            '<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>'
            f"{rows}</Blobs><NextMarker>{more}</NextMarker></EnumerationResults>"
        ).encode()

    @staticmethod
    def _after(key: str) -> int:
        return int(key.removeprefix("n/").partition(".")[0]) + 1 if key else 0


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    s3: SimulatedS3

    def do_GET(self) -> None:
        self.s3.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if self.s3.gate(self):
            return
        parts = urlsplit(self.path)
        query = parse_qs(parts.query, keep_blank_values=True)
        key = unquote(parts.path.lstrip("/").partition("/")[2])
        if query.get("comp") == ["list"]:
            self._answer(200, self.s3.azure(query), {"Content-Type": "application/xml"})
        elif not key:
            status, body = self.s3.listing(query) if "list-type" in query else (200, b"")
            self._answer(status, body, {"Content-Type": "application/xml", "x-amz-bucket-region": "us-east-1"})
        elif key in self.s3.objects:
            self._object(self.s3.objects[key], query)
        else:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>", {})

    do_HEAD = do_GET

    def _object(self, found: Object, query: dict[str, list[str]]) -> None:
        headers = {"ETag": found.etag, "Accept-Ranges": "bytes", **found.headers}
        headers["Last-Modified"] = "Thu, 01 Jan 2026 00:00:00 GMT"
        if self.headers.get("x-amz-checksum-mode", "").upper() == "ENABLED":
            headers |= found.checksums
        for name, fits in (("If-Match", found.etag), ("If-None-Match", None)):
            wanted = self.headers.get(name)
            if wanted and ((fits and wanted != fits) or (not fits and wanted == found.etag)):
                return self._answer(412 if fits else 304, b"", headers)
        first, end = 0, found.length
        number = int(query.get("partNumber", ["0"])[0])
        if number and found.parts and found.tells_parts:
            first = sum(found.parts[: number - 1])
            end = first + found.parts[number - 1]
            headers["x-amz-mp-parts-count"] = str(len(found.parts))
        elif wanted := self.headers.get("Range"):
            low, _, high = wanted.removeprefix("bytes=").partition("-")
            first, end = int(low), min(int(high) + 1 if high else end, end)
            if first >= found.length:
                return self._answer(416, b"", headers)
        partial = (first, end) != (0, found.length) or "Range" in self.headers
        if partial:
            headers["Content-Range"] = f"bytes {first}-{end - 1}/{found.length}"
        if self.command == "HEAD":
            return self._answer(206 if partial else 200, b"", headers | {"Content-Length": str(end - first)})
        self._answer(206 if partial else 200, found.read(first, end), headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and status != 304:
            self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is what a test wants."""


def _serve(s3: SimulatedS3) -> _Server:
    server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"s3": s3}))
    s3.endpoint = f"http://127.0.0.1:{server.server_port}"
    return server


@contextmanager
def simulated_s3() -> Iterator[SimulatedS3]:
    s3 = SimulatedS3()
    server = _serve(s3)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield s3
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def url(key: str) -> str:
    return quote(key)


if __name__ == "__main__":
    only = SimulatedS3()
    only.keys = int(sys.argv[1])
    with _serve(only) as running:
        print(running.server_port, flush=True)
        running.serve_forever()
