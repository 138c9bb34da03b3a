"""Whether a file, or a shard, costs as much in a large job as in a small one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from benchmarks.harness import Case, Measured, Within
from benchmarks.lab import Lab, Ours, fetched


@contextlib.contextmanager
def files(lab: Lab) -> Iterator[Case]:
    """Target 11: files of 1 KB, in shards of 256."""
    with _case(lab, "growth-files", lab.scale.most_files // 100, lab.scale.most_files, 256) as case:
        yield case


@contextlib.contextmanager
def shards(lab: Lab) -> Iterator[Case]:
    """Target 11: a shard for each file of 1 KB."""
    with _case(lab, "growth-shards", lab.scale.most_files // 1000, lab.scale.most_files // 10, 1) as case:
        yield case


@contextlib.contextmanager
def _case(lab: Lab, name: str, least: int, most: int, shard_files: int) -> Iterator[Case]:
    with lab.web() as (web, folder), lab.service() as service:
        (folder / "one.bin").write_bytes(bytes(range(250)) * 4)

        def job(count: int) -> Ours:
            urls = [f"{web.url}/one.bin?{number}" for number in range(count)]
            return Ours(service, lambda client: fetched(client, list(urls), shard_files=shard_files))

        yield Case(
            name,
            11,
            f"one of {most:,} {name.partition('-')[2]} to one of {least:,}: CPU, and seconds",
            (_Rising(job, least, most),),
            (Within("times_the_cpu", at_most=1.2), Within("times_the_seconds", at_most=1.2)),
            most / 1000,
            "1,000 files",
            min(lab.scale.rounds, 3),
            warm_up=False,
        )


class _Rising:
    """A small job and a large one: what one file of the large one costs, by what one of the small one does."""

    name = "ingest"

    def __init__(self, job: Callable[[int], Ours], least: int, most: int) -> None:
        self._jobs = {count: job(count) for count in (least, most)}
        self._jobs[least].run()  # libraries are loaded

    def run(self) -> Measured:
        (least, small), (most, large) = ((count, job.run()) for count, job in self._jobs.items())
        counts = {
            "times_the_cpu": large.cpu_s / most / (small.cpu_s / least),
            "times_the_seconds": large.seconds / most / (small.seconds / least),
        }
        return Measured(large.seconds, large.cpu_s, large.peak_bytes, large.all_bytes, counts)
