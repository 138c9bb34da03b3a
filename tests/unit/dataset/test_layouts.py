"""Ranks, workers, shuffles: the same global order under every layout, every sample once, and resume at any place."""

from __future__ import annotations

import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

from ingest.dataset import StreamingDataset
from ingest.dataset.share import TAILS, Share, turn_of
from ingest.dataset.shuffle import KINDS
from ingest.errors import ResumeError, UsageError
from tests.unit.dataset.fakes import FakeJob, expected, finished_job, write_lines
from tests.unit.dataset.loaders import all_of, global_batches, rank_batches, stop_and_resume_anywhere

RANKS, WORKERS = (1, 2, 3, 8), (0, 1, 3)
COUNTS = (7, 0, 12, 1, 5, 20, 3, 9)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> FakeJob:
    return job_of(tmp_path_factory.mktemp("job"), COUNTS)


def job_of(folder: Path, counts: tuple[int, ...], id: str = "job1") -> FakeJob:
    job = FakeJob(id)
    job.add(*[1] * len(counts))
    for number, count in enumerate(counts):
        job.end(number, [write_lines(folder, f"{number}.jsonl", [number * 1000 + n for n in range(count)])])
    job.tell(complete=True, state="done")
    return job


ALL = sorted(number * 1000 + n for number, count in enumerate(COUNTS) for n in range(count))


@pytest.mark.parametrize("shuffle", KINDS)
@pytest.mark.parametrize("streams", [1, 2, 8])
def test_the_global_order_is_that_of_one_rank(job: FakeJob, shuffle: str, streams: int) -> None:
    options: dict[str, Any] = {
        "shuffle": shuffle,
        "streams": streams,
        "shuffle_window": 16,
        "seed": 3,
        "tail": "uneven",
    }
    one = all_of(job, **options)
    assert sorted(one) == ALL
    for world, workers in itertools.product(RANKS, WORKERS):
        assert all_of(job, world=world, workers=workers, **options) == one, (world, workers)


