"""Where a store stands: the folders that lead to it, by device and inode. So a store whose folders were removed is told
from one whose filesystem is gone, which must not be filled."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class Folder(NamedTuple):
    path: str
    device: int
    inode: int


#: From the store's root upwards, those that are there.
Ground = tuple[Folder, ...]


def ground(root: Path) -> Ground:
    """What leads to a root now, links followed; nothing where one leads to what is gone. Raises OSError where that
    cannot be seen."""
    found = []
    for path in (root.absolute(), *root.absolute().parents):
        try:
            there = path.stat()
        except FileNotFoundError:
            if path.is_symlink():
                return ()
            continue
        found.append(Folder(str(path), there.st_dev, there.st_ino))
    return tuple(found)


def was_removed(before: Ground, now: Ground) -> bool:
    """Whether what lacks now was removed: the lowest folder that is there is the one that was there before. Where a
    mount is gone it is another one, on another device or (bind mounts) at least with another inode."""
    return bool(now) and before[-len(now) :] == now
