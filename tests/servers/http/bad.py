"""What bad servers do."""

from __future__ import annotations

from collections.abc import Callable

from tests.servers.http.good import fields_of
from tests.servers.http.origin import Behaviour, Handler


def truncated(data: bytes, at: int, **headers: str) -> Behaviour:
    """Announces all of ``data``, sends ``at`` bytes and closes."""

    def answer(to: Handler) -> None:
        fields = fields_of(headers)
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
        fields = fields_of(headers)
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


def answered(head: str, body: bytes = b"", *, reset: bool = False) -> Behaviour:
    """A whole answer in one piece: status and header lines as they are written here, then the body, then the end."""
    lines = "\r\n".join(line.strip() for line in head.strip().splitlines())
    data = f"{lines}\r\n\r\n".encode("latin-1") + body

    def answer(to: Handler) -> None:
        to.wfile.write(data)
        to.reset() if reset else to.cut()

    return answer


def silent_after_headers(data: bytes) -> Behaviour:
    def answer(to: Handler) -> None:
        to.head(200, {"Content-Length": str(len(data))})
        to.wfile.flush()
        to.wait(60)
        to.cut()

    return answer


def endless_headers(line: bytes, first: bytes = b"HTTP/1.1 200 OK\r\n") -> Behaviour:
    """That line again and again, until the client has had enough."""

    def answer(to: Handler) -> None:
        to.wfile.write(first)
        many = line * max(1, 65536 // len(line))
        while not to.server.origin.closing.is_set():
            to.wfile.write(many)

    return answer


def only(method: str, then: Behaviour) -> Behaviour:
    """405 for every other method."""

    def answer(to: Handler) -> None:
        if to.command == method:
            return then(to)
        return to.head(405, {"Allow": method, "Content-Length": "0"})

    return answer


def unless(header: str, then: Behaviour, otherwise: Behaviour) -> Behaviour:
    """``otherwise`` for a request that has that header."""

    def answer(to: Handler) -> None:
        (otherwise if header in to.headers else then)(to)

    return answer


def only_after(is_over: Callable[[], bool], bad: Behaviour, good: Behaviour) -> Behaviour:
    """``bad`` until something is so, however often it is asked."""

    def answer(to: Handler) -> None:
        (good if is_over() else bad)(to)

    return answer
