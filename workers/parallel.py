"""Several files of a shard at once, in this process's own threads. What is done with each is the caller's."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from functools import lru_cache
from typing import TypeVar

from billiard.exceptions import SoftTimeLimitExceeded

from workers.control import Control

Item = TypeVar("Item")
Answer = TypeVar("Answer")

#: Items handed to the threads ahead of those that they work on: enough that none ever waits.
_AHEAD = 4


def each(
    items: Sequence[Item], work: Callable[[Item], Answer], parallel: int, control: Control
) -> Iterator[tuple[Item, Answer]]:
    """``(item, work(item))`` as they are done. ``work`` gives errors back instead of raising them.

    A soft time limit, which is raised in this thread wherever it is, becomes the control's "slice": the threads see it
    there. Nobody works on once this generator has ended, however it ends.
    """
    if len(items) == 1 or parallel == 1:
        for item in items:
            yield item, work(item)
        return
    left = deque(items)
    threads = _threads(os.getpid(), parallel)
    running: dict[Future[Answer], Item] = {}
    try:
        while True:
            try:
                while left and len(running) < parallel * _AHEAD:
                    # A time limit may come between any two steps: rather is a file looked at twice than by nobody.
                    running[threads.submit(work, left[0])] = left[0]
                    left.popleft()
                if not running:
                    return
                done = wait(running, return_when=FIRST_COMPLETED).done
            except SoftTimeLimitExceeded:
                control.interrupt("slice")
                continue
            for future in done:
                yield running.pop(future), future.result()
    finally:
        for future in running:
            future.cancel()
        wait(running)


@lru_cache(maxsize=1)
def _threads(pid: int, parallel: int) -> ThreadPoolExecutor:
    """This process's threads, kept from shard to shard: each keeps its connections."""
    return ThreadPoolExecutor(parallel, thread_name_prefix="fetch")
