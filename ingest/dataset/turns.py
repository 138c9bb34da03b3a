"""Which job of a mixture has its turn at which place of an epoch. Arithmetic on weights, no more.

After any number of blocks each job has had so many turns as Webster's rule gives it seats: the next turn always goes to
the job that is furthest behind its weight. How many those are is known for any block at once, so that no place has to
be come to from the beginning. Within a block the turns are permuted: with weights of 1 to 1 in strict alternation, each
of two ranks would only ever see one of two jobs.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from fractions import Fraction

from ingest.dataset.shuffle import permutation

#: Places that are permuted together: few, so that every batch has its mixture, and enough to look like chance.
BLOCK = 64


class Turns:
    """Of jobs with these weights; ``random`` says which permutations they are."""

    def __init__(self, weights: Sequence[float], random: str) -> None:
        exact = [Fraction(weight) for weight in weights]
        unit = max(weight.denominator for weight in exact)  # all are powers of two
        self._weights = [int(weight * unit) for weight in exact]
        self._total = sum(self._weights)
        self._random = random
        self._number = -1  # of the block that is laid out
        self._laid: list[tuple[int, int]] = []

    def at(self, place: int) -> tuple[int, int]:
        """``(job, number)``: whose turn that place is, and how many it has had before."""
        return self._block(place // BLOCK)[place % BLOCK]

    def before(self, place: int) -> list[int]:
        """How many turns each job has had before that place."""
        if len(self._weights) == 1:
            return [place]
        number, within = divmod(place, BLOCK)
        counts = self._seats(number * BLOCK)
        for job, _ in self._block(number)[:within]:
            counts[job] += 1
        return counts

    def _block(self, number: int) -> list[tuple[int, int]]:
        if number != self._number:
            counts, then = self._seats(number * BLOCK), self._seats((number + 1) * BLOCK)
            turns = [job for job, count in enumerate(counts) for _ in range(count, then[job])]
            self._number, self._laid = number, []
            for turn in permutation(BLOCK, f"{self._random}/turns/{number}"):
                job = turns[turn]
                self._laid.append((job, counts[job]))
                counts[job] += 1
        return self._laid

    def _seats(self, places: int) -> list[int]:
        """Webster's rule: the next of ``places`` goes to the job with the most weight for twice its turns and one."""
        # As many as none of them can miss, by rounding; what rounding leaves is at most one more than there are jobs.
        sure = max(0, places - (len(self._weights) + 1) // 2)
        counts = [(2 * sure * weight + self._total) // (2 * self._total) for weight in self._weights]
        queue = [(Fraction(2 * count + 1, self._weights[job]), job) for job, count in enumerate(counts)]
        heapq.heapify(queue)
        for _ in range(places - sum(counts)):
            job = queue[0][1]
            counts[job] += 1
            heapq.heapreplace(queue, (Fraction(2 * counts[job] + 1, self._weights[job]), job))
        return counts
