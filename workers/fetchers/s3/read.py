"""One GET of one object, or of a range of it, by obstore or by botocore, in the same words; and what the object says of
its bytes. No scratch file here.
"""

from __future__ import annotations

import base64
import dataclasses
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded

from ingest import digests
from ingest.errors import AccessDenied, BadResponse
from ingest.model import FileSpec
from workers.fetchers.base import Context
from workers.fetchers.s3.answers import Answer, Elsewhere, NoRange, edge, translate_answer
from workers.fetchers.s3.client import Profile, client_for, elsewhere, headers_of_bucket, here, store_for
from workers.fetchers.s3.objects import NOTHING, Part, Policy, Reader, Stated, available, is_worth, of_etag, uniform

#: The least that is written at once: what a kill may cost for each range, and what must come within ``stall_s``.
CHUNK_BYTES = 64 << 10
#: An object of no more than this is read as one.
SMALL_BYTES = 1 << 20
#: A checksum is taken where its digest costs least: in hardware first. SHA-256 costs nothing, every file has it.
_CHECKSUMS = ("sha256", "crc64nvme", "crc32c", "crc32", "sha1", "sha512", "md5")
#: Whoever cut a file into more parts than this and not evenly is not asked for the size of each.
_MOST_PARTS = 1000
#: With what Azure ("$web") and Ceph ("tenant:bucket") allow as well.
_BUCKET = re.compile(r"[A-Za-z0-9_$][A-Za-z0-9_.:-]{0,254}")
_PARTS = re.compile(r'"?([0-9a-fA-F]{32})-([0-9]{1,5})"?')


def reader_for(spec: FileSpec, context: Context) -> Reader:
    """A reader for the object at that URI. Raises a FetchError where its profile cannot be used."""
    bucket, key = split_uri(spec.uri)
    if not bucket or not key:
        raise BadResponse(spec.uri, "names no object; write s3://BUCKET/KEY")
    check_bucket(spec.uri, bucket)
    return _S3Reader(spec.uri, bucket, key, spec.pin, Profile.of(context), context)


def split_uri(uri: str) -> tuple[str, str]:
    """``s3://bucket/key`` → (bucket, key). The key is literal: nothing is decoded, ``?`` and ``#`` belong to it."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key


def check_bucket(uri: str, bucket: str) -> None:
    """Where its name becomes a part of the endpoint's, ``?`` or ``#`` in it would make another host of it."""
    if not _BUCKET.fullmatch(bucket):
        raise BadResponse(uri, f"{bucket[:80]!r} is no name of a bucket: letters, digits, '-', '_' and '.' only")


def plain(key: str) -> bool:
    """True for a key that obstore can say: no empty, ``.`` or ``..`` segment, no control characters."""
    if any(ord(character) < 32 or ord(character) == 127 for character in key):
        return False
    return all(part not in {"", ".", ".."} for part in key.split("/"))


def _guarded(chunks: Iterator[bytes], uri: str, context: Context) -> Iterator[bytes]:
    while True:
        with edge(uri, context):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


@dataclass(frozen=True)
class _S3Reader:
    """Follows a bucket to its region, once; what it learns is kept for all of this process."""

    uri: str
    bucket: str
    key: str
    version: str | None
    profile: Profile
    context: Context

    @property
    def policy(self) -> Policy:
        return self.profile.checksums

    def open(self, span: tuple[int, int] | None, match: str | None, none_match: str | None = None) -> Part:
        for first in (True, False):
            try:
                return self._open(span, match, none_match)
            except Elsewhere as found:
                # botocore has followed it by itself
                if not (first and plain(self.key) and elsewhere(self.profile, self.bucket, found.region)):
                    raise found.error from None
            except AccessDenied as error:
                raise self._why_denied(error) from None
        raise AssertionError("unreachable")

    def _why_denied(self, error: AccessDenied) -> AccessDenied:
        """A denial without a word may be about our clock: obstore does not show when the server says it is."""
        answer = Answer.of(error.__cause__) if error.__cause__ else Answer()
        if answer.status != 403 or answer.code or answer.headers:
            return error
        headers = headers_of_bucket(here(self.profile, self.bucket), self.bucket)
        found = translate_answer(self.uri, dataclasses.replace(answer, headers=headers), self.context)
        return found if isinstance(found, AccessDenied) else error

    def _open(self, span: tuple[int, int] | None, match: str | None, none_match: str | None) -> Part:
        profile = here(self.profile, self.bucket)
        if not plain(self.key):
            return self._with_botocore(profile, span, match, none_match)
        with edge(self.uri, self.context):
            store = store_for(profile, self.bucket, of_ranges=span is not None)
        return ObstoreReader(self.uri, self.key, store, self.context, self.version, bounded=span is not None).open(
            span, match, none_match
        )

    def _with_botocore(
        self, profile: Profile, span: tuple[int, int] | None, match: str | None, none_match: str | None
    ) -> Part:
        asked = {
            "Range": f"bytes={span[0]}-{span[1] - 1}" if span else None,
            "IfMatch": match,
            "IfNoneMatch": none_match,
        }
        with edge(self.uri, self.context):
            got = client_for(profile).get_object(**self._named(asked))
        body, total = got["Body"], got["ContentLength"]
        try:
            if span:
                total = _total(got.get("ContentRange"), span, got["ContentLength"], self.uri)
        except BaseException:
            body.close()
            raise
        chunks = _guarded(body.iter_chunks(CHUNK_BYTES), self.uri, self.context)
        start = span[0] if span else 0
        return Part(got.get("ETag"), total, start, got["ContentLength"], chunks, body.close, partial(_cut_off, body))

    def _named(self, more: dict[str, Any]) -> dict[str, Any]:
        asked = {
            "Bucket": self.bucket,
            "Key": self.key,
            "VersionId": self.version,
            "RequestPayer": "requester" if self.profile.requester_pays else None,
        }
        return {name: value for name, value in (asked | more).items() if value is not None}

    # -- what it says of its bytes ---------------------------------------------------------------------------------

    def stated(self, part: Part) -> Stated:
        told = self._head(part, ChecksumMode="ENABLED")
        if told is None:
            return of_etag(part.etag) or NOTHING
        full, of_parts = _checksums(told)
        if full:
            return full
        # The ETag of what is encrypted with a key of its own is no digest of anything that we can see.
        keyed = "kms" in str(told.get("ServerSideEncryption", "")) or "SSECustomerAlgorithm" in told
        if not keyed and (etag := of_etag(part.etag)):
            return etag
        cut = _PARTS.fullmatch(part.etag or "")
        if of_parts is None and cut and not keyed and is_worth(self.policy, "md5", part.total):
            of_parts = Stated("md5", cut[1].lower()), int(cut[2])
        return self._of_parts(part, *of_parts) if of_parts else NOTHING

    def _of_parts(self, part: Part, stated: Stated, count: int) -> Stated:
        """With the size of its parts: that of the first is asked for, and all but the last are nearly always alike."""
        told = self._head(part, PartNumber=1) or {}
        if told.get("PartsCount") != count:
            return NOTHING  # the server does not know, or does not say
        sizes = uniform(told["ContentLength"], count, part.total)
        if sizes:
            return Stated(stated.algorithm, stated.value, sizes, exact=count <= 2)
        return self.exactly(part, Stated(stated.algorithm, stated.value, (0,) * count, exact=False))

    def exactly(self, part: Part, stated: Stated) -> Stated:
        sizes: list[int] = []
        if len(stated.parts) > _MOST_PARTS:
            return NOTHING
        for number in range(1, len(stated.parts) + 1):
            told = self._head(part, PartNumber=number)
            if told is None:
                return NOTHING
            sizes.append(told["ContentLength"])
        return Stated(stated.algorithm, stated.value, tuple(sizes)) if sum(sizes) == part.total else NOTHING

    def _head(self, part: Part, **more: Any) -> dict[str, Any] | None:
        try:
            asked = self._named({"IfMatch": part.etag, **more})
            return dict(client_for(here(self.profile, self.bucket)).head_object(**asked))
        except SoftTimeLimitExceeded:
            raise
        except Exception:  # noqa: BLE001 - a question that fails is one that has no answer: see Reader.stated
            return None


