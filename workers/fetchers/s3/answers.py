"""What an answer of an object store, or a client library's error, means in our words. Asks nobody anything.

Neither library's text is passed on: obstore's is a debug dump.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime

from billiard.exceptions import SoftTimeLimitExceeded

from ingest.errors import (
    AccessDenied,
    BadResponse,
    ConnectionLost,
    FetchError,
    FetchTimeout,
    MissingExtra,
    NotFound,
    OriginUnavailable,
    SourceChanged,
    Throttled,
    Truncated,
)
from workers.fetchers.base import Context

EXTRA = "ingest[s3]"
#: S3 refuses signatures that are 15 minutes off; a clock that is off by less than this is not why.
SKEW_S = 240.0

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9_.]{1,64})</Code>")
_REGION = re.compile(r"<Region>([a-z0-9-]{1,32})</Region>")
_KIND = re.compile(r"HttpError \{\s+kind: (\w+)")
_MACHINE = re.compile(r"http://(metadata\.google\.internal|169\.254\.169\.254)/")
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "UnauthenticatedError"}


class NotModified(Exception):
    """The origin still has the version that was named."""


class NoRange(Exception):
    """That range cannot be had: the object is empty or ends before it, or the server knows no ranges."""


class Elsewhere(Exception):
    """The bucket is in another region: in ``region``, if the answer says so. ``error`` is what it is to a user."""

    def __init__(self, region: str, error: FetchError) -> None:
        super().__init__(region)
        self.region, self.error = region, error


@contextmanager
def edge(uri: str, context: Context) -> Iterator[None]:
    """Around every call of a client library, and nothing else: what it raises becomes one of ours, once."""
    try:
        yield
    except (NotModified, NoRange, SoftTimeLimitExceeded):
        raise
    except Exception as error:  # the libraries' trees have no common base, and obstore raises ValueError too
        text = str(error)
        answer = Answer.of(error)
        if type(error).__name__ == "NotModifiedError" or answer.status == 304:
            raise NotModified from error
        if answer.status == 416 or "Wanted range" in text or "Received non-partial" in text:
            raise NoRange from error
        ours = translate(uri, error, context)
        if answer.is_elsewhere:
            raise Elsewhere(answer.region, ours) from error
        raise ours from error


@dataclass(frozen=True)
class Answer:
    """What S3 answered, as far as the error says; ``status`` is 0 when it did not answer."""

    status: int = 0
    code: str = ""
    region: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, error: BaseException) -> Answer:
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            told, meta = response.get("Error", {}), response.get("ResponseMetadata", {})
            headers = meta.get("HTTPHeaders", {})
            region = str(told.get("Region") or headers.get("x-amz-bucket-region", ""))
            return cls(int(meta.get("HTTPStatusCode", 0)), str(told.get("Code", "")), region, headers)
        text = str(error)
        status, code, region_found = _STATUS.search(text), _CODE.search(text), _REGION.search(text)
        if "BareRedirect" in text:  # what obstore says of a redirect that does not say whereto; it shows no more
            return cls(301, "PermanentRedirect")
        if not status:
            return cls()
        return cls(int(status[1]), code[1] if code else "", region_found[1] if region_found else "")

    @property
    def is_elsewhere(self) -> bool:
        return self.code in {"PermanentRedirect", "TemporaryRedirect", "IllegalLocationConstraintException"} or (
            self.status in {301, 307, 308} or (self.code == "AuthorizationHeaderMalformed" and bool(self.region))
        )

    @property
    def skew_s(self) -> float:
        """By how much our clock is ahead of the server's."""
        try:
            return time.time() - parsedate_to_datetime(self.headers["date"]).timestamp()
        except (KeyError, TypeError, ValueError):
            return 0.0

    @property
    def retry_after_s(self) -> float | None:
        text = self.headers.get("retry-after", "").strip()
        return float(text) if text.isdecimal() and len(text) < 10 else None

    @property
    def said(self) -> str:
        named = self.code and not self.code.isdigit()
        return f"{self.code} (HTTP {self.status})" if named else f"HTTP {self.status}"


def translate(uri: str, error: BaseException, context: Context) -> FetchError:
    """Any error of obstore or botocore as one of ours."""
    if isinstance(error, ImportError):
        return MissingExtra(uri, EXTRA)
    if isinstance(error, FetchError):
        return error
    answer = Answer.of(error)
    return translate_answer(uri, answer, context) if answer.status else _from_silence(uri, error, context)


