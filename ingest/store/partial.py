"""What an attempt leaves for the next one: a partial file, and beside it a journal of which of its bytes are there.

A journal claims no byte that is not in the file: bytes are written first, then claimed. What the kernel has taken
survives kill -9 of the process, so no fsync is needed for that. A machine that loses power may lose bytes after the
journal that claims them; so one that was not closed in order is believed only by the boot that wrote it.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import fcntl
import json
import os
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from io import FileIO
from pathlib import Path
from typing import Any

from ingest.store.spans import Spans

_COPY_BYTES = 64 << 20
_READ_BYTES = 1 << 20
#: The filesystem, or the kernel, has no such call.
_UNSUPPORTED = {errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.ENOTSUP}


@dataclass(frozen=True)
class Journal:
    """What makes a partial file resumable: the strong validator of the version its bytes are of, and the whole length
    if known. ``mixed``: bytes of several validators are in it, so only a digest can tell whether they belong together.
    Or ``facts``, which only the source's fetcher reads, about the bytes that it claims. ``mirrors``: some of the bytes
    came from these, which only those who name them trust. ``stated``: the digest of the whole that the origin said.
    """

    validator: str
    length: int | None = None
    mixed: bool = False
    facts: Mapping[str, Any] | None = None
    mirrors: tuple[str, ...] = ()
    stated: str | None = None


@dataclass(frozen=True)
class Left:
    """What an earlier attempt left: ``spans`` of ``part`` are there. ``ours``: this kernel wrote it, on this mount."""

    part: Path
    journal: Journal | None = None
    spans: Spans = field(default_factory=Spans)
    ours: bool = False

    def remove(self) -> None:
        """Unless somebody still writes it: then it is his to remove. Without a journal, only if surely nobody does."""
        with _no_writer(self.part) as alone:
            if alone or (alone is None and self.journal is not None) or not self.part.exists():
                remove(self.part)


def write_journal(part: Path, journal: Journal, spans: Spans, *, synced: bool) -> None:
    """Replace the journal in one step. ``synced``: the bytes are on the disk itself, not only with the kernel."""
    path = part.with_suffix(".json")
    text = json.dumps(
        {
            "validator": journal.validator,
            "length": journal.length,
            "mixed": journal.mixed,
            "facts": journal.facts,
            "mirrors": journal.mirrors,
            "stated": journal.stated,
            "ranges": list(spans),
            "writer": _writer(part.parent),
            "synced": synced,
        }
    )
    temporary = path.with_suffix(".json.new")
    temporary.write_text(text)
    temporary.replace(path)


def find(directory: Path, key: str, at_work: Collection[Path]) -> list[Left]:
    """What earlier attempts at that source left, without the files that this process is writing."""
    ours = [name for name in os.listdir(directory) if name.startswith(f"{key}.")]
    names = {name.split(".")[1] for name in ours if name.count(".") >= 2}
    parts = [directory / f"{key}.{name}.part" for name in sorted(names)]
    return [_read(part) for part in parts if part not in at_work]


def _read(part: Path) -> Left:
    """A journal that is damaged, or that is not to be believed, claims nothing."""
    try:
        size = part.stat().st_size
        data = json.loads(part.with_suffix(".json").read_bytes())
        journal = Journal(str(data["validator"]), data["length"], bool(data["mixed"]), data["facts"])
        journal = dataclasses.replace(journal, mirrors=tuple(data["mirrors"]), stated=data["stated"])
        spans = Spans((int(start), int(end)) for start, end in data["ranges"])
        spans.cut(size if journal.length is None else min(size, journal.length))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Left(part)
    ours = data.get("writer") == _writer(part.parent)
    same_boot = str(data.get("writer")).partition(" ")[0] == _boot()
    if not (data.get("synced") is True or same_boot):
        spans = Spans()
    return Left(part, journal, spans, ours)


def take_over(left: Left, part: Path) -> FileIO | None:
    """Make the earlier attempt's file our own, under the name ``part``, if the kernel says that nobody else has it open
    for writing. None if somebody may have.

    A process that was stopped may wake up after its lease ended, and still write. So a file is never continued while
    another process could write to it, now or after it is published: the kernel grants a read lease (fcntl(2)) only
    while no writer has the file open. It speaks for one machine; so this is for files that this boot of it wrote, on
    this mount. Everywhere else the bytes are copied (:func:`copy`).
    """
    if not left.ours or left.journal is None:
        return None
    with _no_writer(left.part) as alone:
        if not alone:
            return None
        # First the journal of the new name: killed between the two, the old pair is still there.
        write_journal(part, left.journal, left.spans, synced=False)
        try:
            left.part.rename(part)
        except OSError:
            remove(part)
            return None
    try:
        # Whoever held a lease at the same time has renamed it by the time that we may open it; then it is not ours.
        opened = FileIO(os.open(part, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK), "r+b")
        if os.path.samestat(os.fstat(opened.fileno()), part.stat()):
            remove_journal(left.part)
            return opened
        opened.close()
    except OSError:
        pass
    remove_journal(part)
    return None


@contextmanager
def _no_writer(path: Path) -> Iterator[bool | None]:
    """True while the kernel vouches that nobody has the file open for writing, False if somebody has, None if it cannot
    say."""
    try:
        reader = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield _lease(reader)
    finally:
        os.close(reader)  # gives the lease back


def _lease(reader: int) -> bool | None:
    if not hasattr(fcntl, "F_SETLEASE"):
        return None
    try:
        # Whoever wants to write meanwhile is made to wait, and we are told by a signal: one that is ignored by default.
        fcntl.fcntl(reader, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(reader, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return False if error.errno == errno.EAGAIN else None
    return True


def copy(left: Left, target: FileIO, idle: Callable[[], None]) -> Spans:
    """Copy what is there into ``target``, at the same places. Returns what could be copied; ``idle`` is called now and
    then, and may raise. Shares the blocks where the filesystem can."""
    copied = Spans()
    with open(left.part, "rb", buffering=0) as source:
        for start, end in left.spans:
            at = start
            while at < end and (count := _copy_some(source.fileno(), target.fileno(), at, min(end - at, _COPY_BYTES))):
                at += count
                idle()
            copied.add(start, at)
    return copied


def _copy_some(source: int, target: int, at: int, size: int) -> int:
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, size, at, at)
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    return write_at(target, at, os.pread(source, min(size, _READ_BYTES), at))


def write_at(file: int, at: int, data: bytes | memoryview) -> int:
    """All of it, at that place; a write may take less than it is given, on a nearly full disk. Returns its length."""
    view = memoryview(data)
    while view:
        count = os.pwrite(file, view, at)
        view, at = view[count:], at + count
    return len(data)


def preallocate(file: int, length: int) -> None:
    """Make room for so many bytes at once, or say ENOSPC now. Where the filesystem cannot, the file is only made so
    long.

    Not os.posix_fallocate: where the filesystem cannot, libc writes a byte into every block.
    """
    if (function := _fallocate()) is not None:
        while function(file, 0, ctypes.c_longlong(0), ctypes.c_longlong(length)) != 0:
            number = ctypes.get_errno()
            if number in _UNSUPPORTED:
                break
            if number != errno.EINTR:
                raise OSError(number, os.strerror(number))
        else:
            return
    os.ftruncate(file, length)


@cache
def _fallocate() -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)


def remove(part: Path) -> None:
    """A scratch file and its journal; the journal first, so that no journal is ever without its bytes."""
    remove_journal(part)
    part.unlink(missing_ok=True)


def remove_journal(part: Path) -> None:
    for suffix in (".json", ".json.new"):
        part.with_suffix(suffix).unlink(missing_ok=True)


def _writer(directory: Path) -> str:
    """This boot of this machine, and the mount: what one kernel's word on open files holds for."""
    return f"{_boot()} {os.stat(directory).st_dev}"


@cache
def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return "unknown"  # not Linux: no reboot is noticed
