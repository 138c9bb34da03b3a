"""The plain bytes of a local file, by place. What is packed is unpacked once, into a file that has no name: nothing of
it can be left behind, however the process ends."""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ingest.dataset.formats.base import damaged
from ingest.dataset.formats.streams import is_on_disk, naming, open_plain
from ingest.errors import StoreError

_COPY_BYTES = 1 << 20
_MOST_BYTES = 1 << 30  # Linux gives at most 2 GiB in one read


class Content:
    """``size`` bytes that can be read from any place, by processes that share the open file, too.

    ``open`` raises DataError for a packed file that is damaged, StoreError where there is no room to unpack it.
    """

    def __init__(self, path: Path, source: str, file: io.FileIO) -> None:
        self.path, self.source, self.file = path, source, file
        self.size = os.fstat(file.fileno()).st_size

    @classmethod
    def open(cls, path: Path, source: str) -> Content:
        with naming(path, source), open_plain(path) as plain:
            if is_on_disk(plain):
                return cls(path, source, open(path, "rb", buffering=0))
            file = Anonymous(path, source)
            try:
                while True:
                    with naming(path, source, f"after {file.written} bytes of its content"):
                        piece = plain.read(_COPY_BYTES)
                    if not piece:
                        return cls(path, source, file.file)
                    file.write(piece)
            except BaseException:
                file.file.close()
                raise

    def read(self, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        try:  # no context manager: a shuffled epoch comes here for each sample
            data = os.pread(self.file.fileno(), min(size, _MOST_BYTES), offset)
            if len(data) == size:
                return data
            pieces = [data]
            while data and (size := size - len(data)):
                offset += len(data)
                data = os.pread(self.file.fileno(), min(size, _MOST_BYTES), offset)
                pieces.append(data)
        except OSError as error:
            raise damaged(self.path, self.source, f"at byte {offset}", error) from error
        if size:
            raise damaged(self.path, self.source, f"at byte {offset}", f"{size} bytes are missing: it was cut off")
        return b"".join(pieces)

    def close(self) -> None:
        self.file.close()


@contextmanager
def opening(path: Path, source: str) -> Iterator[Content]:
    """The content of a file, closed again where what is made of it fails."""
    content = Content.open(path, source)
    try:
        yield content
    except BaseException:
        content.close()
        raise


class Anonymous(io.RawIOBase):
    """A file without a name in the directory for temporary files, to be written once and read through ``file``.

    StoreError where it cannot be made or has no room: no fault of the file that is read.
    """

    def __init__(self, path: Path, source: str) -> None:
        self._path, self._source = path, source
        self.written = 0
        try:
            self.file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - its user closes it
        except OSError as error:
            raise self._no_room(error) from error

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        try:
            while view:  # a write may take less than it is given, on a nearly full disk
                taken = self.file.write(view)
                self.written += taken
                view = view[taken:]
        except OSError as error:
            raise self._no_room(error) from error
        return len(memoryview(data).cast("B"))

    def _no_room(self, error: OSError) -> StoreError:
        try:
            directory = tempfile.gettempdir()
        except OSError:
            directory = "no directory for temporary files"
        return StoreError(
            directory,
            f"{error.strerror or error} after {self.written} bytes of {self._path.name} ({self._source}), which is "
            "unpacked there to be read in any order; make room, or set TMPDIR to a directory with more",
        )
