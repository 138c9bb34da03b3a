"""``StreamingDataset``: a job as an IterableDataset. The only module that imports torch."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed
from torch.utils.data import IterableDataset, get_worker_info

from ingest.dataset import relay, samples
from ingest.dataset.feed import Feed
from ingest.dataset.follow import Follower
from ingest.dataset.formats.decoders import Decoder
from ingest.dataset.protocols import Job
from ingest.dataset.wire import Line
from ingest.errors import IngestError, UsageError
from ingest.settings import rank_and_world

_CLOSE_S = 5.0  # for the reader to let go of its connection; one poll takes a tenth of it
_ANSWER_S = 30.0  # beyond its own deadline, for a rank process that is busy


class StreamingDataset(IterableDataset[Any]):
    """The samples of a job, in the order of its sources, from the moment the first shard of that order has landed.

    Each sample comes exactly once an epoch over all ranks and DataLoader workers. With at least as many files as
    consumers (ranks times workers) the unit is the file, otherwise the sample; so consumers may differ by a file or a
    sample. ``num_workers`` must be the same on every rank. One thread and one Redis connection per rank follow the
    job; DataLoader workers (fork, forkserver or spawn) ask that thread over a private socket and open no connection.

    - ``shuffle`` mixes files within windows of 16 of the order, samples within a buffer (1000 samples or 64 MiB), by
      ``seed`` and epoch: the same for the same number of consumers. It is local, not a permutation of the whole job.
    - ``set_epoch(n)`` before an epoch gives it another order. Without it, the epoch that was set last is repeated.
    - ``format`` is ``tar``, ``parquet``, ``jsonl`` or ``raw``; by default the extension of each source's name decides.
      Tar gives ``{"__key__", "__url__", extension: bytes, …}``, Parquet a dict a row, JSON Lines the value of a line,
      any other file ``{"__key__", "__url__", "path", "bytes"}``. ``columns`` selects columns of Parquet files.
    - ``decode=True`` decodes tar fields by extension (``ingest.dataset.formats.decoders.DECODERS``); a dict adds to
      that table: ``{"jpg": function of bytes}``.
    - ``read=function(path)`` gives a file's samples instead of all that. It and the decoders must pickle under spawn.
    - ``timeout`` is how many seconds an iterator waits for the next shard of its order before WaitTimeout.
    - ``on_failure="raise"`` raises JobFailed, naming source and cause, when the order reaches a file that failed, and
      as soon as the order is complete where a source could not even be planned; ``"skip"`` goes on without them. A
      cancelled job is always an error.
    - The files stay in the store until ``close()`` or the end of the dataset or its process. With ``keep=False`` a
      shard may be evicted once all consumers have read it, so that a job may be larger than the store. It can be read
      once: make all ranks' datasets before the first is read, and submit the sources again for another epoch.
    - ``rank`` and ``world_size`` come from torch.distributed where it is initialised, else from RANK and WORLD_SIZE.

    Iterating raises WaitTimeout, JobFailed, DataError, NotLocalError, StoreError or LedgerUnavailable. Out of a
    DataLoader worker they come with their class and message, without their fields. The dataset shows the job as it
    first ends: after ``job.retry()``, make a new one.
    """

    def __init__(
        self,
        job: Job,
        *,
        shuffle: bool = False,
        seed: int = 0,
        format: str | None = None,
        columns: Sequence[str] | None = None,
        decode: bool | Mapping[str, Decoder] = False,
        read: Callable[[Path], Iterable[Any]] | None = None,
        timeout: float = 300.0,
        on_failure: str = "raise",
        keep: bool = True,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if (rank is None) != (world_size is None) or not 0 <= (rank or 0) < (1 if world_size is None else world_size):
            given = f"rank={rank} and world_size={world_size}"
            raise UsageError(f"{given}: give both, with 0 <= rank < world_size, or neither")
        self._options = samples.Options(
            shuffle, seed, format, samples.columns_of(columns), decode, read, float(timeout), on_failure, keep
        )
        self._job = job.id
        self._feed: Feed | None = Feed(job.id, job.reader(), partial(_share, rank, world_size))
        self._address, self._key = self._feed.address, self._feed.key
        self._finalizer = weakref.finalize(self, self._feed.close)

    def set_epoch(self, epoch: int) -> None:
        """The epoch of the iterations that begin from now on, in persistent DataLoader workers too."""
        if self._feed is None or self._feed.pid != os.getpid():
            raise UsageError("call set_epoch() in the process that made the dataset, before the loader is iterated")
        self._feed.epoch = int(epoch)

    def close(self) -> None:
        """Let go of thread, connection, socket and files; the dataset's end does the same. Who iterates then gets an
        error."""
        if self._feed is not None:
            self._feed.close(_CLOSE_S)

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        if info is None:
            return self._stream(0, 1)
        return self._in_worker(info.id, info.num_workers)

    def _in_worker(self, worker: int, workers: int) -> Iterator[Any]:
        try:
            yield from self._stream(worker, workers)
        except IngestError as error:
            raise relay.twin(error) from error

    def _stream(self, worker: int, workers: int) -> Iterator[Any]:
        if self._feed is not None and self._feed.pid == os.getpid():
            yield from samples.stream(self._follower(self._feed.answer), self._options, self._job, worker, workers)
            return
        line = Line(self._address, self._key, self._options.timeout_s + _ANSWER_S)
        try:
            yield from samples.stream(self._follower(line.ask), self._options, self._job, worker, workers)
        finally:
            line.close()

    def _follower(self, ask: Any) -> Follower:
        return Follower(ask, self._job, self._options.timeout_s)

    def __getstate__(self) -> dict[str, Any]:
        """What a DataLoader worker gets: where to ask, not the feed itself."""
        return {**self.__dict__, "_feed": None, "_finalizer": None}


def _share(rank: int | None, world: int | None) -> tuple[int, int]:
    """This process's rank and the number of ranks: as given, else torch.distributed's, else the environment's."""
    if rank is not None and world is not None:
        return rank, world
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return rank_and_world()
