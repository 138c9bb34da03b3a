"""Where in a manifest reading may begin again. No I/O here."""

from __future__ import annotations

from collections import deque

#: How many rows lie before a place, and the place: an offset into the text, or a row group.
Mark = tuple[int, int]


class Marks:
    """The places that a reader passed, in order. Few are kept: asking for one forgets those before it."""

    def __init__(self) -> None:
        self._passed: deque[Mark] = deque()

    def add(self, rows: int, place: int) -> None:
        self._passed.append((rows, place))

    def before(self, row: int) -> Mark | None:
        """The last place with no more than ``row`` rows before it: whoever has dealt with that row goes on there."""
        found = None
        while self._passed and self._passed[0][0] <= row:
            found = self._passed.popleft()
        if found is not None:
            self._passed.appendleft(found)
        return found
