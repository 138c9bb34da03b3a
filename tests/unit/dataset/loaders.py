"""What ranks and their DataLoader workers give together, without starting any: datasets are read as a DataLoader reads
them, a batch of each worker in turn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from itertools import islice
from typing import Any

from ingest.dataset import StreamingDataset
from ingest.dataset.protocols import Job


def rank_batches(dataset: StreamingDataset, workers: int, batch: int) -> Iterator[list[Any]]:
    """The batches of one rank, as a DataLoader with so many workers gives them."""
    streams = [dataset._stream(worker, max(1, workers)) for worker in range(max(1, workers))]
    while streams:
        for stream in list(streams):
            if found := list(islice(stream, batch)):
                yield found
            else:
                streams.remove(stream)


def global_batches(
    job: Job,
    world: int = 1,
    workers: int = 0,
    batch: int = 4,
    *,
    state: dict[str, Any] | None = None,
    epoch: int = 0,
    **options: Any,
) -> Iterator[list[Any]]:
    """The samples of one step of all ranks, in the order of their places, until no rank has any."""
    with ExitStack() as stack:
        datasets = []
        for rank in range(world):
            made = StreamingDataset(job, batch_size=batch, rank=rank, world_size=world, timeout=20, **options)
            datasets.append(stack.enter_context(closing(made)))
            if state is not None:
                made.load_state_dict(state)
            else:
                made.set_epoch(epoch)
        start = 0 if state is None else state["samples"]
        turns = sorted(range(world), key=lambda rank: (rank - start) % world)
        loaders = [rank_batches(datasets[rank], workers, batch) for rank in turns]
        while True:
            each = [next(loader, []) for loader in loaders]
            if not any(each):
                return
            yield [ranks[n] for n in range(batch) for ranks in each if n < len(ranks)]
