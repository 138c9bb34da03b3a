"""One request to an API, and its answer as bytes or as our error. Which one to make is in ``pages``."""

from __future__ import annotations

import base64
import json
import re
import threading
import zlib
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, quote_plus, urlsplit

import requests

from ingest.errors import BadResponse, EgressDenied, FetchError, NotFound, TooLarge, Truncated
from ingest.sections import is_under
from workers.fetchers.api.pages import Request
from workers.fetchers.api.records import decode
from workers.fetchers.base import Context
from workers.fetchers.http import answers
from workers.fetchers.http.exchange import CLIENT_ERRORS, Exchange, new_session, release
from workers.fetchers.http.wire import Reply, watched

#: A page is held in memory, as bytes, as text and as lines: so no more than this of it, unless the profile says so.
PAGE_BYTES = 32 << 20
_READ_BYTES = 256 << 10
#: So much of what a server says of a request that it refuses is passed on.
_EXCERPT_BYTES = 200
_PAGES = frozenset({200, 201, 203, 206})
_NOTHING = frozenset({204, 205})
#: What a server says of a request, rather than of who asks, or of itself.
_EXPLAINED = frozenset({400, 404, 405, 409, 410, 415, 416, 422})


class Refused(Exception):
    """The server refuses this very request: a place to go on from may be too old. ``error`` is what to raise."""

    def __init__(self, error: FetchError) -> None:
        super().__init__(error)
        self.error = error


@dataclass
class Answer:
    """``body`` is freed from its content encoding; None where nothing has changed (304)."""

    headers: Mapping[str, str]
    body: bytes | bytearray | None

    def text(self) -> str:
        """The body as text, once: it is not kept beside it. Raises :class:`NotRecords`."""
        body, self.body = self.body or b"", b""
        return decode(body, self.headers)


