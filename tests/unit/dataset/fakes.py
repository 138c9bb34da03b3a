"""A job without a ledger: an in-memory reader of the same shape as ingest.client's, moved on by the test."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from ingest.dataset.protocols import Progress
from ingest.model import Failure


class FakeLayout(NamedTuple):
    shard: int
    source: int
    part: int
    files: int
    packed: bool = False


@dataclass(frozen=True)
class FakeFile:
    path: Path
    source: str
    index: tuple[int, int]
    digest: str = ""
    samples: int | None = None
    size: int = 0
    reused: bool = False

    @property
    def name(self) -> str:
        return self.path.name

    def verified(self) -> Path:
        return self.path


@dataclass(frozen=True)
class FakeEnd:
    shard: int
    state: str
    files: tuple[FakeFile, ...]
    failures: tuple[Failure, ...]


@dataclass
class FakeJob:
    """A job and its one reader. ``add`` plans shards, ``end`` ends one, ``seal`` says that the plan is complete."""

    id: str = "job1"
    order: list[FakeLayout] = field(default_factory=list)
    ends: dict[int, FakeEnd] = field(default_factory=dict)
    complete: bool = False
    state: str = "planning"
    error: Exception | None = None
    not_planned: tuple[Failure, ...] = ()
    closed: int = 0
    rested: int = 0
    needed: list[list[int]] = field(default_factory=list)
    doubted: list[int] = field(default_factory=list)
    kept: bool = True
    budget_bytes: int | None = None

    def __post_init__(self) -> None:
        self._news = threading.Condition()
        self._version = self._seen = 0

    def reader(self, *, keep: bool = True) -> FakeJob:
        self.kept = keep
        return self

    def tell(self, **changes: object) -> None:
        with self._news:
            for name, value in changes.items():
                setattr(self, name, value)
            self._version += 1
            self._news.notify_all()

    def add(self, *files: int) -> None:
        """One shard of so many files for each number; every shard is a source of its own."""
        first = len(self.order)
        self.tell(order=self.order + [FakeLayout(first + n, first + n, 0, count) for n, count in enumerate(files)])

    def seal(self) -> None:
        self.tell(complete=True, state="running")

    def end(
        self, shard: int, paths: Sequence[Path] = (), failures: Sequence[Failure] = (), state: str = "done", at: int = 0
    ) -> None:
        files = tuple(FakeFile(p, f"https://host/{p.name}", (shard, at + n)) for n, p in enumerate(paths))
        self.tell(ends={**self.ends, shard: FakeEnd(shard, state, files, tuple(failures))})

    def poll(self, timeout_s: float) -> bool:
        with self._news:
            self._news.wait_for(lambda: self._version != self._seen or self.error is not None, timeout_s)
            if self.error is not None:
                raise self.error
            changed, self._seen = self._version != self._seen, self._version
            return changed

    def waiting_for(self, shard: int) -> str:
        return f"it is in the queue of node-{shard}"

    def plan_failures(self) -> tuple[Failure, ...]:
        return self.not_planned

    def need(self, shards: Sequence[int]) -> None:
        self.needed.append(list(shards))

    def doubt(self, shards: Sequence[int]) -> None:
        self.doubted += shards

    def report(self, progress: Progress) -> None:
        self.progress = progress

    def rest(self) -> None:
        self.rested += 1

    def close(self) -> None:
        self.closed += 1


def failure(shard: int, part: int = 0, source: str = "https://host/bad.tar") -> Failure:
    return Failure(source, "NotFound", "the origin says 404", 1, f"job1.{shard}", "node-a", (shard, part))


def write_lines(folder: Path, name: str, samples: Sequence[object]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    return path


def finished_job(folder: Path, files: int, samples: int) -> FakeJob:
    """A job of one-file shards that all landed: file *f* holds the numbers ``f*1000 … f*1000 + samples - 1``."""
    job = FakeJob()
    job.add(*[1] * files)
    for number in range(files):
        path = write_lines(folder, f"{number}.jsonl", [number * 1000 + n for n in range(samples)])
        job.end(number, [path])
    job.tell(complete=True, state="done")
    return job


def expected(files: int, samples: int) -> list[int]:
    return [f * 1000 + n for f in range(files) for n in range(samples)]


def until(condition: Callable[[], object], what: str, timeout_s: float = 20.0) -> None:
    """Wait for a condition of another thread or process."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s:g} s in vain: {what}"
        time.sleep(0.02)
