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
_MISSING = {errno.ENOENT, errno.ENOTDIR}
_PROBE = os.urandom(4096)


def is_disk(error: OSError, root: Path) -> bool:
    """Whether the store at ``root`` is at fault: also where a part of it is missing that a node never removes."""
    if error.errno in DISK:
        return True
    names = [name for name in (error.filename, error.filename2) if isinstance(name, str | os.PathLike)]
    return error.errno in _MISSING and any(Path(name).is_relative_to(root) for name in names)


def in_words(error: OSError) -> str:
    """What is wrong, and what to do about it."""
    if error.errno in _MISSING:
        return "a part of it is missing; is its filesystem mounted?"
    return _WORDS.get(error.errno or 0) or error.strerror or str(error) or type(error).__name__


def free_bytes(root: Path) -> int:
    """Of the filesystem of ``root``. Raises OSError."""
    return shutil.disk_usage(root).free


class Look(NamedTuple):
    """Why a store cannot be worked in now, or ""; and whether more room would mend that."""

    reason: str
    is_full: bool = False


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
        for folder in ("data", "manifests"):
            os.stat(f"{root / folder}/.")
            if not os.access(root / folder, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(root / folder))
    except UnicodeDecodeError:
        return Look(f"the store at {root} is damaged: its STORE_ID is no text")
    except OSError as error:
        return Look(f"the store at {root} failed: {in_words(error)}", error.errno in {errno.ENOSPC, errno.EDQUOT})
    return Look("")


@contextmanager
def _probe_file(folder: Path) -> Iterator[int]:
    """A file without a name, of which nothing is left behind, however this process ends; where the filesystem has none
    (NFS), one with a name."""
    path, file = None, _unnamed(folder)
    if file is None:
        path = folder / f"probe-{uuid.uuid4()}"
        file = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        yield file
    finally:
        os.close(file)
        if path is not None:
            path.unlink()


def _unnamed(folder: Path) -> int | None:
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR, 0o600)
    except AttributeError:  # not Linux
        return None
    except OSError as error:
        if error.errno in {errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL}:
            return None
        raise
