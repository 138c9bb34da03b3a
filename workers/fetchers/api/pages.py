"""Which page of an API is asked for, and which one is next. Pure: the requests are made in ``fetcher``.

A place is a JSON value, so that it can be written into a journal between two pages.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode, urljoin, urlsplit, urlunsplit

from ingest.apis import Paging, Way
from ingest.errors import BadResponse, EgressDenied, TooLarge, Truncated
from ingest.record import Record
from ingest.sections import is_under
from workers.fetchers.api.records import MISSING, Number, Page, kind, lookup

_LINK = re.compile(
    r"<([^<>]*)>((?:\s*;\s*[\w!#$&+.^`|~*-]+(?:\s*=\s*(?:\"(?:\\.|[^\"\\])*\"|[^\s;,\"]+))?)*)\s*(?:,|$)"
)
_REL = re.compile(r";\s*rel\s*=\s*(?:\"([^\"]*)\"|([^\s;,\"]+))", re.IGNORECASE)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Request:
    """One request: the URL with its query, and the body or None."""

    url: str
    body: Any = None


@dataclass(frozen=True)
class State(Record):
    """How far a run has come. ``at`` is where the next page is, None after the last one; ``pages`` and ``records``
    count what came.

    ``mark``, ``power`` and ``since`` find pages in a circle in constant memory: a place is remembered, and then one
    that is twice as far (R. P. Brent, "An improved Monte Carlo factorization algorithm", 1980). ``same`` is the
    digest of the last page.
    """

    at: Mapping[str, Any] | None = dataclasses.field(default_factory=dict)
    pages: int = 0
    records: int = 0
    mark: str = ""
    power: int = 1
    since: int = 0
    same: str = ""


class Pages:
    """The pages of one source. ``base`` is the connection's URL, under which every request stays; ``secret`` are the
    query parameters of the profile, which are in no journal."""

    def __init__(
        self, uri: str, paging: Paging, base: str, request: Mapping[str, Any], secret: Mapping[str, Any] | None = None
    ) -> None:
        self.uri, self.paging = uri, paging
        self._base = base.rstrip("/") + "/"
        path = str(request.get("path") or "").lstrip("/")
        self._home = self._base + path if path else base
        self._params = dict(request.get("params") or {})
        self._body = request.get("body")
        self._secret = dict(secret or {})

    def request(self, state: State) -> Request:
        """What to ask for at a place."""
        at = state.at or {}
        params, body = dict(self._params), copy.deepcopy(self._body)
        if "url" in at:
            return Request(_with_params(str(at["url"]), self._secret), body)
        paging = self.paging
        places: list[tuple[Way, Any]] = []
        if paging.size is not None:
            places.append((paging.size_param, paging.size))
        if paging.kind in {"offset", "page"}:
            places.append((paging.param, at.get("number", paging.start)))
        elif "token" in at:
            places.append((paging.param, at["token"]))
        for way, value in places:
            if paging.place == "body":
                body = _with(body, way, value)
            else:
                params[way[0]] = value
        return Request(_with_params(_with_params(self._home, params), self._secret), body)

    def after(self, state: State, page: Page, headers: Mapping[str, str], asked: str) -> State:
        """The state after a page that came for the URL ``asked``. Raises a
        :class:`~ingest.errors.PermanentFetchError` for pages that lead nowhere."""
        same = hashlib.sha256(page.lines).hexdigest()[:32] if page.count else ""
        done = dataclasses.replace(state, pages=state.pages + 1, records=state.records + page.count, at=None, same=same)
        at = self._next(state, done, page, headers, asked)
        if at is None:
            return done
        if self.paging.max_pages is not None and done.pages >= self.paging.max_pages:
            raise TooLarge(self.uri, f"there are more pages than max_pages={self.paging.max_pages}")
        return self._forward(state, dataclasses.replace(done, at=at))

    def _next(
        self, state: State, done: State, page: Page, headers: Mapping[str, str], asked: str
    ) -> Mapping[str, Any] | None:
        paging = self.paging
        if paging.kind == "one":
            return None
        more = self._more(page)
        if more is False:
            return None
        if paging.kind in {"offset", "page"}:
            return self._counted(state, done, page, more)
        if paging.kind == "link":
            at: Mapping[str, Any] | None
            target = next_link(headers.get("Link", ""), paging.rel)
            at = {"url": self._under(asked, target)} if target else None
        else:
            at = self._cursor(page, asked)
        if at is None and more:
            raise self._bad(done, "says that there are more pages, and not where")
        return at

    def _more(self, page: Page) -> bool | None:
        if self.paging.more is None:
            return None
        value = page.found.get(self.paging.more, MISSING)
        if isinstance(value, bool):
            return value
        what = "nothing" if value is MISSING else kind(value)
        raise BadResponse(self.uri, f"more={_name(self.paging.more)} is {what}, where true or false was expected")

    def _cursor(self, page: Page, asked: str) -> Mapping[str, Any] | None:
        paging = self.paging
        if paging.last is not None:
            if not page.count:
                return None
            value, name = lookup(page.last, paging.last), f"last={_name(paging.last)}"
            if value is MISSING or value is None:
                raise BadResponse(self.uri, f"{name} is not in the page's last record")
        else:
            assert paging.field is not None
            value, name = page.found.get(paging.field, MISSING), f"field={_name(paging.field)}"
        if value is MISSING or value is None or value == "" or value is False:
            return None
        if not isinstance(value, str):
            raise BadResponse(self.uri, f"{name} is {kind(value)}, where a cursor was expected")
        if not paging.param:
            return {"url": self._under(asked, str(value))}
        whole = value.whole() if isinstance(value, Number) else None
        return {"token": str(value) if whole is None else whole}

    def _counted(self, state: State, done: State, page: Page, more: bool | None) -> Mapping[str, Any] | None:
        paging = self.paging
        number = (state.at or {}).get("number", paging.start)
        step = page.count if paging.kind == "offset" else 1
        total, pages = self._number(page, paging.total, "total"), self._number(page, paging.pages, "pages")
        if total is not None:
            if done.records >= total:
                return None
            if not page.count:
                reason = f"page {done.pages} is empty after {done.records} of {total} records; they changed under way"
                raise Truncated(self.uri, reason)
        elif pages is not None:
            if number - paging.start + 1 >= pages:
                return None
        elif more is None and not page.count:
            return None
        if done.same and done.same == state.same and total is None and pages is None:
            where = _name(paging.param)
            raise self._bad(
                done, f"is the same as the one before: does the API know {where}? (total= says where to end)"
            )
        return {"number": number + step}

    def _number(self, page: Page, way: Way | None, name: str) -> int | None:
        if way is None:
            return None
        value = page.found.get(way, MISSING)
        whole = Number(value).whole() if isinstance(value, str) else None
        if whole is None or whole < 0:
            what = "nothing" if value is MISSING else kind(value)
            raise BadResponse(self.uri, f"{name}={_name(way)} is {what}, where a whole number was expected")
        return whole

    def _forward(self, before: State, state: State) -> State:
        """Remember this place if it is time to. Raises :class:`BadResponse` for one that was there before."""
        print_ = _digest(state.at)
        if print_ in {before.mark, _digest(before.at)}:
            raise self._bad(state, "leads to a page that was there before: the pages are in a circle")
        if before.since + 1 >= before.power:
            return dataclasses.replace(state, mark=print_, power=before.power * 2, since=0)
        return dataclasses.replace(state, mark=before.mark, power=before.power, since=before.since + 1)

    def _bad(self, state: State, what: str) -> BadResponse:
        return BadResponse(self.uri, f"page {state.pages} {what}")

    def _under(self, asked: str, target: str) -> str:
        """The next page's URL, without what the profile adds. Raises :class:`EgressDenied` where the profile's
        credentials would leave its own URL."""
        if re.search(r"[\x00-\x20\x7f\\]", target.strip()):
            raise BadResponse(self.uri, "the next page's URL has white space or control characters in it")
        try:
            url = urlsplit(urljoin(asked, target.strip()))
            base = urlsplit(self._base)
            there, here = (_origin(parts.scheme, parts.hostname, parts.port) for parts in (url, base))
        except ValueError:
            raise BadResponse(self.uri, "the next page's URL cannot be read") from None
        if there != here or "@" in url.netloc:
            shown = f"{there[0]}://{there[1]}:{there[2]}"
            raise EgressDenied(self.uri, f"the next page is at {shown}, which is not where the connection's url leads")
        if not under(url.path, base.path):
            raise EgressDenied(self.uri, "the next page is not under the connection's url")
        query = [(name, value) for name, value in parse_qsl(url.query, keep_blank_values=True)]
        if any(name in self._secret for name, _ in query):
            kept = urlencode([(name, value) for name, value in query if name not in self._secret], quote_via=quote)
            url = url._replace(query=kept)
        return urlunsplit((base.scheme, base.netloc, url.path, url.query, ""))


def next_link(header: str, rel: str) -> str | None:
    """The target of the first link of that relation in a ``Link`` header (RFC 8288 §3)."""
    for target, parameters in _LINK.findall(header[: 64 << 10]):
        found = _REL.search(parameters)
        if found and rel.lower() in (found[1] or found[2] or "").lower().split():
            return str(target)
    return None


def under(path: str, base: str) -> bool:
    """Whether a URL's path is the base, or lies below it, however its dots are written."""
    base = base.rstrip("/") + "/"
    return path.rstrip("/") + "/" == base or is_under(path, base)


