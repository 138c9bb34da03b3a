"""The nouns, as frozen values, and their JSON form. No I/O here.

``Source``, ``Sql`` and ``Manifest`` are what a user writes; ``FileSpec`` is one file of a shard, as it travels;
``FileRecord`` is what a data node says of a file it published; ``Failure`` is what it says of one it could not have.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from ingest.errors import BadSource, FetchError, PermanentFetchError, UsageError, by_name

#: Version of every record and message; readers accept what they know and ignore fields that they do not.
VERSION = 1

#: Digest algorithm → length of its hexadecimal form. ``crc32c`` is the only one that is not a cryptographic hash.
DIGEST_HEX = {
    "md5": 32,
    "sha1": 40,
    "sha256": 64,
    "sha384": 96,
    "sha512": 128,
    "blake2b": 128,
    "blake3": 64,
    "crc32c": 8,
}

#: User and password in a URI, up to the last @ if there is a colon before it: a password may hold any character.
_USERINFO = re.compile(r"//[^/?#@:]*(:.*)?@")

T = TypeVar("T", bound="Record")


class Record:
    """A frozen dataclass with a compact JSON form: fields that hold their default are left out."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        out = {}
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if value != f.default:
                out[f.name] = list(value) if isinstance(value, tuple) else value
        return out

    @classmethod
    def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
        names = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in names})


@dataclass(frozen=True, slots=True)
class Source(Record):
    """One URI to fetch: a file, a brace range (``a-{000..127}.tar``), a glob, or a prefix (trailing ``/``).

    ``digest`` is ``"sha256:<hex>"`` (or md5, sha1, sha384, sha512, blake2b, blake3, crc32c); ``size`` is in bytes.
    Both only make sense for a single file. ``connection`` names a profile in the data node's ``ingest.toml``;
    credentials never travel.
    """

    uri: str
    digest: str | None = None
    size: int | None = None
    connection: str | None = None


@dataclass(frozen=True)
class Sql(Record):
    """A table or a query over a named connection, written as Parquet: one file per partition.

    With ``partition_on`` (a column that can be ordered) and ``partitions`` > 1, the key range is cut into that many
    files; rows whose key is NULL go with the first. ``columns`` selects, ``where`` is an SQL condition.
    """

    connection: str
    query: str | None = None
    table: str | None = None
    columns: tuple[str, ...] = ()
    where: str | None = None
    partition_on: str | None = None
    partitions: int = 1
    row_group_rows: int = 65_536

    @property
    def uri(self) -> str:
        """Its identity: everything that decides the rows, in one line. Never opened as a URL."""
        what = self.table or "query-" + hashlib.sha256((self.query or "").encode()).hexdigest()[:12]
        return f"sql://{self.connection}/{what}"


@dataclass(frozen=True)
class Manifest(Record):
    """A file that lists sources, at any URI: one URI a line (txt), or jsonl/csv with ``uri``, ``digest`` and
    ``size``."""

    uri: str
    format: str | None = None
    connection: str | None = None
    uri_column: str = "uri"


AnySource = Source | Sql | Manifest
_KINDS: dict[str, type[Source] | type[Sql] | type[Manifest]] = {"source": Source, "sql": Sql, "manifest": Manifest}


def source_to_json(source: AnySource) -> dict[str, Any]:
    return {"kind": type(source).__name__.lower(), **source.to_json()}


def source_from_json(data: Mapping[str, Any]) -> AnySource:
    return _KINDS[data["kind"]].from_json(data)


@dataclass(frozen=True, slots=True)
class FileSpec(Record):
    """One file of a shard, as the planner hands it to a worker.

    ``source`` is the index of the source in the request and ``part`` the place within it (brace value, key or
    partition), so that ``(source, part)`` orders all files of a job. ``name`` is the path under ``into=``, ``sql`` the
    partition of a query; ``version`` an ETag or version id seen while listing.
    """

    source: int
    part: int
    uri: str
    digest: str | None = None
    size: int | None = None
    connection: str | None = None
    name: str | None = None
    version: str | None = None
    sql: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class FileRecord(Record):
    """One published file. ``path`` is relative to the root of store ``store``, which its node has mounted at ``root``;
    ``digest`` is of the bytes on disk.

    ``samples`` is known for tar, Parquet and JSON Lines. ``into`` is the absolute path of the copy that ``into=``
    asked for.
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
    """What applies to all of a job. ``placement``: ``here``, ``any``, ``spread`` or the name of a node.
    ``reply_to`` is the Celery task id that
    wants the job's result, where it is not the job's own. ``request`` is the fingerprint of the sources, so that a
    key is not used for two lists."""

    name: str = ""
    placement: str = "any"
    into: str | None = None
    fresh_s: float | None = None
    attempts: int | None = None
    deadline_s: float | None = None
    shard_files: int | None = None
    max_bytes: int | None = None
    reply: bool = False
    reply_to: str = ""
    request: str = ""


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


TERMINAL_JOB = frozenset({"done", "failed", "cancelled"})
TERMINAL_SHARD = frozenset({"done", "failed", "cancelled", "quarantined"})


def origin_of(uri: str) -> str:
    """Host, bucket or database that the bytes come from: ``https://host:port``, ``s3://bucket``, ``sql://connection``."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}" if parts.netloc else f"{parts.scheme or 'file'}://"


