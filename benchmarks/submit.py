"""What is the service's own: long lists, files that are here already, and one small file at a time."""

from __future__ import annotations

import contextlib
import os
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.harness import Case, Within
from benchmarks.lab import Lab, Ours, fetched
from benchmarks.peers import Script
from ingest import Client
from ingest.embedded import RedisServer


@contextlib.contextmanager
def listed(lab: Lab) -> Iterator[Case]:
    """Target 6: a list of URLs, while no worker takes any of it away."""
    with RedisServer(lab.dir("redis")) as redis:
        env = {**os.environ, "INGEST_REDIS_URL": redis.url, "INGEST_STORE": str(lab.dir("store"))}
        script = Script("ingest", Path(sys.executable), "submit", [str(lab.scale.urls)], env=env)
        part = lab.scale.urls / 1_000_000
        yield Case(
            "submit",
            6,
            f"{lab.scale.urls:,} URLs with random names, from the list in memory to `submit` having returned",
            (script,),
            (
                Within("seconds", at_most=15 * part),
                Within("peak_mb", at_most=300),
                Within("redis_bytes_a_url", at_most=60),
            ),
            lab.scale.urls / 1000,
            "1,000 URLs",
            lab.scale.rounds,
        )


@contextlib.contextmanager
def here(lab: Lab) -> Iterator[Case]:
    """Target 7: a job of which the store has every file."""
    count = lab.scale.here
    with lab.web() as (web, folder), lab.service() as service:
        names = [f"{number:06}.txt" for number in range(count)]
        for name in names:
            (folder / name).write_text(name * 10)
        urls = [f"{web.url}/{name}" for name in names]
        fetched(service.client, urls, fresh_s=3600)

        def work(client: Client) -> Mapping[str, float]:
            return fetched(client, urls, fresh_s=3600)

        yield Case(
            "here",
            7,
            f"{count:,} files that are in the store already, to paths",
            (Ours(service, work, cold=False),),
            (Within("files_a_second", at_least=20_000),),
            count / 1000,
            "1,000 files",
            lab.scale.rounds,
        )


@contextlib.contextmanager
def latency(lab: Lab) -> Iterator[Case]:
    """Target 8: each file is new, and nothing else is going on."""
    with lab.web() as (web, folder), lab.service() as service:
        (folder / "one.bin").write_bytes(os.urandom(1000))
        asked = iter(range(1_000_000))

        def work(client: Client) -> Mapping[str, float]:
            ms = []
            for _ in range(lab.scale.asked):
                begun = time.perf_counter()
                client.fetch(f"{web.url}/one.bin?{next(asked)}", timeout=60)
                ms.append((time.perf_counter() - begun) * 1000)
            ms.sort()
            return {"files": len(ms), "p50_ms": statistics.median(ms), "p95_ms": ms[int(len(ms) * 0.95)]}

        yield Case(
            "latency",
            8,
            f"`fetch` of one new file of 1 KB, idle service, {lab.scale.asked} times one after the other",
            (Ours(service, work, cold=False),),
            (Within("p50_ms", at_most=15), Within("p95_ms", at_most=40)),
            lab.scale.asked / 1000,
            "1,000 files",
            lab.scale.rounds,
        )
