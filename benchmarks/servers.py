"""The web server that everybody fetches from: nginx where it is installed, else a small one of our own.

    python -m benchmarks.servers FOLDER [DELAY_S]

serves a folder on a free port of loopback, which it prints. ``DELAY_S`` is waited before every answer.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ingest.embedded.bound import bound
from ingest.embedded.ports import LOOPBACK, free_port, is_taken

_START_S = 10.0
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")

#: ``/paced/`` is ``/`` with a limit for each connection. A listing of S3's is a file that was written beforehand.
_NGINX = """\
{user}
worker_processes 2;
daemon off;
pid {prefix}/nginx.pid;
error_log {prefix}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_requests 1000000;
    client_body_temp_path {prefix}/body;
    proxy_temp_path {prefix}/proxy;
    fastcgi_temp_path {prefix}/fastcgi;
    uwsgi_temp_path {prefix}/uwsgi;
    scgi_temp_path {prefix}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {folder};
        location /paced/ {{ alias {folder}/; limit_rate {pace}; }}
        location ~ "^/(?<bucket>[a-z0-9-]+)/?$" {{
            default_type application/xml;
            if ($args ~ "continuation-token=(?<page>[0-9]+)") {{ rewrite ^ /.listings/$bucket/$page.xml break; }}
            if ($args ~ "list-type=2") {{ rewrite ^ /.listings/$bucket/0.xml break; }}
        }}
    }}
}}
"""


@dataclass(frozen=True)
class Web:
    """``url`` of the folder, without a slash at its end; ``paced`` the same with a limit for each connection, None
    where the server has none."""

    url: str
    software: str
    paced: str | None = None


def find_nginx() -> str | None:
    """Debian keeps it where an ordinary user's PATH does not lead."""
    return shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")


@contextlib.contextmanager
def web_server(folder: Path, prefix: Path, *, pace_bytes: int = 20_000_000) -> Iterator[Web]:
    """``folder`` over HTTP for the length of the block; ``prefix`` is for the server's own files."""
    nginx = find_nginx()
    if nginx is None:
        with own_server(folder) as web:
            yield web
        return
    prefix.mkdir(parents=True, exist_ok=True)
    port = free_port()
    user = "user root;" if os.geteuid() == 0 else ""  # who else could not read a folder of ours
    config = prefix / "nginx.conf"
    config.write_text(_NGINX.format(user=user, prefix=prefix, port=port, folder=folder, pace=pace_bytes))
    log = (prefix / "out.log").open("wb")
    process = subprocess.Popen(
        bound([nginx, "-p", str(prefix), "-c", str(config), "-e", str(prefix / "error.log")]),
        stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    try:
        end = time.monotonic() + _START_S
        while not is_taken(port):
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"nginx did not start: {(prefix / 'out.log').read_text()[-1000:]}")
            time.sleep(0.02)
        base = f"http://{LOOPBACK}:{port}"
        yield Web(base, "nginx", f"{base}/paced")
    finally:
        log.close()
        process.terminate()
        process.wait(_START_S)


@contextlib.contextmanager
def own_server(folder: Path, delay_s: float = 0.0) -> Iterator[Web]:
    """Our own, in a process of its own."""
    process = subprocess.Popen(
        bound([sys.executable, "-m", "benchmarks.servers", str(folder), str(delay_s)]),
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield Web(f"http://{LOOPBACK}:{int(process.stdout.readline())}", "our own test server")
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128
    folder: Path
    delay_s: float

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is none of ours to report."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    """GET and HEAD of files with strong ETags and ranges (RFC 9110 §14), sent by the kernel."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def do_GET(self) -> None:
        time.sleep(self.server.delay_s)
        path = (self.server.folder / unquote(urlsplit(self.path).path).lstrip("/")).resolve()
        if not path.is_relative_to(self.server.folder) or not path.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        with path.open("rb") as file:
            about = os.fstat(file.fileno())
            first, last = 0, about.st_size - 1
            wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
            if wanted:
                first, last = int(wanted[1]), min(int(wanted[2] or last), last)
            self.send_response(206 if wanted else 200)
            if wanted:
                self.send_header("Content-Range", f"bytes {first}-{last}/{about.st_size}")
            self.send_header("ETag", f'"{about.st_mtime_ns:x}-{about.st_size:x}"')
            self.send_header("Last-Modified", self.date_time_string(about.st_mtime))
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            if self.command == "HEAD":
                return
            while first <= last:
                sent = os.sendfile(self.connection.fileno(), file.fileno(), first, last + 1 - first)
                if not sent:
                    return
                first += sent

    do_HEAD = do_GET

    def log_message(self, format: str, *args: object) -> None:
        """What was asked is counted by those who ask."""


if __name__ == "__main__":
    with _Server((LOOPBACK, 0), _Handler) as server:
        server.folder, server.delay_s = Path(sys.argv[1]).resolve(), float((sys.argv[2:] or ["0"])[0])
        print(server.server_port, flush=True)
        server.serve_forever()