def _where(context: Context) -> str:
    return (
        f"[connections.{context.connection.name}]"
        if context.connection
        else "a connection for it, or the node's own set-up for that cloud,"
    )


def translate_answer(uri: str, answer: Answer, context: Context) -> FetchError:
    """An answer that is no success as one of our errors."""
    status, code, said, where = answer.status, answer.code, answer.said, _where(context)
    if answer.is_elsewhere or code == "AuthorizationHeaderMalformed":
        at = f" {answer.region}" if answer.region else ""
        return BadResponse(uri, f"{said}: the bucket is in another region{at}; set region in {where} on the data nodes")
    if code in {"NoSuchBucket", "ContainerNotFound"}:
        return NotFound(uri, f"no such {'bucket' if code == 'NoSuchBucket' else 'container'}; check its name")
    if code == "NoSuchVersion" or (status == 405 and code == "MethodNotAllowed"):
        return NotFound(uri, "no such version of that key, or one that only says that it was deleted")
    if status == 404:
        return NotFound(uri, "no such key")
    denied = _denied(uri, answer, where)
    if denied:
        return denied
    if status == 412:
        return SourceChanged(uri, "the object changed while it was read, or after it was listed")
    if code in {"SlowDown", "ServerBusy"} or status in {429, 503}:
        return Throttled(uri, f"{said}: it asks for fewer requests", answer.retry_after_s)
    if code == "RequestTimeout" or status == 408:
        return FetchTimeout(uri, f"{said}: it waited too long for our request")
    if status >= 500:
        return OriginUnavailable(uri, f"{said}: it cannot answer now")
    return BadResponse(uri, f"the object store answered {said}")


def _denied(uri: str, answer: Answer, where: str) -> FetchError | None:
    code, said = answer.code, answer.said
    if code == "InvalidObjectState":
        return AccessDenied(uri, "the object is archived (Glacier); restore it first")
    if code in {"ExpiredToken", "TokenRefreshRequired"}:
        return AccessDenied(uri, f"{said}: the credentials have expired; renew them in {where} on the data node")
    refused = answer.status in {401, 403}
    if code == "RequestTimeTooSkewed" or (refused and abs(answer.skew_s) > SKEW_S):
        by = f"{abs(answer.skew_s):.0f} s {'ahead' if answer.skew_s > 0 else 'behind'}" if answer.skew_s else "minutes"
        return AccessDenied(uri, f"{said}: the clock of the data node is wrong by {by}; set it (NTP)")
    if refused or code in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"}:
        return AccessDenied(uri, f"{said or 'access denied'}; check key, secret and region in {where} on the data node")
    return None


def _from_silence(uri: str, error: BaseException, context: Context) -> FetchError:
    """No answer came. The names are botocore's class names and obstore's (reqwest's) kinds."""
    text, name = str(error), type(error).__name__
    kind = _KIND.search(text)
    limits = context.settings.limits
    if name == "ConnectTimeoutError" or (kind and kind[1] == "Connect" and "TimedOut" in text):
        return FetchTimeout(uri, f"no connection within {limits.connect_s:g} s")
    if name in {"ReadTimeoutError", "TimeoutError"} or "TimedOut" in text:
        return FetchTimeout(uri, f"no data for {limits.stall_s:g} s")
    if name == "IncompleteReadError" or "IncompleteBody" in text:
        return Truncated(uri, "the connection ended before the announced length")
    # Who is given no credentials, and finds none, asks the cloud's own machines for some.
    if name in _NO_CREDENTIALS or "no AWS credentials" in text or _MACHINE.search(text):
        return AccessDenied(
            uri,
            f"no usable credentials on the data node; set a key, a profile, or anonymous = true in {_where(context)}",
        )
    if "dns error" in text or "failed to lookup address" in text:
        return ConnectionLost(uri, "the host name of the endpoint does not resolve")
    if (
        kind
        or isinstance(error, OSError)
        or name in {"EndpointConnectionError", "ConnectionClosedError", "HTTPClientError"}
    ):
        refused = "Connection refused" in text or "ConnectionRefused" in text or name == "EndpointConnectionError"
        return ConnectionLost(uri, "connection refused" if refused else "the connection was lost")
    if name in {"ResponseStreamingError", "ProtocolError", "SSLError"}:
        return ConnectionLost(uri, f"the connection was lost ({name})")
    return BadResponse(uri, f"the client gave up: {name}: {text.splitlines()[0][:200] if text else 'no reason given'}")
