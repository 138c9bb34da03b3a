"""HTTP APIs. ``fetcher`` goes from page to page, ``pages`` says which is next, ``calls`` makes a request, ``records``
reads an answer, ``rates`` waits, ``table`` makes Parquet."""

from workers.fetchers.api.fetcher import ApiFetcher

__all__ = ["ApiFetcher"]
