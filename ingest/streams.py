"""Plain bytes out of a file that may be compressed. Its first bytes say so: a server may have unpacked a ``.gz``."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

_BUFFER_BYTES = 1 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"  # RFC 1952 §2.3.1, RFC 8878 §3.1.1
_PACKED_BYTES = 16 << 10  # zstd may expand a thousandfold: small bites keep memory flat


class _Zstd(io.RawIOBase):
    """The frames of a zstd file as one stream. zstandard's own reader takes a truncated frame for a whole one."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise ImportError("reading .zst files needs zstandard: pip install zstandard") from error
        self._file = file
        self._codec: Any = zstandard.ZstdDecompressor()
        self._frame: Any = None
        self._left = memoryview(b"")
        self._error: type[Exception] = zstandard.ZstdError

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        while not self._left:
            packed = self._file.read(_PACKED_BYTES)
            if not packed:
                if self._frame is not None:
                    raise EOFError("the last zstd frame is cut off")
                return 0
            self._left = memoryview(self._unpack(packed))
        size = min(len(view), len(self._left))
        view[:size] = self._left[:size]
        self._left = self._left[size:]
        return size

    def _unpack(self, packed: bytes) -> bytes:
        out = []
        try:
            while packed:
                self._frame = self._frame or self._codec.decompressobj()
                out.append(self._frame.decompress(packed))
                packed = b""
                if self._frame.eof:
                    packed, self._frame = self._frame.unused_data, None
        except self._error as error:
            raise zlib.error(str(error)) from error
        return b"".join(out)


@contextmanager
def open_plain(path: Path) -> Iterator[BinaryIO]:
    """The file's content, unpacked if it is gzip or zstd, buffered. Seekable only if it is not packed.

    Raises OSError, EOFError and ``zlib.error`` for what is damaged or cut off, ImportError without zstandard.
    """
    with open(path, "rb", buffering=_BUFFER_BYTES) as file:
        magic = cast(io.BufferedReader, file).peek(4)[:4]
        if magic.startswith(_GZIP):
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield cast(BinaryIO, unpacked)
        elif magic == _ZSTD:
            with io.BufferedReader(_Zstd(file), _BUFFER_BYTES) as buffered:
                yield buffered
        else:
            yield file