class Caller:
    """A profile's way to its API. ``base`` is its URL; ``secret`` its query parameters.

    Profile keys: those of HTTP, ``url``, ``params``, ``page_bytes``, ``requests_per_s``. Raises :class:`BadResponse` or
    :class:`EgressDenied` for a profile that is none of an API.
    """

    def __init__(self, uri: str, context: Context, session: requests.Session, idle: Callable[[], None]) -> None:
        self.uri = uri
        self.profile = context.connection.name if context.connection else ""
        self._context, self._session, self._idle = context, session, idle
        self.base = self._checked_base()
        self.secret = self._checked_params()
        self.page_bytes = self._checked_limit()

    def ask(self, request: Request, method: str, extra: Mapping[str, str]) -> Answer:
        """Raises :class:`Refused`, or a :class:`~ingest.errors.FetchError`."""
        headers = {"Accept": "application/json, application/x-ndjson;q=0.9", **extra}
        data = None
        if method == "POST":
            headers["Content-Type"] = "application/json"
            data = json.dumps(request.body, ensure_ascii=False).encode() if request.body is not None else b""
        # One exchange for each page: where a redirect of one led says nothing about the next.
        exchange = Exchange(self._session, self.uri, self._context, self._idle, url=request.url)
        with watched(exchange.watch), closing(exchange.ask(headers, method, data)) as response:
            status = response.status_code
            unasked = status == 206 and response.headers.get("Content-Range", "").strip().startswith("bytes")
            if status in _NOTHING or (status == 304 and "If-None-Match" in extra):
                release(response)
                return Answer(response.headers, b"[]" if status in _NOTHING else None)
            if status not in _PAGES or unasked:
                raise self._error(exchange, response)
            return Answer(response.headers, self._decoded(response.headers, self._body(exchange, response)))

    def _body(self, exchange: Exchange, response: Reply) -> bytearray:
        length = answers.content_length(self.uri, response.headers)
        if length is not None and length > self.page_bytes:
            raise self._too_large()
        body = bytearray()
        exchange.watch.restart()
        try:
            # read1 gives what has come: a slow page is seen to advance.
            while data := response.raw.read1(_READ_BYTES, decode_content=False):
                body += data
                if len(body) > self.page_bytes:
                    raise self._too_large()
        except CLIENT_ERRORS as error:
            exchange.fail(error)
        if length is not None and len(body) != length:
            raise Truncated(self.uri, f"{len(body)} of a page's {length} bytes came")
        return body

    def _decoded(self, headers: Mapping[str, str], body: bytearray) -> bytes | bytearray:
        """Undo gzip and deflate, which were not asked for, within the limit of a page."""
        coding = answers.content_coding(headers)
        if not coding or not body:
            return body
        if coding not in {"gzip", "x-gzip", "deflate"}:
            raise BadResponse(self.uri, f"a page is encoded as {coding[:20]!r}, which was not asked for")
        # Deflate is zlib's format by the standard (RFC 9110 §8.4.1.2), and often without its header in practice.
        forms = [zlib.MAX_WBITS | 16] if "gzip" in coding else [zlib.MAX_WBITS, -zlib.MAX_WBITS]
        for form in forms:
            unpacker = zlib.decompressobj(form)
            try:
                out = unpacker.decompress(body, self.page_bytes + 1)
            except zlib.error:
                continue
            if len(out) > self.page_bytes:
                raise self._too_large()
            if not unpacker.eof:
                raise Truncated(self.uri, f"a page's {coding} ends in the middle")
            if unpacker.unused_data:
                break
            return out
        raise BadResponse(self.uri, f"a page says that it is {coding}, and is not, or not only")

    def _error(self, exchange: Exchange, response: Reply) -> Exception:
        status, headers = response.status_code, response.headers
        error = answers.status_error(self.uri, status, headers, self.profile)
        if status not in _EXPLAINED:
            release(response)
            return error
        exchange.watch.restart()
        said = f"the server answered {status} {HTTPStatus(status).phrase}"
        try:
            text = response.raw.read1(4096, decode_content=False).decode("utf-8", "replace")
        except CLIENT_ERRORS:
            text = ""
        excerpt = self._without_secrets(" ".join(re.sub(r"[^\x20-\x7e\xa0-\uffff]", " ", text).split()))
        if excerpt and not excerpt.startswith("<"):
            said = f"{said}: {excerpt[:_EXCERPT_BYTES]}"
        return Refused(NotFound(self.uri, said) if isinstance(error, NotFound) else BadResponse(self.uri, said))

    def _without_secrets(self, text: str) -> str:
        """A server may quote what it was sent, as it was written into a header or a query, and a part of it."""
        values = _texts(self._context.connection.values if self._context.connection else {})
        pair = f"{self._context.value('user', '')}:{self._context.value('password', '')}"
        values += [word for value in values for word in value.split()]  # "Token abc": of a header's value, the token
        values.append(base64.b64encode(pair.encode()).decode())
        for value in sorted({*values, *map(quote, values), *map(quote_plus, values)}, key=len, reverse=True):
            if len(value) > 3:
                text = text.replace(value, "…")
        return text

    def _too_large(self) -> TooLarge:
        return TooLarge(
            self.uri,
            f"a page of more than {self.page_bytes} bytes: ask for fewer records a page, or set page_bytes under "
            f"[connections.{self.profile}]",
        )

    def _checked_base(self) -> str:
        url = self._context.value("url")
        where = f"[connections.{self.profile}]"
        try:
            parts = urlsplit(url) if isinstance(url, str) else None
            usable = parts and parts.scheme in {"http", "https"} and parts.hostname and (parts.port or 1) > 0
        except ValueError:
            parts = usable = None
        if not parts or not usable or parts.query or parts.fragment or "@" in parts.netloc:
            raise BadResponse(
                self.uri, f'{where} needs url = "https://host/…", the base of its API, without user, query or fragment'
            )
        base = str(url).rstrip("/") + "/"
        match = self._context.value("match")
        if match and not (is_under(base, match) or is_under(str(url), match)):
            raise EgressDenied(self.uri, f"the url of {where} is not under its match")
        return str(url)

    def _checked_limit(self) -> int:
        value = self._context.value("page_bytes", PAGE_BYTES)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise BadResponse(self.uri, f"[connections.{self.profile}] page_bytes must be a whole number above 0")
        return value

    def _checked_params(self) -> dict[str, Any]:
        value = self._context.value("params", {})
        if not isinstance(value, dict) or not all(isinstance(one, str | int | float) for one in value.values()):
            raise BadResponse(self.uri, f"[connections.{self.profile}] params must be a table of query parameters")
        return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [text for name, one in value.items() if name not in {"url", "match"} for text in _texts(one)]
    if isinstance(value, list | tuple):
        return [text for one in value for text in _texts(one)]
    return [str(value)] if isinstance(value, str | int) else []


class Sessions(threading.local):
    """A requests session for each thread, for its open connections only."""

    def __init__(self) -> None:
        self.session = new_session()
