"""http:// and https://. ``fetcher`` brings a file, ``ranges`` a large one over several connections; ``exchange`` makes
the requests, ``answers`` and ``found`` say what an answer means, ``wire`` is the connections."""

from workers.fetchers.http.fetcher import HttpFetcher

__all__ = ["HttpFetcher"]
