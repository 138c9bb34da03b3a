"""http:// and https://. ``fetcher`` makes requests, ``answers`` says what one means, ``wire`` is the connections."""

from workers.fetchers.http.fetcher import HttpFetcher

__all__ = ["HttpFetcher"]
