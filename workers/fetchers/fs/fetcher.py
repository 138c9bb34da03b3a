"""Everything that fsspec opens and no other fetcher takes: file, ftp, sftp, gs, az, hf, github and the like.

file:// is read here directly, its paths are in ``files``; all else goes through the fsspec filesystem of the
scheme, which is handed the profile's ``options``. Its errors are translated here.
"""

from __future__ import annotations

import ftplib
import io
import os
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO
from urllib.parse import urlsplit

import fsspec
from billiard.exceptions import SoftTimeLimitExceeded
from fsspec.asyn import AsyncFileSystem
from fsspec.core import url_to_fs
from fsspec.registry import get_filesystem_class, known_implementations

from ingest.errors import (
    AccessDenied,
    BadResponse,
    ConnectionLost,
    FetchError,
    FetchTimeout,
    MissingExtra,
    NotFound,
    NothingMatched,
    OriginUnavailable,
    SourceChanged,
    Throttled,
    Truncated,
    Unsupported,
)
from ingest.model import FileSpec
from ingest.names import base_name
from ingest.sources import AnySource
from ingest.store.scratch import Scratch
from workers.egress import Policy, parse_address
from workers.fetchers.base import Context, Fetched, Interrupted, Known
from workers.fetchers.fs import files

_READ_BYTES = 1 << 20
#: One request to the origin fetches this much: enough to hide a round trip, and little beside a worker's memory.
_BLOCK_BYTES = 8 << 20
_LOCAL = frozenset({"file", "local"})
#: They read the node's own memory or disk past [files] roots, or wrap another filesystem past its own rules.
_REFUSED = frozenset(
    {"asynclocal", "dask", "data", "dvc", "git", "http", "https", "memory", "pyscript"}
    | {"async_wrapper", "asyncwrapper", "blockcache", "cached", "dir", "filecache", "generic", "libarchive"}
    | {"reference", "simplecache", "tar", "zip"}
)
#: Where the host part is a host that we would connect to, and not a bucket, account or repository.
_HOSTED = frozenset({"ftp", "jlab", "jupyter", "sftp", "smb", "ssh", "webdav", "webhdfs"})
#: What filesystems call a version, the best first; sizes and times are the fallback.
_VERSIONS = ("etag", "ETag", "e_tag", "generation", "versionId", "blob_id", "sha", "md5Hash", "content_md5")
_TIMES = ("mtime", "LastModified", "last_modified", "updated", "modify", "modified", "modificationTime")


class FsFetcher:
    """Filesystems are kept by fsspec itself, one for each set of options."""

    def fetch(self, spec: FileSpec, scratch: Scratch, known: Known | None, context: Context) -> Fetched | None:
        """See :class:`~workers.fetchers.base.Fetcher`. Profile key: ``options``, the filesystem's own arguments."""
        if _scheme(spec.uri) in _LOCAL:
            return _fetch_file(spec, scratch, known, context)
        with edge(spec.uri, context):
            fs, path = filesystem(spec.uri, context)
            return _fetch_remote(fs, path, spec, scratch, known)

    def expand(self, source: AnySource, context: Context) -> Iterator[FileSpec]:
        """The files of a glob, or below a trailing ``/``; ``name`` is relative to its fixed part."""
        if _scheme(source.uri) in _LOCAL:
            for part, (path, name, found) in enumerate(files.listing(source.uri, context.settings.file_roots)):
                size, version = (found.st_size, files.version_of(found)) if found else (None, None)
                uri = files.uri_of(path)
                yield FileSpec(0, part, uri, None, size, source.connection, name, version)
            return
        with edge(source.uri, context):
            found_files = _list(*filesystem(source.uri, context), source.uri)
        for part, (uri, name, info) in enumerate(found_files):
            yield FileSpec(0, part, uri, None, size_of(info), source.connection, name, _version(info))


