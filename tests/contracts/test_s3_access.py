"""How S3 is reached: who signs, in which region, under which host name, and what a denial is really about."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from ingest import errors
from ingest.model import FileSpec
from ingest.sources import Source
from tests.contracts.s3cases import Scripted, profile, scratch
from tests.servers.s3 import S3Server, s3_server
from workers.fetchers.base import Context
from workers.fetchers.s3 import S3Fetcher

KEYS = pytest.mark.parametrize("key", ["k", "/k"])  # one that obstore can say, and one for botocore
AWS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE", "AWS_REGION",
       "AWS_DEFAULT_REGION", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE")  # fmt: skip


@pytest.fixture(scope="module")
def moto() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture(autouse=True)
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty AWS set-up; its folder."""
    for name in AWS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    return tmp_path


def get(key: str, path: Path, context: Context) -> None:
    S3Fetcher().fetch(FileSpec(0, 0, f"s3://bucket/{key}"), scratch(path), None, context)


def seen(scripted: Scripted, object_key: str, path: Path, **values: object) -> dict[str, str]:
    """The headers of a request made with that profile."""
    scripted.says(404, "NoSuchKey")
    with pytest.raises(errors.NotFound):
        get(object_key, path, profile(endpoint=scripted.endpoint, **values))
    return scripted.requests[-1]


# -- credentials -----------------------------------------------------------------------------------------------------


