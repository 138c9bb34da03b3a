"""What the iterators of one rank read now and next: what its feed asks the ledger for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest


class Windows:
    """What the workers of this process read now and next, by positions."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[Sequence[int], Sequence[int]]] = {}

    def move(self, read: Sequence[int], ahead: Sequence[int], worker: int, workers: int) -> None:
        """Workers of an iteration that had more of them read nothing any more."""
        self._of = {n: window for n, window in self._of.items() if n < workers}
        self._of[worker] = read, ahead

    @property
    def read(self) -> list[int]:
        return _in_turn([read for read, _ in self._of.values()])

    @property
    def ahead(self) -> list[int]:
        return _in_turn([ahead for _, ahead in self._of.values()])


def _in_turn(rows: Sequence[Sequence[int]]) -> list[int]:
    """The first of each, then the second of each; everything once."""
    return list(dict.fromkeys(n for column in zip_longest(*rows) for n in column if n is not None))
