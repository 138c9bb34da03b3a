"""http:// and https://: one GET, its redirects judged hop by hop, the body streamed, a cut-off body continued.

What an answer means is in ``answers``, what may be connected to in :mod:`workers.egress`, the connections in
``wire``. Retries are the ledger's: one call here is one attempt.
"""

from __future__ import annotations

import base64
import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from http.client import HTTPException
from importlib import metadata
from typing import Any, NoReturn
from urllib.parse import SplitResult, urljoin, urlsplit

import requests
import urllib3.exceptions
from requests.cookies import RequestsCookieJar, extract_cookies_to_jar
from requests.utils import select_proxy

from ingest.errors import AccessDenied, BadResponse, Truncated, Unsupported
from ingest.model import FileSpec
from ingest.sources import AnySource
from ingest.store.scratch import Scratch
from workers.egress import Policy, Trail
from workers.fetchers.base import Context, Fetched, Known
from workers.fetchers.http import answers
from workers.fetchers.http.wire import JudgedAdapter, Watch, watched

#: What reading from a connection may raise, all translated by answers.client_error.
_CLIENT_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: The body of an error or a redirect is read when it is shorter, so that the connection can be used again.
_WORTH_READING_BYTES = 64 << 10
#: Bytes that came are in the file, and seen as progress, after at most this long.
_FLUSH_S = 0.5


class HttpFetcher:
    """Keeps one requests session per thread, for its open connections only: no cookie and no credential stays in it."""

    def __init__(self) -> None:
        self._local = threading.local()

    def fetch(self, spec: FileSpec, scratch: Scratch, known: Known | None, context: Context) -> Fetched | None:
        """See :class:`~workers.fetchers.base.Fetcher`. Profile keys: ``headers``, ``bearer``, ``user``, ``password``,
        ``cert`` (a path, or [certificate, key]), ``verify`` (a path, or false)."""
        exchange = _Exchange(self._session(), spec.uri, context, idle=lambda: scratch.write(b""))
        with watched(exchange.watch):
            return _transfer(exchange, spec, scratch, known)

    def expand(self, source: AnySource, context: Context) -> Iterator[FileSpec]:
        raise Unsupported(
            source.uri,
            "http has no way to list files; name them, use a brace range such as part-{000..127}.tar, or give a "
            "Manifest that lists them (a literal * or [ is written %2A or %5B)",
        )

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = requests.Session()
            for prefix in ("http://", "https://"):
                session.mount(prefix, JudgedAdapter())
            self._local.session = session
        return session


