"""``into=``: a published file under its own name in a folder of the user's. What is in a store is never touched."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

from ingest import names
from ingest.errors import StoreError


def link_into(path: Path, directory: Path, name: str, tag: str) -> Path:
    """Make ``path`` appear as ``directory / name``: hard link, else a copy. Never outside ``directory``.

    ``name`` may have folders in it; every part is made safe. A different file that already has the name is left alone:
    ours gets ``tag`` in its name. Raises :class:`StoreError` where it cannot be written.
    """
    parts = names.safe_parts(name) or ["file"]
    try:
        folder = directory.joinpath(*parts[:-1])
        # Before anything is made: a link in there could lead anywhere.
        if not (os.path.realpath(folder) + os.sep).startswith(os.path.join(os.path.realpath(directory), "")):
            raise StoreError(str(folder), f"leads out of {directory}")
        folder.mkdir(parents=True, exist_ok=True)
        stem, dot, suffix = parts[-1].partition(".")
        plain, tagged = folder / parts[-1], folder / f"{stem}-{tag}{dot}{suffix}"
        for target in (plain, tagged):
            if target.is_file() and same_file(path, target):
                return target
        temporary = folder / f".{uuid.uuid4().hex[:16]}"
        try:
            try:
                os.link(path, temporary)
            except OSError:
                # Another filesystem. It uses reflink or sendfile where the kernel offers it.
                shutil.copyfile(path, temporary)
            # Somebody else may have brought the same file there at this moment.
            if _take_name(temporary, plain) or (plain.is_file() and same_file(path, plain)):
                return plain
            # By its tag this name is ours: what is there is an earlier version of the same source.
            os.replace(temporary, tagged)
            return tagged
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(str(directory), f"into: cannot be written: {error.strerror}") from error


def _take_name(temporary: Path, target: Path) -> bool:
    """Rename unless the name is taken, also by somebody who takes it at this moment."""
    try:
        os.link(temporary, target)
        return True
    except FileExistsError:
        return False
    except OSError:  # a filesystem without hard links: an empty file holds the name for a moment
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        os.replace(temporary, target)
        return True


def same_file(a: Path, b: Path) -> bool:
    """Whether two paths are one file, or hold the same bytes. Raises OSError."""
    if os.path.samefile(a, b):
        return True
    if a.stat().st_size != b.stat().st_size:
        return False
    with open(a, "rb") as left, open(b, "rb") as right:
        while block := left.read(1 << 20):
            if block != right.read(1 << 20):
                return False
    return True
