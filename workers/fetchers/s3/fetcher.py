"""S3: one object in parallel ranges (``ranges``), prefixes and globs (``listing``)."""

from __future__ import annotations

from collections.abc import Iterator

from ingest.model import FileSpec
from ingest.sources import AnySource
from workers.fetchers.base import Context
from workers.fetchers.s3 import listing
from workers.fetchers.s3.objects import Reader
from workers.fetchers.s3.ranges import RangedFetcher
from workers.fetchers.s3.read import reader_for


class S3Fetcher(RangedFetcher):
    """``s3://bucket/key``. The key is literal; ``*``, ``?`` and ``[`` mean something only in :meth:`expand`."""

    def reader(self, spec: FileSpec, context: Context) -> Reader:
        return reader_for(spec, context)

    def expand(self, source: AnySource, context: Context) -> Iterator[FileSpec]:
        """See :class:`workers.fetchers.base.Fetcher`, and :func:`workers.fetchers.s3.listing.expand`."""
        return listing.expand(
            source,
            context,
            lambda bucket, prefix, after: listing.pages(source.uri, bucket, prefix, after, context),
        )
