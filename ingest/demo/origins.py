"""The demo's origins, as a process of their own: ``python -m ingest.demo.origins FOLDER``.

Serves the generated dataset over HTTP and S3 on free ports of loopback, leaves the database as a file in FOLDER, and
when all of it answers writes the addresses to ``FOLDER/origins.json``. Runs until it is ended.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
import sys
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ingest.demo import data
from ingest.embedded.ports import LOOPBACK

READY = "origins.json"
BUCKET = "digits"
#: moto takes any, but none is not taken.
KEY, SECRET = "demo", "demo-secret"
#: Bytes a second and connection. Loopback would send the whole dataset before the first step of training.
PACE = 400_000

_BLOCK = 32_768
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes], flaky: set[str]) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.files, self.flaky = files, flaky
        self.lock = threading.Lock()

    def fails_now(self, path: str) -> bool:
        """Whether this is the first request for a path that is to fail once."""
        with self.lock:
            first = path in self.flaky
            self.flaky.discard(path)
        return first

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is none of ours to report."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of files in memory, with strong ETags, conditional requests and ranges (RFC 9110 §13 and §14)."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        body = self.server.files.get(self.path)
        if body is None:
            self._answer(404, b"no such file\n")
        elif self.server.fails_now(self.path):
            self._answer(503, b"not now\n")
        else:
            self._file(body)

    do_HEAD = do_GET

    def _file(self, body: bytes) -> None:
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = {"ETag": tag, "Accept-Ranges": "bytes", "Content-Type": "application/x-tar"}
        if self.headers.get("If-None-Match") == tag:
            self._answer(304, b"", headers)
            return
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted is None or self.headers.get("If-Range", tag) != tag:
            self._answer(200, body, headers)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(body) - 1), len(body) - 1)
        if first > last:
            self._answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
            return
        headers["Content-Range"] = f"bytes {first}-{last}/{len(body)}"
        self._answer(206, body[first : last + 1], headers)

    def _answer(self, code: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        if code != 304:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        for start in range(0, len(body), _BLOCK):
            block = body[start : start + _BLOCK]
            self.wfile.write(block)
            time.sleep(len(block) / PACE)

    def log_message(self, format: str, *args: Any) -> None:
        """What was asked is in the worker's log."""


def _s3() -> str:
    """moto's server in a thread of this process, with the Parquet files in it; returns its URL."""
    from botocore.config import Config
    from botocore.session import Session
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # else a line a request
    server = ThreadedMotoServer(ip_address=LOOPBACK, port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    client = Session().create_client(
        "s3", region_name="us-east-1", endpoint_url=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET,
        config=Config(proxies={}),  # the user's proxy does not lead to our loopback
    )  # fmt: skip
    client.create_bucket(Bucket=BUCKET)
    for number in range(data.OBJECTS):
        client.put_object(Bucket=BUCKET, Key=f"train/part-{number:03}.parquet", Body=data.parquet(number))
    return endpoint


def _main(folder: Path) -> None:
    files = {f"/digits-{number:03}.tar": data.shard(number) for number in range(data.SHARDS)}
    files["/flaky.tar"] = data.shard(data.SHARDS)
    server = _Server(files, flaky={"/flaky.tar"})
    database = folder / "digits.db"
    data.database(database)
    facts = {
        "http": f"http://{LOOPBACK}:{server.server_address[1]}",
        "s3": _s3(),
        "sql": f"sqlite:///{database}",
    }
    written = folder / f"{READY}.new"
    written.write_text(json.dumps(facts))
    written.rename(folder / READY)
    server.serve_forever()


if __name__ == "__main__":
    _main(Path(sys.argv[1]))
