"""``order="arrival"``: what has landed is read, each sample once, and as many for each rank."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import ingest
from ingest.dataset import StreamingDataset
from ingest.errors import JobFailed, UsageError, WaitTimeout
from tests.unit.dataset.fakes import FakeJob, expected, failure, finished_job, write_lines
from tests.unit.dataset.loaders import rank_batches


def arriving(job: Any, **options: Any) -> StreamingDataset:
    return StreamingDataset(job, order="arrival", **{"timeout": 20, **options})


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("files")
    counts = (7, 0, 12, 1, 5, 20)
    return [write_lines(folder, f"{n}.jsonl", [n * 1000 + m for m in range(c)]) for n, c in enumerate(counts)]


ALL = [n * 1000 + m for n, c in enumerate((7, 0, 12, 1, 5, 20)) for m in range(c)]


def landing(files: list[Path], order: list[int]) -> FakeJob:
    """Its files land one by one, each when all before it are read or nearly so."""
    job = FakeJob()
    job.add(*[1] * len(files))
    job.seal()
    job.end(order[0], [files[order[0]]])

    def rest() -> None:
        for n in order[1:]:
            job.end(n, [files[n]])
        job.tell(state="done")

    threading.Timer(0.02, rest).start()
    return job


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_each_sample_once_and_as_many_for_each_whatever_lands_first(files: list[Path], data: st.DataObject) -> None:
    world, workers = data.draw(st.sampled_from([1, 2, 3, 8])), data.draw(st.sampled_from([1, 3]))
    shuffle, tail = data.draw(st.sampled_from([False, "files", True])), data.draw(st.sampled_from(["pad", "uneven"]))
    got, counts = [], []
    for rank in range(world):  # each sees them land in an order of its own
        job = landing(files, data.draw(st.permutations(range(len(files)))))
        dataset = arriving(job, shuffle=shuffle, tail=tail, rank=rank, world_size=world)
        batches = list(rank_batches(dataset, workers, 4))
        counts.append([len(batch) for batch in batches])
        got += itertools.chain(*batches)
        dataset.close()
    if tail == "pad" and world > 1:
        assert set(got) == set(ALL) and len(set(map(tuple, counts))) == 1
        assert len(got) - len(ALL) <= world * workers * len(files)
    else:
        assert sorted(got) == ALL


def test_what_has_landed_is_read_before_what_has_not(tmp_path: Path) -> None:
    job = FakeJob()
    job.add(1, 1, 1)
    job.seal()
    job.end(2, [write_lines(tmp_path, "2.jsonl", [20, 21])])
    dataset = arriving(job, timeout=0.5)
    samples = iter(dataset)
    assert [next(samples), next(samples)] == [20, 21]
    with pytest.raises(WaitTimeout, match=r"(?s)shard 0: it is in the queue of node-0"):
        next(samples)
    assert job.needed[-1] == [0, 1], "what has not landed is asked for"
    job.end(1, [write_lines(tmp_path, "1.jsonl", [10])])
    job.end(0, failures=[failure(0)], state="failed")
    job.tell(state="failed")
    with pytest.raises(JobFailed, match=r"bad\.tar"):
        list(dataset)
    assert list(arriving(job, on_failure="skip")) == [10, 20, 21]
    cancelled = FakeJob(state="cancelled")
    cancelled.add(1)
    with pytest.raises(JobFailed, match="cancelled"):
        list(arriving(cancelled))


def test_epochs_are_shuffled_anew(tmp_path: Path) -> None:
    dataset, epochs = arriving(finished_job(tmp_path, 9, 4), shuffle=True), []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        epochs.append(list(dataset))
    assert sorted(epochs[0]) == sorted(epochs[1]) == expected(9, 4) and epochs[0] != epochs[1]
    assert dataset.stats()["samples"] == 72
    dataset.close()


def test_what_it_cannot_is_said(tmp_path: Path) -> None:
    job = finished_job(tmp_path, 2, 2)
    dataset, state = arriving(job), StreamingDataset(job).state_dict()
    for ask in (dataset.state_dict, lambda: dataset.state_dict(1), lambda: dataset.load_state_dict(state)):
        with pytest.raises(UsageError, match="order='arrival' has no state: what landed first this time need not"):
            ask()
    for options, said in (({"tail": "drop"}, "tail='drop' needs"), ({"streams": 2}, "streams needs")):
        with pytest.raises(UsageError, match=said):
            arriving(job, **options)
    with pytest.raises(UsageError, match="a mixture of jobs needs an order that is known beforehand"):
        arriving(ingest.mix([(job, 1)], stop="all"))
    with pytest.raises(UsageError, match="order='random': use one of fixed, arrival"):
        StreamingDataset(job, order="random")
    with pytest.raises(UsageError, match="on_bad='skip' leaves some ranks"):
        list(arriving(job, on_bad="skip", rank=0, world_size=2))


@pytest.mark.parametrize(("count", "tail"), [(1, "uneven"), (0, "uneven"), (0, "pad")])
def test_a_rank_that_would_have_nothing_is_an_error_on_all(tmp_path: Path, count: int, tail: str) -> None:
    for rank in range(2):
        with pytest.raises(UsageError, match=f"job1 has {count} samples for 2 ranks"):
            list(arriving(finished_job(tmp_path, 1, count), tail=tail, rank=rank, world_size=2))