@pytest.mark.parametrize("world", RANKS)
def test_global_batches_hold_the_same_samples_whatever_the_number_of_ranks(job: FakeJob, world: int) -> None:
    """24 samples a step, on 1 rank or on 8."""
    one = [sorted(step) for step in global_batches(job, 1, 0, 24, shuffle=True)]
    assert [sorted(step) for step in global_batches(job, world, 3, 24 // world, shuffle=True, tail="uneven")] == one


@pytest.mark.parametrize("tail", TAILS)
@pytest.mark.parametrize(("world", "workers"), [(2, 3), (3, 1), (8, 3)])
def test_ranks_have_as_many_samples_and_batches(job: FakeJob, tail: str, world: int, workers: int) -> None:
    each = []
    for rank in range(world):
        dataset = StreamingDataset(job, batch_size=4, tail=tail, rank=rank, world_size=world)
        each.append([len(batch) for batch in rank_batches(dataset, workers, 4)])
        dataset.close()
    counts, total = [sum(batches) for batches in each], len(ALL)
    if tail == "uneven":
        assert sum(counts) == total and max(counts) - min(counts) <= 1
    else:
        assert len(set(map(tuple, each))) == 1
        assert counts[0] == (-(-total // world) if tail == "pad" else total // world)


def test_what_pads_is_what_the_rank_had_last(tmp_path: Path) -> None:
    assert all_of(finished_job(tmp_path, 1, 5), world=3, batch=1) == [0, 1, 2, 3, 4, 2]


@pytest.mark.parametrize("tail", TAILS)
def test_fewer_samples_than_ranks(tmp_path: Path, tail: str) -> None:
    small = finished_job(tmp_path, 1, 2)
    for rank in range(3):
        dataset = StreamingDataset(small, tail=tail, rank=rank, world_size=3)
        if tail == "pad":
            assert list(dataset) in ([0], [1])
        else:
            with pytest.raises(UsageError, match="job1 has 2 samples for 3 ranks"):
                list(dataset)
        dataset.close()


def test_five_files_for_eight_ranks_with_four_workers_each(tmp_path: Path) -> None:
    found = [
        list(rank_batches(StreamingDataset(many, batch_size=2, rank=rank, world_size=8), 4, 2))
        for many in [finished_job(tmp_path, 5, 33)]
        for rank in range(8)
    ]
    assert {tuple(map(len, batches)) for batches in found} == {(2,) * 10 + (1,)}
    assert set(itertools.chain(*itertools.chain(*found))) == set(expected(5, 33))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_stopped_anywhere_and_resumed_under_any_layout(job: FakeJob, data: st.DataObject) -> None:
    stop_and_resume_anywhere(job, data, ranks=RANKS, workers=WORKERS)


def test_the_dataset_says_where_it_stands_without_workers(job: FakeJob) -> None:
    dataset = StreamingDataset(job, shuffle=True)
    fresh = dataset.state_dict()
    samples = iter(dataset)
    whole = list(samples)
    samples = iter(dataset)
    first = list(itertools.islice(samples, 11))
    state = dataset.state_dict()
    assert (fresh["samples"], state["samples"]) == (0, 11) and len(json.dumps(state)) < 400
    dataset.load_state_dict(state)
    assert dataset.state_dict() == state
    assert first + list(dataset) == whole
    assert list(dataset) == whole, "the next iteration is of the whole epoch"
    dataset.load_state_dict(state)
    dataset.set_epoch(state["epoch"])
    assert first + list(dataset) == whole, "setting the same epoch does not begin it again"
    dataset.load_state_dict(state)
    dataset.set_epoch(1)
    assert len(list(dataset)) == len(whole)
    dataset.close()


@pytest.mark.parametrize("shuffle", [kind for kind in KINDS if kind != "window"])  # that one mixes across files
def test_saying_where_it_stands_waits_for_no_file(tmp_path: Path, shuffle: str) -> None:
    job = FakeJob()
    job.add(1, 1)
    job.seal()
    for number in range(2):
        job.end(number, [write_lines(tmp_path, f"{number}.jsonl", [number] * 3)])
    first = next(iter(StreamingDataset(job, shuffle=shuffle, shuffle_window=2)))
    job.tell(ends={first: job.ends[first]})  # the other one has not landed
    dataset = StreamingDataset(job, shuffle=shuffle, shuffle_window=2, timeout=60)
    assert list(itertools.islice(iter(dataset), 3)) == [first] * 3
    begun = time.monotonic()
    assert (dataset.state_dict()["samples"], dataset.state_dict()["jobs"][0]["files"]) == (3, 1)
    assert dataset.state_dict(samples_seen=3) == dataset.state_dict()
    assert time.monotonic() - begun < 10
    dataset.close()


def test_a_state_after_the_last_sample(job: FakeJob) -> None:
    dataset = StreamingDataset(job)
    list(dataset)
    state = dataset.state_dict()
    dataset.load_state_dict(state)
    assert state["samples"] == len(ALL) and list(dataset) == []
    assert len(list(dataset)) == len(ALL)
    dataset.close()


def test_a_new_job_of_the_same_files_goes_on_and_one_of_others_does_not(job: FakeJob, tmp_path: Path) -> None:
    dataset = StreamingDataset(job)
    got = list(itertools.islice(iter(dataset), 21))
    state = dataset.state_dict()
    again = StreamingDataset(job_of(tmp_path, COUNTS, "job2"))
    again.load_state_dict(state)
    assert got + list(again) == list(dataset)
    other = StreamingDataset(job_of(tmp_path, (7, 0, 11, 1, 5, 20, 3, 9), "job3"))
    other.load_state_dict(state)
    with pytest.raises(ResumeError, match=r"job job3: the first 5 files of its order are not those of job job1 then"):
        next(iter(other))
    short = StreamingDataset(job_of(tmp_path, (7,), "job4"))
    short.load_state_dict(state)
    with pytest.raises(ResumeError, match=r"its order had 5 files before this place, and now 1"):
        next(iter(short))
    for made in (dataset, again, other, short):
        made.close()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"ingest_dataset": 2}, "no state of a StreamingDataset of version 1, but 2"),
        ({"samples": -1}, "a negative count"),
        ({"seed": None}, "damaged"),
        ({"shuffle": "window"}, "shuffle='window', not 'none'"),
        ({"streams": 4, "seed": 7}, "seed=7, not 0, streams=4, not 1"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(job: FakeJob, change: dict[str, object], said: str) -> None:
    dataset = StreamingDataset(job)
    with pytest.raises(UsageError, match=said):
        dataset.load_state_dict({**dataset.state_dict(), **change})
    with pytest.raises(UsageError, match="no state of a StreamingDataset"):
        dataset.load_state_dict({})
    dataset.close()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 50), st.sampled_from(RANKS), st.sampled_from([1, 2, 3]), st.sampled_from([None, 1, 4]), st.data())
def test_shares_are_all_places_once(
    samples: int, world: int, workers: int, batch: int | None, data: st.DataObject
) -> None:
    start, tail = data.draw(st.integers(0, samples)), data.draw(st.sampled_from(TAILS))
    found = []
    for turn, worker in itertools.product(range(world), range(workers)):
        share = Share(turn, world, worker, workers, batch, tail, start)
        mine = [n for lump in itertools.islice(share.lumps(), 60) for n in lump if n < share.most(samples)]
        skip = data.draw(st.integers(0, len(mine)))
        rest = [n for lump in itertools.islice(share.lumps(skip), 60) for n in lump if n < share.most(samples)]
        assert rest == mine[skip:]
        found += [place for n in mine for place in share.places(range(n, n + 1))]
    end = {"pad": -(-(samples - start) // world), "drop": (samples - start) // world}.get(tail)
    assert sorted(found) == list(range(start, samples if end is None else start + end * world))


@pytest.mark.parametrize(("nodes", "local"), [(2, 4), (4, 2), (8, 1), (1, 8)])
def test_with_a_stream_for_each_node_a_node_reads_its_own(nodes: int, local: int) -> None:
    world = nodes * local
    turns = [turn_of(rank, world, local) for rank in range(world)]
    assert sorted(turns) == list(range(world))
    for node in range(nodes):
        assert {turn % nodes for turn in turns[node * local : (node + 1) * local]} == {node}
