"""The bad broker: it takes messages out of the Celery queues and loses, doubles, delays and reorders them. Always on in
the suite."""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import redis

from ingest.embedded.ports import connect


class Meddler:
    """A thief among the consumers. Redis serves whoever has waited longest, so of an idle service's messages it gets
    about one in (workers + 1). ``counts`` is what it did."""

    def __init__(self, url: str, prefix: str, queues: list[str], rng: random.Random) -> None:
        self._url = url
        self._keys = [f"{prefix}celery:{queue}" for queue in queues]
        self._rng = rng
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meddler", daemon=True)
        self._held: list[tuple[float, int, bytes, bytes]] = []
        self.counts: Counter[str] = Counter()
        self._hand = threading.Lock()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread.ident:
            self._thread.join(15)

    @contextmanager
    def still(self) -> Iterator[None]:
        """It takes nothing meanwhile, for a test that watches one message; what it has it gives back as ever."""
        with self._hand:
            yield

    def _run(self) -> None:
        broker = connect(self._url, 5.0)
        while not self._stop.is_set():
            try:
                # A look at a time: what lies there while the workers are busy, in the order of a thief.
                self._rng.shuffle(self._keys)
                if self._rng.random() < 0.5 and self._hand.acquire(blocking=False):
                    try:
                        if found := broker.brpop(self._keys, 0.1):
                            self._take(*found)
                    finally:
                        self._hand.release()
                self._give_back(broker)
            except (redis.RedisError, OSError):
                pass  # the broker is what other faults are about
            self._stop.wait(0.03)
        broker.close()

    def _take(self, key: bytes, message: bytes) -> None:
        copies = self._rng.choices((0, 1, 2, 5), (35, 35, 20, 10))[0]
        self.counts["lost" if not copies else "delayed" if copies == 1 else "doubled"] += 1
        for _ in range(copies):  # each at a time of its own: that is the reordering
            due = time.monotonic() + self._rng.uniform(0, 1.5)
            heapq.heappush(self._held, (due, self._rng.getrandbits(32), key, message))

    def _give_back(self, broker: redis.Redis) -> None:  # type: ignore[type-arg]
        while self._held and self._held[0][0] <= time.monotonic():
            _, _, key, message = self._held[0]
            (broker.lpush if self._rng.random() < 0.5 else broker.rpush)(key.decode(), message)
            heapq.heappop(self._held)
