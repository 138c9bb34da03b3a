"""file:// and whatever else fsspec opens. ``fetcher`` reads and lists, ``files`` knows which path a file URI means."""

from workers.fetchers.fs.fetcher import FsFetcher

__all__ = ["FsFetcher"]
