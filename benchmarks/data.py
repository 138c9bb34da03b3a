"""What is fetched: made here, from fixed seeds, so that every run has the same bytes."""

from __future__ import annotations

import hashlib
import random
import struct
import zlib
from pathlib import Path

_MB = 1_000_000


def large(path: Path, megabytes: int) -> str:
    """A file of random bytes; returns ``"sha256:<hex>"``."""
    source = random.Random(path.name)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for _ in range(megabytes):
            block = source.randbytes(_MB)
            digest.update(block)
            file.write(block)
    return f"sha256:{digest.hexdigest()}"


def pictures(folder: Path, count: int) -> list[str]:
    """PNGs of 20 KB, all different, of which a decoder can make a picture; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"{number:06}.png" for number in range(count)]
    for number, name in enumerate(names):
        (folder / name).write_bytes(_png(number))
    return names


def _png(seed: int) -> bytes:
    """81 x 81 points of noise in three colours: no less than 20 KB when packed."""
    side = 81
    source = random.Random(seed)
    rows = b"".join(b"\0" + source.randbytes(3 * side) for _ in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body
