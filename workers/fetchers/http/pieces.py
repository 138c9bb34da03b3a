"""Who fetches which bytes of a file, and over how many connections. Pure: no connection, no clock, no lock of its own.

Several threads use a :class:`Plan`; whoever calls it holds their lock.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ingest.store.spans import Span, Spans

#: A second request for the end of what another connection has begun is worth it from here on: its round trip costs
#: about what a slow line (1 MB/s) brings meanwhile.
STEAL_BYTES = 1 << 20
#: A connection that has brought nothing for so long loses all that it has not brought, to one that has nothing to do.
SILENT_S = 5.0
#: So many connections a file has where nothing is known of its origin.
BEGIN_WITH = 2


@dataclass(eq=False)
class Piece:
    """Bytes [at, end) that one connection brings. ``end`` may come nearer; ``touched`` is when the last came."""

    at: int
    end: int
    touched: float
    start: int = field(init=False)

    def __post_init__(self) -> None:
        self.start = self.at

    @property
    def left(self) -> int:
        return self.end - self.at


class Plan:
    """What is missing of a file, as pieces that are under way and ranges that nobody is at."""

    def __init__(self, gaps: Sequence[Span], piece_bytes: int) -> None:
        self.free = list(gaps)
        self.busy: list[Piece] = []
        self._piece_bytes = piece_bytes

    def take(self, now: float) -> Piece | None:
        """The first bytes that nobody is at."""
        if not self.free:
            return None
        start, end = self.free.pop(0)
        piece = Piece(start, self._cut(start, end), now)
        if piece.end < end:
            self.free.insert(0, (piece.end, end))
        self.busy.append(piece)
        return piece

    def grow(self, piece: Piece) -> bool:
        """For a connection whose answer goes on: let it bring what comes next, if nobody has brought any of it yet."""
        for n, (start, end) in enumerate(self.free):
            if start == piece.end:
                piece.end = self._cut(start, end)
                self.free[n : n + 1] = [(piece.end, end)] if piece.end < end else []
                return True
        for other in self.busy:
            if other.left and other.at == other.start == piece.end:
                piece.end, other.end = other.end, other.at
                return True
        return False

    def steal(self, now: float) -> Piece | None:
        """The second half of what another connection is slowest to bring, or all of it where it brings nothing."""
        victim = max((piece for piece in self.busy if piece.left), key=lambda piece: piece.left, default=None)
        silent = next((piece for piece in self.busy if piece.left and now - piece.touched >= SILENT_S), None)
        if silent is not None:
            piece = Piece(silent.at, silent.end, now)
            silent.end = silent.at
        elif victim is not None and victim.left >= 2 * STEAL_BYTES:
            piece = Piece(victim.at + victim.left // 2, victim.end, now)
            victim.end = piece.at
        else:
            return None
        self.busy.append(piece)
        return piece

    def claim(self, piece: Piece, size: int, now: float) -> int:
        """How many of ``size`` bytes that came are still the piece's; they count as brought."""
        count = min(size, piece.left)
        piece.at += count
        piece.touched = now
        return count

    def drop(self, piece: Piece) -> None:
        """Nobody is at it any more; what was not brought is free again."""
        self.busy.remove(piece)
        if piece.left:
            self.free = list(Spans([*self.free, (piece.at, piece.end)]))

    def _cut(self, start: int, end: int) -> int:
        # A rest of less than half a piece is not worth a request of its own.
        return end if end - start < self._piece_bytes * 3 // 2 else start + self._piece_bytes


class Pace:
    """How many connections to have: more, as long as that brings more bytes a second, and no more then.

    An origin that limits each connection is met with many, one that is at its limit, or ours, with few. What an origin
    has refused (429, 503) is not asked for again.
    """

    #: A connection is measured when it is past its beginning, for long enough to even out its bursts; one that is to
    #: prove that it was worth it, for two such windows.
    SETTLE_S, WINDOW_S = 0.2, 0.5
    #: Twice the connections should bring twice the bytes; below this they only take each other's. Of four times as many
    #: it is asked twice.
    GROWTH = 1.25
    #: Each of so many brings as much as one of fewer did: it is the connection that is limited, and they are far from
    #: what the origin can give.
    EACH_AS_MUCH = 0.9
    #: A line may be better later.
    AGAIN_S = 20.0

    def __init__(self, most: int, now: float, begin: int = BEGIN_WITH) -> None:
        self._most = most
        self.target = min(begin, most)
        self._alive, self._since, self._at = 0, now, 0
        self._base: tuple[int, float] | None = None
        self._hold_until = now

    def step(self, now: float, brought: int, alive: int) -> int:
        """Called now and then with the bytes so far and the connections there are; how many there should be."""
        if alive != self._alive:
            self._alive, self._since, self._at = alive, now + self.SETTLE_S, -1
        elif (now >= self._since and self._at < 0) or (self._at >= 0 and self._judge(now, alive, brought - self._at)):
            self._since, self._at = now, brought
        return self.target

    def _judge(self, now: float, alive: int, came: int) -> bool:
        """Whether that window is over, in which so many bytes came."""
        seconds = now - self._since
        if seconds < self.WINDOW_S:
            return False
        rate, times = came / seconds, 2
        if self._base is not None and alive > self._base[0]:
            fewer, before = self._base
            if rate < before * self.GROWTH ** math.log2(alive / fewer):
                self._back(now, fewer, alive)
                return True
            if seconds < 2 * self.WINDOW_S:
                return False
            if rate / alive >= self.EACH_AS_MUCH * before / fewer:
                times = 4
        if now >= self._hold_until and self.target <= alive < self._most:
            self._base = (alive, rate)
            self.target = min(times * alive, self._most)
        return True

    def _back(self, now: float, fewer: int, alive: int) -> None:
        if alive > 2 * fewer:  # four times as many were too many: perhaps twice as many are not
            self.target = 2 * fewer
        else:
            self.target, self._base, self._hold_until = fewer, None, now + self.AGAIN_S

    def limited(self, alive: int) -> None:
        """The origin has refused one more than ``alive``."""
        self._most = self.target = max(1, alive)

    def lost(self, alive: int, now: float) -> None:
        """A connection broke off: go on with the others for a while."""
        self.target, self._base, self._hold_until = max(1, alive), None, now + self.AGAIN_S
