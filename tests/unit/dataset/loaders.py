"""What ranks and their DataLoader workers give together, without starting any: datasets are read as a DataLoader reads
them, a batch of each worker in turn."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import islice
from typing import Any

from hypothesis import strategies as st

from ingest.dataset import StreamingDataset
from ingest.dataset.protocols import Job
from ingest.dataset.shuffle import KINDS


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


def all_of(job: Job, **layout: Any) -> list[Any]:
    """All samples of an epoch in the order of their places; ``layout`` is that of :func:`global_batches`."""
    return list(itertools.chain(*global_batches(job, **layout)))


def stop_and_resume_anywhere(job: Job, data: st.DataObject, *, ranks: Sequence[int], workers: Sequence[int]) -> None:
    """One epoch, stopped up to three times and resumed each time under another layout, is the epoch that was not."""
    pick = data.draw
    options: dict[str, Any] = {
        "shuffle": pick(st.sampled_from(KINDS)),
        "shuffle_window": pick(st.sampled_from([4, 30])),
        "streams": pick(st.sampled_from([1, 2, 8])),
        "seed": pick(st.integers(0, 9)),
        "tail": "uneven",
    }
    epoch = pick(st.integers(0, 2))
    whole = all_of(job, epoch=epoch, **options)
    got: list[Any] = []
    state = None
    for _ in range(pick(st.integers(1, 3))):
        layout = {"world": pick(st.sampled_from(ranks)), "workers": pick(st.sampled_from(workers)), "batch": 2}
        steps = pick(st.integers(0, 5))
        taken = list(islice(global_batches(job, **layout, state=state, epoch=epoch, **options), steps))
        got += itertools.chain(*taken)
        dataset = StreamingDataset(job, rank=0, world_size=1, **options)
        if state is not None:
            dataset.load_state_dict(state)
        else:
            dataset.set_epoch(epoch)
        iter(dataset)
        state = json.loads(json.dumps(dataset.state_dict(len(got) - (state["samples"] if state else 0))))
        dataset.close()
        assert state["samples"] == len(got)
    assert got + all_of(job, world=pick(st.sampled_from(ranks)), workers=1, state=state, **options) == whole