def _fetch_file(spec: FileSpec, scratch: Scratch, known: Known | None, context: Context) -> Fetched | None:
    with files.open_file(spec.uri, context.settings.file_roots) as file:
        before = os.fstat(file.fileno())
        version = files.version_of(before)
        if known and known.version == version:
            return None
        _check_version(spec, version)
        _check_size(spec, before.st_size)
        _restart(scratch)
        scratch.announce(before.st_size)
        if files.share(file.fileno(), scratch, link=context.settings.file_link):
            scratch.came(scratch.size)
        else:
            _copy_file(spec, scratch, file, before.st_size)
        if files.version_of(os.fstat(file.fileno())) != version:
            raise SourceChanged(spec.uri, "the file was written to while it was read")
    if scratch.size != before.st_size:
        raise Truncated(spec.uri, f"{scratch.size} bytes came of a file of {before.st_size}")
    return Fetched(version=version, validator=version)


def _copy_file(spec: FileSpec, scratch: Scratch, file: BinaryIO, size: int) -> None:
    while scratch.size <= size:  # a file that grows as fast as it is read has no end
        try:
            block = file.read(_READ_BYTES)
        except OSError as error:
            raise files.file_error(spec.uri, error) from error
        if not block:
            break
        scratch.write(block)


def _fetch_remote(fs: Any, path: str, spec: FileSpec, scratch: Scratch, known: Known | None) -> Fetched | None:
    before = info_of(fs, path)
    if before.get("type") == "directory":
        raise BadResponse(spec.uri, "a folder, not a file; end it with / for all below it")
    version = _version(before)
    if known and version and known.version == version:
        return None
    size = size_of(before)
    _check_version(spec, version)
    _check_size(spec, size)
    _restart(scratch)
    if _scheme(spec.uri) == "ftp":
        fs.get_file(path, _Sink(scratch))  # one transfer; its open() ends one for every block, which servers take badly
    else:
        with fs.open(path, "rb", block_size=_BLOCK_BYTES, cache_type="readahead") as file:
            while block := file.read(_READ_BYTES):
                _write(scratch, block)
    if _version(info_of(fs, path)) != version:
        raise SourceChanged(spec.uri, "it changed at the origin while it was read")
    if size is not None and scratch.size != size:
        raise Truncated(spec.uri, f"{scratch.size} of {size} bytes came")
    if spec.size is not None and scratch.size != spec.size:
        raise BadResponse(spec.uri, f"{scratch.size} bytes came, {spec.size} were expected")
    return Fetched(version=version, validator=version)


class _Ours(Exception):
    """Carries what the scratch raised past the translation of the origin's errors."""


class _Sink:
    """A scratch as what fsspec takes for a file that is open for writing."""

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch

    def write(self, block: bytes) -> int:
        _write(self._scratch, block)
        return len(block)

    def tell(self) -> int:
        return self._scratch.size

    def read(self, size: int = -1) -> bytes:
        raise io.UnsupportedOperation("read")

    def close(self) -> None:
        """The scratch is its store's to close."""


def _write(scratch: Scratch, block: bytes) -> None:
    try:
        scratch.write(block)
    except OSError as error:
        raise _Ours from error


def _restart(scratch: Scratch) -> None:
    if scratch.size or scratch.journal:
        scratch.restart()


def _check_size(spec: FileSpec, size: int | None) -> None:
    if spec.size is not None and size is not None and size != spec.size:
        raise BadResponse(spec.uri, f"it has {size} bytes, {spec.size} were expected; nothing was read")


def _check_version(spec: FileSpec, version: str | None) -> None:
    if spec.version is not None and version is not None and spec.version != version:
        raise SourceChanged(spec.uri, "it changed after it was listed")