def _origin(scheme: str, host: str | None, port: int | None) -> tuple[str, str | None, int | None]:
    return scheme, host, port or _PORTS.get(scheme)


def _digest(at: Mapping[str, Any] | None) -> str:
    return hashlib.sha256(json.dumps(at, sort_keys=True).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _name(way: Way) -> str:
    return repr(".".join(way))


def _with(body: Any, way: Way, value: Any) -> Any:
    """The body with a value set; what is on the way to it is made."""
    inner = body
    for key in way[:-1]:
        if not isinstance(inner.get(key), dict):
            inner[key] = {}
        inner = inner[key]
    inner[way[-1]] = value
    return body


def _with_params(url: str, params: Mapping[str, Any]) -> str:
    """The URL with these in its query, instead of those of the same name. None is left out, true is ``true``."""
    if not params:
        return url
    parts = urlsplit(url)
    query = parts.query
    if any(name in params for name, _ in parse_qsl(query, keep_blank_values=True)):
        kept = [(name, value) for name, value in parse_qsl(query, keep_blank_values=True) if name not in params]
        query = urlencode(kept, quote_via=quote)
    given = [
        (name, _text(one))
        for name, value in params.items()
        for one in (value if isinstance(value, list | tuple) else [value])
        if one is not None
    ]
    query = "&".join(filter(None, [query, urlencode(given, quote_via=quote)]))
    return urlunsplit(parts._replace(query=query))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
