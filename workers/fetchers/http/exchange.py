"""One source's requests over HTTP: redirects judged hop by hop, credentials for nobody but the source's own origin.

What an answer means is in ``answers``, what may be connected to in :mod:`workers.egress`, the connections in
``wire``; what is done with a body is not for here.
"""

from __future__ import annotations

import base64
import copy
import os
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache, lru_cache
from http.client import HTTPException
from importlib import metadata
from typing import Any, NoReturn
from urllib.parse import urljoin, urlsplit

import requests
import urllib3
from requests.cookies import RequestsCookieJar, extract_cookies_to_jar
from requests.utils import select_proxy
from urllib3.util import parse_url

from ingest.errors import AccessDenied, BadResponse
from workers.egress import Policy, Trail
from workers.fetchers.base import Context
from workers.fetchers.http import answers
from workers.fetchers.http.wire import WATCH, JudgedAdapter, Reply, Watch

#: What reading from a connection may raise, all translated by answers.client_error.
CLIENT_ERRORS = (requests.RequestException, urllib3.exceptions.HTTPError, HTTPException, OSError, ValueError)
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
#: What the place behind a redirect, or a signed URL, answers when its time is over.
_STALE = frozenset({400, 401, 403, 404, 410})
#: The body of an error or a redirect is read when it is shorter, so that the connection can be used again.
_WORTH_READING_BYTES = 64 << 10
#: And for no longer: a new connection costs less, and a server could make an error of its own last for ever.
_WORTH_WAITING_S = 1.0

_PORTS = {"http": 80, "https": 443}

Jars = dict[object, RequestsCookieJar]
#: Scheme, host and port: what is asked with the source's credentials, if it is the source's own.
Origin = tuple[str, str | None, int | None]


def new_session() -> requests.Session:
    """For its open connections only: no cookie and no credential stays in it."""
    session = requests.Session()
    for prefix in ("http://", "https://"):
        session.mount(prefix, JudgedAdapter())
    return session


@dataclass(frozen=True)
class _Place:
    """A URL on the way to the file, and what has led there."""

    url: str
    trusted: bool
    trail: Trail
    jars: Jars


class Route:
    """Where a source is found, shared by all connections of one fetch: redirects are followed once, and a URL is signed
    once, until the place says that it is no longer good. ``sign`` gives a URL that is good for a while."""

    def __init__(self, sign: Callable[[], str] | None = None) -> None:
        self._sign = sign
        self._lock = threading.Lock()
        self._start: str | None = None
        self._found: _Place | None = None

    def start(self, uri: str) -> str:
        if self._sign is None:
            return uri
        with self._lock:
            if self._start is None:
                self._start = self._sign()
            return self._start

    @property
    def found(self) -> _Place | None:
        return self._found

    def remember(self, place: _Place, uri: str) -> None:
        if place.url != uri:  # else there is nothing to be saved, and nothing that goes stale
            self._found = place

    def forget(self, place: _Place) -> None:
        """It is no longer good; unless another connection has found out first."""
        with self._lock:
            if self._found is place:
                self._found = self._start = None


