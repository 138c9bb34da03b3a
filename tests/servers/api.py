"""A real HTTP API on loopback, in a thread of the test: paths answered by functions, pages in every style, a log of
what was asked, and misbehaviour on demand.

    with ApiServer() as api:
        api.on("/v1/orders", by_cursor(records, size=10))
        api.on("/v1/flaky", after(2, reply({"error": "no"}, 503), by_link(records, size=10)))
        api.asked("/v1/orders")[0].query
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qsl, unquote, urlsplit

from tests.servers.http import Handler


@dataclass(frozen=True)
class Call:
    """One request as it came; ``body`` is parsed JSON, None without one. ``number`` counts the calls of its path."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: Any
    number: int
    base: str


@dataclass(frozen=True)
class Reply:
    """``data`` is sent as it is when it is bytes, as JSON otherwise. ``length`` is what is announced; the connection
    ends where that is not true, or ``-1``: no length. ``hold`` is waited for before, ``then`` after what is sent."""

    data: Any = None
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    length: int | None = None
    hold: threading.Event | None = None
    then: Callable[[Handler], None] | None = None


Answer = Callable[[Call], Reply]


def reply(data: Any, status: int = 200, *, length: int | None = None, **headers: str) -> Answer:
    """Always the same. Headers are given with ``_`` for ``-``."""
    made = Reply(data, status, {name.replace("_", "-").title(): text for name, text in headers.items()}, length)
    return lambda call: made


def after(count: int, first: Answer, rest: Answer) -> Answer:
    """``first`` for so many calls, then ``rest``."""
    return lambda call: (first if call.number <= count else rest)(call)


def at(number: int, fault: Answer, otherwise: Answer) -> Answer:
    """``fault`` for that one call (from 1)."""
    return lambda call: (fault if call.number == number else otherwise)(call)


def by_link(records: Sequence[Any], size: int, *, rel: str = "next") -> Answer:
    def answer(call: Call) -> Reply:
        start = int(call.query.get("from", "0"))
        links = [f'<{call.base}/>; rel="first"']
        if start + size < len(records):
            links.append(f'<{call.base}{call.path}?from={start + size}>; title="a, b"; rel="last {rel}"')
        return Reply(list(records[start : start + size]), headers={"Link": ", ".join(links)})

    return answer


def by_cursor(records: Sequence[Any], size: int, *, url: bool = False) -> Answer:
    """``{"data": {"items": […]}, "meta": {"next": …, "more": …}}``; the cursor comes in the query or in the body."""

    def answer(call: Call) -> Reply:
        given = call.query.get("cursor") or ((call.body or {}).get("page") or {}).get("cursor")
        start = int(str(given).removeprefix("c")) if given else 0
        end = start + size
        cursor: str | None = f"{call.path}?cursor=c{end}" if url else f"c{end}"
        meta = {"next": cursor if end < len(records) else None, "more": end < len(records)}
        return Reply({"meta": meta, "data": {"items": list(records[start:end])}})

    return answer


def by_number(records: Sequence[Any], size: int, *, pages: bool = False, most: int = 1 << 30) -> Answer:
    """``offset``/``limit``, or ``page``/``per_page``; gives at most ``most`` records, whatever is asked."""

    def answer(call: Call) -> Reply:
        asked = {**call.query, **(call.body or {})}
        count = min(int(asked.get("per_page" if pages else "limit", size)), most)
        start = (int(asked.get("page", 1)) - 1) * count if pages else int(asked.get("offset", 0))
        return Reply(
            {"items": list(records[start : start + count]), "total": len(records), "pages": -(-len(records) // count)}
        )

    return answer


class _Handler(Handler):
    server: _Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        api = self.server.origin
        parts = urlsplit(self.path)
        size = int(self.headers.get("Content-Length") or 0)
        data = self.rfile.read(size) if size else b""
        headers = {name.title(): text for name, text in self.headers.items()}
        path = unquote(parts.path)
        with api.lock:
            number = 1 + sum(one.path == path for one in api.log)
            query = dict(parse_qsl(parts.query, keep_blank_values=True))
            call = Call(self.command, path, query, headers, json.loads(data) if data else None, number, api.url())
            api.log.append(call)
            answer = api.answers.get(path)
        self._send(answer(call) if answer else Reply({"error": "no such path"}, 404))

    do_POST = do_GET

    def _send(self, made: Reply) -> None:
        if made.hold is not None and not self._held(made.hold):
            return self.cut()
        data = made.data if isinstance(made.data, bytes) else json.dumps(made.data).encode()
        length = len(data) if made.length is None else made.length
        headers = {"Content-Type": "application/json", **made.headers}
        if length >= 0:
            headers["Content-Length"] = str(length)
        self.head(made.status, headers)
        self.wfile.write(data)
        if made.then:
            made.then(self)
        if length != len(data):
            self.cut()

    def _held(self, event: threading.Event) -> bool:
        while not event.is_set():
            if not self.wait(0.05):
                return False
        return True


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    origin: ApiServer

    def handle_error(self, request: object, client_address: object) -> None:
        pass  # a client that hangs up in the middle is no news here


class ApiServer:
    """The server. ``log`` has every call in order."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.answers: dict[str, Answer] = {}
        self.log: list[Call] = []
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._server = _Server((host, 0), _Handler)
        self._server.origin = self
        self._host = host
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, path: str = "") -> str:
        return f"http://{self._host}:{self._server.server_address[1]}{path}"

    def on(self, path: str, answer: Answer) -> str:
        """Answer calls of that path (unquoted) so; gives the path."""
        with self.lock:
            self.answers[path] = answer
        return path

    def asked(self, path: str | None = None) -> list[Call]:
        with self.lock:
            return [call for call in self.log if path in (None, call.path)]
