"""The nouns of a job, as frozen values. No I/O here. What a user writes is in ``sources``.

``FileSpec`` is one file of a shard, as it travels; ``FileRecord`` is what a data node says of a file it published;
``Failure`` is what it says of one it could not have.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from ingest.errors import FetchError, PermanentFetchError, by_name
from ingest.record import Record


@dataclass(frozen=True, slots=True)
class FileSpec(Record):
    """One file of a shard, as the planner hands it to a worker.

    ``source`` is the index of the source in the request and ``part`` the place within it (brace value, key or
    partition), so that ``(source, part)`` orders all files of a job. ``name`` is the path under ``into=``;
    ``request`` is what a database or an API is asked (a partition of a query); ``version`` an ETag or version id
    seen while listing, ``pin`` the version id that the user wants. ``mirrors`` and ``checksums`` are the source's;
    ``key`` and ``metadata`` a manifest's, for the sample in a packed shard.
    """

    source: int
    part: int
    uri: str
    digest: str | None = None
    size: int | None = None
    connection: str | None = None
    name: str | None = None
    version: str | None = None
    request: Mapping[str, Any] | None = None
    mirrors: tuple[str, ...] = ()
    checksums: str | None = None
    key: str | None = None
    metadata: Mapping[str, Any] | None = None
    pin: str | None = None

    @property
    def index(self) -> tuple[int, int]:
        """(source, part)."""
        return self.source, self.part


@dataclass(frozen=True, slots=True)
class FileRecord(Record):
    """One published file. ``piece`` counts the files that one source became (0 where it is one). ``path`` is relative
    to the root of store ``store``, which its node has mounted at ``root``; ``digest`` is of the bytes on disk.

    ``samples`` is known for tar, Parquet and JSON Lines. ``into`` is the absolute path of the copy that ``into=``
    asked for, or the URI of the upload. A packed file ``covers`` many sources: runs of (source, first part, last
    part).
    """

    source: int
    part: int
    uri: str
    path: str
    size: int
    digest: str
    store: str
    node: str
    version: str
    root: str = ""
    samples: int | None = None
    into: str | None = None
    reused: bool = False
    piece: int = 0
    covers: tuple[tuple[int, int, int], ...] = ()

    @property
    def index(self) -> tuple[int, int]:
        """(source, part): of all pieces of one source, the same."""
        return self.source, self.part

    @property
    def place(self) -> tuple[int, int, int]:
        """What orders the files of a job."""
        return self.source, self.part, self.piece

    @property
    def holds(self) -> Iterator[tuple[int, int]]:
        """(source, part) of everything that is in it."""
        if not self.covers:
            yield self.source, self.part
        for source, first, last in self.covers:
            yield from ((source, part) for part in range(first, last + 1))


@dataclass(frozen=True)
class Failure(Record):
    """One source that could not be had. ``error`` is the name of a class in :mod:`ingest.errors`."""

    source: str
    error: str
    reason: str
    attempts: int
    shard: str
    node: str = ""
    index: tuple[int, int] = (0, 0)
    details: tuple[Any, ...] = ()  # what the error was made of beside the source, where that is more than the reason

    def __str__(self) -> str:
        where = f" on node {self.node}" if self.node else ""
        tries = f"{self.attempts} attempt{'s' * (self.attempts != 1)}"
        return f"{self.source}: {self.reason} ({self.error} after {tries}{where})"

    def exception(self) -> FetchError:
        """The typed error again, for those who want to raise it."""
        try:
            return by_name(self.error)(self.source, *(self.details or (self.reason,)))
        except TypeError:  # details of another version, or none of an error that is made of several
            return PermanentFetchError(self.source, f"{self.error}: {self.reason}")


@dataclass(frozen=True)
class JobOptions(Record):
    """What applies to all of a job. ``placement``: ``here``, ``any``, ``spread`` or the name of a node. ``convert`` are
    the steps that every file goes through, ``pack`` how many of them become one. ``reply_to`` is the Celery task id
    that wants the job's result, where it is not the job's own. ``request`` is the fingerprint of the sources, so that
    a key is not used for two lists. ``slots`` is how many processes the fleet had, which decides how a list is cut:
    also when it is submitted again. ``dry_run``: units are counted, and nothing is fetched."""

    name: str = ""
    placement: str = "any"
    into: str | None = None
    fresh_s: float | None = None
    attempts: int | None = None
    deadline_s: float | None = None
    shard_files: int | None = None
    max_bytes: int | None = None
    convert: tuple[Mapping[str, Any], ...] = ()
    pack: Mapping[str, Any] | None = None
    reply: bool = False
    reply_to: str = ""
    request: str = ""
    slots: int = 0
    dry_run: bool = False


@dataclass(frozen=True)
class JobStatus:
    """A job at one moment. ``state``: planning, running, done, failed or cancelled. Bytes are on-disk bytes so far."""

    id: str
    name: str
    state: str
    shards: Mapping[str, int]
    files: int
    files_done: int
    files_failed: int
    bytes: int
    seconds: float
    rate: float
    eta_s: float | None
    waiting_for: str = ""
    created: float = 0.0
    retries: int = 0

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Consumer:
    """A dataset of one rank that reads a job, as it said ``age_s`` ago: its ``epoch``, how many ``samples`` of it it
    has given, and ``step``, how many batches that is (None where it knows no batch size). ``samples_per_s`` is its rate
    of late; ``waited_s`` the seconds that all its iterators together have waited for files, since it was made."""

    rank: int
    world: int
    epoch: int
    samples: int
    step: int | None
    samples_per_s: float
    waited_s: float
    host: str
    pid: int
    age_s: float

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


TERMINAL_JOB = frozenset({"done", "failed", "cancelled"})
TERMINAL_SHARD = frozenset({"done", "failed", "cancelled", "quarantined"})


def origin_of(uri: str) -> str:
    """Host, bucket or database that the bytes come from: ``https://host:port``, ``s3://bucket``,
    ``sql://connection``."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else f"{parts.scheme or 'file'}://"


def source_key(uri: str, connection: str | None, extra: Any = None) -> str:
    """The identity of a source in a store: (URI, profile), and for SQL what is asked. 40 hex digits."""
    text = json.dumps([uri, connection, extra], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]