class _Exchange:
    """One source's requests: follows redirects, and gives its credentials to nobody but the source's own origin."""

    def __init__(self, session: requests.Session, uri: str, context: Context, idle: Any) -> None:
        self.uri, self.settings = uri, context.settings
        self.profile = context.connection.name if context.connection else None
        self.watch = Watch(Trail(Policy(context.settings.egress), uri), idle, context.settings.limits.stall_s)
        self._session, self._context = session, context

    def get(self, extra: dict[str, str]) -> requests.Response:
        """The first answer that is no redirect, its body unread. Raises the error of an answer that is no file."""
        url, home = self.uri, _origin(self.uri)
        trusted = True
        jars: dict[object, RequestsCookieJar] = {}
        seen = set()
        for _ in range(self.settings.http.redirects + 1):
            jar = jars.setdefault(_origin(url), RequestsCookieJar())
            response = self._send(url, extra, jar, trusted=trusted)
            if response.status_code not in _REDIRECTS:
                return self._checked(response)
            target = self._target(url, response)
            _release(response)
            state = (target, tuple(sorted((cookie.name, cookie.value) for each in jars.values() for cookie in each)))
            if state in seen:
                raise BadResponse(self.uri, "redirects in a circle")
            seen.add(state)
            self.watch.trail.redirected()
            trusted = trusted and _origin(target) == home
            url = target
        raise BadResponse(self.uri, f"more than {self.settings.http.redirects} redirects, which is [http] redirects")

    def fail(self, error: BaseException) -> NoReturn:
        raise answers.client_error(self.uri, error, self.settings.limits) from error

    def _send(self, url: str, extra: dict[str, str], jar: RequestsCookieJar, *, trusted: bool) -> requests.Response:
        session, limits = self._session, self.settings.limits
        headers = {"User-Agent": self.settings.http.user_agent or _user_agent(), "Accept": "*/*"}
        headers |= self._credentials() if trusted else {}
        headers |= {"Accept-Encoding": "identity", **extra}
        verify, cert = self._tls(url, trusted)
        try:
            # An auth of our own keeps requests from looking into ~/.netrc, and from credentials in a redirect's URL.
            prepared = session.prepare_request(requests.Request("GET", url, headers, cookies=jar, auth=_as_it_is))
            options: Any = session.merge_environment_settings(prepared.url, {}, True, verify, cert)
            proxied = select_proxy(str(prepared.url), options["proxies"]) is not None
            self.watch.trail.approach(urlsplit(str(prepared.url)).hostname or "", proxied=proxied)
            # Not session.send: it reads the whole body of a redirect before it hands it out.
            adapter = session.get_adapter(str(prepared.url))
            response = adapter.send(prepared, timeout=(limits.connect_s, limits.stall_s), **options)
        except _CLIENT_ERRORS as error:
            self.fail(error)
        extract_cookies_to_jar(jar, prepared, response.raw)  # type: ignore[no-untyped-call]
        return response

    def _checked(self, response: requests.Response) -> requests.Response:
        status = response.status_code
        if status in {200, 203, 206, 304, 416}:
            return response
        _release(response)
        raise answers.status_error(self.uri, status, response.headers, self.profile)

    def _target(self, url: str, response: requests.Response) -> str:
        location = self._session.get_redirect_target(response)
        if not location:
            response.close()
            raise BadResponse(self.uri, f"a redirect ({response.status_code}) without a Location")
        try:
            target = urljoin(url, location)
            parts = urlsplit(target)
            if parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0:
                return target
        except ValueError:
            pass  # not a URL at all: no better than one of another scheme
        response.close()
        raise BadResponse(self.uri, f"redirects to something that is not http: {location.partition(':')[0][:20]!r}")

    def _credentials(self) -> dict[str, str]:
        value = self._context.value
        headers = {str(name): str(text) for name, text in (value("headers") or {}).items()}
        if value("bearer"):
            headers["Authorization"] = f"Bearer {value('bearer')}"
        elif value("user") is not None:
            pair = f"{value('user')}:{value('password', '')}".encode()
            headers["Authorization"] = "Basic " + base64.b64encode(pair).decode()
        return headers

    def _tls(self, url: str, trusted: bool) -> tuple[Any, Any]:
        """(verify, cert): the profile's trust is in its own host, its client certificate for its own origin."""
        verify = self._context.value("verify", True) if urlsplit(url).hostname == urlsplit(self.uri).hostname else True
        cert = self._context.value("cert") if trusted else None
        cert = tuple(cert) if isinstance(cert, list | tuple) else cert
        for path in [verify, *(cert if isinstance(cert, tuple) else [cert])]:
            if isinstance(path, str) and not os.path.exists(path):
                raise AccessDenied(self.uri, f"[connections.{self.profile}] names {path}, which is not there")
        return verify, cert


def _transfer(exchange: _Exchange, spec: FileSpec, scratch: Scratch, known: Known | None) -> Fetched | None:
    asked = answers.conditional((known.validator or known.version) if known else None)
    resumed = _resume_headers(scratch)
    response = exchange.get(asked | resumed)
    if resumed and not _continues(response, scratch):
        _release(response)
        resumed = {}
        scratch.restart()
        response = exchange.get(asked)
    with closing(response):
        status, headers = response.status_code, response.headers
        if status == 304 and asked:
            _release(response)
            return None
        etag = answers.strong_etag(headers)
        if status in {200, 203} and known and etag and etag == (known.validator or known.version):
            return None  # the origin does not know conditional requests, and still has what we have
        if status == 416 and resumed and scratch.journal:
            _release(response)
            return Fetched(version=scratch.journal.validator, validator=scratch.journal.validator)
        if status in {304, 416} or (status == 206 and not resumed):
            raise answers.status_error(spec.uri, status, headers, exchange.profile)
        _receive(exchange, response, spec, scratch)
        return Fetched(etag, answers.validator(headers), answers.disposition_name(headers))


