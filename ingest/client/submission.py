"""From what a user wrote to units of work: checks that need nobody, and the cutting of literal lists and brace
ranges into shards.

What only the origin knows (globs, prefixes, partitions, manifests) becomes a piece of planning for a data node.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from ingest.apis import check_api
from ingest.braces import count_braces, expand_braces, is_pattern
from ingest.client.local import Survey, check_local, listed
from ingest.cuts import shard_size
from ingest.errors import BadSource, UsageError
from ingest.manifests import FORMATS
from ingest.model import FileSpec
from ingest.sources import AnySource, Api, Manifest, Pack, Source, Sql, check_source_text, parse_digest

#: Samples of a packed shard: what is known of them is in the memory of the worker that packs it.
MOST_SAMPLES = 100_000
#: Schemes of stores that keep older versions of an object, and give one by its id.
VERSIONED = frozenset({"s3", "gs", "gcs", "az"})


@dataclass(frozen=True)
class Unit:
    """``files`` for a shard, each as it travels (:meth:`FileSpec.to_json`: of a million it is half the work to make
    anything else of them first); ``source`` for a piece of planning. ``index`` is that of its (first) source."""

    index: int
    files: tuple[Mapping[str, Any], ...] = ()
    source: AnySource | None = None


def needs_origin(source: str | AnySource) -> TypeGuard[AnySource]:
    """Whether only the origin knows which files these are."""
    if isinstance(source, str):
        return False
    if isinstance(source, Manifest):
        return not source.is_local
    return not isinstance(source, Source) or is_pattern(source.uri)


def check(source: str | AnySource) -> None:
    """Refuse what cannot be right, here, where the user is. Raises :class:`UsageError` or :class:`BadSource`."""
    if isinstance(source, str):  # ``as_sources`` has looked at it
        return
    if isinstance(source, Sql):
        _check_sql(source)
        return
    if isinstance(source, Api):
        check_api(source)
        return
    if not isinstance(source.uri, str):
        raise UsageError(f"{source.uri!r} is no URI: write it as text, a local path as file:///path")
    if isinstance(source, Manifest):
        _check_manifest(source)
        if source.is_local:
            check_local(source)
            return
    check_source_text(source.uri)
    scheme = source.uri.partition("://")[0].lower()
    if scheme not in {"http", "https", "s3"}:
        _check_scheme(source.uri, scheme)
    if isinstance(source, Manifest):
        return
    if is_pattern(source.uri) and scheme in {"http", "https"}:
        raise BadSource(
            source.uri,
            "HTTP cannot list: name the files, use a brace range like a-{000..127}.tar, or an ingest.Manifest",
        )
    if source.checksums is not None:
        _check_checksums(source)
    many = count_braces(source.uri) != 1 or needs_origin(source)
    if source.mirrors:
        _check_mirrors(source, many)
    if source.version is not None:
        _check_version(source, scheme, many)
    if source.digest is not None or source.size is not None:
        if many:
            raise BadSource(source.uri, "a digest or size belongs to one file, and this is a range or pattern of many")
        if source.digest is not None:
            parse_digest(source.digest)
        if source.size is not None and source.size < 0:
            raise BadSource(source.uri, f"a size of {source.size} bytes cannot be")


def _check_mirrors(source: Source, many: bool) -> None:
    given: object = source.mirrors
    if not isinstance(given, tuple | list) or not all(isinstance(uri, str) for uri in given):
        raise BadSource(source.uri, "mirrors= is a list of URIs")
    if many:
        raise BadSource(source.uri, "mirrors are of one file, and this is a range or pattern of many")
    if source.version is not None:
        raise BadSource(source.uri, "version= is the source's own, a mirror has others: give mirrors= a digest instead")
    for uri in source.mirrors:
        check(Source(uri))
        if count_braces(uri) != 1 or needs_origin(Source(uri)):
            raise BadSource(source.uri, f"mirror {uri} is a range or pattern of many files; name one")


def _check_checksums(source: Source) -> None:
    if source.checksums != "beside":
        if not isinstance(source.checksums, str) or "://" not in source.checksums:
            raise BadSource(source.uri, "checksums= is 'beside', or the URI of a list such as https://…/SHA256SUMS")
        check_source_text(source.checksums)
    if source.digest is not None:
        raise BadSource(source.uri, "give a digest or checksums=, not both: which of them should decide?")


def _check_version(source: Source, scheme: str, many: bool) -> None:
    if scheme not in VERSIONED:
        raise BadSource(source.uri, f"version= is for {', '.join(sorted(VERSIONED))} only: they keep what was there")
    if many or not source.version:
        raise BadSource(source.uri, "a version belongs to one file; write it as the store shows it")


def _check_manifest(source: Manifest) -> None:
    if source.format not in (None, *FORMATS):
        raise BadSource(source.uri, f"manifest format {source.format!r} is unknown; known: {', '.join(FORMATS)}")
    columns = (source.uri_column, source.digest_column, source.size_column, source.key_column)
    metadata: object = source.metadata
    if not isinstance(metadata, tuple | list) or not all(isinstance(name, str) for name in (*columns, *metadata)):
        raise BadSource(source.uri, "columns are named as text, metadata= as a list of texts")


def _check_scheme(uri: str, scheme: str) -> None:
    import fsspec

    if scheme == "sql":
        raise BadSource(uri, "write SQL sources as ingest.Sql(connection, table=…) or ingest.Sql(connection, query=…)")
    if scheme == "api":
        raise BadSource(uri, "write API sources as ingest.Api(connection, path)")
    if scheme not in fsspec.available_protocols():
        raise BadSource(
            uri,
            f"scheme {scheme!r} is unknown; known: http, https, s3, and what fsspec opens (file, gs, az, sftp, hf, …)",
        )
    if scheme == "file" and not uri.startswith("file:///"):
        raise BadSource(uri, "file URIs are absolute and local: write file:///path")


def _check_sql(sql: Sql) -> None:
    _check_sql_kinds(sql)
    if (sql.query is None) == (sql.table is None):
        raise BadSource(sql.uri, "give either table= or query=")
    if not sql.connection:
        raise BadSource(sql.uri, "name the connection, as in ingest.toml's [connections.NAME]")
    if not 1 <= sql.partitions <= 100_000:
        raise BadSource(sql.uri, f"partitions={sql.partitions} must be between 1 and 100000")
    if sql.partitions > 1 and sql.query is not None and not (sql.partition_on or sql.order_by):
        raise BadSource(sql.uri, "partitions= of a query needs partition_on=, the column to cut by")
    if sql.since is not None and sql.incremental_on is None:
        raise BadSource(sql.uri, f"since={sql.since!r} needs incremental_on=, the column that it is a value of")
    for name in ("row_group_rows", "file_bytes"):
        if not 1 <= getattr(sql, name) < 1 << 63:
            raise BadSource(sql.uri, f"{name}={getattr(sql, name)} must be at least 1")


def _check_sql_kinds(sql: Sql) -> None:
    """Whatever its annotations say."""
    for name in ("connection", "query", "table", "where", "partition_on", "incremental_on"):
        value: Any = getattr(sql, name)
        if value is not None and not isinstance(value, str):
            raise BadSource(_shown(sql), f"{name}={value!r} must be text")
        if value is not None and name != "connection" and not value.strip():
            raise BadSource(_shown(sql), f"{name}= is empty: leave it out")
        if value is not None and not _is_unicode(value):
            raise BadSource(_shown(sql), f"{name}= is no Unicode text")
    for name, example in (("columns", "('id', 'day')"), ("order_by", "('day', 'id DESC')")):
        names: Any = getattr(sql, name)
        if not isinstance(names, tuple | list) or not all(isinstance(n, str) and n.strip() for n in names):
            raise BadSource(sql.uri, f"{name}={names!r} must be columns, like {example}")
        if not all(map(_is_unicode, names)):
            raise BadSource(sql.uri, f"{name}= is no Unicode text")
    for name in ("partitions", "row_group_rows", "file_bytes"):
        number: Any = getattr(sql, name)
        if not isinstance(number, int) or isinstance(number, bool):
            raise BadSource(sql.uri, f"{name}={number!r} must be a whole number")
    since: Any = sql.since
    if since is None or (isinstance(since, str) and _is_unicode(since)):
        return
    if isinstance(since, bool) or not isinstance(since, int | float) or not math.isfinite(since):
        raise BadSource(sql.uri, f"since={since!r} must be a number, a text, a date or a time")


def _shown(sql: Sql) -> str:
    return sql.uri.encode(errors="backslashreplace").decode()


def _is_unicode(text: str) -> bool:
    """Not so where a half of a surrogate pair stands alone, which no database and no file can be told."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def check_pack(
    sources: Sequence[str | AnySource], pack: Pack | str | None, shard_files: int | None, steps: Sequence[Any] = ()
) -> Pack | None:
    """How a job's files are packed. Raises :class:`UsageError` for what cannot be."""
    if pack is None:
        return None
    if steps:
        raise UsageError("convert= and pack= do not go together: what is packed is what came")
    made = Pack(pack) if isinstance(pack, str) else pack
    if not isinstance(made, Pack) or made.format not in ("tar", "parquet"):
        raise UsageError(f"pack={pack!r} must be 'tar', 'parquet' or an ingest.Pack of one of these formats")
    positive("pack.bytes", made.bytes)
    positive("pack.samples", made.samples)
    if not isinstance(made.samples, int) or made.samples > MOST_SAMPLES:
        raise UsageError(f"pack.samples={made.samples!r} must be a whole number up to {MOST_SAMPLES}")
    if not (isinstance(made.max_failed, int | float) and 0 <= made.max_failed <= 1):
        raise UsageError(f"pack.max_failed={made.max_failed!r} must be a share between 0 and 1")
    if shard_files is not None:
        raise UsageError("with pack=, the files of a shard are Pack(samples=…): leave out shard_files=")
    if other := next((s for s in sources if not isinstance(s, str | Source | Manifest)), None):
        raise UsageError(f"{other.uri}: pack= is for files; what a database or an API gives is one file already")
    return made


