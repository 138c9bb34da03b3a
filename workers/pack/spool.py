"""What has arrived of a packed shard, until all of it has: bytes in one file, a line for each sample in another.

A packed file holds its samples in the order of the request, which is not that of their arrival. An attempt that ends
early, also by kill -9, leaves its spool behind, and the next one on this node goes on with what is in it. Each attempt
writes files of its own: one that was stopped and wakes up too late disturbs nobody.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ingest.store.partial import write_at

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample that has arrived: where its bytes are, and what is known of them. ``position`` is its place in the
    list."""

    position: int
    offset: int
    size: int
    digest: str
    name: str
    segment: int = 0


class Spool:
    """``samples`` are those that have arrived, by position. Used by several threads at once."""

    def __init__(self, directory: Path, key: str) -> None:
        self.samples: dict[int, Sample] = {}
        self._lock = threading.Lock()
        self._lists: list[Path] = []
        self._files: list[int] = []
        for path in sorted(directory.glob(f"{key}.*")):
            if path.suffix == ".list":
                self._take_up(path)
            elif path.suffix == ".part":  # a sample or a packed file that was being written: of no use to anybody
                path.unlink(missing_ok=True)
        self._lists.append(directory / f"{key}.{uuid.uuid4().hex[:12]}.list")
        self._files.append(os.open(self._lists[-1].with_suffix(".spool"), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644))
        self._list = open(self._lists[-1], "xb", buffering=0)  # noqa: SIM115 - closed by close()
        self._end = 0
        self._earlier = sum(os.fstat(file).st_size for file in self._files)

    @property
    def held(self) -> int:
        """Bytes on disk, in all."""
        return self._earlier + self._end

    def _take_up(self, path: Path) -> None:
        """What an earlier attempt left. A line that was cut off, or whose bytes are not there, is passed over."""
        try:
            segment = os.open(path.with_suffix(".spool"), os.O_RDONLY)
        except OSError:
            return
        self._lists.append(path)
        self._files.append(segment)
        there = os.fstat(segment).st_size
        with suppress(OSError):
            for line in path.read_bytes().split(b"\n")[:-1]:
                with suppress(ValueError, TypeError):
                    position, offset, size, digest, name = json.loads(line)
                    found = Sample(position, offset, size, digest, name, len(self._files) - 1)
                    if found.offset + found.size <= there:
                        self.samples[found.position] = found
            for each in (path, path.with_suffix(".spool")):
                os.utime(each)  # in use: not to be swept

    def add(self, positions: Sequence[int], path: Path, size: int, digest: str, name: str) -> None:
        """Take in the file at ``path`` as the sample at each of ``positions``."""
        with open(path, "rb", buffering=0) as source, self._lock:
            start = at = self._end
            while at < start + size:
                block = source.read(min(start + size - at, _READ_BYTES))
                if not block:
                    raise OSError(f"{path.name} is shorter than its {size} bytes")
                at += write_at(self._files[-1], at, block)
            self._end = at
            made = [Sample(position, start, size, digest, name, len(self._files) - 1) for position in positions]
            # The line comes after its bytes: what kill -9 leaves is true.
            lines = b"".join(_line(sample) for sample in made)
            self._list.write(lines)
            self.samples.update((sample.position, sample) for sample in made)

    def read(self, sample: Sample) -> Iterator[bytes]:
        """The bytes of a sample. Raises :class:`Spoilt` at their end where they are not what came."""
        digest = hashlib.sha256()
        at, end = sample.offset, sample.offset + sample.size
        while at < end:
            block = os.pread(self._files[sample.segment], min(_READ_BYTES, end - at), at)
            if not block:
                break
            digest.update(block)
            at += len(block)
            yield block
        if f"sha256:{digest.hexdigest()}" != sample.digest:
            del self.samples[sample.position]
            raise Spoilt

    def close(self, *, discard: bool) -> None:
        self._list.close()
        for each in self._files:
            os.close(each)
        if discard or not self.samples:
            for path in self._lists:
                for file in (path, path.with_suffix(".spool")):
                    with suppress(FileNotFoundError):
                        file.unlink()


class Spoilt(Exception):
    """A sample in the spool is not what came: the disk lost it. It is to be fetched again."""


def _line(sample: Sample) -> bytes:
    fields = [sample.position, sample.offset, sample.size, sample.digest, sample.name]
    return json.dumps(fields, separators=(",", ":")).encode() + b"\n"
