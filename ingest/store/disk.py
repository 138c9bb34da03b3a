"""Which errors of the operating system are a node's disk and not a source, in words; and whether a store can be worked
in now."""

from __future__ import annotations

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ingest.sections import StoreLimits

_WORDS = {
    errno.ENOSPC: "its disk is full; make room there",
    errno.EDQUOT: "the quota of its user is used up; make room there, or raise it",
    errno.EFBIG: "it takes no files of that size; raise the limit of its user (ulimit -f)",
    errno.EROFS: "it is read-only; look at the kernel's log, repair and mount it again",
    errno.EIO: "input/output error; look at the kernel's log",
    errno.EREMOTEIO: "input/output error of a remote filesystem; look at the kernel's log",
    errno.EUCLEAN: "its filesystem is damaged; repair it",
    errno.EACCES: "this user may not write there; look at the owner and mode of its folders",
    errno.EPERM: "this user may not write there; look at the owner and attributes of its folders",
    errno.ESTALE: "its filesystem is gone (stale file handle); mount it again",
    errno.ENOTCONN: "its filesystem is gone (not connected); mount it again",
    errno.ENODEV: "its device is gone; mount it again",
    errno.ENXIO: "its device is gone; mount it again",
    errno.EMFILE: "this process has too many open files; raise its limit (ulimit -n)",
    errno.ENFILE: "this machine has too many open files",
}
#: Of these it is the node that is at fault, wherever they come up: they say nothing about a source.
DISK = frozenset(_WORDS)
#: In a folder that the user named these two are about the user.
RIGHTS = frozenset({errno.EACCES, errno.EPERM})
#: What is missing of a store, or lies in it where something else belongs: no node does either.
_MISSING = {errno.ENOENT}
_IN_THE_WAY = {errno.ENOTDIR, errno.EEXIST, errno.EISDIR}
_PROBE = os.urandom(4096)


def is_disk(error: OSError, root: Path) -> bool:
    """Whether the store at ``root`` is at fault: also where something in it was removed, or put, that is not a node's
    doing."""
    if error.errno in DISK:
        return True
    return error.errno in _MISSING | _IN_THE_WAY and any(path.is_relative_to(root) for path in _paths(error))


def in_words(error: OSError) -> str:
    """What is wrong, and what to do about it."""
    paths = _paths(error)
    if error.errno in _MISSING:
        return "a part of it is missing; is its filesystem mounted?"
    if error.errno in _IN_THE_WAY and paths:
        return f"{_nearest(paths[-1])} is in the way; remove it"
    if error.errno in RIGHTS and paths:
        return f"{_WORDS[error.errno]}: {paths[-1]}"
    return _WORDS.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__


def _paths(error: OSError) -> list[Path]:
    return [Path(name) for name in (error.filename, error.filename2) if isinstance(name, str)]


def _nearest(path: Path) -> Path:
    """The path, or what is there of the folders above it: a file, where one of them should be."""
    return path if os.path.lexists(path) else _nearest(path.parent)


def free_bytes(root: Path) -> int:
    """Of the filesystem of ``root``. Raises OSError."""
    return shutil.disk_usage(root).free


class Look(NamedTuple):
    """Why a store cannot be worked in now, or ""; whether more room would mend that, or making what is missing."""

    reason: str
    is_full: bool = False
    is_missing: bool = False


def probe(root: Path, identity: str, limits: StoreLimits) -> Look:
    """Work in a store as a download does, in small. It hangs where the filesystem does."""
    try:
        found = (root / "STORE_ID").read_text().strip()
        if found != identity:
            return Look(f"another store is at {root} (its STORE_ID is not {identity}); mount the right one")
        with _probe_file(root / "scratch") as file:
            if os.pwrite(file, _PROBE, 0) != len(_PROBE):
                return Look(f"the store at {root} failed: {_WORDS[errno.ENOSPC]}", True)
            if limits.fsync:
                os.fsync(file)
            if os.pread(file, len(_PROBE), 0) != _PROBE:
                return Look(f"the store at {root} does not give back what is written to it; look at the kernel's log")
        for folder in (f"{root}/data", f"{root}/manifests", *_buckets(root / "data")):
            os.stat(f"{folder}/.")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), folder)
    except UnicodeDecodeError:
        return Look(f"the store at {root} is damaged: its STORE_ID is no text")
    except OSError as error:
        reason = f"the store at {root} failed: {in_words(error)}"
        return Look(reason, error.errno in {errno.ENOSPC, errno.EDQUOT}, error.errno in _MISSING)
    return Look("")


def _buckets(data: Path) -> list[str]:
    """The folders in which sources get theirs, 256 at most: who may write in ``data`` may perhaps not in those that
    another user made."""
    with os.scandir(data) as entries:
        return [entry.path for entry in entries if entry.is_dir()]


@contextmanager
def _probe_file(folder: Path) -> Iterator[int]:
    """A file without a name, of which nothing is left behind, however this process ends; where the filesystem has none
    (NFS), one with a name."""
    path, file = None, unnamed(folder)
    if file is None:
        path = folder / f"probe-{uuid.uuid4()}"
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        yield file
    finally:
        os.close(file)
        if path is not None:
            path.unlink()


def unnamed(folder: Path, mode: int = 0o600) -> int | None:
    """A new open file that no folder lists yet; None where the filesystem has none."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR, mode)
    except AttributeError:  # not Linux
        return None
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
            return None
        raise
