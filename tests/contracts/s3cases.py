"""What the tests of S3 have in common: a profile, scratch files that are closed, digests, an S3 that answers as it is
told. No tests here; the fixtures are in ``conftest``.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ingest.model import FileSpec
from ingest.sections import Connection, Limits
from ingest.settings import Settings
from ingest.store.scratch import Scratch
from tests.servers.simulated import SimulatedS3
from workers.fetchers.base import Context
from workers.fetchers.s3 import S3Fetcher


def profile(*, limits: Limits | None = None, **values: object) -> Context:
    return Context(Settings(limits=limits or Limits()), Connection("lake", values))


_open: list[Scratch] = []


def scratch(
    path: Path, *, keep: bool = False, on_bytes: Callable[[int], None] = lambda n: None, max_bytes: int = 1 << 62
) -> Scratch:
    _open.append(Scratch(path, "file", "s3://x/y", on_bytes=on_bytes, keep=keep, max_bytes=max_bytes))
    return _open[-1]


def close_scratches() -> None:
    while _open:
        _open.pop().close(discard=True)


def sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def spec_of(key: str, **more: object) -> FileSpec:
    return FileSpec(0, 0, f"s3://bucket/{key}", **more)  # type: ignore[arg-type]


def fetch(s3: SimulatedS3, key: str, path: Path, **values: object) -> Scratch:
    """Fetched anew from the simulated S3; ``values`` are of the profile."""
    path.mkdir(exist_ok=True)
    file = scratch(path)
    context = profile(endpoint=s3.endpoint, key="k", secret="s", **values)
    assert S3Fetcher().fetch(spec_of(key), file, None, context) is not None
    return file


class Scripted:
    """A server that answers every GET and HEAD as ``answer`` says, and remembers the requests."""

    def __init__(self) -> None:
        self.answer: Callable[[BaseHTTPRequestHandler], None] = lambda handler: None
        self.requests: list[dict[str, str]] = []
        self.lines: list[str] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                script.requests.append({name.lower(): value for name, value in self.headers.items()})
                script.lines.append(f"{self.command} {self.path}")
                script.answer(self)

            do_HEAD = do_GET

            def date_time_string(self, timestamp: float | None = None) -> str:
                return script.date or super().date_time_string(timestamp)

            def log_message(self, *_: object) -> None:
                pass

        self.date = ""
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"

    def says(
        self, status: int, code: str = "", body: bytes | None = None, length: int | None = None, **headers: str
    ) -> None:
        xml = (
            f"<Error><Code>{code}</Code><Message>no</Message><Region>eu-west-9</Region></Error>".encode()
            if code
            else b""
        )
        payload = xml if body is None else body

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.send_header("Content-Length", str(len(payload) if length is None else length))
            handler.end_headers()
            if handler.command != "HEAD":
                handler.wfile.write(payload)
            handler.close_connection = length is not None

        self.answer = answer


@contextmanager
def scripted_s3() -> Iterator[Scripted]:
    script = Scripted()
    thread = threading.Thread(target=script.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield script
    script.server.shutdown()
    script.server.server_close()
    thread.join(5)
