"""s3://. ``fetcher`` reads and lists, ``client`` makes clients of a profile, ``read`` is one GET in either library."""

from workers.fetchers.s3.fetcher import S3Fetcher

__all__ = ["S3Fetcher"]
