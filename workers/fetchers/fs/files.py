"""file:// URIs: which path one means, whether it may be read, its version, and what a glob or folder holds.

A file URI is percent-encoded (RFC 8089): ``%20`` is a space, ``%23`` a ``#``, ``%25`` a ``%``. What is no escape stands
for itself, so a path typed after ``file://`` works as it is, spaces, ``#`` and ``?`` included; only a literal ``%``
before two hexadecimal digits has to be written ``%25``, and a literal ``*``, ``?`` or ``[`` in a glob as an escape.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote_from_bytes, unquote_to_bytes

from ingest.errors import AccessDenied, BadResponse, EgressDenied, FetchError, NodeUnfit, NotFound, NothingMatched
from ingest.store.scratch import Scratch

#: ioctl_ficlone(2), as most machines number it. Where it is another, the kernel refuses, and the file is copied.
_FICLONE = 0x40049409
_MAGIC = re.compile(r"[*?\[]")
_ESCAPED_MAGIC = re.compile(r"%(2A|3F|5B)", re.IGNORECASE)
#: What a reader of a URI would take for something else, or a glob for a pattern, is escaped; these are not.
_SAFE = "/!$&'()+,;=:@~"


def path_of(uri: str) -> str:
    """The absolute path that a file URI names. Raises :class:`BadResponse` for another host or a relative path."""
    return os.fsdecode(unquote_to_bytes(os.fsencode(_raw_path(uri))))


def uri_of(path: str) -> str:
    """The URI that ``path_of`` takes back to ``path``, whatever bytes it has."""
    return "file://" + quote_from_bytes(os.fsencode(path), safe=_SAFE)


def version_of(found: os.stat_result) -> str:
    """Changes whenever the file is written or replaced, as far as the file system's clock can tell."""
    return f"{found.st_dev:x}-{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"


def open_file(uri: str, roots: tuple[str, ...]) -> BinaryIO:
    """The regular file, opened for unbuffered reading, without ever waiting for a FIFO's writer.

    Raises :class:`EgressDenied` for what is, links followed, outside ``roots``; empty ``roots`` allow all.
    """
    try:
        path = _allowed(uri, path_of(uri), roots)
        _must_be_file(uri, os.stat(path))  # before it is opened: opening a device may do something
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise file_error(uri, error) from error
    except ValueError:
        raise BadResponse(uri, "a path with a NUL in it") from None
    file = open(fd, "rb", buffering=0)  # noqa: SIM115 - the caller's to close
    try:
        _must_be_file(uri, os.fstat(fd))  # what was opened may be another by now
    except BadResponse:
        file.close()
        raise
    os.set_blocking(fd, True)
    return file


def share(file: int, scratch: Scratch, *, link: bool) -> bool:
    """Make the scratch the open file, without moving a byte, where the filesystem can. Whether it could.

    A reflink shares blocks until one of the two is written to, so what is in the store stays as it is. With a hard link
    (``link``) the two are one: whoever writes to the file in place changes what is in the store.
    """
    try:
        with open(scratch.path, "r+b") as target:
            fcntl.ioctl(target.fileno(), _FICLONE, file)
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EIO}:
            raise
        return link and _hard_link(file, scratch)
    scratch.adopt()
    return True


def _hard_link(file: int, scratch: Scratch) -> bool:
    beside = scratch.path.with_suffix(".link")
    try:
        # What is open, not what has its name by now. Only with a folder's descriptor does Python follow that link.
        os.link(f"/proc/self/fd/{file}", beside, src_dir_fd=file, follow_symlinks=True)
    except OSError:  # another filesystem, or not ours to link
        return False
    try:
        if not os.access(beside, os.W_OK):
            return False
        scratch.replace(beside)
        return True
    finally:
        beside.unlink(missing_ok=True)


