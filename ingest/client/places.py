"""A set of places of files in a job, small enough for a hundred million of them: a bit a place."""

from __future__ import annotations

#: Beyond so many parts of one source (a bitmap of 128 MB) a place is kept by itself.
MOST_BITS = 1 << 30


class Places:
    """A set of (source, part, piece)."""

    def __init__(self) -> None:
        self._bits: dict[int, bytearray] = {}
        self._others: set[tuple[int, int, int]] = set()

    def add(self, place: tuple[int, int, int]) -> None:
        source, part, piece = place
        if piece or not 0 <= part < MOST_BITS:
            self._others.add(place)
            return
        bits = self._bits.setdefault(source, bytearray())
        if len(bits) <= part >> 3:
            bits.extend(bytes((part >> 3) + 1 - len(bits)))
        bits[part >> 3] |= 1 << (part & 7)

    def __contains__(self, place: tuple[int, int, int]) -> bool:
        source, part, piece = place
        if piece or not 0 <= part < MOST_BITS:
            return place in self._others
        bits = self._bits.get(source, b"")
        return part >> 3 < len(bits) and bool(bits[part >> 3] & 1 << (part & 7))