def source_key(uri: str, connection: str | None, extra: Any = None) -> str:
    """The identity of a source in a store: (URI, profile), and for SQL what is asked. 40 hex digits."""
    text = json.dumps([uri, connection, extra], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def parse_digest(digest: str) -> tuple[str, str]:
    """``"sha256:ABC…"`` → ``("sha256", "abc…")``. Raises :class:`UsageError` for one that cannot be right."""
    algorithm, colon, value = digest.partition(":")
    algorithm, value = algorithm.strip().lower().replace("-", ""), value.strip().lower()
    if not colon or algorithm not in DIGEST_HEX:
        raise UsageError(f"digest {digest!r}: write it as ALGORITHM:HEX, with one of {', '.join(DIGEST_HEX)}")
    if len(value) != DIGEST_HEX[algorithm] or not all(c in "0123456789abcdef" for c in value):
        raise UsageError(
            f"digest {digest!r}: {algorithm} has {DIGEST_HEX[algorithm]} hexadecimal digits, this has {len(value)}"
        )
    return algorithm, value


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


def check_source_text(uri: str) -> None:
    """Refuse what can be refused without asking anyone: control characters, no scheme, a password in the URI."""
    shown = _USERINFO.sub("//", uri) if "@" in uri else uri
    if not uri or uri != uri.strip() or _CONTROL.search(uri):
        raise BadSource(shown, "empty, or with white space at its ends or control characters inside")
    try:
        parts = urlsplit(uri)
        _ = parts.port, parts.netloc.encode()
    except ValueError:
        raise BadSource(shown, "not a URI: its host or port cannot be read") from None
    if not parts.scheme or uri[len(parts.scheme) :][:3] != "://":
        raise BadSource(shown, "has no scheme; write https://…, s3://…, file:///… or another URI that fsspec opens")
    if parts.password is not None:
        raise BadSource(
            shown,
            "a password in a URI would travel through the queue; put it under [connections.NAME] on the data nodes "
            "and pass Source(uri, connection='NAME')",
        )
    if parts.scheme in {"http", "https"} and not parts.hostname:
        raise BadSource(uri, "has no host")
    if parts.scheme == "s3" and not parts.netloc:
        raise BadSource(uri, "has no bucket; write s3://BUCKET/KEY")


def pack(records: Iterable[Record]) -> bytes:
    """Records as compressed JSON, the form in which lists of files travel (about 12 bytes for a URL of a regular
    list)."""
    return pack_json([r.to_json() for r in records])


def pack_json(data: Any) -> bytes:
    return zlib.compress(
        json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass"), 6
    )


def unpack_json(data: bytes) -> Any:
    return json.loads(zlib.decompress(data).decode("utf-8", "surrogatepass"))


def unpack(cls: type[T], data: bytes) -> list[T]:
    return [cls.from_json(item) for item in unpack_json(data)]


def as_sources(given: str | AnySource | Sequence[str | AnySource]) -> list[AnySource]:
    """What a user passes to submit, as a list of sources; a lone string or source is a list of one."""
    if isinstance(given, str | Source | Sql | Manifest) or not isinstance(given, Iterable):
        given = [given]
    out: list[AnySource] = []
    for item in given:
        if isinstance(item, str):
            item = Source(item)
        if not isinstance(item, Source | Sql | Manifest):
            raise UsageError(f"{item!r} is no source: pass a URI, ingest.Source, ingest.Sql or ingest.Manifest")
        out.append(item)
    if not out:
        raise UsageError("the list of sources is empty: give at least one URI")
    return out
