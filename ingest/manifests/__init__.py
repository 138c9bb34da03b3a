"""Files that list sources (txt, csv, tsv, jsonl, parquet), read in flat memory: their rows become the files of a job.

``text`` and ``parquet`` give rows, ``rows`` says what a row means. Where a manifest comes from is not known here.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from ingest.errors import BadResponse, MissingExtra, UsageError
from ingest.manifests.marks import Mark, Marks
from ingest.manifests.parquet import parquet_rows
from ingest.manifests.rows import OnBad, row_maker
from ingest.manifests.text import text_rows
from ingest.model import FileSpec
from ingest.sources import Manifest

__all__ = ["FORMATS", "MOST_BAD", "Mark", "OnBad", "Reading"]

#: Rows of a manifest that may be no sources before it is taken for something else.
MOST_BAD = 1000

#: Extension → format; anything else is a URI a line.
_KINDS = {
    "csv": "csv",
    "tsv": "tsv",
    "tab": "tsv",
    "jsonl": "jsonl",
    "ndjson": "jsonl",
    "parquet": "parquet",
    "pq": "parquet",
}
FORMATS = ("txt", "csv", "jsonl", "tsv", "parquet")
_PACKED = {".gz", ".zst", ".zstd"}


class Reading:
    """One way through a manifest that lies at ``path``; ``index`` is its place in the request."""

    def __init__(self, path: Path, source: Manifest, index: int = 0) -> None:
        self._path, self._source, self._index = path, source, index
        self._marks = Marks()
        self.kind = source.format or _kind(path)

    def specs(self, on_bad: OnBad, after: Mark | None = None) -> Iterator[FileSpec]:
        """The files that it lists, behind a mark; ``part`` is the number of the line or row. One that cannot be right
        is told to ``on_bad`` and left out.

        Raises :class:`BadResponse` for what is no manifest, :class:`MissingExtra`, and OSError of the disk.
        """
        make = row_maker(self._source, self._index)
        uri = self._source.uri
        try:
            if self.kind == "parquet":
                rows = parquet_rows(self._path, self._source, self._marks, after)
            else:
                rows = text_rows(self._path, self._source, self.kind, self._marks, after, on_bad)
            for row, values in rows:
                try:
                    spec = make(row, values)
                except (UsageError, ValueError) as error:
                    on_bad(row, error)
                    continue
                yield spec
        except ImportError as error:
            raise MissingExtra(uri, "zstandard") from error
        except (EOFError, zlib.error) as error:
            raise BadResponse(uri, f"not a readable {self.kind} manifest: {error}") from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise BadResponse(uri, f"not a readable {self.kind} manifest: {error}") from None

    def mark(self, row: int) -> Mark | None:
        """Where to go on once all rows up to that one are dealt with; asked with growing numbers."""
        return self._marks.before(row)


def _kind(path: Path) -> str:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    if suffixes and suffixes[-1][1:] in _KINDS:
        return _KINDS[suffixes[-1][1:]]
    with open(path, "rb") as file:
        return "parquet" if file.read(4) == b"PAR1" else "txt"
