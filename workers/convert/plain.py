"""gzip, bzip2, xz and zstd as plain bytes, by their first bytes and never by a name, in pieces of bounded size.

However small a piece of the input, no step of unpacking takes more memory than a few megabytes and the codec's window.
All of the file must be good: a stream that is cut off, or followed by something else than another stream or zeros (as
tapes pad), is damaged.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, Protocol

_READ_BYTES = 256 << 10
_OUT_BYTES = 1 << 20
#: xz -9 needs 65 MiB; some that is packed needs gigabytes.
_XZ_MEMORY = 256 << 20

_MAGIC = {"gzip": b"\x1f\x8b", "bzip2": b"BZh", "xz": b"\xfd7zXZ\0", "zstd": b"\x28\xb5\x2f\xfd"}
#: RFC 8878 §3.1.2: 0x184D2A50 to 0x184D2A5F, little-endian.
_SKIPPABLE = b"\x2a\x4d\x18"
_MAGIC_BYTES = 6

#: RFC 8878 §3.1.1.2: no block gives more.
_ZSTD_BLOCK = 128 << 10


class Damaged(Exception):
    """Not a whole stream. The text says what is wrong; whoever knows the file says which."""


class Unpackable(Exception):
    """It would take too much memory, or a codec that is not here."""


def kind_of(head: bytes) -> str | None:
    """``gzip``, ``bzip2``, ``xz``, ``zstd``, or None for what is packed by none of them."""
    for kind, magic in _MAGIC.items():
        if head.startswith(magic):
            return kind
    return "zstd" if len(head) >= 4 and head[1:4] == _SKIPPABLE and head[0] >> 4 == 5 else None


def plain(file: BinaryIO, kind: str) -> Iterator[bytes]:
    """The unpacked content of a file that is read from its beginning, in pieces of at most 1 MiB.

    Raises :class:`Damaged`, :class:`Unpackable`, and ImportError without zstandard.
    """
    if kind == "zstd":
        return _zstd(_Input(file))
    return _streams(_Input(file), kind)


class _Codec(Protocol):
    eof: bool
    needs_input: bool
    unused_data: bytes

    def decompress(self, data: bytes, max_length: int = ...) -> bytes: ...


class Inflate:
    """zlib's as the others are: it holds back input that it had no room for."""

    def __init__(self, window: int) -> None:
        self._codec = zlib.decompressobj(window)
        self.needs_input = True

    def decompress(self, data: bytes, max_length: int = _OUT_BYTES) -> bytes:
        out = self._codec.decompress(self._codec.unconsumed_tail + data, max_length)
        # What just fills the room may be followed by more that is out of the input already.
        self.needs_input = len(out) < max_length and not self._codec.unconsumed_tail
        return out

    @property
    def eof(self) -> bool:
        return self._codec.eof

    @property
    def unused_data(self) -> bytes:
        return self._codec.unused_data


_CODECS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: Inflate(16 + zlib.MAX_WBITS),
    "bzip2": bz2.BZ2Decompressor,
    "xz": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY),
}


class _Input:
    """A buffered file, and what was read of it too early."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._held = file, b""

    def some(self) -> bytes:
        held, self._held = self._held, b""
        return held or self._file.read(_READ_BYTES)

    def exactly(self, count: int) -> bytes:
        """So many bytes. Raises :class:`Damaged` where there are fewer."""
        data = self.at_most(count)
        if len(data) < count:
            raise Damaged("it is cut off")
        return data

    def at_most(self, count: int) -> bytes:
        data, self._held = self._held[:count], self._held[count:]
        return data + self._file.read(count - len(data)) if len(data) < count else data

    def back(self, data: bytes) -> None:
        self._held = data + self._held

    def at_end(self) -> bool:
        """Whether nothing but zeros follows; the next stream begins here if not."""
        while head := self.some():
            if rest := head.lstrip(b"\0"):
                self.back(rest)
                return False
        return True


def _streams(packed: _Input, kind: str) -> Iterator[bytes]:
    while True:
        yield from pieces(_CODECS[kind](), packed.some, packed.back)
        if packed.at_end():
            return
        head = packed.at_most(_MAGIC_BYTES)
        packed.back(head)
        if not head.startswith(_MAGIC[kind]):
            raise Damaged("something else follows its end")


def pieces(codec: _Codec, read: Callable[[], bytes], back: Callable[[bytes], None]) -> Iterator[bytes]:
    """One stream, and what was read behind its end given back. Raises as :func:`plain`."""
    try:
        while not codec.eof:
            data = b""
            if codec.needs_input and not (data := read()):
                raise Damaged("it is cut off")
            if out := codec.decompress(data, _OUT_BYTES):
                yield out
    except lzma.LZMAError as error:
        if "Memory usage limit" in str(error):
            raise Unpackable(f"unpacking it takes more than {_XZ_MEMORY >> 20} MiB of memory") from error
        raise Damaged(str(error)) from error
    except (zlib.error, OSError, EOFError, ValueError) as error:  # OSError: bzip2's word for damage
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Damaged(str(error)) from error
    back(codec.unused_data)


def _zstd(packed: _Input) -> Iterator[bytes]:
    """zstandard can be asked for a bounded piece of a stream, or for what was wrong with it, but not for both: it is
    handed whole blocks, few at a time."""
    try:
        import zstandard
    except ImportError as error:
        raise ImportError("zstandard", name="zstandard") from error
    codec = zstandard.ZstdDecompressor()
    while True:
        magic = packed.exactly(4)
        if magic[1:4] == _SKIPPABLE and magic[0] >> 4 == 5:
            left = int.from_bytes(packed.exactly(4), "little")
            while left:
                left -= len(packed.exactly(min(left, _READ_BYTES)))
        elif magic == _MAGIC["zstd"]:
            frame = codec.decompressobj(write_size=_ZSTD_BLOCK)
            try:
                for bite in _blocks(packed, magic):
                    if out := frame.decompress(bite):
                        yield out
                whole = frame.eof
            except zstandard.ZstdError as error:
                if "memory" in str(error):
                    raise Unpackable("unpacking it takes more memory than zstd allows without being told") from error
                raise Damaged(str(error)) from error
            if not whole:
                raise Damaged("a frame does not end where its last block does")
        else:
            raise Damaged("something else follows its end")
        if packed.at_end():
            return


def _blocks(packed: _Input, magic: bytes) -> Iterator[bytes]:
    """The rest of a frame, in bites that each give at most 1 MiB (RFC 8878 §3.1.1)."""
    descriptor = packed.exactly(1)
    flags = descriptor[0]
    single, checksum = bool(flags & 0x20), bool(flags & 0x04)
    size_bytes = (1 if single else 0, 2, 4, 8)[flags >> 6]
    bite = [magic, descriptor, packed.exactly((not single) + (0, 1, 2, 4)[flags & 3] + size_bytes)]
    count = 0
    last = False
    while not last:
        header = packed.exactly(3)
        number = int.from_bytes(header, "little")
        last, kind, size = bool(number & 1), number >> 1 & 3, number >> 3
        if size > _ZSTD_BLOCK and kind != 1:
            raise Damaged("a block is larger than a block may be")
        bite += [header, packed.exactly(1 if kind == 1 else size)]
        count += 1
        if count == _OUT_BYTES // _ZSTD_BLOCK:
            yield b"".join(bite)
            bite, count = [], 0
    if checksum:
        bite.append(packed.exactly(4))
    if bite:
        yield b"".join(bite)
