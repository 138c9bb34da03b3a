"""s3://, and gs:// and az://, which take the same way. ``fetcher`` and ``clouds`` say how each is read and listed,
``ranges`` brings an object, ``verify`` checks it, ``listing`` lists, ``client`` makes clients of a profile, ``read`` is
one GET in either library, ``answers`` what its errors mean, ``objects`` the words that they share.
"""

from workers.fetchers.s3.clouds import CloudFetcher
from workers.fetchers.s3.fetcher import S3Fetcher

__all__ = ["CloudFetcher", "S3Fetcher"]
