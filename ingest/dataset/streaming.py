"""``StreamingDataset`` is a stream as an IterableDataset, ``MapDataset`` a view as a Dataset. The only module that
imports torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.distributed
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from ingest.dataset.orphan import end_with_parent
from ingest.dataset.stream import Stream, rank_here
from ingest.dataset.view import View
from ingest.settings import local_world


def _rank_here(rank: int | None, world: int | None) -> tuple[int, int, int]:
    """As given, else torch.distributed's where it is initialised, else the environment's."""
    if rank is None and torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size(), local_world()
    return rank_here(rank, world)


class StreamingDataset(Stream, IterableDataset[Any]):
    __doc__ = Stream.__doc__

    @staticmethod
    def rank_of(rank: int | None, world: int | None) -> tuple[int, int, int]:
        return _rank_here(rank, world)

    def __iter__(self) -> Iterator[Any]:
        info = get_worker_info()
        if info is None:
            return super().__iter__()
        end_with_parent()
        return self._in_worker(info.id, info.num_workers)


class MapDataset(View, Dataset[Any]):
    __doc__ = View.__doc__

    @staticmethod
    def rank_of() -> tuple[int, int, int]:
        return _rank_here(None, None)

    @staticmethod
    def worker_here() -> tuple[int, int]:
        info = get_worker_info()
        if info is None:
            return 0, 1
        end_with_parent()
        return info.id, info.num_workers
