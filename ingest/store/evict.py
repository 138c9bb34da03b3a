"""What may go from a store to make room, and how it goes. Which files are held is told from outside; what a job held is
read from its manifests.

The folder of a version (``data/KK/KEY/VERSION``) is touched whenever a file in it is published, found again or read:
its mtime is when it was last used, by the filesystem's own clock. Whoever could touch it has it for ``quiet_s`` more.
"""

from __future__ import annotations

import heapq
import json
import os
import shutil
import stat
import uuid
from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from ingest.store.layout import folder_of, read_record, scan
from ingest.store.store import Store

#: So many of the least recently used are found in one walk, whatever the store holds.
_FOUND_AT_ONCE = 50_000
#: What nobody has finished for so long was left by a process that died in the middle of it: a publication, an eviction.
_ORPHAN_S = 3600.0
_HALF_GONE_S = 300.0
_GONE = ".gone"


@dataclass(frozen=True, slots=True, order=True)
class Version:
    """One version of one source on disk: when it was last ``used`` (ns since 1970), how many bytes it has, and how many
    of them the disk gets back, as nobody has a link to them."""

    used: int
    folder: str
    size: int = field(compare=False)
    frees: int = field(compare=False)

    @property
    def key(self) -> str:
        """The source's."""
        return Path(self.folder).parent.name


@dataclass
class Survey:
    """Of a walk through a store: the bytes of all published files, and the least recently used of those that are not
    held, oldest first."""

    bytes: int = 0
    oldest: list[Version] = field(default_factory=list)
    orphans: int = 0


class Held:
    """Versions that stay, 8 bytes each: part of their names, which are digests already. Two alike are held both."""

    def __init__(self) -> None:
        self._marks = array("Q")
        self._sorted = True

    def add(self, path: str) -> None:
        """The path of a file relative to the store's root; what is no such path is passed over."""
        if (mark := _mark(path)) is not None:
            self._marks.append(mark)
            self._sorted = False

    def __contains__(self, path: str) -> bool:
        if not self._sorted:
            self._marks = array("Q", sorted(self._marks))
            self._sorted = True
        mark = _mark(path)
        at = bisect_left(self._marks, mark) if mark is not None else len(self._marks)
        return at < len(self._marks) and self._marks[at] == mark


def _mark(path: str) -> int | None:
    parts = path.split("/", 4)
    try:
        return int(parts[2][:16], 16) ^ int(parts[3], 16)
    except (ValueError, IndexError):
        return None


def manifest_files(
    store: Store, job: str, without: frozenset[str] = frozenset(), only: frozenset[str] | None = None
) -> Iterator[tuple[str, str, int]]:
    """(shard, path, size) of the files of a job in this store, by its manifests on disk, without those shards, or of
    those ``only``. A shard whose manifest is there but has no files comes once, with an empty path."""
    some = scan(store.manifest_path(job, "0").parent) if only is None else map(partial(store.manifest_path, job), only)
    for path in some:
        shard = path.stem
        if path.suffix != ".json" or shard in without or shard == "all":
            continue
        try:
            said = json.loads(path.read_bytes())
            files = [(str(f["path"]), int(f["size"])) for f in said["files"] if f["store"] == store.id]
        except (OSError, ValueError, TypeError, KeyError):
            continue  # damaged: nobody can read the job by it either
        yield shard, "", 0
        yield from ((shard, *each) for each in files)


def survey(store: Store, held: Held, check: Callable[[], None], most: int = _FOUND_AT_ONCE) -> Survey:
    """Walk through the store. ``check`` is called now and then, and may raise. Removes what a process left that died
    while it published or evicted."""
    now = now_ns(store)
    found = Survey()
    heap: list[tuple[int, Version]] = []
    # Names rather than paths: of a hundred thousand files, making paths would be most of the time.
    for bucket in _names(f"{store.root}/data"):
        for source in _names(f"{store.root}/data/{bucket}"):
            check()
            for version in _versions(store, f"data/{bucket}/{source}", now, found):
                if most and version.folder not in held:
                    heapq.heappush(heap, (-version.used, version))
                    if len(heap) > most:
                        heapq.heappop(heap)
    found.oldest = sorted(version for _, version in heap)
    return found


def _versions(store: Store, source: str, now: int, found: Survey) -> Iterator[Version]:
    """The versions of a source that have a record. What has none is counted, and goes once it is old."""
    names = _names(f"{store.root}/{source}")
    records = {name[:-5] for name in names if name.endswith(".json")}
    rest = [name for name in names if not name.endswith(".json")]
    lone = records.difference(rest)  # of sources that became several files: their folders have other names
    known = records | {
        folder.name for name in lone if (folder := _folder_of(store, store.root / source / f"{name}.json"))
    }
    for name in rest:
        is_half_gone = name.endswith(_GONE)
        if name.startswith(".") and not is_half_gone:
            continue
        version = _weigh(store, f"{source}/{name}")
        if version is not None and name in known and not is_half_gone:
            found.bytes += version.size
            yield version
        elif _drop_old(store.root / source / name, now, _HALF_GONE_S if is_half_gone else _ORPHAN_S):
            found.orphans += 1
        elif version is not None:
            found.bytes += version.size


