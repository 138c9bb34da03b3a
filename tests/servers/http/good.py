"""What good servers do, and the means to have one thing done after another."""

from __future__ import annotations

import hashlib
import threading
from email.utils import formatdate, parsedate_to_datetime

from tests.servers.http.origin import Behaviour, Handler

BLOCK = 1 << 20


def fields_of(headers: dict[str, str]) -> dict[str, str]:
    """Headers given as keywords, with ``_`` for ``-``."""
    return {name.replace("_", "-").title(): text for name, text in headers.items()}


def file(data: bytes, *, etag: str | None = "", ranges: bool = True, **headers: str) -> Behaviour:
    """As a good server does: ETag, conditional requests, one byte range. ``etag`` as written in the header, or None.

    Further headers are given with ``_`` for ``-`` (``last_modified="…"``).
    """
    tag = f'"{hashlib.sha1(data).hexdigest()}"' if etag == "" else etag
    extra = fields_of(headers)

    def answer(to: Handler) -> None:
        fields = dict(extra)
        if tag:
            fields["ETag"] = tag
        if ranges:
            fields["Accept-Ranges"] = "bytes"
        if _unchanged(to, tag, extra.get("Last-Modified")):
            return to.head(304, fields)
        part = _range(to, tag, extra.get("Last-Modified"), len(data)) if ranges else None
        first, end = part or (0, len(data))
        if part and first >= len(data):
            return to.head(416, {**fields, "Content-Range": f"bytes */{len(data)}", "Content-Length": "0"})
        if part:
            fields["Content-Range"] = f"bytes {first}-{end - 1}/{len(data)}"
        to.head(206 if part else 200, {**fields, "Content-Length": str(end - first)})
        view = memoryview(data)[first:end]
        for at in range(0, len(view), BLOCK):
            to.send(view[at : at + BLOCK])  # type: ignore[arg-type]  # as good as bytes to a socket
        return None

    return answer


def _unchanged(to: Handler, tag: str | None, modified: str | None) -> bool:
    if "If-None-Match" in to.headers:
        return bool(tag) and tag.removeprefix("W/") in to.headers["If-None-Match"]
    if "If-Modified-Since" in to.headers and modified:
        return parsedate_to_datetime(modified) <= parsedate_to_datetime(to.headers["If-Modified-Since"])
    return False


def _range(to: Handler, tag: str | None, modified: str | None, size: int) -> tuple[int, int] | None:
    """From the first byte that is asked for to the one after the last: of one range, if its condition holds."""
    asked, condition = to.headers.get("Range", ""), to.headers.get("If-Range")
    if not asked or (condition is not None and (condition not in (tag, modified) or condition.startswith("W/"))):
        return None
    first, _, last = asked.removeprefix("bytes=").partition("-")
    return int(first), min(int(last) + 1, size) if last else size


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
        fields = fields_of(headers)
        to.head(code, {"Content-Length": str(len(body)), **fields})
        to.send(body)

    return answer


def redirect(to_url: str, code: int = 302, **headers: str) -> Behaviour:
    return status(code, b"moved", location=to_url, **headers)


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