class Exchange:
    """One connection's requests for a source. ``url`` is asked where that is not the source's URI; ``idle`` is called
    about every second of waiting, and may raise to stop."""

    def __init__(
        self,
        session: requests.Session,
        uri: str,
        context: Context,
        idle: Callable[[], None],
        url: str | None = None,
        route: Route | None = None,
    ) -> None:
        self.uri, self.url, self.settings = uri, url or uri, context.settings
        self.profile = context.connection.name if context.connection else None
        self._session, self._context, self._route = session, context, route or Route()
        self._home = self._origin(self.url)
        limits, http = context.settings.limits, context.settings.http
        self.watch = Watch(self._trail(), idle, limits.stall_s, http.stall_bytes)

    def another(self, session: requests.Session, idle: Callable[[], None]) -> Exchange:
        """For one more connection to the same file."""
        return Exchange(session, self.uri, self._context, idle, self.url, self._route)

    def get(self, extra: dict[str, str], also: Collection[int] = ()) -> Reply:
        """The first answer that is no redirect, its body unread. Raises the error of an answer that is no file, unless
        its status is one of ``also``."""
        place = self._route.found
        if place is not None:
            response, _ = self._walk(place, extra)
            if response.status_code not in _STALE:
                return self._checked(response, also)
            release(response)
            self._route.forget(place)
        response, place = self._walk(self._entrance(self._route.start(self.url)), extra)
        checked = self._checked(response, also)
        self._route.remember(place, self.url)
        return checked

    def ask(self, extra: dict[str, str], method: str = "GET", body: bytes | None = None) -> Reply:
        """The first answer that is no redirect, whatever it says, its body unread."""
        return self._walk(self._entrance(self.url), extra, method, body)[0]

    def _entrance(self, url: str) -> _Place:
        return _Place(url, self._origin(url) == self._home, self._trail(), {})

    def _origin(self, url: str) -> Origin:
        try:
            return _origin(url)
        except ValueError:  # its text may hold a signed URL
            raise BadResponse(self.uri, "not a URL that can be requested") from None

    def _trail(self) -> Trail:
        return Trail(Policy(self.settings.egress), self.uri)

    def _walk(
        self, place: _Place, extra: dict[str, str], method: str = "GET", body: bytes | None = None
    ) -> tuple[Reply, _Place]:
        """From there on, by redirects, to an answer that is none, and where that was."""
        # A copy: what was seen on the way there holds for this connection too, and what it sees is its own.
        trail = self.watch.trail = copy.copy(place.trail)
        url, trusted, jars, seen = place.url, place.trusted, dict(place.jars), set()
        for _ in range(self.settings.http.redirects + 1):
            jar = jars.setdefault(self._origin(url), RequestsCookieJar())
            before = copy.copy(trail)
            response = self._send(url, extra, jar, trusted=trusted, method=method, body=body)
            if response.status_code not in _REDIRECTS:
                return response, _Place(url, trusted, before, jars)
            target = self._target(url, response)
            release(response)
            away = self._origin(target) != self._origin(url)
            if method != "GET" and (away or response.status_code not in {307, 308}):
                raise BadResponse(self.uri, f"redirects a {method} ({response.status_code}): it is not sent on")
            state = (target, tuple(sorted((cookie.name, cookie.value) for each in jars.values() for cookie in each)))
            if state in seen:
                raise BadResponse(self.uri, "redirects in a circle")
            seen.add(state)
            trail.redirected()
            trusted = trusted and self._origin(target) == self._home
            url = target
        raise BadResponse(self.uri, f"more than {self.settings.http.redirects} redirects, which is [http] redirects")

    def fail(self, error: BaseException) -> NoReturn:
        raise answers.client_error(self.uri, error, self.settings.limits) from error

    def _send(
        self,
        url: str,
        extra: dict[str, str],
        jar: RequestsCookieJar,
        *,
        trusted: bool,
        method: str,
        body: bytes | None,
    ) -> Reply:
        session, limits = self._session, self.settings.limits
        agent = self.settings.http.user_agent or _user_agent()
        headers = {"User-Agent": agent, "Accept": "*/*", "Connection": "keep-alive"}
        headers |= self._credentials() if trusted else {}
        headers |= {"Accept-Encoding": "identity", **extra}
        verify, cert = self._tls(url, trusted)
        try:
            request = _prepared(method, url, headers, jar, body)
            options: Any = session.merge_environment_settings(request.url, {}, None, verify, cert)
            proxied = select_proxy(str(request.url), options["proxies"]) is not None
            self.watch.trail.approach(urlsplit(str(request.url)).hostname or "", proxied=proxied)
            adapter: Any = session.get_adapter(str(request.url))
            timeout = urllib3.Timeout(connect=limits.connect_s, read=limits.stall_s)
            raw = adapter.ask(request, timeout, options["verify"], options["cert"], options["proxies"])
        except CLIENT_ERRORS as error:
            self.fail(error)
        if "Set-Cookie" in raw.headers:
            extract_cookies_to_jar(jar, request, raw)  # type: ignore[no-untyped-call]
        return Reply(raw)

    def _checked(self, response: Reply, also: Collection[int] = ()) -> Reply:
        status = response.status_code
        if status in {200, 203, 206, 304, 416} or status in also:
            return response
        release(response)
        raise answers.status_error(self.uri, status, response.headers, self.profile)

    def _target(self, url: str, response: Reply) -> str:
        location = response.headers.get("Location", "")
        if not location:
            response.close()
            raise BadResponse(self.uri, f"a redirect ({response.status_code}) without a Location")
        try:
            # http.client reads headers as Latin-1; what servers send is UTF-8.
            target = urljoin(url, location.encode("latin-1").decode("utf-8"))
            scheme, host, port = _origin(target)
            if scheme in {"http", "https"} and host and port != 0:
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
        verify = self._context.value("verify", True) if self._origin(url)[1] == self._home[1] else True
        cert = self._context.value("cert") if trusted else None
        cert = tuple(cert) if isinstance(cert, list | tuple) else cert
        for path in [verify, *(cert if isinstance(cert, tuple) else [cert])]:
            if isinstance(path, str) and not os.path.exists(path):
                raise AccessDenied(self.uri, f"[connections.{self.profile}] names {path}, which is not there")
        return verify, cert


def release(response: Reply) -> None:
    """Done with an answer whose body nobody wants: keep the connection if that costs little."""
    left, watch = response.raw.length_remaining, WATCH.get()
    idle, end = watch.idle, time.monotonic() + _WORTH_WAITING_S

    def hurried() -> None:
        idle()
        if time.monotonic() >= end:
            raise TimeoutError

    if left is not None and left <= _WORTH_READING_BYTES:
        watch.idle = hurried
        try:
            response.raw.drain_conn()
        finally:
            watch.idle = idle
    response.close()


@lru_cache(maxsize=64)
def _origin(url: str) -> Origin:
    """As requests reads it, not as urlsplit does: ``http://a\\@b/`` is a request to a. Raises ValueError."""
    parts = parse_url(url)
    scheme = parts.scheme or ""
    return scheme, parts.host, _PORTS.get(scheme) if parts.port is None else parts.port


def _prepared(
    method: str, url: str, headers: dict[str, str], jar: RequestsCookieJar, body: bytes | None
) -> requests.PreparedRequest:
    """By the steps of requests that are needed. Not ``Session.prepare_request``: it would look into ~/.netrc, and take
    credentials out of a redirect's URL, and what else it merges takes longer than all the rest."""
    request = requests.PreparedRequest()
    request.prepare_method(method)
    request.prepare_url(url, None)
    request.prepare_headers(headers)
    if len(jar):
        request.prepare_cookies(jar)
    if method != "GET":
        request.prepare_body(body, None)
    return request


@cache
def _user_agent() -> str:
    try:
        version = metadata.version("ingest")
    except metadata.PackageNotFoundError:
        version = "0"
    return f"ingest/{version} (+training data loader; [http] user_agent names a contact)"
