"""Fetchers by scheme, loaded when first needed. A scheme that is not listed goes to fsspec."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import cast

from workers.fetchers.base import Fetcher

#: scheme → module:class. ``fs`` takes everything else that fsspec knows.
REGISTRY = {
    "http": "workers.fetchers.http:HttpFetcher",
    "https": "workers.fetchers.http:HttpFetcher",
    "s3": "workers.fetchers.s3:S3Fetcher",
    "gs": "workers.fetchers.s3:CloudFetcher",
    "gcs": "workers.fetchers.s3:CloudFetcher",
    "az": "workers.fetchers.s3:CloudFetcher",
    "api": "workers.fetchers.api:ApiFetcher",
    "sql": "workers.fetchers.sql:SqlFetcher",
}
FALLBACK = "workers.fetchers.fs:FsFetcher"


@cache
def _load(target: str) -> Fetcher:
    module, _, name = target.partition(":")
    return cast(Fetcher, getattr(import_module(module), name)())


def fetcher_for(scheme: str) -> Fetcher:
    """The one fetcher of this process for that scheme."""
    return _load(REGISTRY.get(scheme, FALLBACK))
