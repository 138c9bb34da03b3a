"""The members of a zip, in the order of its directory, read in flat memory (APPNOTE.TXT 6.3.10; zip64 too).

``zipfile`` reads the directory, once it is known to hold no more entries than it may; the bodies are read here, because
there one small read may unpack to gigabytes.
"""

from __future__ import annotations

import bz2
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from workers.convert.plain import Damaged, Inflate, pieces

_LOCAL, _EMPTY, _SPANNED = b"PK\x03\x04", b"PK\x05\x06", b"PK\x07\x08"
_END, _END64, _LOCATOR64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_ENTRY, _HEADER = struct.Struct("<4s6H3L5H2L"), struct.Struct("<4s5H3L2H")
_MOST_COMMENT = 0xFFFF
#: Bytes of a directory, which ``zipfile`` holds in memory, with what it makes of them.
_MOST_DIRECTORY = 32 << 20
_READ_BYTES = 256 << 10
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_METHODS = {0: "stored", 8: "deflate", 12: "bzip2"}
_UNIX = 3


@dataclass(frozen=True)
class Member:
    """``special`` says what it is, where it is no regular file; ``problem`` why it cannot be read."""

    archive: BinaryIO
    info: zipfile.ZipInfo
    special: str = ""
    problem: str = ""

    @property
    def name(self) -> str:
        return self.info.filename

    def pieces(self) -> Iterator[bytes]:
        """The body, whose CRC and size are right at the end. Raises :class:`Damaged`."""
        size = crc = 0
        for piece in self._plain():
            size, crc = size + len(piece), zlib.crc32(piece, crc)
            if size > self.info.file_size:
                break
            yield piece
        if (size, crc) != (self.info.file_size, self.info.CRC):
            raise Damaged(f"{self.name[:200]!r} has not the size or the CRC that the archive says")

    def _plain(self) -> Iterator[bytes]:
        body = _Body(self.archive, *_span(self.archive, self.info))
        if self.info.compress_type == 0:
            while data := body.read():
                yield data
        else:
            codec: Any = Inflate(-zlib.MAX_WBITS) if self.info.compress_type == 8 else bz2.BZ2Decompressor()
            yield from pieces(codec, body.read, body.back)
        if body.left:
            raise Damaged(f"something follows the end of {self.name[:200]!r}")


class _Body:
    """The packed bytes of one member. Others are read in between."""

    def __init__(self, archive: BinaryIO, at: int, left: int) -> None:
        self._archive, self._at, self.left = archive, at, left

    def read(self) -> bytes:
        self._archive.seek(self._at)
        data = self._archive.read(min(self.left, _READ_BYTES))
        if self.left and not data:
            raise Damaged("it is cut off")
        self._at, self.left = self._at + len(data), self.left - len(data)
        return data

    def back(self, data: bytes) -> None:
        self.left += len(data)


def is_zip(archive: BinaryIO) -> bool:
    """By its first bytes; a program in front of an archive (self-extracting) is none."""
    archive.seek(0)
    head = archive.read(4)
    archive.seek(0)
    return head in {_LOCAL, _EMPTY, _SPANNED}


def members(archive: BinaryIO, max_files: int) -> Iterator[Member]:
    """Everything but folders. Raises :class:`Damaged` for an archive that contradicts itself, before the first."""
    if _entries(archive) > 2 * max_files + 1000:  # folders are entries, too
        raise Damaged(f"its directory has more than {2 * max_files + 1000} entries: too many for max_files={max_files}")
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = opened.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OverflowError, struct.error) as error:
        raise Damaged(str(error)) from error
    _check_overlap(infos)
    for info in infos:
        if not info.is_dir():
            yield Member(archive, info, _special(info), _problem(info))


def _special(info: zipfile.ZipInfo) -> str:
    if info.create_system != _UNIX:
        return ""
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind in {0, stat.S_IFREG}:
        return ""
    return "a symbolic link" if kind == stat.S_IFLNK else "no regular file"


def _problem(info: zipfile.ZipInfo) -> str:
    if info.flag_bits & _ENCRYPTED:
        return "encrypted, and there is no way to give a password"
    if info.compress_type not in _METHODS:
        return f"packed by method {info.compress_type}; known: {', '.join(_METHODS.values())}"
    return ""


def _check_overlap(infos: list[zipfile.ZipInfo]) -> None:
    """Members that share their bytes are how a small archive holds petabytes."""
    end = 0
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise Damaged(f"{info.filename[:200]!r} overlaps another member: it is a bomb")
        end = info.header_offset + _HEADER.size + info.compress_size


def _span(archive: BinaryIO, info: zipfile.ZipInfo) -> tuple[int, int]:
    """Where a member's bytes begin, and how many there are. What is said of it in front of them must be the same."""
    archive.seek(info.header_offset)
    raw = archive.read(_HEADER.size)
    if len(raw) < _HEADER.size or not raw.startswith(_LOCAL):
        raise Damaged(f"{info.filename[:200]!r} is not where the directory says")
    header = _HEADER.unpack(raw)
    name = archive.read(header[9])
    if name != info.orig_filename.encode("utf-8" if info.flag_bits & 0x800 else "cp437", "replace"):
        raise Damaged(f"{info.filename[:200]!r} has another name in front of its bytes")
    return info.header_offset + _HEADER.size + header[9] + header[10], info.compress_size


def _entries(archive: BinaryIO) -> int:
    """How many entries the directory really has, whatever it says. Raises :class:`Damaged`."""
    start, size = _directory(archive)
    archive.seek(start)
    count, at = 0, 0
    while at < size:
        raw = archive.read(_ENTRY.size)
        if len(raw) < _ENTRY.size or not raw.startswith(b"PK\x01\x02"):
            break
        fields = _ENTRY.unpack(raw)
        tail = fields[10] + fields[11] + fields[12]
        archive.seek(tail, os.SEEK_CUR)
        count, at = count + 1, at + _ENTRY.size + tail
    return count


def _directory(archive: BinaryIO) -> tuple[int, int]:
    """(first byte, bytes) of the directory."""
    total = archive.seek(0, os.SEEK_END)
    tail_at = max(0, total - _END.size - _MOST_COMMENT)
    archive.seek(tail_at)
    tail = archive.read()
    found = tail.rfind(_EMPTY)
    if found < 0 or len(tail) - found < _END.size:
        raise Damaged("it has no directory: it is cut off")
    end = tail_at + found
    fields = _END.unpack_from(tail, found)
    size = fields[5]
    if end >= _LOCATOR64.size:
        archive.seek(end - _LOCATOR64.size)
        locator = _LOCATOR64.unpack(archive.read(_LOCATOR64.size))
        if locator[0] == b"PK\x06\x07":
            end = end - _LOCATOR64.size - _END64.size
            archive.seek(max(0, end))
            raw = archive.read(_END64.size)
            if len(raw) == _END64.size and raw.startswith(b"PK\x06\x06"):
                size = _END64.unpack(raw)[8]
    if size > end:
        raise Damaged("its directory is larger than the archive")
    if size > _MOST_DIRECTORY:
        raise Damaged(f"its directory has {size} bytes, {_MOST_DIRECTORY} are allowed: it is a bomb")
    return end - size, size
