"""A forward proxy on loopback: absolute-form requests are passed on, CONNECT is tunnelled. It knows names that nobody
else does, as a proxy at the edge of a network would."""

from __future__ import annotations

import base64
import select
import socket
import threading
from collections.abc import Mapping
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import urlsplit


class Proxy:
    """``hosts``: name → (address, port) where it really is. ``asked`` has the request lines that came, ``connections``
    the ports that they came from. With ``login`` ("user:password") it lets nobody else through."""

    def __init__(self, hosts: Mapping[str, tuple[str, int]], login: str = "") -> None:
        self.hosts, self.login = dict(hosts), login
        self.asked: list[str] = []
        self.headers: list[Mapping[str, str]] = []
        self.connections: set[int] = set()
        self._server = _Server(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        login = f"{self.login}@" if self.login else ""
        return f"http://{login}127.0.0.1:{self._server.server_address[1]}"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    proxy: Proxy

    def handle_error(self, request: object, client_address: object) -> None:
        pass


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server
    timeout = 60

    def do_CONNECT(self) -> None:
        host, _, port = self.path.rpartition(":")
        if not self._admitted():
            return
        try:
            there = socket.create_connection(self.server.proxy.hosts.get(host) or (host, int(port)), 5)
        except OSError:
            return self._answer(502)
        self.send_response_only(200, "Connection established")
        self.end_headers()
        self.wfile.flush()
        with there:
            self._tunnel(there)
        self.close_connection = True

    def _tunnel(self, there: socket.socket) -> None:
        other = {self.connection: there, there: self.connection}
        while True:
            ready, _, _ = select.select(list(other), [], [], 60)
            for one in ready:
                data = one.recv(1 << 16)
                if not data:
                    return
                other[one].sendall(data)
            if not ready:
                return

    def do_GET(self) -> None:
        if not self._admitted():
            return
        parts = urlsplit(self.path)
        host, port = self.server.proxy.hosts.get(parts.hostname or "") or (parts.hostname or "", parts.port or 80)
        there = HTTPConnection(host, port, timeout=10)
        try:
            headers = {name: text for name, text in self.headers.items() if not name.lower().startswith("proxy-")}
            there.request("GET", f"{parts.path}?{parts.query}".rstrip("?"), headers=headers)
            answer = there.getresponse()
            body = answer.read()
            self.send_response_only(answer.status)
            for name, text in answer.getheaders():
                if name.lower() not in {"transfer-encoding", "content-length", "connection"}:
                    self.send_header(name, text)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except OSError:
            self._answer(502)
        finally:
            there.close()

    def _admitted(self) -> bool:
        proxy = self.server.proxy
        proxy.asked.append(f"{self.command} {self.path}")
        proxy.headers.append({name.title(): text for name, text in self.headers.items()})
        proxy.connections.add(self.client_address[1])
        wanted = "Basic " + base64.b64encode(proxy.login.encode()).decode()
        if proxy.login and self.headers.get("Proxy-Authorization") != wanted:
            self._answer(407)
            return False
        return True

    def _answer(self, code: int) -> None:
        self.send_response_only(code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass
