"""The load of a rig: clients that go on submitting jobs of mixed sources, and a waiter for each."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import ingest
from ingest.client.files import LocalFile
from ingest.errors import LedgerUnavailable, NoDataNode, UnknownJob
from tests.faults.origins import Paced, content, digest_of, query, right_rows
from tests.servers.simulated import Object

if TYPE_CHECKING:
    from tests.faults.rig import Rig

#: A file of a job is right: says so of what arrived.
Right = Callable[[LocalFile], bool]
#: Stores that are not the client's own, by their ids, where a test has such.
ELSEWHERE: dict[str, Path] = {}


@dataclass
class Asked:
    """A job that was accepted, and what must become of it: a check for each of its sources. ``ends`` is the states it
    may have at its end. ``answer`` is what its waiter was given, or told, and ``answered`` when; None while it was
    not. ``deadline`` is the waiter's."""

    job: ingest.Job
    right: list[Right]
    deadline: float
    ends: tuple[str, ...] = ("done",)
    answer: list[LocalFile] | Exception | None = None
    answered: float | None = None
    thread: threading.Thread | None = None
    begun: float = field(default_factory=time.monotonic)

    @property
    def waited(self) -> str:
        """How its waiter was answered, in words; "" while it was not."""
        if self.answer is None:
            return ""
        return f"{len(self.answer)} files" if isinstance(self.answer, list) else repr(self.answer)


class Load:
    """``jobs`` at a time, each of some files over HTTP (mostly of their own, some that several want), an object of S3
    and a query. Waiters get ``patience_s``; with ``own`` each waits on the handle that ``submit`` gave, which can put
    back what Redis lost, else on one of the job's id."""

    def __init__(
        self, rig: Rig, rng: random.Random, *, jobs: int = 8, patience_s: float = 150.0, own: bool = False
    ) -> None:
        self.rig, self._rng, self.own = rig, rng, own
        self._at_once, self.patience_s = jobs, patience_s
        self.asked: list[Asked] = []
        self.refused: list[str] = []
        self._number = 0
        self._stop, self._pause = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """No new jobs; those that there are go on."""
        self._stop.set()
        if self._thread.ident:
            self._thread.join(60)

    def pause(self, seconds: float) -> None:
        """Let the load go on for so long: the time between two faults is what the schedule is made of."""
        self._pause.wait(seconds)

    @property
    def open(self) -> int:
        return sum(not asked.waited for asked in self.asked)

    def _run(self) -> None:
        while not self._stop.is_set():
            if self.open >= self._at_once:
                self._stop.wait(0.05)
                continue
            try:
                self.submit()
            except (LedgerUnavailable, UnknownJob, NoDataNode) as error:  # Redis and nodes are what faults are about
                self.refused.append(str(error))
                self._stop.wait(0.5)

    def submit(self) -> Asked:
        """One job as the load makes them. Raises what submitting raises."""
        self._number += 1
        sources, right = self._sources(self._number)
        key = f"load-{self.rig.run}-{self._number}"
        placement = self._rng.choice([None, None, "any", "spread"])
        client = self.rig.client()
        for left in (3, 2, 1, 0):  # as a user would who was told that Redis is away: again, with the same key
            try:
                job = client.submit(sources, key=key, placement=placement, require_node=False, shard_files=2)
                break
            except LedgerUnavailable:
                if not left:
                    raise
        return self.follow(job, right)

    def follow(
        self, job: ingest.Job, right: list[Right], *, ends: tuple[str, ...] = ("done",), within_s: float | None = None
    ) -> Asked:
        """Count a job among those that the oracle asks for, and wait for it in a thread of its own."""
        patience = within_s or self.patience_s
        asked = Asked(job, right, time.monotonic() + patience, ends)
        asked.thread = threading.Thread(target=self._wait, args=(asked, patience), daemon=True)
        self.asked.append(asked)
        asked.thread.start()
        return asked

    def _wait(self, asked: Asked, patience_s: float) -> None:
        answer: list[LocalFile] | Exception | None = None
        while answer is None:
            try:
                job = asked.job if self.own else self.rig.client().job(asked.job.id)
                answer = job.files(timeout=min(patience_s, max(0.1, asked.deadline - time.monotonic())))
            except Exception as error:  # noqa: BLE001 - whatever it is, that is what its waiter was told
                # Said after a minute without Redis: who has time left asks again.
                if not isinstance(error, LedgerUnavailable) or time.monotonic() >= asked.deadline:
                    answer = error
        asked.answered = time.monotonic()
        asked.answer = answer

    def _sources(self, number: int) -> tuple[list[str | ingest.Sql], list[Right]]:
        rng = self._rng
        sources: list[str | ingest.Sql] = []
        right: list[Right] = []
        for n in range(rng.randint(1, 4)):
            size = rng.choice((100, 20_000, 300_000, 1_000_000, 3_000_000))
            shared = rng.random() < 0.2  # what other jobs want too, perhaps just now
            name = f"shared{rng.randrange(8)}" if shared else f"f{number}-{n}"
            size = 700_000 if shared else size
            sources.append(self.http(name, size, rng.choice((3e5, 1e6, 4e6))))
            right.append(exactly(name, size))
        if rng.random() < 0.7:
            size = rng.choice((1000, 200_000, 900_000))
            sources.append(self.s3(f"o{number}", size))
            right.append(exactly(f"o{number}", size))
        if rng.random() < 0.5:
            modulus = rng.choice((3, 40, 400))
            residue = rng.randrange(modulus)
            # Each its own file: a query with another number in it is another source.
            sources.append(ingest.Sql("db", query=f"{query(modulus, residue)} LIMIT {1_000_000 + number}"))
            right.append(lambda file, m=modulus, r=residue: right_rows(path_of(file), m, r))  # type: ignore[misc]
        return sources, right

    def http(self, name: str, size: int, rate: float = 4e6) -> str:
        """The URL of such a file; made when it is first asked for."""
        path = f"/{name}.bin"
        if path not in self.rig.origin.behaviours:
            self.rig.origin.on(path, Paced(name, size, rate))
        return self.rig.origin.url(path)

    def s3(self, name: str, size: int) -> str:
        self.rig.s3.objects[f"{name}.bin"] = Object(content(name, size))
        return f"s3://lake/{name}.bin"


def exactly(name: str, size: int) -> Right:
    return lambda file: file.digest == digest_of(name, size) and _digest(path_of(file)) == digest_of(name, size)


def path_of(file: LocalFile) -> Path:
    """Where it lies, also in another node's store of this machine."""
    other = ELSEWHERE.get(file._store_id)
    return file.path if other is None else other / file._relative


def _digest(path: Path) -> str:
    import hashlib

    with open(path, "rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