def _cut_off(body: Any) -> None:
    """End a read of a botocore body that another thread is in; to close it would wait for that read."""
    with suppress(OSError, ValueError, RuntimeError, AttributeError):  # it has ended; or an old urllib3, which cannot
        body._raw_stream.shutdown()


def _checksums(told: dict[str, Any]) -> tuple[Stated | None, tuple[Stated, int] | None]:
    """From the headers of a HEAD: the best checksum of the whole object, and the best one of its parts, with their
    number."""
    full, of_parts = None, None
    headers = told["ResponseMetadata"]["HTTPHeaders"]
    for algorithm in reversed([name for name in _CHECKSUMS if f"x-amz-checksum-{name}" in headers]):
        text, dash, count = headers[f"x-amz-checksum-{algorithm}"].strip().partition("-")
        if not available(algorithm):
            continue
        try:
            stated = Stated(algorithm, base64.b64decode(text, validate=True).hex())
        except ValueError:
            continue
        if len(stated.value) != len(digests.new(algorithm).hexdigest()):
            continue
        if dash and count.isdigit():
            of_parts = stated, int(count)
        elif not dash and told.get("ChecksumType") != "COMPOSITE":
            full = stated
    return full, of_parts


def _total(content_range: str | None, span: tuple[int, int], length: int, uri: str) -> int:
    """The length of the whole object, from an answer to that range. Raises NoRange where it is of no range."""
    if content_range is None:
        raise NoRange
    found = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", content_range.strip())
    first, last, total = (int(number) for number in found.groups()) if found else (0, -1, 0)
    if not found or first != span[0] or last - first + 1 != length or last >= total:
        raise BadResponse(uri, f"asked for bytes {span[0]}-{span[1] - 1}, the answer is of {content_range[:80]!r}")
    return total


@dataclass(frozen=True)
class ObstoreReader:
    """By obstore: any of its stores. It says nothing of checksums; the ETag may be one."""

    uri: str
    key: str
    store: Any
    context: Context
    version: str | None = None
    policy: Policy = False
    bounded: bool = False

    def open(self, span: tuple[int, int] | None, match: str | None, none_match: str | None = None) -> Part:
        import obstore

        options: obstore.GetOptions = {}
        if match:
            options["if_match"] = match
        if none_match:
            options["if_none_match"] = none_match
        if self.version:
            options["version"] = self.version
        if span:
            options["range"] = span
        with edge(self.uri, self.context):
            got = obstore.get(self.store, self.key, options=options)
            meta, (start, end) = got.meta, got.range
            least = CHUNK_BYTES if meta["size"] > SMALL_BYTES else SMALL_BYTES
            chunks = iter(got.stream(min_chunk_size=least))
        body = _guarded(chunks, self.uri, self.context)
        return Part(meta["e_tag"], meta["size"], start, end - start, body, bounded=self.bounded)

    def stated(self, part: Part) -> Stated:
        return of_etag(part.etag) or NOTHING

    def exactly(self, part: Part, stated: Stated) -> Stated:
        return NOTHING