def _folder_of(store: Store, record: Path) -> Path | None:
    """The folder of a source that became several files: its name is another one than the record's."""
    found = read_record(record)
    return folder_of(store.root, found.outputs[0].path) if found else None


def _weigh(store: Store, folder: str) -> Version | None:
    path = f"{store.root}/{folder}"
    try:
        found = os.stat(path)
        if not stat.S_ISDIR(found.st_mode):
            return None
        size, frees = _sizes(path)
    except OSError:
        return None
    return Version(found.st_mtime_ns, folder, size, frees)


def _sizes(folder: str) -> tuple[int, int]:
    size = frees = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                if entry.is_dir(follow_symlinks=False):
                    below = _sizes(entry.path)
                    size, frees = size + below[0], frees + below[1]
                    continue
                found = entry.stat(follow_symlinks=False)
                size += found.st_size
                frees += found.st_size if found.st_nlink == 1 else 0
    return size, frees


def remove(store: Store, version: Version, limit: int) -> bool:
    """Take a version out of the store, unless it was used after ``limit`` (ns since 1970). Whether it went.

    The record goes first: without it the file is not there for anybody. Then the folder gets another name, in one step;
    whoever touched it before that is seen and has it back, and whoever comes after it finds nothing.
    """
    folder = store.root / version.folder
    record = next((path for path in records_of(store, folder)), None)
    mark = f".{uuid.uuid4().hex[:8]}{_GONE}"
    hidden, aside = folder.with_name(folder.name + mark), folder.with_name(f"{folder.name}.json{mark}")
    try:
        if folder.stat().st_mtime_ns > limit:
            return False
        if record is not None:
            record.rename(aside)
        folder.rename(hidden)
        used = hidden.stat().st_mtime_ns > limit
    except OSError:
        used = True  # somebody else is at it, or it cannot be written here
    if used:
        with suppress(OSError):
            if hidden.exists() and not folder.exists():
                hidden.rename(folder)
        with suppress(OSError):
            if record is not None and aside.exists():
                if record.exists():
                    aside.unlink()
                else:
                    aside.rename(record)
        return False
    shutil.rmtree(hidden, ignore_errors=True)
    aside.unlink(missing_ok=True)
    with suppress(OSError):
        folder.parent.rmdir()  # if that was all of the source
    return True


def records_of(store: Store, folder: Path) -> Iterable[Path]:
    """The records that speak of a version's folder: none, or one."""
    direct = folder.with_name(f"{folder.name}.json")
    if direct.exists():
        return [direct]
    return [path for path in scan(folder.parent) if path.suffix == ".json" and _folder_of(store, path) == folder]


@dataclass(frozen=True)
class Leftover:
    """What attempts at a source left in scratch: ``bytes`` in ``paths``, ``written`` last (ns since 1970)."""

    key: str
    bytes: int
    written: int
    paths: tuple[Path, ...]


def leftovers(store: Store) -> list[Leftover]:
    """By source, those that were written longest ago first. Some of them are in flight."""
    found: dict[str, list[tuple[Path, os.stat_result]]] = {}
    for path in scan(store.root / "scratch"):
        key = path.name.partition(".")[0]
        with suppress(OSError):
            seen = path.stat()
            if len(key) == 40 and stat.S_ISREG(seen.st_mode):
                found.setdefault(key, []).append((path, seen))
    made = [
        Leftover(
            key, sum(s.st_size for _, s in some), max(s.st_mtime_ns for _, s in some), tuple(path for path, _ in some)
        )
        for key, some in found.items()
    ]
    return sorted(made, key=lambda left: left.written)


def drop(left: Leftover) -> None:
    """The journals first: none is ever without its bytes."""
    for path in sorted(left.paths, key=lambda path: path.suffix not in {".json", ".list"}):
        with suppress(OSError):
            path.unlink()


def now_ns(store: Store) -> int:
    """The filesystem's time, which is the one that files are stamped with."""
    probe = store.root / "scratch" / f"probe-{uuid.uuid4()}"
    probe.touch()
    try:
        return probe.stat().st_mtime_ns
    finally:
        probe.unlink()


def _drop_old(path: Path, now: int, age_s: float) -> int:
    """Remove what was last changed so long ago; 1 if it went."""
    try:
        found = path.lstat()
        if now - max(found.st_mtime_ns, found.st_ctime_ns) < age_s * 1e9:
            return 0
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    except OSError:
        return 0
    return 1


def _names(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
