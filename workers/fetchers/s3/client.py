"""From a profile to S3 clients: obstore for the bytes, botocore for listings and for keys that obstore cannot say.

Both are made from one frozen :class:`Profile`. Which region a bucket turned out to be in is remembered here.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from billiard.exceptions import SoftTimeLimitExceeded

from workers.fetchers.base import Context
from workers.fetchers.s3.answers import Answer
from workers.fetchers.s3.objects import Policy

if TYPE_CHECKING:
    from obstore.store import S3Credential, S3Store

DEFAULT_REGION = "us-east-1"
#: How long obstore may use credentials before it asks again; botocore renews expiring ones 15 minutes ahead.
_CREDENTIAL_TTL = timedelta(minutes=10)

#: A range may take so many times ``stall_s``: 8 MB in 5 minutes.
RANGE_STALLS = 5
#: botocore's sessions may not make two clients at once.
_making = threading.RLock()
#: (profile, bucket) → the region that S3 said it is in. Bounded by forgetting it all: it is learnt again.
_regions: dict[tuple[Profile, str], str] = {}
_MOST_REGIONS = 4096


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
    checksums: Policy = True
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
            checksums=checksums_of(context),
            path_style=None if path_style is None else bool(path_style),
            connect_s=limits.connect_s,
            stall_s=limits.stall_s,
            soft_s=limits.soft_s,
            **{name: str(context.value(name)) if context.value(name) else None for name in names},
        )

    @property
    def addressing(self) -> str:
        """In botocore's words. Most servers beside Amazon's know only ``endpoint/bucket/key``."""
        if self.path_style is None:
            return "path" if self.endpoint else "auto"
        return "path" if self.path_style else "virtual"


def checksums_of(context: Context) -> Policy:
    value = context.value("checksums", True)
    return value if value in {"always", "required"} else bool(value)


def here(profile: Profile, bucket: str) -> Profile:
    """The profile in the region that the bucket turned out to be in, or as it is."""
    region = _regions.get((profile, bucket))
    return replace(profile, region=region) if region else profile


def elsewhere(profile: Profile, bucket: str, region: str) -> bool:
    """S3 says that the bucket is in another region than the profile's, perhaps in which one. False: no use in asking
    again, because nobody says which, or because it is the region that was asked."""
    region = region or _region_of(here(profile, bucket), bucket)
    asked = client_for(here(profile, bucket)).meta.region_name
    if not region or region == asked:
        return False
    if len(_regions) >= _MOST_REGIONS:
        _regions.clear()
    _regions[profile, bucket] = region
    return True


def _region_of(profile: Profile, bucket: str) -> str:
    headers = headers_of_bucket(profile, bucket)
    return headers.get("x-amz-bucket-region", "")


def headers_of_bucket(profile: Profile, bucket: str) -> dict[str, str]:
    """The headers that S3 answers a HEAD of the bucket with, also where it denies it; none if it does not answer."""
    try:
        return dict(client_for(profile).head_bucket(Bucket=bucket)["ResponseMetadata"]["HTTPHeaders"])
    except SoftTimeLimitExceeded:
        raise
    except Exception as error:  # noqa: BLE001 - botocore's errors have no common base; no answer is an answer here
        return dict(Answer.of(error).headers)


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
        s3={"addressing_style": profile.addressing},
        response_checksum_validation="when_required",  # many servers beside Amazon's send none, or another kind
        request_checksum_calculation="when_required",  # what is uploaded goes with an MD5, which every server knows
        max_pool_connections=64,
        **signed,
    )
    session = _session(profile)
    region = profile.region or session.get_config_variable("region") or DEFAULT_REGION
    client = session.create_client(
        "s3",
        region_name=region,
        endpoint_url=profile.endpoint,
        config=config,
        aws_access_key_id=profile.key,
        aws_secret_access_key=profile.secret,
        aws_session_token=profile.token,
    )
    # Handlers of a wildcard come before those of a name, and botocore's own, which would read the page, is of s3.*.
    client.meta.events.register("before-parse.*.ListObjectsV2", _keep_page)
    return client


def _keep_page(response_dict: dict[str, Any], customized_response_dict: dict[str, Any], **_: Any) -> None:
    """A page of a listing is handed on as it came: botocore takes 0.1 ms for each key, an empty answer for an empty
    list, and anything that it cannot read for an error of the server's (see ``listing``)."""
    if response_dict["status_code"] < 300:
        customized_response_dict["Page"] = response_dict["body"]
        response_dict["body"] = b"<ListBucketResult/>"


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
    # Of Amazon's endpoints obstore makes only those under amazonaws.com by itself, and not those in China.
    amazon = (urlsplit(meta.endpoint_url).hostname or "").endswith(".amazonaws.com")
    return None if amazon else meta.endpoint_url, meta.region_name


@lru_cache(maxsize=256)
def store_for(profile: Profile, bucket: str, *, of_ranges: bool) -> S3Store:
    """The obstore store of a bucket; thread-safe. ``of_ranges``: what is asked of it is no more than a range, and what
    has come of one that takes too long is continued. Raises ImportError, or ValueError for want of credentials."""
    from obstore.store import S3Store

    endpoint, region = _address(profile)
    options: dict[str, Any] = {"region": region, "virtual_hosted_style_request": False}
    if endpoint:
        parts = urlsplit(endpoint)
        options["endpoint"] = endpoint
        if profile.path_style is False:
            options["endpoint"] = f"{parts.scheme}://{bucket}.{parts.netloc}{parts.path}"
            options["virtual_hosted_style_request"] = True
    else:  # a certificate for *.s3.amazonaws.com is for no name with more dots
        options["virtual_hosted_style_request"] = profile.path_style is not True and "." not in bucket
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
            # The only limit that obstore has against a drip.
            "timeout": timedelta(
                seconds=min(RANGE_STALLS * profile.stall_s, profile.soft_s) if of_ranges else profile.soft_s
            ),
        },
        retry_config={"max_retries": 0},  # the ledger retries
        **options,
    )