@KEYS
def test_the_profile_decides_who_signs(
    key: str, scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FROMENV")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "env-secret")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "env-token")
    assert "authorization" not in seen(scripted, key, tmp_path, anonymous=True)
    own = seen(scripted, key, tmp_path, key="OWN", secret="s")
    assert "OWN/" in own["authorization"] and "x-amz-security-token" not in own
    assert seen(scripted, key, tmp_path, key="OWN", secret="s", token="t")["x-amz-security-token"] == "t"
    chain = seen(scripted, key, tmp_path, region="eu-north-1")
    assert "FROMENV/" in chain["authorization"] and "/eu-north-1/" in chain["authorization"]
    assert chain["x-amz-security-token"] == "env-token"
    pays = seen(scripted, key, tmp_path, key="OWN", secret="s", requester_pays=True)
    assert pays["x-amz-request-payer"] == "requester"


def test_a_listing_says_who_pays(scripted: Scripted) -> None:
    scripted.says(404, "NoSuchBucket")
    context = profile(endpoint=scripted.endpoint, key="OWN", secret="s", requester_pays=True)
    with pytest.raises(errors.NotFound):
        list(S3Fetcher().expand(Source("s3://bucket/x/"), context))
    assert scripted.requests[-1]["x-amz-request-payer"] == "requester"


@KEYS
def test_no_credentials_anywhere_is_said(key: str, tmp_path: Path) -> None:
    context = profile(endpoint="http://127.0.0.1:1", region="test-1")  # its own region: nothing made before fits it
    with pytest.raises(errors.AccessDenied, match=r"anonymous = true in \[connections.lake\]"):
        get(key, tmp_path, context)


@KEYS
def test_a_shared_profile_by_name(key: str, scripted: Scripted, aws: Path) -> None:
    (aws / "credentials").write_text("[lab]\naws_access_key_id = LABKEY\naws_secret_access_key = s\n")
    assert "LABKEY/" in seen(scripted, key, aws, profile="lab")["authorization"]
    with pytest.raises(errors.AccessDenied):
        get(key, aws, profile(endpoint=scripted.endpoint, profile="nobody"))


@KEYS
@pytest.mark.parametrize("way", ["environment", "profile", "role"])
def test_a_role_is_assumed(
    way: str, key: str, moto: S3Server, scripted: Scripted, aws: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a web identity, as pods have it, or from another profile: what STS gives signs in both libraries."""
    role = "arn:aws:iam::123456789012:role/reader"
    (aws / "token").write_text("a.web.identity")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", moto.endpoint)
    values: dict[str, object] = {"region": f"{way}-{key.strip('/')}-{len(key)}"}  # nothing made before fits it
    if way == "environment":
        monkeypatch.setenv("AWS_ROLE_ARN", role)
        monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(aws / "token"))
    else:
        values["profile"] = "reader"
        how = f"web_identity_token_file = {aws}/token" if way == "profile" else "source_profile = base"
        (aws / "config").write_text(f"[profile reader]\nrole_arn = {role}\n{how}\nregion = us-east-1\n")
        (aws / "credentials").write_text("[base]\naws_access_key_id = BASE\naws_secret_access_key = s\n")
    headers = seen(scripted, key, aws, **values)
    assert "Credential=ASIA" in headers["authorization"] and headers["x-amz-security-token"]


# -- regions ---------------------------------------------------------------------------------------------------------


def in_region(region: str, status: int, code: str, *, says: bool = True) -> object:
    """An S3 with one object in every bucket, of that region. ``says``: a refusal names it; else only a HEAD does."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        where = {"x-amz-bucket-region": region}
        at_home = f"/{region}/s3/" in handler.headers.get("Authorization", "")
        body = b"hello" if at_home else f"<Error><Code>{code}</Code></Error>".encode()
        if not at_home and says:
            body = body.replace(b"</Error>", f"<Region>{region}</Region></Error>".encode())
        listing = "list-type" in handler.path
        if at_home and listing:
            body = b"<Contents><Key>k</Key><Size>5</Size></Contents>"
            body = b"<ListBucketResult><IsTruncated>false</IsTruncated>" + body + b"</ListBucketResult>"
        handler.send_response(status if not at_home else 200 if listing or handler.command == "HEAD" else 206)
        headers = {"ETag": '"5d41402abc4b2a76b9719d911017c592"', "Content-Range": "bytes 0-4/5"} if at_home else {}
        headers |= where if handler.command == "HEAD" or says else {}
        headers |= {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", "Content-Length": str(len(body))}
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(body)

    return answer


@KEYS
@pytest.mark.parametrize(
    ("status", "code", "says"),
    [(301, "PermanentRedirect", True), (301, "PermanentRedirect", False), (400, "AuthorizationHeaderMalformed", True)],
)
def test_a_bucket_is_followed_to_its_region_once(
    status: int, code: str, says: bool, key: str, scripted: Scripted, tmp_path: Path
) -> None:
    scripted.answer = in_region("eu-west-9", status, code, says=says)  # type: ignore[assignment]
    context = profile(endpoint=scripted.endpoint, key="OWN", secret="s", region="us-east-1")
    get(key, tmp_path, context)
    lost = len(scripted.requests)
    assert 2 <= lost <= 4
    get(key, tmp_path, context)
    if key == "k":
        assert len(scripted.requests) == lost + 1, "what was learnt is kept"


def test_a_listing_follows_a_bucket_too(scripted: Scripted) -> None:
    scripted.answer = in_region("eu-west-9", 301, "PermanentRedirect")  # type: ignore[assignment]
    context = profile(endpoint=scripted.endpoint, key="OWN", secret="s", region="us-east-1")
    (spec,) = S3Fetcher().expand(Source("s3://bucket/"), context)
    assert spec.uri == "s3://bucket/k"


def test_a_region_that_leads_nowhere_is_an_error(scripted: Scripted, tmp_path: Path) -> None:
    scripted.says(400, "AuthorizationHeaderMalformed")  # names eu-west-9, there too
    with pytest.raises(errors.BadResponse, match="another region eu-west-9; set region in"):
        get("k", tmp_path, profile(endpoint=scripted.endpoint, key="OWN", secret="s"))
    assert len(scripted.requests) <= 3


# -- host names ------------------------------------------------------------------------------------------------------


@KEYS
@pytest.mark.parametrize("path_style", [None, True, False])
def test_the_bucket_is_in_the_path_or_in_the_host(
    path_style: bool | None, key: str, scripted: Scripted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names that nobody resolves: a proxy sees what would have been asked."""
    monkeypatch.setenv("http_proxy", scripted.endpoint)
    scripted.says(404, "NoSuchKey")
    endpoint = f"http://s3-{path_style}-{len(key)}.test:9000".lower()
    values = {} if path_style is None else {"path_style": path_style}
    with pytest.raises(errors.NotFound):
        get(key, tmp_path, profile(endpoint=endpoint, key="OWN", secret="s", **values))
    host = endpoint.removeprefix("http://")
    want = f"http://bucket.{host}/{key}" if path_style is False else f"http://{host}/bucket/{key}"
    assert scripted.lines[-1].removeprefix("GET ").partition("?")[0] == want


@pytest.mark.parametrize("path_style", [None, False])
@pytest.mark.parametrize("bucket", ["{}#", "{}?", "user@{}", "..", "."])
def test_a_bucket_makes_no_other_host_of_the_endpoint(
    bucket: str, path_style: bool | None, scripted: Scripted, tmp_path: Path
) -> None:
    """Where it is in front of the endpoint's name, it would be asked with the profile's token."""
    uri = f"s3://{bucket.format(scripted.endpoint.removeprefix('http://'))}/key"
    values = {} if path_style is None else {"path_style": path_style}
    context = profile(endpoint="http://s3.test:9000", key="OWN", secret="s", token="t0ken", **values)
    with pytest.raises(errors.BadResponse, match="no name of a bucket"):
        S3Fetcher().fetch(FileSpec(0, 0, uri), scratch(tmp_path), None, context)
    with pytest.raises(errors.BadResponse, match=r"no name of a bucket|names no bucket"):
        list(S3Fetcher().expand(Source(uri.removesuffix("key")), context))
    assert scripted.requests == []


# -- denials ---------------------------------------------------------------------------------------------------------


@KEYS
@pytest.mark.parametrize("off_s", [3600, -3600])
@pytest.mark.parametrize("code", ["", "SignatureDoesNotMatch", "RequestTimeTooSkewed"])
def test_a_denial_that_is_about_our_clock_says_so(
    code: str, off_s: int, key: str, scripted: Scripted, tmp_path: Path
) -> None:
    scripted.date = formatdate(time.time() - off_s, usegmt=True)
    scripted.says(403, code)
    context = profile(endpoint=scripted.endpoint, key="OWN", secret="s")
    with pytest.raises(errors.AccessDenied) as caught:
        get(key, tmp_path, context)
    if code == "SignatureDoesNotMatch" and key == "k":
        return  # obstore hides the date, and a denial that says why is not asked about
    assert "clock of the data node is wrong" in str(caught.value)


@KEYS
@pytest.mark.parametrize("code", ["", "AccessDenied"])
def test_a_denial_with_a_right_clock_is_not_about_it(code: str, key: str, scripted: Scripted, tmp_path: Path) -> None:
    scripted.says(403, code)
    with pytest.raises(errors.AccessDenied, match="check key, secret and region"):
        get(key, tmp_path, profile(endpoint=scripted.endpoint, key="OWN", secret="s"))


def test_slow_down_says_when_to_come_back(scripted: Scripted, tmp_path: Path) -> None:
    scripted.says(503, "SlowDown", Retry_After="7")
    with pytest.raises(errors.Throttled) as caught:
        get("/k", tmp_path, profile(endpoint=scripted.endpoint, key="OWN", secret="s"))
    assert caught.value.retry_after_s == 7
    with pytest.raises(errors.Throttled) as caught:
        get("k", tmp_path, profile(endpoint=scripted.endpoint, key="OWN", secret="s"))
    assert caught.value.retry_after_s is None, "obstore shows no headers"


def test_no_secret_in_any_repr(moto: S3Server) -> None:
    from workers.fetchers.s3.client import Profile

    context = profile(**moto.profile())
    assert moto.secret not in repr(Profile.of(context)) + repr(context)
    assert os.environ["AWS_CONFIG_FILE"]
