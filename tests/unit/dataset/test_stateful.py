"""torchdata's StatefulDataLoader: its own resume, and the dataset's state out of its."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

stateful = pytest.importorskip("torchdata.stateful_dataloader")

from ingest.dataset import StreamingDataset  # noqa: E402 - after the skip
from ingest.errors import UsageError  # noqa: E402
from tests.unit.dataset.fakes import FakeJob, finished_job, until  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),
    pytest.mark.filterwarnings("ignore:'set_vital' is deprecated"),  # torchdata 0.11 under torch 2.13
]
BATCH = 4


@pytest.fixture
def job(tmp_path: Path) -> FakeJob:
    return finished_job(tmp_path, 7, 11)


def loader(job: FakeJob, workers: int, **more: Any) -> Any:
    options = {name: more.pop(name) for name in list(more) if name in ("batch_size", "rank", "world_size", "on_bad")}
    dataset = StreamingDataset(job, shuffle=True, seed=2, timeout=30, **{"batch_size": BATCH, **options})
    start = {"multiprocessing_context": "fork"} if workers else {}
    return stateful.StatefulDataLoader(dataset, batch_size=BATCH, num_workers=workers, collate_fn=list, **start, **more)


def end(*loaders: Any) -> None:
    """Workers are told to end here, not when the garbage collector finds them."""
    for one in loaders:
        if one._iterator is not None and one.num_workers:
            one._iterator._shutdown_workers()
        one.dataset.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_read_before_it_was_stopped_counts_as_read(job: FakeJob, workers: int) -> None:
    one, other = loader(job, workers), loader(job, workers)
    one.dataset.set_epoch(3)
    batches = iter(one)
    for _ in range(7):
        next(batches)
    other.load_state_dict(one.state_dict())
    batches = iter(other)
    next(batches)
    assert job.progress is not None and (said := job.progress()) is not None
    assert said["epoch"] == 3 and said["samples"] >= 7 * BATCH, "before anything was reported"
    list(batches)
    until(lambda: job.progress()["samples"] == 77, "all of the epoch")
    end(one, other)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("every", [1, 3])
def test_it_resumes_by_itself_and_elastically(job: FakeJob, workers: int, every: int) -> None:
    one = loader(job, 0)
    whole = list(one)
    stopped = loader(job, workers, snapshot_every_n_steps=every)
    first = list(itertools.islice(iter(stopped), 8))
    state = stopped.state_dict()
    same = loader(job, workers, snapshot_every_n_steps=every)
    same.load_state_dict(state)
    assert first + list(same) == whole
    assert list(same) == whole, "and the next epoch is a whole one"
    own = json.loads(json.dumps(StreamingDataset.state_of(state)))
    assert own["samples"] == 8 * BATCH
    other = loader(job, 3 - workers)
    other.dataset.load_state_dict(own)
    assert first + list(other) == whole
    end(one, stopped, same, other)


def test_what_was_resumed_elastically_is_stopped_again(job: FakeJob) -> None:
    alone = loader(job, 0)
    whole, state, got = list(alone), None, []
    for workers in (2, 1, 2):
        one = loader(job, workers)
        if state is not None:
            one.dataset.load_state_dict(state)
        got += itertools.islice(iter(one), 5)
        state = StreamingDataset.state_of(one.state_dict())
        end(one)
        assert state["samples"] == len(got) * BATCH and state["jobs"][0]["files"] > 0
    alone.dataset.load_state_dict(state)
    assert got + list(alone) == whole
    end(alone)


def test_from_two_ranks_to_one(job: FakeJob) -> None:
    ranks = [loader(job, 2, rank=rank, world_size=2) for rank in range(2)]
    taken = [list(itertools.islice(iter(one), 3)) for one in ranks]
    states = [StreamingDataset.state_of(one.state_dict()) for one in ranks]
    assert states[0] == states[1], "any rank's state will do"
    alone = loader(job, 0)
    whole = list(itertools.chain(*alone))
    alone.dataset.load_state_dict(states[0])
    first = [sample for step in zip(*taken, strict=True) for pair in zip(*step, strict=True) for sample in pair]
    assert first + list(itertools.chain(*alone)) == whole
    end(alone, *ranks)


def test_what_cannot_be_exact_is_refused(job: FakeJob) -> None:
    unknown = loader(job, 2, batch_size=None)
    next(iter(unknown))
    with pytest.raises(UsageError, match="batch_size"):
        StreamingDataset.state_of(unknown.state_dict())
    with pytest.raises(UsageError, match="no state of a StreamingDataset in it"):
        StreamingDataset.state_of({})
    known = loader(job, 2)
    next(iter(known))
    part = next(iter(known.state_dict()["_snapshot"]["_worker_snapshots"].values()))["dataset_state"]
    with pytest.raises(UsageError, match="one worker's part"):
        known.dataset.load_state_dict(part)
    with pytest.raises(UsageError, match="samples_seen"):
        loader(job, 0, on_bad="skip").dataset.state_dict(4)
    end(unknown, known)


def _train(folder: Path, out: Any) -> None:
    job = finished_job(folder, 7, 11)
    one = loader(job, 2)
    for batch in one:
        out.send((batch, one.state_dict()))


@pytest.mark.long
def test_the_trainer_is_killed(job: FakeJob, tmp_path: Path) -> None:
    """What it had done when it last saved its state is not done again, and all that it had not is."""
    ours, theirs = multiprocessing.Pipe()
    trainer = multiprocessing.get_context("spawn").Process(target=_train, args=(tmp_path, theirs))
    trainer.start()
    theirs.close()
    got = [ours.recv() for _ in range(5)]
    assert trainer.pid is not None
    os.kill(trainer.pid, signal.SIGKILL)
    trainer.join(30)
    ours.close()
    alone = loader(job, 0)
    whole = list(alone)
    batches, (*_, state) = zip(*got, strict=True)
    alone.dataset.load_state_dict(StreamingDataset.state_of(state))
    assert list(batches) + list(alone) == whole
    end(alone)
