"""A large file as a server with ranges gives it: counted, slowed, limited, cut and twisted on demand."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.servers.http.origin import Handler

BLOCK = 1 << 20
#: What is sent at a time, so that counts and speeds are true to that.
_SEND = 64 << 10

_BLOCK = hashlib.shake_128(b"ranged").digest(BLOCK)


def content(start: int, end: int) -> bytes:
    """Bytes [start, end) of the file, whatever its length; every block is another one."""
    out = bytearray()
    for number in range(start // BLOCK, -(-end // BLOCK)):
        block = b"%016d" % number + _BLOCK[16:]
        out += block[max(0, start - number * BLOCK) : end - number * BLOCK]
    return bytes(out)


def digest_of(size: int) -> str:
    found = hashlib.sha256()
    for at in range(0, size, BLOCK):
        found.update(content(at, min(at + BLOCK, size)))
    return f"sha256:{found.hexdigest()}"


@dataclass
class Answer:
    """What is about to be answered; a twist changes it. ``cut``: how many bytes of it are sent. ``shift``: which bytes
    are really sent, so many behind those that should be. ``late``: seconds between the headers and the body."""

    start: int
    end: int
    status: int
    headers: dict[str, str]
    number: int
    cut: int | None = None
    shift: int = 0
    late: float = 0.0
    reset: bool = False

    @property
    def is_range(self) -> bool:
        return self.status == 206


@dataclass
class Ranged:
    """``rate`` is of each connection, ``total_rate`` of all, in bytes a second; beyond ``most`` at once there is 503.
    ``twist`` may change any answer. ``sent`` counts the bytes of bodies, ``peak`` connections at once."""

    size: int
    etag: str | None = '"v1"'
    rate: float | None = None
    total_rate: float | None = None
    most: int | None = None
    twist: Callable[[Answer], None] = lambda answer: None
    sent: int = 0
    peak: int = 0
    answers: list[tuple[int, int, int]] = field(default_factory=list)
    _open: int = 0
    _due: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, to: Handler) -> None:
        with self._lock:
            self._open += 1
            self.peak = max(self.peak, self._open)
            refused = self.most is not None and self._open > self.most
        try:
            if refused:
                return to.head(503, {"Content-Length": "0"})
            self._answer(to)
        finally:
            with self._lock:
                self._open -= 1

    def _answer(self, to: Handler) -> None:
        answer = self._planned(to)
        with self._lock:
            answer.number = len(self.answers)
            self.twist(answer)
            self.answers.append((answer.status, answer.start, answer.end))
        to.head(answer.status, answer.headers)
        if answer.status in {200, 206}:
            end = answer.end if answer.cut is None else min(answer.end, answer.start + answer.cut)
            to.server.origin.closing.wait(answer.late)
            self._send(to, answer.start, end, answer.shift)
            if answer.reset:
                to.reset()
            elif end != answer.end:
                to.cut()

    def _planned(self, to: Handler) -> Answer:
        headers = {"Accept-Ranges": "bytes"} | ({"ETag": self.etag} if self.etag else {})
        asked, condition = to.headers.get("Range", ""), to.headers.get("If-Range")
        first, last = 0, self.size - 1
        if asked and (condition is None or condition == self.etag):
            begin, _, stop = asked.removeprefix("bytes=").partition("-")
            first, last = int(begin), min(int(stop), last) if stop else last
            if first >= self.size:
                headers |= {"Content-Range": f"bytes */{self.size}", "Content-Length": "0"}
                return Answer(first, first, 416, headers, 0)
            headers["Content-Range"] = f"bytes {first}-{last}/{self.size}"
        headers["Content-Length"] = str(last + 1 - first)
        return Answer(first, last + 1, 206 if "Content-Range" in headers else 200, headers, 0)

    def _send(self, to: Handler, start: int, end: int, shift: int) -> None:
        begun = time.monotonic()
        for at in range(start, end, _SEND):
            data = content(at + shift, min(at + _SEND, end) + shift)
            to.send(data)
            with self._lock:
                self.sent += len(data)
                now = time.monotonic()
                self._due = max(self._due, now) + (len(data) / self.total_rate if self.total_rate else 0)
                due = self._due if self.total_rate else now
            if self.rate:
                due = max(due, begun + (at + len(data) - start) / self.rate)
            if due > now and to.server.origin.closing.wait(due - now):
                return to.cut()
        return None
