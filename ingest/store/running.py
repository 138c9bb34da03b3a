"""Digests of a file that grows: of all its bytes from byte 0 on, without a gap, in whatever order they come."""

from __future__ import annotations

import os
from collections.abc import Iterable

from ingest import digests

_READ_BYTES = 1 << 20


class RunningDigests:
    """``hashed`` bytes are in all of them. ``expected`` is what some must come to: algorithm → hex. For one thread."""

    def __init__(self, algorithms: Iterable[str]) -> None:
        self.hashed = 0
        self.expected: dict[str, str] = {}
        self._digests = {name: digests.new(name) for name in algorithms}

    def again(self) -> None:
        """The file is another one: from byte 0."""
        self.hashed = 0
        self._digests = {name: digests.new(name) for name in self._digests}

    def update(self, data: bytes | memoryview) -> None:
        """The next bytes."""
        for digest in self._digests.values():
            digest.update(data)
        self.hashed += len(data)

    def catch_up(self, file: int, size: int, most: int) -> bool:
        """Hash up to ``most`` more of the ``size`` bytes of a file. Whether there are more. Raises OSError where it is
        shorter."""
        end = min(size, self.hashed + most)
        buffer = memoryview(bytearray(min(_READ_BYTES, max(0, end - self.hashed))))
        while self.hashed < end:
            count = os.preadv(file, [buffer[: end - self.hashed]], self.hashed)
            if not count:
                raise OSError(f"the file is shorter than the {size} bytes that were written to it")
            self.update(buffer[:count])
        return self.hashed < size

    def expect(self, digest: str, file: int) -> None:
        """What all bytes will have to come to. Raises ImportError where that algorithm is not installed."""
        algorithm, _, value = digest.partition(":")
        if algorithm not in self._digests:
            late = digests.new(algorithm)
            for at in range(0, self.hashed, _READ_BYTES):
                late.update(os.pread(file, min(_READ_BYTES, self.hashed - at), at))
            self._digests[algorithm] = late
        self.expected[algorithm] = value

    def value(self, algorithm: str) -> str:
        """``"sha256:<hex>"`` of the bytes that are hashed."""
        return f"{algorithm}:{self._digests[algorithm].hexdigest()}"