def cut(
    sources: Sequence[str | AnySource],
    wanted: int | None,
    surveys: Mapping[int, Survey] | None = None,
    slots: int = 0,
) -> Iterator[Unit]:
    """Units in the order of the sources. A shard never reaches across a source that must be planned, so that the
    order of shards is the order of files. ``surveys`` are those of the manifests that are files here, by place."""
    surveys = surveys or {}
    literal = sum(_count(source) for source in sources)
    size = shard_size(literal + sum(survey.files for survey in surveys.values()), wanted, slots)
    files: list[Mapping[str, Any]] = []
    for index, source in enumerate(sources):
        if needs_origin(source):
            if files:
                yield Unit(files[0]["source"], tuple(files))
                files = []
            yield Unit(index, source=source)
            continue
        for file in _literal(source, index, surveys):
            files.append(file)
            if len(files) >= size:
                yield Unit(files[0]["source"], tuple(files))
                files = []
    if files:
        yield Unit(files[0]["source"], tuple(files))


def _count(source: str | AnySource) -> int:
    """How many files nobody has to be asked for, but for those of a manifest."""
    if isinstance(source, str):
        return 1
    return count_braces(source.uri) if isinstance(source, Source) and not needs_origin(source) else 0


def _literal(source: str | AnySource, index: int, surveys: Mapping[int, Survey]) -> Iterator[Mapping[str, Any]]:
    """The files of a source that nobody has to be asked for, as they travel."""
    if isinstance(source, str):
        yield {"source": index, "part": 0, "uri": source}
        return
    for spec in listed(source, index, surveys[index]) if isinstance(source, Manifest) else _expanded(source, index):
        yield spec.to_json()


def _expanded(source: AnySource, index: int) -> Iterator[FileSpec]:
    assert isinstance(source, Source)
    digest = ":".join(parse_digest(source.digest)) if source.digest else None
    for part, uri in enumerate(expand_braces(source.uri)):
        yield FileSpec(
            index, part, uri, digest, source.size, source.connection, pin=source.version, checksums=source.checksums,
            mirrors=tuple(source.mirrors),
        )  # fmt: skip


def positive(name: str, value: float | None) -> None:
    """Raises :class:`UsageError` for a limit that would mean nothing."""
    if value is not None and not (isinstance(value, int | float) and value > 0):
        raise UsageError(f"{name}={value!r} must be a number above 0")


def check_bounds(fresh_s: float | None, **bounds: float | None) -> None:
    """Refuse numbers that would mean nothing. Raises :class:`UsageError`."""
    for name, value in bounds.items():
        positive(name, value)
    if fresh_s is not None and not (isinstance(fresh_s, int | float) and fresh_s >= 0):
        raise UsageError(f"fresh_s={fresh_s!r} must be a number of seconds, 0 or more")
