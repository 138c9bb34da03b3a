"""MapDataset: any sample by its index, under real DataLoaders and samplers."""

from __future__ import annotations

import itertools
import os
import threading
from pathlib import Path

import pytest

torch_data = pytest.importorskip("torch.utils.data")

import ingest  # noqa: E402 - after the skip
from ingest.dataset import MapDataset  # noqa: E402
from ingest.errors import DataError, JobFailed, UsageError, WaitTimeout  # noqa: E402
from tests.unit.dataset.fakes import FakeJob, expected, failure, finished_job, until, write_lines  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture
def job(tmp_path: Path) -> FakeJob:
    return finished_job(tmp_path, 6, 5)


def test_any_sample_by_its_index(job: FakeJob) -> None:
    view, whole = MapDataset(job), expected(6, 5)
    assert len(view) == 30
    assert [view[n] for n in (0, 29, 4, 5, -1, -30)] == [whole[n] for n in (0, 29, 4, 5, -1, -30)]
    assert view.__getitems__([7, 0, 7, -1, 22]) == [whole[n] for n in (7, 0, 7, -1, 22)] and view.__getitems__([]) == []
    assert list(view) == whole
    for wrong in (30, -31, 10**20):
        with pytest.raises(IndexError, match=f"sample {wrong} of 30"):
            view[wrong]
    with pytest.raises(TypeError):
        view["a"]
    assert view.stats()["samples"] == 41
    view.close()
    until(lambda: job.closed == 1, "the reader to be closed")


@pytest.mark.parametrize(("start", "workers", "world"), [(None, 0, 3), ("fork", 2, 2), ("spawn", 1, 1)])
def test_under_a_loader_with_a_sampler_for_each_rank(job: FakeJob, start: str | None, workers: int, world: int) -> None:
    view = MapDataset(job, timeout=60)
    got = []
    for rank in range(world):
        sampler = torch_data.DistributedSampler(view, num_replicas=world, rank=rank, seed=1)
        mine = torch_data.DataLoader(
            view, batch_size=4, sampler=sampler, num_workers=workers, multiprocessing_context=start, collate_fn=list
        )
        got += itertools.chain(*mine)
        assert got[-len(sampler) :] == [expected(6, 5)[n] for n in sampler]
    assert sorted(got) == expected(6, 5)
    assert view.stats()["samples"] == 30 and view.stats()["files"] >= 6
    view.close()


def test_few_files_are_open_and_a_batch_opens_each_once(tmp_path: Path) -> None:
    view = MapDataset(finished_job(tmp_path, 8, 5), open_files=2)
    len(view)
    assert view.stats()["files"] == 8, "they were not counted before, and are for that"
    folder = Path("/proc/self/fd")
    opened = view.stats()["files"]
    batch = view.__getitems__([n % 8 * 5 + n // 8 for n in range(40)])
    assert sorted(batch) == expected(8, 5) and view.stats()["files"] == opened + 8
    if folder.exists():
        here = [os.readlink(path) for path in folder.iterdir() if path.exists()]
        assert sum(str(tmp_path) in path for path in here) <= 2


def test_an_index_waits_for_the_files_up_to_it_and_says_so(tmp_path: Path) -> None:
    job = FakeJob()
    job.add(1, 1, 1)
    job.end(0, [write_lines(tmp_path, "0.jsonl", [0, 1])])
    view = MapDataset(job, timeout=0.3)
    assert view.__getitems__([1, 0]) == [1, 0]
    with pytest.raises(WaitTimeout, match=r"(?s)job job1 .*shard 1: it is in the queue of node-1"):
        view[2]
    assert job.needed[-1] == [1, 2], "what is waited for is what is needed, and then what comes next"
    patient = MapDataset(job, timeout=30)
    threading.Timer(0.2, lambda: job.end(1, [write_lines(tmp_path, "1.jsonl", [2])])).start()
    assert patient[2] == 2
    job.end(2, failures=[failure(2)], state="failed")
    job.tell(complete=True, state="failed")
    with pytest.raises(JobFailed, match=r"bad\.tar"):
        len(patient)
    assert list(MapDataset(job, on_failure="skip")) == [0, 1, 2]


def test_a_wait_in_a_worker_keeps_its_class(tmp_path: Path) -> None:
    job = FakeJob()
    job.add(1)
    job.seal()
    view = MapDataset(job, timeout=0.3)
    samples = iter(
        torch_data.DataLoader(view, sampler=[0], batch_size=None, num_workers=1, multiprocessing_context="fork")
    )
    try:
        with pytest.raises(WaitTimeout, match="shard 0"):
            next(samples)
    finally:
        samples._shutdown_workers()


def instead(error: DataError) -> str:
    return "bad"


def test_options(job: FakeJob, tmp_path: Path) -> None:
    assert MapDataset(job, format="raw")[0]["bytes"].startswith(b"0\n")
    (tmp_path / "b.jsonl").write_text("1\n{\n3\n")
    bad = FakeJob()
    bad.add(1)
    bad.end(0, [tmp_path / "b.jsonl"])
    bad.tell(complete=True, state="done")
    with pytest.raises(DataError, match="line 2"):
        MapDataset(bad)[1]
    assert list(MapDataset(bad, on_bad=instead)) == [1, "bad", 3]
    for wrong, said in (({"on_bad": "skip"}, "an index has a sample or none"), ({"open_files": 0}, "open_files=0")):
        with pytest.raises(UsageError, match=said):
            MapDataset(job, **wrong)
    with pytest.raises(UsageError, match="a mixture is read in its own order"):
        MapDataset(ingest.mix([(job, 1)]))
