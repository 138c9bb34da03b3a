"""What an S3 object says of its bytes is checked: every kind of checksum and ETag, of one piece and of parts; with an
S3 that can damage bytes on the way, and lie.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from ingest import digests, errors
from tests.contracts.s3cases import fetch, profile, scratch, sha256, spec_of
from tests.servers.simulated import Object, SimulatedS3, b64, multipart
from workers.fetchers.base import Interrupted
from workers.fetchers.s3 import S3Fetcher
from workers.fetchers.s3.objects import Stated, uniform
from workers.fetchers.s3.ranges import RANGE_BYTES
from workers.fetchers.s3.verify import Running

SMALL = os.urandom(300_000)
LARGE = os.urandom(1 << 20) * 20 + b"end"  # three ranges
OPAQUE = '"of-no-kind"'
KINDS = ("crc32", "crc32c", "crc64nvme", "sha1", "sha256", "sha512")


def hex_of(algorithm: str, data: bytes) -> str:
    digest = digests.new(algorithm)
    digest.update(data)
    return digest.hexdigest()


def composite(algorithm: str, data: bytes, parts: tuple[int, ...]) -> str:
    joined, at = b"", 0
    for size in parts:
        joined += bytes.fromhex(hex_of(algorithm, data[at : at + size]))
        at += size
    return f"{hex_of(algorithm, joined)}-{len(parts)}"


def damaged(data: bytes) -> bytes:
    """One bit of it, late."""
    return data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]


def parts_of(data: bytes, *first: int) -> tuple[int, ...]:
    return (*first, len(data) - sum(first))


def requests(s3: SimulatedS3, method: str) -> int:
    return sum(1 for found, _, _ in s3.requests if found == method)


def is_right(s3: SimulatedS3, key: str, path: Path, **values: object) -> None:
    file = fetch(s3, key, path / "right", **values)
    assert file.digest() == sha256(s3.objects[key].data)


def is_refused(s3: SimulatedS3, key: str, path: Path, says: str = "expected", **values: object) -> None:
    with pytest.raises(errors.DigestMismatch, match=says):
        fetch(s3, key, path / "refused", **values)


@pytest.mark.parametrize(
    ("algorithm", "check"),
    [("crc32", "cbf43926"), ("crc32c", "e3069283"), ("crc64nvme", "ae8b14860a799888")],
)
def test_checksums_are_those_of_the_catalogue(algorithm: str, check: str) -> None:
    assert hex_of(algorithm, b"123456789") == check


# -- one piece -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("algorithm", KINDS)
def test_a_checksum_of_the_whole_object(algorithm: str, data: bytes, s3: SimulatedS3, tmp_path: Path) -> None:
    said = {f"x-amz-checksum-{algorithm}": b64(hex_of(algorithm, data)), "x-amz-checksum-type": "FULL_OBJECT"}
    s3.objects["good"] = Object(data, etag=OPAQUE, checksums=said)
    s3.objects["bad"] = Object(data, sent=damaged(data), etag=OPAQUE, checksums=said)
    is_right(s3, "good", tmp_path, checksums="required")
    is_refused(s3, "bad", tmp_path, f"expected {algorithm}:{hex_of(algorithm, data)} ")


@pytest.mark.parametrize("data", [SMALL, LARGE, b""], ids=["small", "large", "empty"])
def test_an_etag_that_is_an_md5(data: bytes, s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["good"] = Object(data)
    is_right(s3, "good", tmp_path, checksums="required")
    if data:
        s3.objects["bad"] = Object(data, sent=damaged(data))
        is_refused(s3, "bad", tmp_path, hashlib.md5(data).hexdigest())


def test_the_etag_of_a_small_object_costs_no_request(s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["small"] = Object(SMALL)
    is_right(s3, "small", tmp_path)
    assert [method for method, _, _ in s3.requests] == ["GET"]


def test_a_large_object_is_asked_once(s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["large"] = Object(LARGE, checksums={"x-amz-checksum-crc64nvme": b64(hex_of("crc64nvme", LARGE))})
    is_right(s3, "large", tmp_path)
    assert (requests(s3, "GET"), requests(s3, "HEAD")) == (3, 1)


@pytest.mark.parametrize(
    "headers",
    [
        {"x-amz-server-side-encryption": "aws:kms"},
        {"x-amz-server-side-encryption": "aws:kms:dsse"},
        {"x-amz-server-side-encryption-customer-algorithm": "AES256"},
    ],
)
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_the_etag_of_what_is_encrypted_with_a_key_is_no_md5(
    data: bytes, headers: dict[str, str], s3: SimulatedS3, tmp_path: Path
) -> None:
    s3.objects["good"] = Object(data, etag=f'"{"5" * 32}"', headers=headers)
    is_right(s3, "good", tmp_path)
    with pytest.raises(errors.BadResponse, match="states nothing"):
        fetch(s3, "good", tmp_path / "required", checksums="required")
    said = {"x-amz-checksum-crc32c": b64(hex_of("crc32c", data))}
    s3.objects["bad"] = Object(data, sent=damaged(data), etag=f'"{"5" * 32}"', headers=headers, checksums=said)
    is_refused(s3, "bad", tmp_path, "crc32c")


def test_amazons_own_encryption_leaves_the_etag_an_md5(s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["bad"] = Object(SMALL, sent=damaged(SMALL), headers={"x-amz-server-side-encryption": "AES256"})
    is_refused(s3, "bad", tmp_path, "md5")


def test_a_checksum_says_more_than_an_etag_that_looks_like_an_md5(s3: SimulatedS3, tmp_path: Path) -> None:
    said = {"x-amz-checksum-sha256": b64(hashlib.sha256(SMALL).hexdigest())}
    s3.objects["good"] = Object(SMALL, etag=f'"{"7" * 32}"', checksums=said)
    is_right(s3, "good", tmp_path)


# -- parts -----------------------------------------------------------------------------------------------------------

EVEN = parts_of(LARGE, 6 << 20, 6 << 20, 6 << 20)
ODD = parts_of(LARGE, 6 << 20, 5 << 20, 6 << 20)


@pytest.mark.parametrize("parts", [EVEN, ODD, (len(LARGE),), parts_of(LARGE, 1 << 20)], ids=["even", "odd", "1", "2"])
def test_a_multipart_etag_is_made_again(parts: tuple[int, ...], s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["good"] = Object(LARGE, parts=parts)
    s3.objects["bad"] = Object(LARGE, sent=damaged(LARGE), parts=parts)
    is_right(s3, "good", tmp_path, checksums="required")
    is_refused(s3, "bad", tmp_path, f"-{len(parts)} ")


def test_parts_that_look_even_and_are_not(s3: SimulatedS3, tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    parts = (2_000_000, 1_600_000, 1_400_000)  # as many as if all were as large as the first
    assert uniform(2_000_000, 3, len(data))
    s3.objects["good"] = Object(data, parts=parts)
    s3.objects["bad"] = Object(data, sent=damaged(data), parts=parts)
    is_right(s3, "good", tmp_path, checksums="required")
    is_refused(s3, "bad", tmp_path)


@pytest.mark.parametrize("algorithm", ["crc32", "crc32c", "sha1", "sha256"])
def test_a_checksum_of_the_parts(algorithm: str, s3: SimulatedS3, tmp_path: Path) -> None:
    said = {
        f"x-amz-checksum-{algorithm}": b64(composite(algorithm, LARGE, EVEN)),
        "x-amz-checksum-type": "COMPOSITE",
    }
    s3.objects["good"] = Object(LARGE, parts=EVEN, checksums=said)
    s3.objects["bad"] = Object(LARGE, sent=damaged(LARGE), parts=EVEN, checksums=said)
    is_right(s3, "good", tmp_path, checksums="required")
    is_refused(s3, "bad", tmp_path, f"{algorithm}:.*-4 ")


def test_parts_that_nobody_tells_the_size_of_are_not_checked(s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["good"] = Object(LARGE, parts=EVEN, tells_parts=False)
    is_right(s3, "good", tmp_path)
    with pytest.raises(errors.BadResponse, match='checksums = "required"'):
        fetch(s3, "good", tmp_path / "required", checksums="required")


# -- when not --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [(), (5000, 5000)])
def test_an_md5_of_much_is_made_only_when_asked_for(
    parts: tuple[int, ...], s3: SimulatedS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.fetchers.s3.objects.MD5_BYTES", 9999)
    data = os.urandom(10_000)
    s3.objects["bad"] = Object(data, sent=damaged(data), parts=parts)
    assert fetch(s3, "bad", tmp_path / "f").size == 10_000
    is_refused(s3, "bad", tmp_path, checksums="always")
    is_refused(s3, "bad", tmp_path, checksums="required")
    said = {"x-amz-checksum-crc32c": b64(hex_of("crc32c", data))}
    s3.objects["bad"] = Object(data, sent=damaged(data), parts=parts, etag=OPAQUE, checksums=said)
    is_refused(s3, "bad", tmp_path, "crc32c")


def test_a_digest_that_was_given_says_more(s3: SimulatedS3, tmp_path: Path) -> None:
    """It is the store's to look at."""
    s3.objects["k"] = Object(LARGE, sent=damaged(LARGE))
    file = scratch(tmp_path)
    S3Fetcher().fetch(
        spec_of("k", digest=sha256(LARGE)), file, None, profile(endpoint=s3.endpoint, key="k", secret="s")
    )
    assert file.size == len(LARGE) and requests(s3, "HEAD") == 0