def listing(uri: str, roots: tuple[str, ...]) -> Iterator[tuple[str, str, os.stat_result | None]]:
    """(path, name relative to the fixed part, stat) of every file of a glob or below a folder, by path.

    ``*``, ``?`` and ``[…]`` match within a name, ``**`` any depth; links are followed. Folders are no files; anything
    else is listed, a broken link too (stat None), so that it fails by itself instead of being missed. A folder that
    cannot be read raises; finding nothing raises :class:`NothingMatched`.
    """
    parts = [part for part in _raw_path(uri).split("/") if part]
    below = uri.endswith("/")
    fixed = next((n for n, part in enumerate(parts) if _MAGIC.search(part)), len(parts) if below else len(parts) - 1)
    top = "/" + "/".join(_decoded(part) for part in parts[:fixed])
    # A trailing slash means all that is below, after a glob as after a plain folder.
    patterns = [_decoded(_ESCAPED_MAGIC.sub(r"[%\1]", part)) for part in parts[fixed:]] + ["**"] * below
    try:
        _allowed(uri, top, roots)
        found = sorted(set(_matching(top, patterns)))
    except OSError as error:
        if isinstance(error, FileNotFoundError | NotADirectoryError):
            raise NothingMatched(uri, f"there is no folder {error.filename or top} on the data node") from error
        raise file_error(uri, error) from error
    if not found:
        raise NothingMatched(uri, f"no file below {top} matches on the data node")
    for path in found:
        try:
            yield path, os.path.relpath(path, top), os.stat(path)
        except OSError:
            yield path, os.path.relpath(path, top), None


def file_error(uri: str, error: OSError) -> FetchError:
    """What the operating system says of a file, in our words."""
    if isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ENAMETOOLONG:
        hint = f", read as {path_of(uri)!r}; write a literal % as %25" if "%" in uri else ""
        return NotFound(uri, f"no such file on the data node{hint}")
    if isinstance(error, PermissionError):
        return AccessDenied(uri, "the data node's user may not read it")
    if error.errno == errno.ELOOP:
        return BadResponse(uri, "a link that leads back to itself")
    return NodeUnfit(uri, f"the data node cannot read it: {error.strerror or type(error).__name__}")


def _raw_path(uri: str) -> str:
    host, slash, path = uri.partition("://")[2].partition("/")
    if host not in {"", "localhost"} or not slash:
        raise BadResponse(uri, "a file URI is file:// and an absolute path: file:///data/a.tar")
    return slash + path


def _decoded(text: str) -> str:
    return os.fsdecode(unquote_to_bytes(os.fsencode(text)))


def _allowed(uri: str, path: str, roots: tuple[str, ...]) -> str:
    """The path with every link resolved, if it may be read."""
    real = os.path.realpath(path, strict=True)
    if roots and not any(Path(real).is_relative_to(os.path.realpath(root)) for root in roots):
        raise EgressDenied(uri, "lies outside of the folders that [files] roots in ingest.toml allows on the data node")
    return real


def _matching(folder: str, patterns: list[str], above: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths of the files below ``folder`` that match the patterns, one for each level. ``above``: to see loops."""
    pattern, rest = patterns[0], patterns[1:]
    real = os.path.realpath(folder)
    if real in above:
        return
    if pattern == "**" and rest:
        yield from _matching(folder, rest, above)
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                if pattern == "**":
                    yield from _matching(entry.path, patterns, (*above, real))
                elif rest and fnmatchcase(entry.name, pattern):
                    yield from _matching(entry.path, rest, (*above, real))
            elif not rest and (pattern == "**" or fnmatchcase(entry.name, pattern)):
                yield entry.path


def _must_be_file(uri: str, found: os.stat_result) -> None:
    kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    if stat.S_ISDIR(found.st_mode):
        raise BadResponse(uri, "a folder, not a file; end it with / for all below it")
    if not stat.S_ISREG(found.st_mode):
        raise BadResponse(uri, f"{kinds.get(stat.S_IFMT(found.st_mode), 'a device')}, not a file")
