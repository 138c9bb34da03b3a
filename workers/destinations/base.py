"""What a destination is, and the local file that goes there."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ingest.errors import StoreError

_READ_BYTES = 1 << 20


class Taken(Exception):
    """The name that was to be new has an object by now."""


@dataclass(frozen=True)
class Local:
    """A published file: ``digest`` as ``"sha256:<hex>"``. ``check`` raises what interrupts the work."""

    path: Path
    size: int
    digest: str
    check: Callable[[], None]
    _md5s: dict[tuple[int, int], str] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sha256(self) -> str:
        return self.digest.removeprefix("sha256:")

    @property
    def md5(self) -> str:
        """What most services name an object's content by. No more is expected of it than to see what was damaged."""
        return self.md5_of(0, self.size)

    def md5_of(self, start: int, end: int) -> str:
        if (start, end) not in self._md5s:
            digest = hashlib.md5(usedforsecurity=False)
            for block in self.blocks(start, end):
                digest.update(block)
            self._md5s[start, end] = digest.hexdigest()
        return self._md5s[start, end]

    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        left = (self.size if end is None else end) - start
        with open(self.path, "rb") as file:
            file.seek(start)
            while left and (block := file.read(min(left, _READ_BYTES))):
                self.check()
                left -= len(block)
                yield block
        if left:
            raise StoreError(
                str(self.path),
                "is shorter than it was when it was published; `ingest store verify --remove` takes it out",
            )


class Slice(io.RawIOBase):
    """A range of a local file as what a client library takes for a body; reading it may interrupt the work."""

    def __init__(self, file: Local, start: int, end: int) -> None:
        self._file, self._start, self._size = file, start, end - start
        self._open = open(file.path, "rb", buffering=0)  # noqa: SIM115 - closed by close()
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def __len__(self) -> int:
        return self._size

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: Any) -> int:
        self._file.check()
        view = memoryview(buffer)[: max(0, self._size - self._at)]
        self._open.seek(self._start + self._at)
        count = self._open.readinto(view) or 0
        self._at += count
        return count

    def close(self) -> None:
        self._open.close()
        super().close()


class Place(Protocol):
    """Where ``into=`` leads. Names are relative to it, and safe. All raise a FetchError about it."""

    def uri(self, name: str) -> str: ...

    def holds(self, name: str, file: Local) -> bool | None:
        """Whether that name has just these bytes; None where it has nothing."""
        ...

    def put(self, name: str, file: Local, *, fresh: bool) -> None:
        """Upload, and look at what is there then; nothing half is ever seen under the name. With ``fresh`` raises
        :class:`Taken` where the name has something, as far as the service can tell in the same step."""
        ...
