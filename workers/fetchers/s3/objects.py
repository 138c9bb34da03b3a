"""What is asked of an object store, and what it says: an answer, who gives it, and what it states of an object's bytes.
Nobody is asked here.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

from ingest import digests

#: ``False``: take the bytes as they come. ``True``: check what the object says of itself, where that costs no time.
#: ``always``: also where it does. ``required``: moreover, refuse an object that says nothing that can be checked.
Policy = bool | Literal["always", "required"]

#: An MD5 is made at 0.6 GB/s, all else that is done with a byte here takes half of that: up to this size it is hidden
#: behind the network.
MD5_BYTES = 64 << 20

_MD5 = re.compile(r'"([0-9a-fA-F]{32})"')


@dataclass(frozen=True)
class Stated:
    """``value`` is hexadecimal. With ``parts`` (their sizes) it is the digest of the parts' digests, in binary.

    ``exact`` is False where the parts' sizes follow from the first and the number: an upload may have cut otherwise.
    """

    algorithm: str
    value: str
    parts: tuple[int, ...] = ()
    exact: bool = True

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.value}" + (f"-{len(self.parts)}" if self.parts else "")


#: The origin says nothing of that object's bytes that can be checked. That its ETag looks like an MD5 means nothing.
NOTHING = Stated("", "")


def of_etag(etag: str | None) -> Stated | None:
    """An ETag that looks like the MD5 of an object uploaded in one piece."""
    found = _MD5.fullmatch(etag or "")
    return Stated("md5", found[1].lower()) if found else None


def uniform(first: int, count: int, total: int) -> tuple[int, ...]:
    """Sizes of ``count`` parts as large as the first, the last smaller; () where they do not add up to ``total``."""
    last = total - first * (count - 1)
    return (*[first] * (count - 1), last) if 0 < last <= first or count == 1 else ()


def is_worth(policy: Policy, algorithm: str, total: int) -> bool:
    """Whether that digest of so many bytes is made for the sake of checking them."""
    return bool(policy) and (algorithm != "md5" or total <= MD5_BYTES or policy is not True)


def available(algorithm: str) -> bool:
    """Whether that digest can be made here."""
    try:
        digests.new(algorithm)
    except ImportError:
        return False
    return algorithm in hashlib.algorithms_guaranteed or algorithm.startswith("crc")


@dataclass(frozen=True)
class Part:
    """An answer whose body is not read yet: ``length`` bytes from byte ``start`` on, of an object of ``total``. Whoever
    reads it closes it; another thread may cut it off. ``bounded``: it ends by itself in reasonable time."""

    etag: str | None
    total: int
    start: int
    length: int
    chunks: Iterator[bytes]
    close: Callable[[], None] = lambda: None
    cut_off: Callable[[], None] = lambda: None
    bounded: bool = False


class Reader(Protocol):
    """One object. ``span`` is (first byte, end) or None for all of it; ``match`` and ``none_match`` are ETags."""

    @property
    def policy(self) -> Policy:
        """Whether what it says of its bytes is to be checked."""
        ...

    def open(self, span: tuple[int, int] | None, match: str | None, none_match: str | None = None) -> Part: ...

    def stated(self, part: Part) -> Stated:
        """What the origin says of the object whose ``part`` was read; NOTHING if it says nothing of use. Raises
        nothing: a question that fails is one that has no answer."""
        ...

    def exactly(self, part: Part, stated: Stated) -> Stated:
        """The same with the size of each part, as each is asked for; NOTHING where they cannot be had."""
        ...
