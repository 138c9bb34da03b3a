"""One large file behind HTTP and behind S3's GET and HEAD, in a process of its own, sent by sendfile: fast enough that
the worker is what is measured. The file is sparse but for its marks.

    with large_origin(2 << 30) as origin: origin.http, origin.endpoint, origin.digest
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

STEP = 1 << 20


@dataclass(frozen=True)
class LargeOrigin:
    """``http`` is the file's URL; for S3 it is any key of any bucket at ``endpoint``. ``digest`` is ``sha256:…``."""

    http: str
    endpoint: str
    size: int
    digest: str
    process: subprocess.Popen[str]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        size = os.path.getsize(sys.argv[1])
        first, last = 0, size - 1
        wanted = self.headers.get("Range")
        if wanted:
            low, _, high = wanted.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high) if high else last, last)
        self.send_response(206 if wanted else 200)
        if wanted:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.send_header("ETag", '"large-1"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        self.wfile.flush()
        if self.command == "HEAD":
            return
        with open(sys.argv[1], "rb") as f:
            at = first
            while at <= last and (sent := os.sendfile(self.connection.fileno(), f.fileno(), at, last + 1 - at)):
                at += sent

    do_HEAD = do_GET

    def log_message(self, *args: object) -> None: ...


@contextmanager
def large_origin(size: int) -> Iterator[LargeOrigin]:
    """``size`` bytes, a multiple of 1 MB; every MB begins with its number, so that no two parts are alike."""
    with tempfile.NamedTemporaryFile() as f:
        digest = hashlib.sha256()
        f.truncate(size)
        rest = bytes(STEP - 8)
        for at in range(0, size, STEP):
            mark = at.to_bytes(8, "big")
            f.seek(at)
            f.write(mark)
            digest.update(mark + rest)
        f.flush()
        command = [sys.executable, "-m", "tests.servers.large", f.name]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
        try:
            assert process.stdout is not None
            base = f"http://127.0.0.1:{process.stdout.readline().strip()}"
            yield LargeOrigin(f"{base}/bucket/large.bin", base, size, f"sha256:{digest.hexdigest()}", process)
        finally:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()


if __name__ == "__main__":
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        print(server.server_port, flush=True)
        server.serve_forever()