def _list(fs: Any, path: str, uri: str) -> list[tuple[str, str, Mapping[str, Any]]]:
    """(URI, relative name, info) of each file, by path."""
    fs.invalidate_cache()
    # fsspec's own walk leaves out what it cannot list; implementations with a flat listing of their own do not.
    own = type(fs)._find is not AsyncFileSystem._find if isinstance(fs, AsyncFileSystem) else _overrides_find(fs)
    strict = {} if own else {"on_error": "raise"}
    below = uri.endswith("/")
    try:
        found = fs.find(path, detail=True, **strict) if below else fs.glob(path, detail=True, **strict)
    except FileNotFoundError:
        found = {}
    top = path if below else re.split(r"[*?\[]", path, maxsplit=1)[0].rpartition("/")[0]
    if _scheme(uri) == "ftp":
        _check_ftp(fs, uri, top, None if below or "**" in path else path.removeprefix(top).count("/"))
    names = sorted(name for name, info in found.items() if info.get("type") != "directory")
    if not names:
        raise NothingMatched(uri, "nothing is there" if below else "no file matches")
    stripped = path.rstrip("/")
    prefix = uri.rstrip("/").removesuffix(stripped) if uri.rstrip("/").endswith(stripped) else None
    out = []
    for name in names:
        full = prefix + name if prefix else fs.unstrip_protocol(name)
        out.append((full, name.removeprefix(top).lstrip("/") or base_name(full), found[name]))
    return out


def _check_ftp(fs: Any, uri: str, top: str, depth: int | None) -> None:
    """fsspec takes an FTP folder that it may not list for an empty one; only those that it listed are in its cache."""
    infos = (info for listed in dict(fs.dircache).values() for _, info in listed)
    root = top.rstrip("/")
    for folder in sorted(info["name"] for info in infos if info["type"] == "directory"):
        wanted = folder.startswith(root + "/") and (depth is None or folder.removeprefix(root).count("/") < depth)
        if wanted and folder not in fs.dircache:
            raise AccessDenied(uri, f"the FTP server does not list {folder}, and what is in it would be missed")


def _overrides_find(fs: Any) -> bool:
    return type(fs).find is not fsspec.AbstractFileSystem.find


def filesystem(uri: str, context: Context) -> tuple[Any, str]:
    """The filesystem that the URI and the profile lead to, and the path in it."""
    scheme = _scheme(uri)
    if "::" in uri or scheme in _REFUSED:
        what = "a chain of filesystems" if "::" in uri else f"{scheme}://"
        raise Unsupported(uri, f"{what} is not for a data node to fetch; give the URI of the file itself")
    try:
        get_filesystem_class(scheme)
    except ValueError:
        raise Unsupported(uri, f"no fetcher and no fsspec filesystem knows {scheme}://") from None
    except ImportError as error:
        raise MissingExtra(uri, missing_packages(scheme)) from error
    if scheme in _HOSTED:
        _check_host(uri, context)
    options = dict(context.value("options") or {})
    if scheme == "ftp":  # the only one with a timeout of its own under one name that all versions know
        options.setdefault("timeout", context.settings.limits.stall_s)
    fs, path = url_to_fs(uri, **options)
    return fs, path


def _check_host(uri: str, context: Context) -> None:
    """Judge what the host's name stands for now. The library connects by itself, so a name that changes in between is
    not seen, as it is over http."""
    parts = urlsplit(uri)
    policy = Policy(context.settings.egress)
    for *_, address in socket.getaddrinfo(parts.hostname or "", None, type=socket.SOCK_STREAM):
        parsed = parse_address(str(address[0]))
        if parsed is not None:
            policy.check(uri, parts.hostname or "", parsed, from_public=False)


def missing_packages(scheme: str) -> str:
    """What to pip install for a scheme, out of the sentence that fsspec keeps for it."""
    known = known_implementations.get(scheme, {})
    text = known.get("err", "")
    quoted = re.findall(r"""["']([\w.\[\],-]+)["']""", text)
    plain = re.findall(r"[Ii]nstall (?:the )?([\w.\[\]-]+)|([\w.-]+) and local|requires ([\w.-]+) to be", text)
    words = [word for words in plain for word in words if word]
    return str((words + quoted + [known.get("class", scheme).partition(".")[0]])[0])


