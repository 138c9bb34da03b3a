"""The space that a file in the making takes, as the store asks for it. Who gives it: ``workers.space``."""

from __future__ import annotations

import threading
from typing import Protocol


class Room(Protocol):
    """What a file in the making asks for space, in bytes, before they are written. From any thread."""

    def begin(self, size: int | None) -> None:
        """Nothing is there yet; the whole is said to be of that size. Raises as ``grow``."""

    def grow(self, size: int) -> None:
        """So many bytes more will be written. Raises a :class:`FetchError` where there is no space for them."""

    def took_up(self, size: int) -> None:
        """So many are there already."""

    def shrink(self, size: int) -> None:
        """So many of those that were asked for are not there, or not any more."""

    def published(self, size: int, asked: int) -> None:
        """A file of ``size`` is now the store's; ``asked`` bytes had been asked for it."""


class Taken:
    """What one file has taken of a room, or of none: nothing is counted then. From any thread."""

    def __init__(self, room: Room | None) -> None:
        self._room, self._bytes, self._lock = room, 0, threading.Lock()

    def took_up(self, size: int) -> None:
        """So many bytes are there from earlier."""
        if self._room is not None:
            self._bytes = size
            self._room.took_up(size)

    def reach(self, end: int) -> None:
        """See that there is space for a file of that length. Raises as :meth:`Room.grow`."""
        if self._room is None or end <= self._bytes:
            return
        with self._lock:
            if end > self._bytes:
                self._room.grow(end - self._bytes)
                self._bytes = end

    def published(self, size: int) -> None:
        """The file is the store's now."""
        if self._room is not None:
            self._room.published(size, self._bytes)
            self._bytes = 0

    def give_back(self, left: int) -> None:
        """Only so many bytes of it are there still."""
        if self._room is not None and self._bytes > left:
            self._room.shrink(self._bytes - left)
            self._bytes = left
