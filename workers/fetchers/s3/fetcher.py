"""S3: an object in parallel ranges, pinned to one ETag and written in order with flat memory; prefixes and globs.

How one GET is made is in ``read``, how a profile becomes a client in ``client``.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from fsspec.utils import glob_translate

from ingest.errors import BadResponse, NothingMatched, SourceChanged, Truncated, Unsupported
from ingest.model import FileSpec
from ingest.sources import AnySource, Source
from ingest.store.scratch import Scratch
from workers.fetchers.base import Context, Fetched, Known
from workers.fetchers.s3.client import Profile, client_for
from workers.fetchers.s3.read import NoRange, NotModified, Part, Reader, edge, reader_for, split_uri

#: A round trip of 30 ms costs little beside 8 MB, and a range is what a cancelled download may still bring for nothing.
RANGE_BYTES = 8 << 20
#: Ranges of one object in flight: one connection to S3 gives 50 to 100 MB/s.
RANGES_PER_OBJECT = 4
#: Ranges held in memory by this process, whatever the number of objects: 8 × 8 MB bound it, not the number of threads.
RANGES_PER_PROCESS = 8
#: Keys per page of a listing: the most that S3 gives.
PAGE_KEYS = 1000

_GLOB = re.compile(r"[*?\[]")


class S3Fetcher:
    """``s3://bucket/key``. The key is literal; ``*``, ``?`` and ``[`` mean something only in :meth:`expand`."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(RANGES_PER_PROCESS, thread_name_prefix="s3-range")
        self._slots = threading.BoundedSemaphore(RANGES_PER_PROCESS)

    def fetch(self, spec: FileSpec, scratch: Scratch, known: Known | None, context: Context) -> Fetched | None:
        """See :class:`workers.fetchers.base.Fetcher`. The version is the ETag, as S3 wrote it."""
        reader = reader_for(spec.uri, context)
        part = _resume(spec, scratch, reader)
        if part is None:
            try:
                part = _begin(spec, scratch, reader, known)
            except NotModified:
                return None
        if spec.version and part.etag and part.etag != spec.version:
            raise SourceChanged(spec.uri, f"it was {spec.version} when it was listed, and is {part.etag} now")
        if scratch.journal is None and part.etag:
            scratch.note(part.etag, part.total)
        _write(spec.uri, part, scratch)
        if scratch.size < part.total:
            self._rest(spec.uri, part, scratch, reader)
        if scratch.size != part.total:
            raise Truncated(spec.uri, f"got {scratch.size} bytes of {part.total}")
        return Fetched(version=part.etag, validator=part.etag)

    def _rest(self, uri: str, first: Part, scratch: Scratch, reader: Reader) -> None:
        """What comes after the first part, several ranges at once, in order."""
        starts = iter(range(scratch.size, first.total, RANGE_BYTES))
        window: deque[Future[list[bytes]]] = deque()
        try:
            while True:
                # Only who holds no range may wait for a slot: those who hold one always come to write and free it.
                while len(window) < RANGES_PER_OBJECT and self._slots.acquire(blocking=not window):
                    start = next(starts, None)
                    if start is None:
                        self._slots.release()
                        break
                    span = (start, min(start + RANGE_BYTES, first.total))
                    window.append(self._pool.submit(_range, uri, reader, span, first))
                if not window:
                    return
                for chunk in window[0].result():
                    scratch.write(chunk)
                window.popleft()
                self._slots.release()
        finally:
            for future in window:
                future.cancel()
                future.add_done_callback(lambda _: self._slots.release())

    def expand(self, source: AnySource, context: Context) -> Iterator[FileSpec]:
        """The objects under a prefix (ends in ``/``) or of a glob (``*``, ``?`` stop at ``/``, ``**`` not), by key.

        ``name`` is relative to the prefix, or to the folder above the first wildcard; ``version`` is the ETag. Empty
        objects whose key ends in ``/`` (folder markers) are left out. Raises NothingMatched, or why it cannot list.
        """
        if not isinstance(source, Source):
            raise Unsupported(str(getattr(source, "uri", source)), "S3 can list a prefix or a glob only")
        bucket, key = split_uri(source.uri)
        if not bucket or _GLOB.search(bucket):
            raise BadResponse(source.uri, "names no bucket; write s3://BUCKET/PREFIX/ or s3://BUCKET/GLOB")
        wild = _GLOB.search(key)
        literal = key[: wild.start()] if wild else key
        folder = len(literal.rpartition("/")[0] + "/") if "/" in literal else 0
        matches, part = _matcher(source.uri, key), 0
        for item in _listing(source.uri, bucket, literal, context):
            name = item["Key"]
            if (name.endswith("/") and not item["Size"]) or not matches(name):
                continue
            yield FileSpec(
                source=0, part=part, uri=f"s3://{bucket}/{name}", size=item["Size"], connection=source.connection,
                name=name[folder:], version=item.get("ETag"),
            )  # fmt: skip
            part += 1
        if not part:
            raise NothingMatched(source.uri, f"no object {'matches' if wild else 'lies under it'} in bucket {bucket}")


