"""What a fetcher is: it moves one file into a scratch file, or lists the files under a source. No fetcher imports
another; an API's shares the connections of HTTP.

A fetcher translates every error of its client library into :mod:`ingest.errors`, once, here at the edge: transient ones
are retried by the ledger, permanent ones fail the file now. The client library's own retries are off.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from ingest.model import FileSpec
from ingest.sections import Connection
from ingest.settings import Settings
from ingest.sources import AnySource
from ingest.store.scratch import Scratch


class Interrupted(Exception):
    """The work is to stop now, by no fault of the source. ``why``: ``cancelled``, ``lost`` (the lease), ``slice``
    (time is up), ``stopping`` (the worker shuts down), ``snapshot`` (the moment at which to read is not there yet).
    ``wasted``: what had come of this file cannot be continued; ``reason``: more of it, for a person. Fetchers let it
    pass."""

    def __init__(self, why: str, *, wasted: bool = False, reason: str = "") -> None:
        super().__init__(why)
        self.why, self.wasted, self.reason = why, wasted, reason


@dataclass(frozen=True)
class Known:
    """The version of the file that the store has: what to say in a conditional request."""

    version: str
    size: int
    validator: str | None = None


@dataclass(frozen=True)
class Fetched:
    """A whole file is in the scratch. ``version``: version id or strong ETag, else None (then the digest is the
    version).

    ``validator`` is what a later conditional request sends (ETag or Last-Modified, as the origin wrote it);
    ``name`` is a better base name than the URI's (Content-Disposition); ``samples`` is known to the writer of a
    Parquet file; ``mirrors`` are the URIs that bytes of it came from beside the source's own.
    """

    version: str | None = None
    validator: str | None = None
    name: str | None = None
    samples: int | None = None
    mirrors: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What a fetcher may use beside the file itself. ``connection`` is the profile, already resolved, or None.
    ``moment`` is what a database is to be read at, see :mod:`workers.snapshots`; None where any will do. ``after`` is
    the URI up to which a listing is known: what sorts before it need not be listed, but may be."""

    settings: Settings
    connection: Connection | None = None
    moment: str | None = None
    after: str | None = None

    def value(self, key: str, default: Any = None) -> Any:
        return self.connection.get(key, default) if self.connection else default


class Fetcher(Protocol):
    """One kind of source. An instance lives as long as its worker process, and may keep connections; it is used by
    several threads at once."""

    def fetch(self, spec: FileSpec, scratch: Scratch, known: Known | None, context: Context) -> Fetched | None:
        """Bring the file into ``scratch``; None when ``known`` is still what the origin has (then scratch is unused).

        Raises a :class:`~ingest.errors.FetchError`; :class:`Interrupted` passes through from ``scratch.write``.
        """
        ...

    def expand(self, source: AnySource, context: Context) -> Iterator[FileSpec]:
        """The files of a glob, prefix or query, as FileSpecs with ``source=0`` and ``part`` counting from 0, in an
        order that is the same at every call (keys ascending). A listing that fails raises; it is never an empty
        list."""
        ...
