"""From what a user wrote to units of work: checks that need nobody, and the cutting of literal lists and brace
ranges into shards.

What only the origin knows (globs, prefixes, partitions, manifests) becomes a piece of planning for a data node.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ingest.braces import count_braces, expand_braces, is_pattern
from ingest.errors import BadSource, UsageError
from ingest.model import FileSpec
from ingest.sources import AnySource, Api, Manifest, Source, Sql, check_source_text, parse_digest

#: Shards that a list is cut into before shards get more than one file: enough to balance over a fleet. Above it they
# grow,
#: up to 256 files each, so that a million small files are 4,000 units of work and not a million.
FEW, MOST_FILES = 256, 256


@dataclass(frozen=True)
class Unit:
    """``files`` for a shard; ``source`` for a piece of planning. ``index`` is that of its (first) source."""

    index: int
    files: tuple[FileSpec, ...] = ()
    source: AnySource | None = None


def needs_origin(source: AnySource) -> bool:
    return not isinstance(source, Source) or is_pattern(source.uri)


def check(source: AnySource) -> None:
    """Refuse what cannot be right, here, where the user is. Raises :class:`UsageError` or :class:`BadSource`."""
    if isinstance(source, Sql):
        _check_sql(source)
        return
    if isinstance(source, Api):
        _check_api(source)
        return
    if not isinstance(source.uri, str):
        raise UsageError(f"{source.uri!r} is no URI: write it as text, a local path as file:///path")
    check_source_text(source.uri)
    scheme = source.uri.partition("://")[0].lower()
    if scheme not in {"http", "https", "s3"}:
        _check_scheme(source.uri, scheme)
    if isinstance(source, Manifest):
        if source.format not in (None, "txt", "csv", "jsonl"):
            raise BadSource(source.uri, f"manifest format {source.format!r} is unknown; known: txt, csv, jsonl")
        return
    if is_pattern(source.uri) and scheme in {"http", "https"}:
        raise BadSource(
            source.uri,
            "HTTP cannot list: name the files, use a brace range like a-{000..127}.tar, or an ingest.Manifest",
        )
    many = count_braces(source.uri) != 1 or needs_origin(source)
    if source.digest is not None or source.size is not None:
        if many:
            raise BadSource(source.uri, "a digest or size belongs to one file, and this is a range or pattern of many")
        if source.digest is not None:
            parse_digest(source.digest)
        if source.size is not None and source.size < 0:
            raise BadSource(source.uri, f"a size of {source.size} bytes cannot be")


def _check_scheme(uri: str, scheme: str) -> None:
    import fsspec

    if scheme == "sql":
        raise BadSource(uri, "write SQL sources as ingest.Sql(connection, table=…) or ingest.Sql(connection, query=…)")
    if scheme not in fsspec.available_protocols():
        raise BadSource(
            uri,
            f"scheme {scheme!r} is unknown; known: http, https, s3, and what fsspec opens (file, gs, az, sftp, hf, …)",
        )
    if scheme == "file" and not uri.startswith("file:///"):
        raise BadSource(uri, "file URIs are absolute and local: write file:///path")


def _check_sql(sql: Sql) -> None:
    if (sql.query is None) == (sql.table is None):
        raise BadSource(sql.uri, "give either table= or query=")
    if not sql.connection:
        raise BadSource(sql.uri, "name the connection, as in ingest.toml's [connections.NAME]")
    if not 1 <= sql.partitions <= 100_000:
        raise BadSource(sql.uri, f"partitions={sql.partitions} must be between 1 and 100000")
    if sql.partitions > 1 and sql.partition_on is None:
        raise BadSource(sql.uri, "partitions= needs partition_on=, the column to cut by")
    if sql.row_group_rows < 1:
        raise BadSource(sql.uri, f"row_group_rows={sql.row_group_rows} must be at least 1")


def _check_api(api: Api) -> None:
    if not api.connection:
        raise BadSource(api.uri, "name the connection, as in ingest.toml's [connections.NAME]")


def shard_size(files: int, wanted: int | None) -> int:
    """Files per shard for that many literal files in all."""
    if wanted is not None:
        return wanted
    return 1 if files <= FEW else min(MOST_FILES, math.ceil(files / FEW))


def cut(sources: Sequence[AnySource], wanted: int | None) -> Iterator[Unit]:
    """Units in the order of the sources. A shard never reaches across a source that must be planned, so that the
    order of shards is the order of files."""
    literal = sum(count_braces(s.uri) for s in sources if not needs_origin(s))
    size = shard_size(literal, wanted)
    files: list[FileSpec] = []
    for index, source in enumerate(sources):
        if needs_origin(source):
            if files:
                yield Unit(files[0].source, tuple(files))
                files = []
            yield Unit(index, source=source)
            continue
        assert isinstance(source, Source)
        digest = ":".join(parse_digest(source.digest)) if source.digest else None
        for part, uri in enumerate(expand_braces(source.uri)):
            files.append(FileSpec(index, part, uri, digest, source.size, source.connection))
            if len(files) >= size:
                yield Unit(files[0].source, tuple(files))
                files = []
    if files:
        yield Unit(files[0].source, tuple(files))


def positive(name: str, value: float | None) -> None:
    """Raises :class:`UsageError` for a limit that would mean nothing."""
    if value is not None and not (isinstance(value, int | float) and value > 0):
        raise UsageError(f"{name}={value!r} must be a number above 0")