def _resume_headers(scratch: Scratch) -> dict[str, str]:
    journal = scratch.journal
    if not journal or not scratch.size or (journal.length is not None and scratch.size > journal.length):
        return {}
    # If-Range makes the server send the whole new version rather than the rest of another one (RFC 9110 §13.1.5).
    return {"Range": f"bytes={scratch.size}-", "If-Range": journal.validator}


def _continues(response: requests.Response, scratch: Scratch) -> bool:
    """Whether an answer to a ranged request is of use: exactly the rest of the same version, or no range at all."""
    if response.status_code not in {206, 416} or not scratch.journal:
        return True
    first, last, total = answers.content_range(response.headers)
    tag = answers.strong_etag(response.headers) or scratch.journal.validator
    length = scratch.journal.length if scratch.journal.length is not None else total
    if tag != scratch.journal.validator or total is None or total != length:
        return False
    return total == scratch.size if response.status_code == 416 else (first, last) == (scratch.size, total - 1)


def _receive(exchange: _Exchange, response: requests.Response, spec: FileSpec, scratch: Scratch) -> None:
    uri, headers = spec.uri, response.headers
    if response.status_code != 206 and (scratch.size or scratch.journal):
        scratch.restart()
    length = answers.content_length(uri, headers)
    if response.status_code == 206:
        _, _, total = answers.content_range(headers)
    else:
        total = length
    if spec.size is not None and total is not None and total != spec.size:
        raise BadResponse(uri, f"{total} bytes are announced, {spec.size} were expected; nothing was downloaded")
    etag = answers.strong_etag(headers)
    # A body encoded on the fly may come out differently at the next request, whatever its ETag says.
    ranges = response.status_code == 206 or headers.get("Accept-Ranges", "").strip().lower() == "bytes"
    if etag and ranges and not headers.get("Content-Encoding"):
        scratch.note(etag, total)
    _read_body(exchange, response, scratch)
    if total is not None and scratch.size != total:
        raise Truncated(uri, f"{scratch.size} of {total} bytes came")
    if spec.size is not None and scratch.size != spec.size:
        raise BadResponse(uri, f"{scratch.size} bytes came, {spec.size} were expected")


def _read_body(exchange: _Exchange, response: requests.Response, scratch: Scratch) -> None:
    """All bytes as they were sent (a Content-Encoding is not undone), in writes of about ``chunk_bytes``."""
    chunk_bytes = exchange.settings.http.chunk_bytes
    pending: list[bytes] = []
    held = 0
    flushed = time.monotonic()
    exchange.watch.restart()
    try:
        while True:
            try:
                # read1 gives what has come instead of waiting for a whole chunk: a slow body is seen to advance.
                data: bytes = response.raw.read1(chunk_bytes, decode_content=False)
            except _CLIENT_ERRORS as error:
                exchange.fail(error)
            if not data:
                return
            pending.append(data)
            held += len(data)
            if held >= chunk_bytes or time.monotonic() - flushed >= _FLUSH_S:
                whole = data if len(pending) == 1 else b"".join(pending)
                pending, held = [], 0
                scratch.write(whole)
                flushed = time.monotonic()
    finally:
        if pending:  # also when it broke off: the next attempt goes on from here
            scratch.write(b"".join(pending))


def _release(response: requests.Response) -> None:
    """Done with an answer whose body nobody wants: keep the connection if that costs little."""
    left = response.raw.length_remaining
    if left is not None and left <= _WORTH_READING_BYTES:
        response.raw.drain_conn()
    response.close()


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts: SplitResult = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


@cache
def _user_agent() -> str:
    try:
        version = metadata.version("ingest")
    except metadata.PackageNotFoundError:
        version = "0"
    return f"ingest/{version} (+training data loader; [http] user_agent names a contact)"
