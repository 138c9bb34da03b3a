"""One GET of one object, or of a range of it, by obstore or by botocore, in the same words. No scratch file here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from ingest.errors import BadResponse
from workers.fetchers.base import Context
from workers.fetchers.s3.client import Profile, client_for, store_for, translate

#: Small enough that a cancelled download is seen soon, large enough that Python's share of the work does not show.
CHUNK_BYTES = 1 << 20


class NotModified(Exception):
    """The origin still has the version that was named."""


class NoRange(Exception):
    """That range cannot be had: the object is empty or ends before it, or the server knows no ranges."""


@dataclass(frozen=True)
class Part:
    """An answer whose body is not read yet. ``total`` is the length of the whole object, ``length`` of this part."""

    etag: str | None
    total: int
    length: int
    chunks: Iterator[bytes]


class Reader(Protocol):
    """Opens one object. ``span`` is (first byte, end) or None for all of it; ``match`` and ``none_match`` are ETags."""

    def open(self, span: tuple[int, int] | None, match: str | None, none_match: str | None = None) -> Part: ...


def reader_for(uri: str, context: Context) -> Reader:
    """A reader for the object at that URI. Raises a FetchError where its profile cannot be used."""
    bucket, key = split_uri(uri)
    if not bucket or not key:
        raise BadResponse(uri, "names no object; write s3://BUCKET/KEY")
    profile = Profile.of(context)
    with edge(uri, context):
        if plain(key):
            return _ObstoreReader(uri, key, store_for(profile, bucket), context)
        return _BotocoreReader(uri, bucket, key, profile, context)


def split_uri(uri: str) -> tuple[str, str]:
    """``s3://bucket/key`` → (bucket, key). The key is literal: nothing is decoded, ``?`` and ``#`` belong to it."""
    bucket, _, key = uri.partition("://")[2].partition("/")
    return bucket, key


def plain(key: str) -> bool:
    """True for a key that obstore can say: no empty, ``.`` or ``..`` segment, no control characters."""
    if any(ord(character) < 32 or ord(character) == 127 for character in key):
        return False
    return all(part not in {"", ".", ".."} for part in key.split("/"))


@contextmanager
def edge(uri: str, context: Context) -> Iterator[None]:
    """Around every call of a client library, and nothing else: what it raises becomes one of ours, once."""
    try:
        yield
    except (NotModified, NoRange):
        raise
    except Exception as error:  # the libraries' trees have no common base, and obstore raises ValueError too
        text = str(error)
        status = (getattr(error, "response", None) or {}).get("ResponseMetadata", {}).get("HTTPStatusCode")
        if type(error).__name__ == "NotModifiedError" or status == 304:
            raise NotModified from error
        if status == 416 or "status code: 416" in text or "Wanted range" in text or "Received non-partial" in text:
            raise NoRange from error
        raise translate(uri, error, context) from error


def _guarded(chunks: Iterator[bytes], uri: str, context: Context) -> Iterator[bytes]:
    while True:
        with edge(uri, context):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


@dataclass(frozen=True)
class _ObstoreReader:
    uri: str
    key: str
    store: Any
    context: Context

    def open(self, span: tuple[int, int] | None, match: str | None, none_match: str | None = None) -> Part:
        import obstore

        options: obstore.GetOptions = {}
        if match:
            options["if_match"] = match
        if none_match:
            options["if_none_match"] = none_match
        if span:
            options["range"] = span
        with edge(self.uri, self.context):
            got = obstore.get(self.store, self.key, options=options)
            meta, (start, end) = got.meta, got.range
            chunks = iter(got.stream(min_chunk_size=CHUNK_BYTES))
        return Part(meta["e_tag"], meta["size"], end - start, _guarded(chunks, self.uri, self.context))


@dataclass(frozen=True)
class _BotocoreReader:
    uri: str
    bucket: str
    key: str
    profile: Profile
    context: Context

    def open(self, span: tuple[int, int] | None, match: str | None, none_match: str | None = None) -> Part:
        asked = {
            "Range": f"bytes={span[0]}-{span[1] - 1}" if span else None,
            "IfMatch": match,
            "IfNoneMatch": none_match,
            "RequestPayer": "requester" if self.profile.requester_pays else None,
        }
        with edge(self.uri, self.context):
            got = client_for(self.profile).get_object(
                Bucket=self.bucket, Key=self.key, **{k: v for k, v in asked.items() if v is not None}
            )
            total = got["ContentLength"]
            if span:
                if "ContentRange" not in got:
                    got["Body"].close()
                    raise NoRange
                total = int(got["ContentRange"].rpartition("/")[2])
            chunks = got["Body"].iter_chunks(CHUNK_BYTES)
        return Part(got.get("ETag"), total, got["ContentLength"], _guarded(chunks, self.uri, self.context))
