"""What lies under a prefix, page by page: ``list_objects_v2`` through botocore, its XML read here; globs over it.

A page that is not whole, or not a page, is an error: a list that is too short looks like one that is right.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_plus
from xml.etree import ElementTree

from fsspec.utils import glob_translate

from ingest.errors import BadResponse, NothingMatched, Truncated, Unsupported
from ingest.model import FileSpec
from ingest.sources import AnySource, Source
from workers.fetchers.base import Context
from workers.fetchers.s3.answers import Answer, Elsewhere, edge, translate_answer
from workers.fetchers.s3.client import Profile, client_for, here
from workers.fetchers.s3.read import check_bucket, split_uri

#: Keys per page of a listing: the most that S3 gives.
PAGE_KEYS = 1000

_GLOB = re.compile(r"[*?\[]")
_ERROR = re.compile(rb"<Error>.*<Code>([A-Za-z0-9_.]{1,64})</Code>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Listed:
    """One object of a listing."""

    key: str
    size: int
    etag: str | None


#: (bucket, prefix, key to begin after) → the objects, in the order of the keys' UTF-8 bytes.
List = Callable[[str, str, str], Iterator[Listed]]


def expand(source: AnySource, context: Context, listed: List) -> Iterator[FileSpec]:
    """The objects under a prefix (ends in ``/``) or of a glob (``*``, ``?`` stop at ``/``, ``**`` not), by key.

    ``name`` is relative to the prefix, or to the folder above the first wildcard; ``version`` is the ETag. Empty
    objects whose key ends in ``/`` (folder markers) are left out. Raises NothingMatched, or why it cannot list.
    """
    if not isinstance(source, Source):
        raise Unsupported(str(getattr(source, "uri", source)), "only a prefix or a glob can be listed there")
    bucket, key = split_uri(source.uri)
    base = source.uri[: len(source.uri) - len(key)]
    if not bucket or _GLOB.search(bucket):
        scheme = source.uri.partition("://")[0]
        raise BadResponse(source.uri, f"names no bucket; write {scheme}://BUCKET/PREFIX/ or {scheme}://BUCKET/GLOB")
    wild = _GLOB.search(key)
    literal = key[: wild.start()] if wild else key
    folder = len(literal.rpartition("/")[0] + "/") if "/" in literal else 0
    after = (context.after or "").removeprefix(base) if (context.after or "").startswith(base) else ""
    check_bucket(source.uri, bucket)
    matches, part = _matcher(source.uri, key), 0
    for item in listed(bucket, literal, after if after.startswith(literal) else ""):
        if (item.key.endswith("/") and not item.size) or not matches(item.key):
            continue
        yield FileSpec(
            source=0, part=part, uri=base + item.key, size=item.size, connection=source.connection,
            name=item.key[folder:], version=item.etag,
        )  # fmt: skip
        part += 1
    if not part and not context.after:
        raise NothingMatched(source.uri, f"no object {'matches' if wild else 'lies under it'} in bucket {bucket}")


def _matcher(uri: str, pattern: str) -> Callable[[str], object]:
    """Tells whether a key belongs to a prefix or a glob; the glob's rules are fsspec's, as for every other scheme."""
    if not _GLOB.search(pattern):
        return lambda key: key.startswith(pattern)
    try:
        return re.compile(glob_translate(pattern + "**" if pattern.endswith("/") else pattern)).fullmatch
    except ValueError as error:
        raise BadResponse(uri, f"not a glob: {error}") from None


def pages(uri: str, bucket: str, prefix: str, after: str, context: Context) -> Iterator[Listed]:
    """Not obstore's listing: it fails on keys that it cannot say, and does not look at what we look at."""
    profile = Profile.of(context)
    asked: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": PAGE_KEYS, "EncodingType": "url"}
    if profile.requester_pays:
        asked["RequestPayer"] = "requester"
    if after:
        asked["StartAfter"] = after
    last = after.encode("utf-8", "surrogatepass") if after else None
    tokens: set[str] = set()
    while True:
        page = Page.of(uri, _ask(uri, profile, bucket, asked, context))
        for item in page.items:
            key = item.key.encode("utf-8", "surrogatepass")
            if last is not None and key <= last:
                raise BadResponse(uri, f"the listing is not in order, or repeats itself, at key {item.key[:200]!r}")
            last = key
            yield item
        if page.token is None:
            return
        if page.token in tokens:
            raise BadResponse(uri, "the listing goes in a circle: the server gave the same continuation token twice")
        tokens = {page.token}
        asked.pop("StartAfter", None)
        asked["ContinuationToken"] = page.token


def _ask(uri: str, profile: Profile, bucket: str, asked: dict[str, Any], context: Context) -> bytes:
    try:
        with edge(uri, context):
            body = bytes(client_for(here(profile, bucket)).list_objects_v2(**asked)["Page"])
    except Elsewhere as found:  # botocore has followed it by itself
        raise found.error from None
    if error := _ERROR.search(body[:2048]):  # S3 may begin with 200 before it knows
        raise translate_answer(uri, Answer(500, error[1].decode()), context)
    return body


@dataclass(frozen=True)
class Page:
    """``token`` asks for the next one; None after the last."""

    items: list[Listed]
    token: str | None

    @classmethod
    def of(cls, uri: str, body: bytes) -> Page:
        """Raises Truncated where it breaks off, BadResponse where it is something else."""
        if body.strip() and b"<ListBucketResult" not in body[:2048]:
            raise BadResponse(uri, "the answer to a listing is no list: is the endpoint that of an S3 server?")
        try:
            root = ElementTree.fromstring(body)
        except (ElementTree.ParseError, LookupError, ValueError) as error:
            raise Truncated(uri, f"a page of its listing breaks off, or is damaged: {error}") from None
        space = root.tag.partition("ListBucketResult")[0]
        more = root.findtext(f"{space}IsTruncated", "").strip().lower()
        if more not in {"true", "false"}:
            raise BadResponse(uri, "a page of its listing does not say whether it is the last (IsTruncated)")
        token = root.findtext(f"{space}NextContinuationToken") or None
        if more == "true" and token is None:
            raise BadResponse(uri, "a page of its listing says that there are more, but not where (no token)")
        decode = unquote_plus if root.findtext(f"{space}EncodingType") == "url" else str
        names = f"{space}Key", f"{space}Size", f"{space}ETag"
        try:
            items = [_listed(entry, names, decode) for entry in root.iterfind(f"{space}Contents")]
        except ValueError:
            raise BadResponse(uri, "a page of its listing has an object without a key or size") from None
        return cls(items, token if more == "true" else None)


def _listed(entry: ElementTree.Element, names: tuple[str, str, str], decode: Callable[[str], str]) -> Listed:
    found = {child.tag: child.text for child in entry}
    key, size = found.get(names[0]), found.get(names[1])
    if not key or size is None:
        raise ValueError
    return Listed(decode(key), int(size), found.get(names[2]) or None)
