"""Which places of an epoch are whose: of the ranks, and among the DataLoader workers of a rank. Arithmetic, no more.

Rank *r* of *R* has every R-th place. Its places are cut in batches, as its DataLoader will, and batch *b* is worker *b*
mod *W*'s, since a DataLoader takes a batch from each of its workers in turn. So the batches come out in the order of
the epoch whatever *R* and *W* are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

#: What becomes of the places that are left when samples do not divide evenly among ranks. ``pad``: ranks without one
#: have their last sample again. ``drop``: nobody has them. ``uneven``: the first ranks have one more.
TAILS = ("pad", "drop", "uneven")

_LUMP = 64  # places that are looked up together where no batch size says how many


def turn_of(rank: int, world: int, local_world: int) -> int:
    """A rank's turn among all: neighbours are on different nodes, so that each node has streams of its own.

    Ranks are numbered node by node, ``local_world`` on each (torchrun's rule). With as many streams as nodes, or a
    multiple, turn *t* is then always of the streams of its node.
    """
    if world % local_world:
        return rank
    nodes = world // local_world
    return rank % local_world * nodes + rank // local_world


@dataclass(frozen=True)
class Share:
    """One iterator's part of an epoch, from place ``start`` on: turn ``turn`` of ``world``, worker ``worker`` of
    ``workers``. Without ``batch``, samples rather than batches go from worker to worker."""

    turn: int = 0
    world: int = 1
    worker: int = 0
    workers: int = 1
    batch: int | None = None
    tail: str = "pad"
    start: int = 0

    def lumps(self, skip: int = 0) -> Iterator[range]:
        """The rank's own numbers of what is this worker's, without end, some at a time; ``skip`` of them are left
        out."""
        size, step = (self.batch, 1) if self.batch else (_LUMP, self.workers)
        passed, inside = divmod(skip, size)
        if self.batch:
            first, stride = self.worker * size, self.workers * size
        else:
            first, stride = self.worker, self.workers * size
        at = first + passed * stride
        while True:
            yield range(at + inside * step, at + size * step, step)
            at, inside = at + stride, 0

    def places(self, numbers: range) -> range:
        """Where these numbers of the rank are in the epoch."""
        first = self.start + (self.turn - self.start) % self.world
        return range(first + numbers.start * self.world, first + numbers.stop * self.world, numbers.step * self.world)

    def most(self, samples: int) -> int:
        """How many samples the rank has, of an epoch of so many: with ``pad`` or ``drop`` all ranks have as many."""
        left = max(0, samples - self.start)
        if self.tail == "uneven":
            return len(range((self.turn - self.start) % self.world, left, self.world))
        return left // self.world if self.tail == "drop" else -(-left // self.world)

    def again(self, place: int, samples: int) -> int:
        """The sample that stands in at a place beyond the end: the rank's last one."""
        return place - self.world if place >= self.world else place % samples
