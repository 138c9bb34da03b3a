"""What a user writes: ``Source``, ``Sql``, ``Api`` and ``Manifest``, as frozen values. No I/O here.

What a data node makes of them is in ``model``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

from ingest.errors import BadSource, UsageError
from ingest.record import Record

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
#: What a digest without its algorithm's name is, by that length. Those that are as long as these must be named; eight
#: digits could be any CRC.
DIGEST_BY_LENGTH = {32: "md5", 40: "sha1", 64: "sha256", 96: "sha384", 128: "sha512"}

#: User and password in a URI, up to the last @ if there is a colon before it: a password may hold any character.
_USERINFO = re.compile(r"//[^/?#@:]*(:.*)?@")


@dataclass(frozen=True, slots=True)
class Source(Record):
    """One URI to fetch: a file, a brace range (``a-{000..127}.tar``), a glob, or a prefix (trailing ``/``).

    ``digest`` is ``"sha256:<hex>"`` (or md5, sha1, sha384, sha512, blake2b, blake3, crc32c); ``size`` is in bytes.
    Both only make sense for a single file, and so do ``mirrors``: other URIs of the same bytes, tried in turn.
    ``checksums`` says where a digest is found: ``"beside"`` is the file's own URI with ``.sha256`` at its end; any
    other URI is a list of digests and names, as ``sha256sum`` writes it. ``version`` is a version id of an object
    store (S3's ``versionId``, GCS's generation); without it the newest is meant. ``connection`` names a profile in the
    data node's ``ingest.toml``; credentials never travel.
    """

    uri: str
    digest: str | None = None
    size: int | None = None
    connection: str | None = None
    mirrors: tuple[str, ...] = ()
    checksums: str | None = None
    version: str | None = None


@dataclass(frozen=True)
class Sql(Record):
    """A table or a query over a named connection, written as Parquet: one file per partition.

    With ``partitions`` > 1 the rows are cut into up to that many parts of about as many rows each: by ``partition_on``
    (a column that can be ordered), else the first of ``order_by``; else a table of PostgreSQL by its pages, any other
    by its primary key. Rows whose key is NULL go with the first. ``columns`` selects, ``where`` is an SQL condition,
    ``order_by`` sorts the rows of each part: ``("day", "id DESC")``. A row group has up to ``row_group_rows`` rows, and
    a part is continued in another file each time one has ``file_bytes``.

    All parts are of one moment, or it is an error; ``consistent=False`` reads each at a moment of its own. With
    ``incremental_on`` (a column whose values grow) there are only the rows above the greatest value of the last job
    that asked the same and had all of it, or above ``since``.
    """

    connection: str
    query: str | None = None
    table: str | None = None
    columns: tuple[str, ...] = ()
    where: str | None = None
    partition_on: str | None = None
    partitions: int = 1
    row_group_rows: int = 65_536
    order_by: tuple[str, ...] = ()
    incremental_on: str | None = None
    since: Any = None
    consistent: bool = True
    file_bytes: int = 512 << 20

    def __post_init__(self) -> None:
        if isinstance(self.since, date | time | Decimal | UUID):  # as databases read it
            since = self.since
            if isinstance(since, datetime) and since.tzinfo is not None:
                since = since.astimezone(UTC)  # what UTC says is right also where a database does not look at the zone
            text = since.isoformat(" ") if isinstance(since, datetime) else str(since)
            object.__setattr__(self, "since", text)

    @property
    def cursor_key(self) -> str:
        """What tells the cursor of one increment from that of another: everything that decides which rows there are."""
        asked = [self.connection, self.table, self.query, list(self.columns), self.where, self.incremental_on]
        return hashlib.sha256(json.dumps(asked).encode("utf-8", "surrogatepass")).hexdigest()[:40]

    @property
    def uri(self) -> str:
        """Its identity: everything that decides the rows, in one line. Never opened as a URL."""
        what = (
            self.table or "query-" + hashlib.sha256(str(self.query).encode("utf-8", "surrogatepass")).hexdigest()[:12]
        )
        return f"sql://{self.connection}/{what}"


@dataclass(frozen=True)
class Manifest(Record):
    """A file that lists sources: one URI a line (txt), or csv, tsv, jsonl or Parquet with columns.

    ``uri`` is where the data node finds it, or the path of a file on this machine (no ``scheme://``), which ``submit``
    reads. ``uri_column``, ``digest_column``, ``size_column`` and ``key_column`` name the columns (the last three may
    be missing from the file unless you name them); ``metadata`` names those that are to be handed on with each sample.
    """

    uri: str
    format: str | None = None
    connection: str | None = None
    uri_column: str = "uri"
    digest_column: str = "digest"
    size_column: str = "size"
    key_column: str = "key"
    metadata: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if isinstance(self.uri, os.PathLike):
            object.__setattr__(self, "uri", os.fspath(self.uri))

    @property
    def is_local(self) -> bool:
        """Whether it is a file of the machine that submits."""
        return "://" not in self.uri


@dataclass(frozen=True)
class Api(Record):
    """The records of an HTTP API, all pages of them, as one file of JSON Lines or Parquet (``format="parquet"``).

    ``path`` is appended to the connection's ``url``; ``params`` is the query, ``body`` what a POST sends as JSON.
    ``records`` is the way to the list in an answer, ``"data.items"`` (a list of keys where one has a dot in it); "" is
    the answer itself: a list, or one record. ``paginate`` says how pages follow each other, see docs/sources.md:
    ``{"kind": "link" | "cursor" | "offset" | "page", …}``; None is one request.
    """

    connection: str
    path: str = ""
    method: str = "GET"
    params: Mapping[str, Any] | None = None
    body: Any = None
    records: str | tuple[str, ...] = ""
    paginate: Mapping[str, Any] | None = None
    format: str = "jsonl"

    @property
    def uri(self) -> str:
        """Its identity: everything that decides the records, in one line. Never opened as a URL."""
        asked = json.dumps(
            [self.method, self.params, self.body, self.records, self.paginate, self.format], sort_keys=True
        )
        return f"api://{self.connection}/{self.path.lstrip('/')}#{hashlib.sha256(asked.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class Pack(Record):
    """Many small files as few: WebDataset tars or Parquet files of about ``bytes`` each, in the order of the request.

    ``samples`` is how many files make a shard; what fails of them is left out and listed, and fails the shard when it
    is more than the share ``max_failed`` (0 to 1).
    """

    format: str = "tar"
    bytes: int = 256 << 20
    samples: int = 10_000
    max_failed: float = 0.1


AnySource = Source | Sql | Api | Manifest
_KINDS: dict[str, type[Source] | type[Sql] | type[Api] | type[Manifest]] = {
    "source": Source,
    "sql": Sql,
    "api": Api,
    "manifest": Manifest,
}


def source_to_json(source: AnySource) -> dict[str, Any]:
    return {"kind": type(source).__name__.lower(), **source.to_json()}


def source_from_json(data: Mapping[str, Any]) -> AnySource:
    return _KINDS[data["kind"]].from_json(data)


def parse_digest(digest: str) -> tuple[str, str]:
    """``"sha256:ABC…"`` → ``("sha256", "abc…")``. Raises :class:`UsageError` for one that cannot be right."""
    algorithm, colon, value = digest.partition(":")
    algorithm, value = algorithm.strip().lower().replace("-", ""), value.strip().lower()
    if not colon or algorithm not in DIGEST_HEX:
        raise UsageError(f"digest {digest!r}: write it as ALGORITHM:HEX, with one of {', '.join(DIGEST_HEX)}")
    if len(value) != DIGEST_HEX[algorithm] or value.strip("0123456789abcdef"):
        raise UsageError(
            f"digest {digest!r}: {algorithm} has {DIGEST_HEX[algorithm]} hexadecimal digits, this has {len(value)}"
        )
    return algorithm, value


_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HOST = r"(?:https?|s3)://[A-Za-z0-9][A-Za-z0-9.-]*(?::[1-5]?[0-9]{1,4})?/"
#: A URI in which there is nothing to refuse.
_GOOD = re.compile(_HOST + r"[!-~]*")
#: One, moreover, that is of a single file: it has none of ``* ? [ { \ #`` and no ``/`` at its end.
_PLAIN = re.compile(_HOST + r"""[!"$-)+->@-Z\]-z|-~]*(?<!/)""")


def check_source_text(uri: str) -> None:
    """Refuse what can be refused without asking anyone: control characters, no scheme, a password in the URI."""
    if _GOOD.fullmatch(uri):
        return
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


def as_sources(given: str | AnySource | Sequence[str | AnySource]) -> list[str | AnySource]:
    """What a user passes to submit, as a list; a lone string or source is a list of one.

    The URI of a single file, in which there is nothing to refuse, stays a string: of a list of a million they all are.
    """
    if isinstance(given, str | AnySource) or not isinstance(given, Iterable):
        given = [given]
    out: list[str | AnySource] = []
    for item in given:
        if isinstance(item, str):
            out.append(item if _PLAIN.fullmatch(item) else Source(item))
        elif isinstance(item, AnySource):
            out.append(item)
        else:
            raise UsageError(f"{item!r} is no source: pass a URI, ingest.Source, ingest.Sql, .Api or .Manifest")
    if not out:
        raise UsageError("the list of sources is empty: give at least one URI")
    return out