def _matcher(uri: str, pattern: str) -> Callable[[str], object]:
    """Tells whether a key belongs to a prefix or a glob; the glob's rules are fsspec's, as for every other scheme."""
    if not _GLOB.search(pattern):
        return lambda key: key.startswith(pattern)
    try:
        return re.compile(glob_translate(pattern + "**" if pattern.endswith("/") else pattern)).fullmatch
    except ValueError as error:
        raise BadResponse(uri, f"not a glob: {error}") from None


def _listing(uri: str, bucket: str, prefix: str, context: Context) -> Iterator[dict[str, Any]]:
    """Page by page, in S3's own order, that of the keys' UTF-8 bytes. Not obstore: it fails on keys it cannot say."""
    profile = Profile.of(context)
    asked: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix, "PaginationConfig": {"PageSize": PAGE_KEYS}}
    if profile.requester_pays:
        asked["RequestPayer"] = "requester"
    with edge(uri, context):
        pages = iter(client_for(profile).get_paginator("list_objects_v2").paginate(**asked))
    while True:
        with edge(uri, context):
            page = next(pages, None)
        if page is None:
            return
        yield from page.get("Contents", ())


def _resume(spec: FileSpec, scratch: Scratch, reader: Reader) -> Part | None:
    """Go on where an earlier attempt stopped; None, with the scratch back at 0, when that cannot be."""
    journal = scratch.journal
    if journal and scratch.size and spec.version in {None, journal.validator}:
        with suppress(SourceChanged, NoRange):
            if scratch.size == journal.length:
                # All is there; the last byte once more tells whether it is still that version.
                part = reader.open((scratch.size - 1, scratch.size), journal.validator)
                part = Part(part.etag, part.total, 0, iter(()))
            else:
                part = reader.open((scratch.size, scratch.size + RANGE_BYTES), journal.validator)
            if part.etag == journal.validator and part.total >= scratch.size:
                return part
    scratch.restart()
    return None


def _begin(spec: FileSpec, scratch: Scratch, reader: Reader, known: Known | None) -> Part:
    """The first range, which for a small object is all of it; one plain GET where ranges cannot be had or pinned."""
    none_match = known.validator if known else None
    if spec.size != 0:
        with suppress(NoRange):
            part = reader.open((0, RANGE_BYTES), spec.version, none_match)
            if part.etag or part.length == part.total:
                return part
    return reader.open(None, spec.version, none_match)


def _range(uri: str, reader: Reader, span: tuple[int, int], first: Part) -> list[bytes]:
    """One range in memory, as chunks (one buffer of it all would be a second copy)."""
    try:
        part = reader.open(span, first.etag)
    except NoRange as error:
        raise SourceChanged(uri, f"it had {first.total} bytes, and now ends before byte {span[0]}") from error
    if part.etag != first.etag or part.total != first.total:
        raise SourceChanged(uri, f"it changed from {first.etag} to {part.etag} while it was read")
    chunks = list(part.chunks)
    got = sum(map(len, chunks))
    if got != span[1] - span[0]:
        raise Truncated(uri, f"got {got} bytes of the range {span[0]}-{span[1] - 1}")
    return chunks


def _write(uri: str, part: Part, scratch: Scratch) -> None:
    end = scratch.size + part.length
    for chunk in part.chunks:
        scratch.write(chunk)
    if scratch.size != end:
        raise Truncated(uri, f"got {scratch.size} bytes of {end}")
