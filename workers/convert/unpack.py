"""``unpack``: the regular files of a tar or zip, each as a file of the source, in the order of the archive.

An archive is somebody else's word on where things are to lie and how large they are: nothing of it is believed. How a
zip is read is in ``zips``; a tar is read by the dataset's own reader.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from ingest.dataset.formats.headers import Broken, Members
from ingest.errors import BadResponse, NothingMatched, TooLarge, Unsupported
from ingest.names import safe_parts
from workers.convert import zips
from workers.convert.decompress import HEAD_BYTES, named
from workers.convert.plain import Damaged, kind_of, plain
from workers.convert.work import File, Meter, Work, stem

_TAR_KINDS = {ord("1"): "a hard link", ord("2"): "a symbolic link", ord("3"): "a device", ord("4"): "a device"}
_TAR_KINDS |= {ord("6"): "a FIFO"}
_DRIVE = re.compile(r"[A-Za-z]:[/\\]")
_BUFFER_BYTES = 1 << 20


@dataclass(frozen=True)
class _Rules:
    """What an archive may hold. Counts its files, over all archives of the step."""

    work: Work
    max_files: int
    max_depth: int
    max_path: int
    folder: bool
    others: str
    seen: list[int]

    def name(self, archive: File, raw: str) -> str:
        """Where a member is to lie. Raises what its name, or one more of them, is against."""
        self.seen[0] += 1
        if self.seen[0] > self.max_files:
            raise TooLarge(self.work.uri, f"{archive.name} holds more than max_files={self.max_files} files")
        if len(raw.encode("utf-8", "surrogatepass")) > self.max_path:
            raise TooLarge(self.work.uri, f"{archive.name} holds a path of more than max_path={self.max_path} bytes")
        parts = safe_parts(raw)
        if raw.startswith(("/", "\\")) or _DRIVE.match(raw) or ".." in re.split(r"[/\\]", raw) or not parts:
            raise BadResponse(self.work.uri, f"{archive.name} holds {raw[:200]!r}, which leads out of it")
        if len(parts) > self.max_depth:
            raise TooLarge(self.work.uri, f"{archive.name} holds a path deeper than max_depth={self.max_depth}")
        return "/".join([stem(archive.name), *parts] if self.folder else parts)

    def special(self, archive: File, kind: str, raw: str) -> None:
        """Something else than a regular file."""
        if self.others == "error":
            raise BadResponse(
                self.work.uri,
                f"{archive.name} holds {raw[:200]!r}, {kind}: only regular files are unpacked; "
                "others='skip' leaves the rest out",
            )


def unpack(
    files: Sequence[File], work: Work, *, max_files: int, max_bytes: int | None, max_ratio: float, max_depth: int,
    max_path: int, folder: bool, others: str,
) -> None:  # fmt: skip
    """See docs/sources.md."""
    rules = _Rules(work, max_files, max_depth, max_path, folder, others, [0])
    for file in files:
        before = rules.seen[0]
        meter = Meter(work, file, max_bytes, max_ratio)
        with open(file.path, "rb", buffering=_BUFFER_BYTES) as archive, named(work, file):
            if zips.is_zip(archive):
                _unpack_zip(file, archive, work, rules, meter)
            else:
                _unpack_tar(file, archive, work, rules, meter)
        if rules.seen[0] == before:
            raise NothingMatched(work.uri, f"{file.name} is an archive without files")


def _unpack_zip(file: File, archive: BinaryIO, work: Work, rules: _Rules, meter: Meter) -> None:
    for member in zips.members(archive, rules.max_files):
        if member.special:
            rules.special(file, member.special, member.name)
            continue
        if member.problem:
            raise Unsupported(work.uri, f"{file.name}: {member.name[:200]!r} is {member.problem}")
        with work.create(rules.name(file, member.name)) as out:
            for piece in member.pieces():
                meter.add(len(piece))
                out.write(piece)


def _unpack_tar(file: File, archive: BinaryIO, work: Work, rules: _Rules, meter: Meter) -> None:
    head = archive.read(HEAD_BYTES)
    archive.seek(0)
    kind = kind_of(head)
    # What is not packed is read where it lies, what is only passed over is not even read.
    stream = _Stream(plain(archive, kind), meter) if kind else None
    content = cast(BinaryIO, io.BufferedReader(stream, _BUFFER_BYTES)) if stream else archive
    found = Members(content, lambda kind, name: rules.special(file, _TAR_KINDS.get(kind, "of an unknown kind"), name))
    any_yet = False
    try:
        for name, _ in found:
            any_yet = True
            with work.create(rules.name(file, name)) as out:
                for piece in found.pieces():
                    if stream is None:
                        meter.add(len(piece))
                    out.write(piece)
        if not found.ended:
            raise Damaged("it ends without the mark that ends an archive: it is cut off")
        while rest := content.read(_BUFFER_BYTES):
            work.check()
            if rest.strip(b"\0"):
                raise Damaged("something else follows its end")
    except Broken as error:
        if "sparse" in str(error):
            raise Unsupported(work.uri, f"{file.name}: {error}") from error
        if not any_yet and not head.startswith(b"\0"):
            raise BadResponse(work.uri, f"{file.name} is no tar or zip that can be read: {error}") from error
        raise Damaged(str(error)) from error


class _Stream(io.RawIOBase):
    """Pieces as a file, metered as they come: headers and padding count, too."""

    def __init__(self, pieces: Iterator[bytes], meter: Meter) -> None:
        self._pieces, self._meter = pieces, meter
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        if not self._left:
            piece = next(self._pieces, b"")
            self._meter.add(len(piece))
            self._left = memoryview(piece)
        size = min(len(view), len(self._left))
        view[:size] = self._left[:size]
        self._left = self._left[size:]
        return size
