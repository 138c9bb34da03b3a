"""Where the samples of a tar are: made in one pass over its headers, held in arrays, and kept as a file of its own
where one is named. Numbers and names only, in a form of its own: loading one runs no code."""

from __future__ import annotations

import json
import os
import struct
import sys
import uuid
import zlib
from array import array
from contextlib import suppress
from pathlib import Path

from ingest.dataset.formats.base import damaged
from ingest.dataset.formats.content import Content
from ingest.dataset.formats.headers import Broken, places
from ingest.store.disk import unnamed

_MAGIC = b"ingest tar index 2\n"  # the digit is the version: another one is made again, never converted
_HEAD = struct.Struct("<QqIQQQQI")  # size, time, mark, samples, fields, bytes of keys, of shapes, CRC-32 of all that
_MARK_BYTES = 4096


def split(name: str) -> tuple[str, str] | None:
    """``"./a/b.seg.png"`` → ``("./a/b", "seg.png")``; None for what is no field of a sample."""
    folder, slash, base = name.rpartition("/")
    stem, dot, extension = base.partition(".")
    return (folder + slash + stem, extension.lower()) if stem and dot and extension else None


class Index:
    """Sample *n* has the key ``key(n)`` and the fields ``shapes[shape[n]]``, of which the first is field number
    ``first[n]`` of the archive; field *f* is ``size[f]`` bytes at ``offset[f]``."""

    def __init__(self) -> None:
        self.shapes: list[tuple[str, ...]] = []
        self.shape, self.first = array("I"), array("Q", [0])
        self.offset, self.size = array("Q"), array("Q")
        self._keys, self._ends = bytearray(), array("Q", [0])

    def __len__(self) -> int:
        return len(self.shape)

    def key(self, number: int) -> str:
        return self._keys[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogateescape")

    @classmethod
    def build(cls, content: Content) -> Index:
        """One pass over the headers. Raises DataError naming the last sample before what is damaged."""
        index, numbers = cls(), dict[tuple[str, ...], int]()
        key: str | None = None
        fields: list[str] = []
        try:
            for name, offset, size in places(content.file):
                place = split(name)
                if place is None:
                    continue
                if place[0] != key:
                    index._add(key, fields, numbers)
                    key, fields = place[0], []
                elif place[1] in fields:
                    raise damaged(content.path, content.source, f"sample {key!r}", f"has two fields {place[1]!r}")
                fields.append(place[1])
                index.offset.append(offset)
                index.size.append(size)
        except (Broken, OSError, ValueError) as error:
            after = "at its start" if key is None else f"after sample {key!r}"
            raise damaged(content.path, content.source, after, error) from error
        index._add(key, fields, numbers)
        return index

    def _add(self, key: str | None, fields: list[str], numbers: dict[tuple[str, ...], int]) -> None:
        if key is None:
            return
        shape = tuple(fields)
        number = numbers.setdefault(shape, len(numbers))
        if number == len(self.shapes):
            self.shapes.append(shape)
        self.shape.append(number)
        self.first.append(len(self.offset))
        self._keys += key.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._keys))

    # -- kept --------------------------------------------------------------------------------------------------------

    def to_bytes(self, content: Content) -> bytes:
        """Some 40 bytes a sample with two fields, and its key."""
        shapes = json.dumps(self.shapes).encode()
        body = b"".join([*(_little(each[:]).tobytes() for each in self._arrays()), bytes(self._keys), shapes])
        counts = *_mark(content), len(self), len(self.offset), len(self._keys), len(shapes)
        return _MAGIC + _HEAD.pack(*counts, zlib.crc32(body, zlib.crc32(repr(counts).encode()))) + body

    @classmethod
    def from_bytes(cls, data: bytes, content: Content) -> Index:
        """ValueError for what is damaged, of another version, or of another archive."""
        start = len(_MAGIC) + _HEAD.size
        if not data.startswith(_MAGIC) or len(data) < start:
            raise ValueError("no index of this version")
        *counts, crc = _HEAD.unpack_from(data, len(_MAGIC))
        *mark, samples, fields, keys, shapes = counts
        if zlib.crc32(memoryview(data)[start:], zlib.crc32(repr(tuple(counts)).encode())) != crc:
            raise ValueError("the index is damaged")
        if tuple(mark) != _mark(content):
            raise ValueError("the index of another archive")
        index = cls()
        lengths = samples, samples + 1, samples + 1, fields, fields
        for each, length in zip(index._arrays(), lengths, strict=True):
            del each[:]
            each.frombytes(data[start : start + length * each.itemsize])
            _little(each)
            start += length * each.itemsize
        index._keys[:] = data[start : start + keys]
        index.shapes = [tuple(shape) for shape in json.loads(data[start + keys : start + keys + shapes])]
        return index

    def _arrays(self) -> tuple[array[int], ...]:
        return self.shape, self.first, self._ends, self.offset, self.size

    @classmethod
    def kept(cls, content: Content, path: Path | None) -> Index:
        """The index at ``path`` if it is that of this archive, else one that is made, and written there if it can be.

        What is there and is none is replaced; a disk that is full or may only be read is no error.
        """
        if path is None:
            return cls.build(content)
        with suppress(OSError, ValueError):
            return cls.from_bytes(path.read_bytes(), content)
        index = cls.build(content)
        with suppress(OSError):
            _write(path, index.to_bytes(content))
        return index


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all: many processes may write the same index at once, and any of them may be killed.

    The file has no name until it is whole, so that nothing is left of it. Where the filesystem has no such files (NFS)
    it has one of its own, and what is left of it goes with its archive.
    """
    file = unnamed(path.parent, 0o666)
    if file is None:
        return _write_named(path, data)
    with open(file, "wb") as made:
        made.write(data)
        made.flush()
        try:
            _link(file, path)
        except FileExistsError:  # what was found there and is none, or by now that of another process
            path.unlink(missing_ok=True)
            with suppress(FileExistsError):
                _link(file, path)


def _link(file: int, path: Path) -> None:
    """Give a name to an open file that has none."""
    # A folder is named so that Python calls linkat(2), which follows the link to the file; link(2) does not.
    os.link(f"/proc/self/fd/{file}", path, src_dir_fd=file)


def _write_named(path: Path, data: bytes) -> None:
    made = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        made.write_bytes(data)
        os.replace(made, path)
    except BaseException:
        with suppress(OSError):
            made.unlink()
        raise


def _little(numbers: array[int]) -> array[int]:
    """To little endian and back, in place where that is another: on a big endian machine."""
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers


def _mark(content: Content) -> tuple[int, int, int]:
    """What tells an archive from another that was at its path before: its size, its time (ns), and how it begins and
    ends."""
    size = min(_MARK_BYTES, content.size)
    ends = zlib.crc32(content.read(content.size - size, size), zlib.crc32(content.read(0, size)))
    return content.size, content.path.stat().st_mtime_ns, ends