def test_it_can_be_left_out(s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["bad"] = Object(LARGE, sent=damaged(LARGE))
    assert fetch(s3, "bad", tmp_path / "f", checksums=False).digest() == sha256(damaged(LARGE))
    assert requests(s3, "HEAD") == 0


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
def test_an_origin_that_answers_no_question_is_believed_by_its_etag(
    data: bytes, s3: SimulatedS3, tmp_path: Path
) -> None:
    def denies(handler: object) -> bool:
        if handler.command != "HEAD":  # type: ignore[attr-defined]
            return False
        handler.send_error(403)  # type: ignore[attr-defined]
        return True

    s3.gate = denies
    s3.objects["good"], s3.objects["bad"] = Object(data), Object(data, sent=damaged(data))
    s3.objects["opaque"] = Object(data, etag=OPAQUE)
    is_right(s3, "good", tmp_path)
    is_right(s3, "opaque", tmp_path)
    is_refused(s3, "bad", tmp_path)


@pytest.mark.parametrize("value", ["!!!", "AAAA-x", "", "AAAA"])  # the last is of three bytes
def test_a_checksum_that_is_none_is_no_reason_to_crash(value: str, s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["odd"] = Object(SMALL, etag=OPAQUE, checksums={"x-amz-checksum-md5": value})
    is_right(s3, "odd", tmp_path)


# -- with the rest ---------------------------------------------------------------------------------------------------


def test_what_was_continued_is_checked_from_its_first_byte(s3: SimulatedS3, tmp_path: Path) -> None:
    """The damage is in what an earlier attempt brought."""
    s3.objects["k"] = Object(LARGE, sent=b"\0" + LARGE[1:])
    context, seen = profile(endpoint=s3.endpoint, anonymous=True), [0]

    def stop(count: int) -> None:
        seen[0] += count
        if seen[0] > RANGE_BYTES:
            raise Interrupted("slice")

    first = scratch(tmp_path, keep=True, on_bytes=stop)
    with pytest.raises(Interrupted):
        S3Fetcher().fetch(spec_of("k"), first, None, context)
    first.close(discard=False)
    s3.objects["k"].sent = None
    again = scratch(tmp_path, keep=True)
    assert again.size
    with pytest.raises(errors.DigestMismatch):
        S3Fetcher().fetch(spec_of("k"), again, None, context)


@pytest.mark.parametrize("step", [1, 999, 1000, 1001, 10_000])
@pytest.mark.parametrize("parts", [(), (1000, 1000, 500), (2500, 0), (1, 2, 2497)])
def test_a_running_digest_is_the_same_in_any_steps(parts: tuple[int, ...], step: int, tmp_path: Path) -> None:
    data = os.urandom(2500)
    (tmp_path / "f").write_bytes(data)
    value = multipart(data, parts).partition("-")[0]
    running = Running(Stated("md5", value, parts))
    with open(tmp_path / "f", "rb") as file:
        for end in range(0, 2500 + step, step):
            running.advance(file.fileno(), min(end, 2500))
    assert running.found().value == value


def test_an_interrupted_file_is_not_read_to_its_end_for_its_digest(s3: SimulatedS3, tmp_path: Path) -> None:
    s3.objects["k"] = Object(LARGE)

    def stop(count: int) -> None:
        if count:
            raise Interrupted("cancelled")

    fetcher = S3Fetcher()
    with pytest.raises(Interrupted):
        fetcher.fetch(
            spec_of("k"), scratch(tmp_path, on_bytes=stop), None, profile(endpoint=s3.endpoint, key="k", secret="s")
        )
