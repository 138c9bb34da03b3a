"""gs:// and az://: the same ranges and listings as S3's, by obstore alone. What obstore cannot say, or does not show,
is not to be had here: keys with an empty or dotted segment, and checksums.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from ingest.errors import BadResponse, NotFound, Unsupported
from ingest.model import FileSpec
from ingest.sources import AnySource
from workers.fetchers.base import Context
from workers.fetchers.s3 import listing
from workers.fetchers.s3.answers import Elsewhere, edge
from workers.fetchers.s3.listing import Listed
from workers.fetchers.s3.objects import Part, Policy, Reader, Stated
from workers.fetchers.s3.ranges import RangedFetcher
from workers.fetchers.s3.read import ObstoreReader, check_bucket, plain, split_uri

if TYPE_CHECKING:
    from obstore.store import AzureStore, GCSStore

PAGE = 1000
#: Our keys of a profile → obstore's. What is not given is looked for where Google's and Azure's own tools look.
_GCS = {"service_account": "service_account", "key": "service_account_key", "token": "bearer_token"}
_AZURE = {"account": "account_name", "key": "account_key", "sas": "sas_key", "tenant": "tenant_id",
          "client": "client_id", "secret": "client_secret"}  # fmt: skip

Options = tuple[tuple[str, Any], ...]


class CloudFetcher(RangedFetcher):
    """``gs://bucket/key`` and ``az://container/key``; the key is literal."""

    def reader(self, spec: FileSpec, context: Context) -> Reader:
        bucket, key = split_uri(spec.uri)
        if not bucket or not key:
            raise BadResponse(spec.uri, f"names no object; write {_scheme(spec.uri)}://BUCKET/KEY")
        check_bucket(spec.uri, bucket)
        if not plain(key):
            raise Unsupported(spec.uri, "a key with an empty, . or .. segment, or a control character, cannot be read")
        return _CloudReader(ObstoreReader(spec.uri, key, _store(spec.uri, bucket, context), context, spec.pin))

    def expand(self, source: AnySource, context: Context) -> Iterator[FileSpec]:
        """See :class:`workers.fetchers.base.Fetcher`, and :func:`workers.fetchers.s3.listing.expand`."""
        return listing.expand(
            source, context, lambda bucket, prefix, after: _listed(source.uri, bucket, prefix, after, context)
        )


class _CloudReader:
    """An ObstoreReader whose redirects are errors."""

    policy: Policy = False

    def __init__(self, reader: ObstoreReader) -> None:
        self._reader = reader

    def open(self, span: tuple[int, int] | None, match: str | None, none_match: str | None = None) -> Part:
        try:
            return self._reader.open(span, match, none_match)
        except Elsewhere as found:
            raise found.error from None

    def stated(self, part: Part) -> Stated:
        return self._reader.stated(part)

    def exactly(self, part: Part, stated: Stated) -> Stated:
        return self._reader.exactly(part, stated)


@contextmanager
def _edge(uri: str, context: Context) -> Iterator[None]:
    """As ``answers.edge``, but neither cloud sends a redirect that could be followed."""
    try:
        with edge(uri, context):
            yield
    except Elsewhere as found:
        raise found.error from None


def _scheme(uri: str) -> str:
    return uri.partition("://")[0].lower()


def _store(uri: str, bucket: str, context: Context) -> GCSStore | AzureStore:
    azure = _scheme(uri) == "az"
    names = _AZURE if azure else _GCS
    limits = context.settings.limits
    options: dict[str, Any] = {
        ours: str(context.value(name)) for name, ours in names.items() if context.value(name) is not None
    }
    if context.value("anonymous"):
        options["skip_signature"] = True
    endpoint = str(context.value("endpoint") or "").rstrip("/")
    if endpoint:
        options["endpoint" if azure else "base_url"] = endpoint
    if not options and context.value("options") is not None:  # beside ours they are for whoever writes there
        raise BadResponse(uri, f"options are for fsspec; {_scheme(uri)} knows {', '.join(names)}, anonymous, endpoint")
    with _edge(uri, context):
        return _made(azure, bucket, tuple(options.items()), endpoint, (limits.connect_s, limits.stall_s, limits.soft_s))


@lru_cache(maxsize=256)
def _made(
    azure: bool, bucket: str, options: Options, endpoint: str, limits: tuple[float, float, float]
) -> GCSStore | AzureStore:
    from obstore.store import AzureStore, GCSStore

    connect_s, stall_s, soft_s = limits
    return (AzureStore if azure else GCSStore)(
        bucket,
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=connect_s),
            "read_timeout": timedelta(seconds=stall_s),
            "timeout": timedelta(seconds=soft_s),
        },
        retry_config={"max_retries": 0},  # the ledger retries
        **dict(options),
    )


def _listed(uri: str, bucket: str, prefix: str, after: str, context: Context) -> Iterator[Listed]:
    """obstore lists folders, not prefixes of text, and shows the marker ``a/`` of one as an empty ``a``."""
    import obstore

    store = _store(uri, bucket, context)
    with _edge(uri, context):
        stream = obstore.list(store, prefix=prefix.rpartition("/")[0] or None, offset=after or None, chunk_size=PAGE)
        pages = iter(stream)
    last = ""
    while True:
        with _edge(uri, context):
            page = next(pages, None)
        if page is None:
            return
        for found in page:
            key = found["path"]
            if after and key.encode() <= after.encode():
                continue  # not every server begins where it is told to
            if not found["size"] and not _is_there(uri, store, key, context):
                continue
            if last and key.encode() <= last.encode():
                raise BadResponse(uri, f"the listing is not in order, or repeats itself, at key {key[:200]!r}")
            last = key
            yield Listed(key, found["size"], found["e_tag"])


def _is_there(uri: str, store: GCSStore | AzureStore, key: str, context: Context) -> bool:
    import obstore

    try:
        with _edge(uri, context):
            obstore.head(store, key)
    except NotFound:
        return False
    return True
