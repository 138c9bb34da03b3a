"""Several files of a shard at once, in this process's own threads. What is done with each is the caller's."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from queue import SimpleQueue
from typing import Generic, TypeVar

from billiard.exceptions import SoftTimeLimitExceeded

from workers.control import Control

Item = TypeVar("Item")
Answer = TypeVar("Answer")


def each(
    items: Sequence[Item], work: Callable[[Item], Answer], parallel: int, control: Control
) -> Iterator[tuple[Item, Answer]]:
    """``(item, work(item))`` as they are done. ``work`` gives errors back; one that it raises ends it all.

    A soft time limit, which is raised in this thread wherever it is, becomes the control's "slice": the threads see it
    there. Nobody works on once this generator has ended, however it ends.
    """
    if len(items) == 1 or parallel == 1:
        for item in items:
            yield item, work(item)
        return
    hand = _Hand(items, work)
    started = given = 0
    try:
        while given < len(items):
            try:
                while started < min(parallel, len(items)):
                    _threads(os.getpid(), parallel).submit(hand.run)
                    started += 1
                hand.wait_for(given + 1)
            except SoftTimeLimitExceeded:
                control.interrupt("slice")
                continue
            done = hand.done[given]
            given += 1
            if done[2] is not None:
                raise done[2]
            yield done[0], done[1]
    finally:
        hand.wait_for(len(items) - hand.drop())


class _Hand(Generic[Item, Answer]):
    """Items, which threads take for themselves. The time limit may come between any two steps of the main thread, so
    that none of those may be what an item hangs on: what is taken and what is done is counted by what there is."""

    def __init__(self, items: Sequence[Item], work: Callable[[Item], Answer]) -> None:
        self._left, self._work = deque(items), work
        self.done: list[tuple[Item, Answer, None] | tuple[Item, None, BaseException]] = []
        self._news: SimpleQueue[None] = SimpleQueue()

    def run(self) -> None:
        """A thread's part: one item after another, until none is left."""
        while True:
            try:
                item = self._left.popleft()
            except IndexError:
                return
            try:
                self.done.append((item, self._work(item), None))
            except BaseException as error:  # noqa: BLE001 - whoever waits for the item raises it
                self.done.append((item, None, error))
            self._news.put(None)

    def wait_for(self, count: int) -> None:
        """Until so many are done. News comes after what it is of: who has looked before waiting misses none."""
        while len(self.done) < count:
            self._news.get()

    def drop(self) -> int:
        """Nobody takes another one; how many nobody has taken."""
        dropped = 0
        while True:
            try:
                self._left.pop()
            except IndexError:
                return dropped
            dropped += 1


@lru_cache(maxsize=1)
def _threads(pid: int, parallel: int) -> ThreadPoolExecutor:
    """This process's threads, kept from shard to shard: each keeps its connections."""
    return ThreadPoolExecutor(parallel, thread_name_prefix="fetch")