def info_of(fs: Any, path: str) -> dict[str, Any]:
    fs.invalidate_cache()  # or the answer is as old as the last listing
    info: dict[str, Any] = fs.info(path)
    return info


def size_of(info: Mapping[str, Any]) -> int | None:
    size = info.get("size")
    return int(size) if size is not None else None


def _version(info: Mapping[str, Any]) -> str | None:
    """A version from what the filesystem says of a file; None where it says nothing that would change."""
    for key in _VERSIONS:
        if info.get(key):
            return str(info[key])
    time = next((info[key] for key in _TIMES if info.get(key)), None)
    return None if time is None else f"{time}-{size_of(info)}"


def _scheme(uri: str) -> str:
    return uri.partition("://")[0].lower()


@contextmanager
def edge(uri: str, context: Context) -> Iterator[None]:
    """What any filesystem raises becomes one of ours; what is ours passes through."""
    try:
        yield
    except (FetchError, Interrupted, SoftTimeLimitExceeded):
        raise
    except _Ours as error:
        raise error.__cause__ or error from None
    except Exception as error:  # the libraries behind fsspec have no common base
        raise _translated(uri, error, context) from error


def _translated(uri: str, error: Exception, context: Context) -> FetchError:
    where = f"[connections.{context.connection.name}]" if context.connection else "a connection for it"
    status = _status(error)
    if isinstance(error, ImportError):
        return MissingExtra(uri, error.name or missing_packages(_scheme(uri)))
    if isinstance(error, FileNotFoundError) or status in {404, 410}:
        return NotFound(uri, "the origin has no such file")
    if isinstance(error, PermissionError) or status in {401, 403} or "Auth" in type(error).__name__:
        return AccessDenied(uri, f"the origin refuses us; look at {where} in ingest.toml on the data node")
    if isinstance(error, TimeoutError):
        return FetchTimeout(uri, "the origin did not answer in time")
    if status == 429:
        return Throttled(uri, "the origin says that there are too many requests")
    if isinstance(error, ftplib.error_temp) or status == 408 or (status or 0) >= 500:
        return OriginUnavailable(uri, f"the origin cannot now ({status or 'FTP ' + str(error)[:3]})")
    if isinstance(error, ftplib.error_perm):
        return _ftp_refusal(uri, error, where)
    if isinstance(error, IsADirectoryError):
        return BadResponse(uri, "a folder, not a file; end it with / for all below it")
    if isinstance(error, NotImplementedError):
        return Unsupported(uri, "this filesystem cannot do that")
    if isinstance(error, OSError | EOFError | ftplib.Error) and status is None:
        why = error.strerror if isinstance(error, OSError) else None
        return ConnectionLost(uri, f"the connection failed: {why or type(error).__name__}")
    # The library's own words may quote the options, so its class has to do.
    return BadResponse(uri, f"the filesystem failed with {type(error).__name__}; check the options of {where}")


def _ftp_refusal(uri: str, error: Exception, where: str) -> FetchError:
    if str(error).startswith("550"):  # RFC 959: file unavailable (not found, no access)
        return NotFound(uri, "the FTP server has no such file, or does not show it to us")
    if str(error)[:3] in {"530", "532"}:
        return AccessDenied(uri, f"the FTP server refuses us; look at {where} in ingest.toml on the data node")
    return BadResponse(uri, f"the FTP server answered {str(error)[:3]}")


def _status(error: Exception) -> int | None:
    """The HTTP status that an SDK's error carries, wherever it keeps it."""
    carriers = (getattr(error, "response", None), error)
    values = (getattr(one, name, None) for one in carriers for name in ("status_code", "status", "code"))
    return next((value for value in values if isinstance(value, int) and 100 <= value < 600), None)
