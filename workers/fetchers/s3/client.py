"""From a profile to S3 clients: obstore for the bytes, botocore for listings and for keys that obstore cannot say.

Both are made from one frozen :class:`Profile`, and their errors become ours here. What is asked of S3 is in
:mod:`workers.fetchers.s3`.
"""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

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

if TYPE_CHECKING:
    from obstore.store import S3Credential, S3Store

EXTRA = "ingest[s3]"
DEFAULT_REGION = "us-east-1"
#: How long obstore may use credentials before it asks again; botocore renews expiring ones 15 minutes ahead.
_CREDENTIAL_TTL = timedelta(minutes=10)

#: botocore's sessions may not make two clients at once.
_making = threading.RLock()

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9_.]{1,64})</Code>")
_REGION = re.compile(r"<Region>([a-z0-9-]{1,32})</Region>")
_KIND = re.compile(r"HttpError \{\s+kind: (\w+)")


@dataclass(frozen=True)
class Profile:
    """All that decides how a bucket is reached. Values that are secret are not in its repr."""

    endpoint: str | None = None
    region: str | None = None
    key: str | None = field(default=None, repr=False)
    secret: str | None = field(default=None, repr=False)
    token: str | None = field(default=None, repr=False)
    anonymous: bool = False
    profile: str | None = None
    path_style: bool | None = None
    requester_pays: bool = False
    connect_s: float = 10.0
    stall_s: float = 60.0
    soft_s: float = 900.0

    @classmethod
    def of(cls, context: Context) -> Profile:
        names = ("region", "key", "secret", "token", "profile")
        limits = context.settings.limits
        path_style = context.value("path_style")
        return cls(
            endpoint=str(context.value("endpoint") or "").rstrip("/") or None,
            anonymous=bool(context.value("anonymous", False)),
            requester_pays=bool(context.value("requester_pays", False)),
            path_style=None if path_style is None else bool(path_style),
            connect_s=limits.connect_s,
            stall_s=limits.stall_s,
            soft_s=limits.soft_s,
            **{name: str(context.value(name)) if context.value(name) else None for name in names},
        )

    @property
    def by_path(self) -> bool:
        """``endpoint/bucket/key``, not ``bucket.endpoint/key``: what most servers beside Amazon's know."""
        return self.endpoint is not None if self.path_style is None else self.path_style


@lru_cache(maxsize=16)
def _session(profile: Profile) -> Any:
    import botocore.session

    return botocore.session.Session(profile=profile.profile)


@lru_cache(maxsize=16)
def client_for(profile: Profile) -> Any:
    """A botocore client; thread-safe. Raises ImportError where botocore is missing."""
    with _making:
        return _make_client(profile)


def _make_client(profile: Profile) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    signed: dict[str, Any] = {"signature_version": UNSIGNED} if profile.anonymous else {}
    config = Config(
        connect_timeout=profile.connect_s,
        read_timeout=profile.stall_s,
        retries={"total_max_attempts": 1},  # the ledger retries
        s3={"addressing_style": "path" if profile.by_path else "auto"},
        response_checksum_validation="when_required",  # many servers beside Amazon's send none, or another kind
        **signed,
    )
    session = _session(profile)
    region = profile.region or session.get_config_variable("region") or DEFAULT_REGION
    return session.create_client(
        "s3",
        region_name=region,
        endpoint_url=profile.endpoint,
        config=config,
        aws_access_key_id=profile.key,
        aws_secret_access_key=profile.secret,
        aws_session_token=profile.token,
    )


