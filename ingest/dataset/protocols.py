"""What the dataset needs of a job, by shape: ``ingest.client`` has it, and so has whatever a test makes up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ingest.model import Failure


class LocalFile(Protocol):
    """One fetched file. ``path`` raises NotLocalError or StoreError where it cannot be read here."""

    @property
    def path(self) -> Path: ...
    @property
    def source(self) -> str: ...
    @property
    def index(self) -> tuple[int, int]: ...


class Layout(Protocol):
    """One shard's place in the job's order: its number, and how many files it lists; ``packed`` when all that it holds
    is one place of the order."""

    @property
    def shard(self) -> int: ...
    @property
    def files(self) -> int: ...
    @property
    def packed(self) -> bool: ...


class End(Protocol):
    """How a shard ended: done, failed, cancelled or quarantined; its files and failures."""

    @property
    def state(self) -> str: ...
    @property
    def files(self) -> Sequence[LocalFile]: ...
    @property
    def failures(self) -> Sequence[Failure]: ...


class Reader(Protocol):
    """The job's stream, used by one thread at a time; ``release`` by any. ``order`` only ever grows at its end;
    ``ends`` may lose a shard that is tried again; ``plan_failures`` are the sources that gave no files, known once the
    order is complete. The files stay in the store until ``close``, but those of shards that were released; ``rest`` is
    for when nothing more is asked."""

    @property
    def order(self) -> Sequence[Layout]: ...
    @property
    def complete(self) -> bool: ...
    @property
    def ends(self) -> Mapping[int, End]: ...
    @property
    def state(self) -> str: ...
    def poll(self, timeout_s: float) -> bool: ...
    def waiting_for(self, shard: int) -> str: ...
    def plan_failures(self) -> Sequence[Failure]: ...
    def release(self, shards: Sequence[int]) -> None: ...
    def rest(self) -> None: ...
    def close(self) -> None: ...


class Job(Protocol):
    """What ``client.submit`` and ``client.job`` return."""

    @property
    def id(self) -> str: ...
    def reader(self) -> Reader: ...
