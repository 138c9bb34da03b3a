"""Running digests by name. hashlib's and crc32 are always there; blake3, crc32c and crc64nvme come from an extra,
imported when first asked for."""

from __future__ import annotations

import hashlib
import zlib
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


class _Crc32:
    """CRC32 (ISO-HDLC), big-endian hexadecimal."""

    def __init__(self) -> None:
        self._sum = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._sum = zlib.crc32(data, self._sum)

    def hexdigest(self) -> str:
        return f"{self._sum:08x}"


class _Crc64Nvme:
    """CRC64NVME, which S3 makes of every object, big-endian hexadecimal, by the hardware instructions of awscrt."""

    def __init__(self) -> None:
        from awscrt import checksums

        self._crc: Any = checksums.crc64nvme
        self._sum = 0

    def update(self, data: bytes | memoryview, /) -> None:
        self._sum = self._crc(data, self._sum)

    def hexdigest(self) -> str:
        return f"{self._sum:016x}"


#: What hashlib has not, by name.
_OTHERS: dict[str, type[Digest]] = {"crc32": _Crc32, "crc32c": _Crc32c, "crc64nvme": _Crc64Nvme}


def new(algorithm: str) -> Digest:
    """A fresh running digest. Raises ImportError where blake3, google-crc32c or awscrt is not installed (extra
    ``digests``)."""
    if algorithm in _OTHERS:
        return _OTHERS[algorithm]()
    if algorithm == "blake3":
        import blake3

        return cast(Digest, blake3.blake3())
    return hashlib.new(algorithm)