class _Credentials:
    """What obstore calls for credentials. Ours, always: it would mix a profile's with those of the environment."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile
        with _making:
            self._chain = None if profile.key else _session(profile).get_credentials()

    @property
    def found(self) -> bool:
        return bool(self._profile.key or self._chain)

    def __call__(self) -> S3Credential:
        key, secret, token = self._profile.key, self._profile.secret, self._profile.token
        if self._chain is not None:
            frozen = self._chain.get_frozen_credentials()
            key, secret, token = frozen.access_key, frozen.secret_key, frozen.token
        return {
            "access_key_id": key or "",
            "secret_access_key": secret or "",
            "token": token,
            "expires_at": datetime.now(UTC) + _CREDENTIAL_TTL,
        }


def _address(profile: Profile) -> tuple[str | None, str]:
    """(endpoint other than Amazon's, region). Without an endpoint in the profile the SDK's own chain is asked."""
    if profile.endpoint:
        return profile.endpoint, profile.region or DEFAULT_REGION
    meta = client_for(profile).meta
    host = urlsplit(meta.endpoint_url).hostname or ""
    amazon = host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
    return None if amazon else meta.endpoint_url, meta.region_name


@lru_cache(maxsize=256)
def store_for(profile: Profile, bucket: str) -> S3Store:
    """The obstore store of a bucket; thread-safe. Raises ImportError, or ValueError for want of credentials."""
    from obstore.store import S3Store

    endpoint, region = _address(profile)
    options: dict[str, Any] = {"region": region, "virtual_hosted_style_request": False}
    if endpoint:
        parts = urlsplit(endpoint)
        options["endpoint"] = endpoint
        if profile.path_style is False:
            options["endpoint"] = f"{parts.scheme}://{bucket}.{parts.netloc}{parts.path}"
            options["virtual_hosted_style_request"] = True
    if profile.anonymous:
        options["skip_signature"] = True
    else:
        provider = _Credentials(profile)
        if not provider.found:
            raise ValueError("no AWS credentials")
        options["credential_provider"] = provider
    if profile.requester_pays:
        options["request_payer"] = True
    return S3Store(
        bucket,
        client_options={
            "allow_http": bool(endpoint and endpoint.startswith("http://")),
            "connect_timeout": timedelta(seconds=profile.connect_s),
            "read_timeout": timedelta(seconds=profile.stall_s),
            "timeout": timedelta(seconds=profile.soft_s),
        },
        retry_config={"max_retries": 0},  # the ledger retries
        **options,
    )


def translate(uri: str, error: BaseException, context: Context) -> FetchError:
    """Any error of obstore or botocore as one of ours. Neither's text is passed on: obstore's is a debug dump."""
    if isinstance(error, ImportError):
        return MissingExtra(uri, EXTRA)
    if isinstance(error, FetchError):
        return error
    status, code, region = _answer(error)
    if status:
        return _from_answer(uri, status, code, region, _where(context))
    return _from_silence(uri, error, context)


def _where(context: Context) -> str:
    return (
        f"[connections.{context.connection.name}]"
        if context.connection
        else "a connection for it, or the node's AWS set-up,"
    )


def _answer(error: BaseException) -> tuple[int, str, str]:
    """(HTTP status, S3 error code, region it names) of an error that S3 answered; status 0 when it did not answer."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        told = response.get("Error", {})
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return status, str(told.get("Code", "")), str(told.get("Region", ""))
    text = str(error)
    status_found, code, region = _STATUS.search(text), _CODE.search(text), _REGION.search(text)
    if not status_found:
        return 0, "", ""
    return int(status_found[1]), code[1] if code else "", region[1] if region else ""


def _from_answer(uri: str, status: int, code: str, region: str, where: str) -> FetchError:
    said = f"{code} (HTTP {status})" if code and not code.isdigit() else f"HTTP {status}"
    if code in {"PermanentRedirect", "AuthorizationHeaderMalformed"} or status in {301, 307, 308}:
        at = f" {region}" if region else ""
        return BadResponse(uri, f"{said}: the bucket is in another region{at}; set region in {where} on the data nodes")
    if code == "NoSuchBucket":
        return NotFound(uri, "no such bucket; check the bucket's name and the endpoint")
    if status == 404:
        return NotFound(uri, "no such key")
    if code == "RequestTimeTooSkewed":
        return AccessDenied(uri, "RequestTimeTooSkewed: the clock of the data node is wrong by minutes; set it (NTP)")
    if code in {"ExpiredToken", "TokenRefreshRequired"}:
        return AccessDenied(uri, f"{said}: the credentials have expired; renew them in {where} on the data node")
    if status in {401, 403} or code in {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"}:
        return AccessDenied(uri, f"{said or 'access denied'}; check key, secret and region in {where} on the data node")
    if code == "InvalidObjectState":
        return AccessDenied(uri, "the object is archived (Glacier); restore it first")
    if status == 412:
        return SourceChanged(uri, "the object changed while it was read, or after it was listed")
    if code == "SlowDown" or status == 429:
        return Throttled(uri, f"{said}: S3 asks for fewer requests", None)
    if code == "RequestTimeout":
        return FetchTimeout(uri, f"{said}: S3 waited too long for our request")
    if status >= 500:
        return OriginUnavailable(uri, f"{said}: S3 cannot answer now")
    return BadResponse(uri, f"S3 answered {said}")


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
    if name in {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "UnauthenticatedError"} or (
        "no AWS credentials" in text
    ):
        return AccessDenied(
            uri,
            "no usable credentials on the data node; "
            f"set key and secret, profile, or anonymous = true in {_where(context)}",
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
    return BadResponse(
        uri, f"the S3 client gave up: {name}: {text.splitlines()[0][:200] if text else 'no reason given'}"
    )
