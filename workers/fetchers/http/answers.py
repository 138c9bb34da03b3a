"""What an HTTP answer means: its headers as values, its status and its client's exceptions as our errors. No I/O here.

A ``uri`` that is given is for the error's sake only. Texts of the client libraries are not passed on: they
may hold a redirect's signed URL, a proxy's password or a header of the profile.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from urllib.parse import unquote_to_bytes

import requests
import urllib3.exceptions

from ingest.errors import (
    AccessDenied,
    BadResponse,
    ConnectionLost,
    FetchError,
    FetchTimeout,
    NotFound,
    OriginUnavailable,
    Throttled,
    Truncated,
)
from ingest.names import safe_name
from ingest.sections import Limits

Headers = Mapping[str, str]

#: No file has more bytes than 19 digits can say; a longer number is nonsense, and slow to read.
_RANGE = re.compile(r"\s*bytes\s+(?:(\d{1,19})-(\d{1,19})|\*)/(\d{1,19}|\*)\s*", re.ASCII | re.IGNORECASE)
_LENGTH = re.compile(r"\d{1,19}", re.ASCII)
_EXTENDED_NAME = re.compile(r";\s*filename\*\s*=\s*([\w-]+)'[^']*'([^;\s]+)", re.IGNORECASE)
#: The charsets that RFC 8187 §3.2.1 names; Python's other codecs do stranger things than decode.
_CHARSETS = {"utf-8", "iso-8859-1", "us-ascii"}
_PLAIN_NAME = re.compile(r';\s*filename\s*=\s*(?:"((?:\\.|[^"\\])*)"|([^;\s]+))', re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: A larger number of seconds is a time since 1970, one that is 1000 times as large is that in milliseconds.
_EPOCH = 1_000_000_000
_PARAMETER = re.compile(r"[;,\s]([a-z]+)\s*=\s*(\d{1,15})(?![\d.])", re.ASCII | re.IGNORECASE)


class Malformed(http.client.HTTPException):
    """An answer that breaks the rules of HTTP. Its text is ours, fit to be shown."""


class Damaged(Malformed):
    """A body that breaks them: it may come whole another time."""


def strong_etag(headers: Headers) -> str | None:
    """The ETag, if it promises that the bytes are the same (RFC 9110 §8.8.1)."""
    tag = _sendable(headers.get("ETag", ""))
    return tag if len(tag) >= 2 and tag[0] == tag[-1] == '"' else None


def validator(headers: Headers) -> str | None:
    """What a later conditional request may send: the ETag, weak or strong, else the date of the last change."""
    return _sendable(headers.get("ETag", "")) or _sendable(headers.get("Last-Modified", "")) or None


def _sendable(text: str) -> str:
    """What may be sent back in a header of ours; "" for what may not."""
    return "" if _CONTROL.search(text.strip()) else text.strip()


def conditional(known: str | None) -> dict[str, str]:
    """The headers that ask for the file only if it is no longer of that validator (RFC 9110 §13.1)."""
    if not known:
        return {}
    if known.startswith(('"', 'W/"')):
        return {"If-None-Match": known}
    return {"If-Modified-Since": known} if _date(known) else {}


def content_length(uri: str, headers: Headers) -> int | None:
    """Announced bytes of the body, None where they are not (chunked, or until the connection ends)."""
    text = headers.get("Content-Length")
    if text is None or "chunked" in headers.get("Transfer-Encoding", "").lower():
        return None
    lengths = {part.strip() for part in text.split(",")}  # RFC 9110 §8.6: a list of equal values is one value
    length = lengths.pop()
    if lengths or not _LENGTH.fullmatch(length):
        raise BadResponse(uri, f"a Content-Length that makes no sense: {text[:40]!r}")
    return int(length)


def content_coding(headers: Headers) -> str:
    """What the body is encoded with although it was not to be; "" for nothing (RFC 9110 §8.4)."""
    coding = headers.get("Content-Encoding", "").strip().lower()
    return "" if coding == "identity" else coding


def content_range(headers: Headers) -> tuple[int | None, int | None, int | None]:
    """``Content-Range`` as (first byte, last byte, total); None for what it does not say, or says badly."""
    found = _RANGE.fullmatch(headers.get("Content-Range", ""))
    if not found:
        return None, None, None
    first, last, total = (int(part) if part and part != "*" else None for part in found.groups())
    return first, last, total


def retry_after_s(headers: Headers, now: datetime | None = None) -> float | None:
    """``Retry-After``, seconds or an HTTP date (RFC 9110 §10.2.3), in seconds from now; None for past or nonsense."""
    text = headers.get("Retry-After", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    date = _date(text)
    seconds = (date - (now or datetime.now(UTC))).total_seconds() if date else 0.0
    return seconds if seconds > 0 else None


def rate_limit_reset_s(headers: Headers, now: datetime | None = None) -> float | None:
    """Seconds until a used-up rate limit opens again, by the headers that say so; None while something is left of it.

    ``RateLimit: "name";r=0;t=30`` with ``RateLimit-Policy: "name";q=100;w=60`` (draft-ietf-httpapi-ratelimit-headers),
    its earlier form ``limit=100, remaining=0, reset=30``, and ``(X-)RateLimit-Remaining`` and ``-Reset``, whose number
    is of seconds or a time since 1970.
    """
    waits = []
    windows = {_policy(part): _parameters(part).get("w") for part in headers.get("RateLimit-Policy", "").split(",")}
    for part in headers.get("RateLimit", "").split(","):
        found = _parameters(part)
        if found.get("r") == 0:
            waits.append(found.get("t", windows.get(_policy(part))))
    early = _parameters("," + headers.get("RateLimit", ""))
    if early.get("remaining") == 0:
        waits.append(early.get("reset"))
    for prefix in ("RateLimit", "X-RateLimit", "X-Rate-Limit"):
        left, reset = (headers.get(f"{prefix}-{name}", "").strip() for name in ("Remaining", "Reset"))
        if reset.isascii() and reset.isdigit() and len(reset) <= 15 and left.strip("0.") == "":
            waits.append(int(reset))
    known = [_from_now(wait, now) for wait in waits if wait is not None]
    return max((wait for wait in known if wait > 0), default=None)


def _policy(part: str) -> str:
    return part.partition(";")[0].strip(' "')


def _parameters(part: str) -> dict[str, int]:
    return {name.lower(): int(number) for name, number in _PARAMETER.findall(part)}


def _from_now(number: int, now: datetime | None) -> float:
    if number < _EPOCH:
        return float(number)
    since_1970 = number / 1000 if number >= 1000 * _EPOCH else number
    return since_1970 - (now or datetime.now(UTC)).timestamp()


def disposition_name(headers: Headers) -> str | None:
    """A safe base name from ``Content-Disposition`` (RFC 6266): the extended form first; of a path, the last part."""
    text = headers.get("Content-Disposition", "")
    name = ""
    if found := _EXTENDED_NAME.search(text):
        try:
            name = unquote_to_bytes(found[2]).decode(found[1]) if found[1].lower() in _CHARSETS else ""
        except UnicodeDecodeError:
            name = ""
    if not name and (found := _PLAIN_NAME.search(text)):
        name = re.sub(r"\\(.)", r"\1", found[1]) if found[1] is not None else found[2]
        # http.client reads headers as Latin-1; what most servers send is UTF-8.
        raw = name.encode("latin-1", "replace")
        name = raw.decode("utf-8", "ignore") if _is_utf8(raw) else name
    # No leading dot: with into= the origin would choose which hidden file (.bashrc) appears in a folder of the user's.
    return safe_name(re.split(r"[/\\]", name)[-1].lstrip(". "), "") or None


def status_error(uri: str, status: int, headers: Headers, profile: str | None) -> FetchError:
    """The error for an answer that is not the file. ``profile``: the connection whose credentials were sent."""
    said = f"the server answered {status} {_phrase(status)}".rstrip()
    # GitHub and its like say 403 for a rate limit that is used up.
    used_up = status == 403 and headers.get("X-RateLimit-Remaining", "").strip() == "0"
    if status in {429, 503} or used_up:
        after = retry_after_s(headers)
        return Throttled(uri, said, after if after is not None else rate_limit_reset_s(headers))
    if status in {401, 403, 407}:
        cure = f"check [connections.{profile}]" if profile else "put its credentials under [connections.NAME]"
        return AccessDenied(uri, f"{said}; {cure} in ingest.toml on the data node")
    if status in {404, 410}:
        return NotFound(uri, said)
    if status in {202, 408, 425} or 500 <= status < 600:
        after = retry_after_s(headers)
        return Throttled(uri, said, after) if after is not None else OriginUnavailable(uri, said)
    if status == 451:
        return BadResponse(uri, f"{said}: it may not be had for legal reasons")
    return BadResponse(uri, f"{said}, which is no answer to a request for the whole file")


def client_error(uri: str, error: BaseException, limits: Limits) -> FetchError:
    """Our error for an exception of requests, urllib3, http.client, ssl or the socket."""
    chain = list(_causes(error))

    def among(*kinds: type[BaseException]) -> BaseException | None:
        return next((one for one in chain if isinstance(one, kinds)), None)

    if found := among(ssl.SSLCertVerificationError):
        why = getattr(found, "verify_message", "") or "certificate verify failed"
        return BadResponse(
            uri,
            f'the server\'s TLS certificate is not trusted ({why}); for a private CA, set verify = "/path/ca.pem" '
            "under [connections.NAME] in ingest.toml on the data node",
        )
    if broken := among(Malformed):
        kind = Truncated if isinstance(broken, Damaged) else BadResponse
        return kind(uri, str(broken))
    if among(socket.gaierror):
        return ConnectionLost(uri, "the host's name did not resolve")
    if refused := among(ConnectionError):
        return ConnectionLost(uri, f"the connection failed: {_os_reason(refused)}")
    # Which urllib3 also takes for a timeout: a connection that could not be made at all.
    if among(urllib3.exceptions.ConnectTimeoutError) and not among(urllib3.exceptions.NewConnectionError):
        return FetchTimeout(uri, f"no connection within {limits.connect_s:g} s")
    if among(TimeoutError, requests.Timeout, urllib3.exceptions.TimeoutError):
        return FetchTimeout(uri, f"next to no data for {limits.stall_s:g} s")
    if among(http.client.IncompleteRead):
        return Truncated(uri, "the connection ended before the body did")
    if among(http.client.LineTooLong):
        return BadResponse(uri, "a header line of more than 64 KiB")
    if among(ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError):
        return ConnectionLost(uri, "the TLS connection was cut off")
    if found := among(ssl.SSLError):
        return BadResponse(uri, f"TLS failed: {getattr(found, 'reason', None) or 'the server does not speak it'}")
    if among(requests.exceptions.ProxyError, urllib3.exceptions.ProxyError):
        return ConnectionLost(uri, "the proxy refused or cannot be reached")
    if found := among(http.client.HTTPException):
        return BadResponse(uri, f"what came is not HTTP ({type(found).__name__})")
    if among(requests.exceptions.InvalidHeader):
        return BadResponse(uri, "a header of the answer, or of the profile, is not a valid header")
    if among(ValueError):
        return BadResponse(uri, "not a URL that can be requested")
    return ConnectionLost(uri, f"the connection failed: {_os_reason(chain[-1])}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and all that it was made from: requests and urllib3 wrap by cause, by ``reason`` and by argument."""
    pending, seen = [error], set()
    while pending:
        one = pending.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        inner = [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
        pending += [each for each in inner if isinstance(each, BaseException)]


def _os_reason(error: BaseException) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else ""


def _date(text: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError):
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)


def _is_utf8(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
