"""Running digests by name. hashlib's are always there; blake3 and crc32c come from an extra, imported when first
asked for."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol, cast


class Digest(Protocol):
    """What hashlib objects have, as far as we use it."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


class _Crc32c:
    """CRC32C (Castagnoli), big-endian hexadecimal, by google-crc32c's hardware instructions."""

    def __init__(self) -> None:
        import google_crc32c

        self._sum: Any = google_crc32c.Checksum()  # type: ignore[no-untyped-call] # it has no types

    def update(self, data: bytes | memoryview, /) -> None:
        self._sum.update(bytes(data))

    def hexdigest(self) -> str:
        return str(self._sum.hexdigest().decode())


def new(algorithm: str) -> Digest:
    """A fresh running digest. Raises ImportError where blake3 or google-crc32c is not installed (extra ``digests``)."""
    if algorithm == "crc32c":
        return _Crc32c()
    if algorithm == "blake3":
        import blake3

        return cast(Digest, blake3.blake3())
    return hashlib.new(algorithm)
