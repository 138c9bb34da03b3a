"""StreamingDataset under real DataLoaders: nothing lost, nothing twice, nobody waits for ever."""

from __future__ import annotations

import inspect
import itertools
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import pytest

torch_data = pytest.importorskip("torch.utils.data")

from ingest.dataset import MapDataset, StreamingDataset  # noqa: E402 - after the skip
from ingest.errors import DataError, IngestError, JobFailed, LedgerUnavailable, UsageError, WaitTimeout  # noqa: E402
from tests.unit.dataset.fakes import FakeJob, expected, failure, finished_job, until, write_lines  # noqa: E402

# More workers than processors are what these tests are about.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def loader(dataset: object, workers: int, start: str | None = None, **options: object) -> torch_data.DataLoader:
    start = start or ("fork" if workers else None)
    return torch_data.DataLoader(
        dataset, batch_size=None, num_workers=workers, multiprocessing_context=start if workers else None, **options
    )


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("files", "workers"), [(1, 0), (1, 3), (5, 1), (20, 3)])
def test_all_of_it_with_fewer_and_more_files_than_consumers(
    tmp_path: Path, files: int, workers: int, shuffle: bool
) -> None:
    job = finished_job(tmp_path, files, 9)
    got = []
    for rank in range(2):
        dataset = StreamingDataset(job, shuffle=shuffle, seed=5, tail="uneven", rank=rank, world_size=2, timeout=20)
        got += list(loader(dataset, workers))
        dataset.close()
    assert sorted(got) == expected(files, 9)
    assert (got != expected(files, 9)) or not shuffle


@contextmanager
def iterating(loader: torch_data.DataLoader) -> Iterator[Iterator[object]]:
    """An iterator whose workers are told to end here, not when the garbage collector finds it in a traceback."""
    samples = iter(loader)
    try:
        yield samples
    finally:
        if loader.num_workers:
            samples._shutdown_workers()


def first_number(path: Path) -> Iterator[int]:
    yield int(path.name.partition(".")[0])


def test_spawned_workers_get_no_feed_and_all_samples(tmp_path: Path) -> None:
    job = finished_job(tmp_path, 5, 3)
    dataset = StreamingDataset(job, read=first_number, timeout=60)
    assert sorted(loader(dataset, 1, "spawn")) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [0, 2])
def test_it_starts_when_the_first_shard_has_landed(tmp_path: Path, workers: int) -> None:
    job = FakeJob()
    job.add(1, 1, 1)  # neither planned to the end nor landed beyond the first
    job.end(0, [write_lines(tmp_path, "0.jsonl", [1, 2])])
    samples = iter(loader(StreamingDataset(job, timeout=30), workers, prefetch_factor=1 if workers else None))
    assert next(samples) == 1
    assert set(job.ends) == {0} and not job.complete
    job.seal()
    for shard in (2, 1):  # out of order
        job.end(shard, [write_lines(tmp_path, f"{shard}.jsonl", [shard * 10])])
    job.tell(state="done")
    rest = list(samples)
    assert rest == [2, 10, 20] if workers == 0 else sorted(rest) == [2, 10, 20]


def test_shards_of_several_files_in_the_jobs_order_whatever_lands_first(tmp_path: Path) -> None:
    job = FakeJob()
    job.add(2, 0, 3)
    job.seal()
    paths = [write_lines(tmp_path, f"{n}.jsonl", [n]) for n in range(5)]
    job.end(2, paths[2:])
    threading.Timer(0.1, lambda: (job.end(1), job.end(0, paths[:2]), job.tell(state="done"))).start()
    assert list(StreamingDataset(job, timeout=20)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wait_that_is_too_long_names_job_shard_and_cause(tmp_path: Path, workers: int) -> None:
    job = FakeJob()
    job.add(1, 1)
    job.seal()
    job.end(0, [write_lines(tmp_path, "0.jsonl", [1])])
    with iterating(loader(StreamingDataset(job, timeout=0.3), workers)) as samples:
        assert next(samples) == 1
        with pytest.raises(WaitTimeout, match=r"(?s)job job1 .*shard 1: it is in the queue of node-1"):
            next(samples)


def test_a_plan_that_never_ends_is_a_timeout_too() -> None:
    job = FakeJob()
    with pytest.raises(WaitTimeout, match="its plan: 0 files are known"):
        list(StreamingDataset(job, timeout=0.2))


def failing_job(folder: Path, state: str = "failed") -> FakeJob:
    """Three shards: two files, of which the first failed; one that landed; a shard of which nothing is said."""
    job = FakeJob()
    job.add(2, 1, 1)
    job.end(0, [write_lines(folder, "a.jsonl", [1])], [failure(0)], "failed", at=1)
    job.end(1, [write_lines(folder, "b.jsonl", [2])])
    job.end(2, state=state)
    job.tell(complete=True, state="failed")
    return job


@pytest.mark.parametrize("workers", [0, 2])
def test_a_failed_file_raises_when_the_order_reaches_it(tmp_path: Path, workers: int) -> None:
    job = FakeJob()
    job.add(1, 1)
    job.end(0, [write_lines(tmp_path, "a.jsonl", [1])])
    job.end(1, failures=[failure(1)], state="failed")
    job.tell(complete=True, state="failed")
    with iterating(loader(StreamingDataset(job), workers)) as samples:
        assert next(samples) == 1
        with pytest.raises(JobFailed, match=r"https://host/bad\.tar: the origin says 404 \(NotFound after 1 attempt"):
            next(samples)


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_leaves_out_what_failed_and_nothing_else(tmp_path: Path, workers: int) -> None:
    dataset = StreamingDataset(failing_job(tmp_path, "quarantined"), on_failure="skip")
    assert sorted(loader(dataset, workers)) == [1, 2]


def test_a_cancelled_shard_is_an_error_even_under_skip(tmp_path: Path) -> None:
    samples = iter(StreamingDataset(failing_job(tmp_path, "cancelled"), on_failure="skip"))
    assert [next(samples), next(samples)] == [1, 2]
    with pytest.raises(JobFailed, match=r"job1\.2 is cancelled"):
        next(samples)


def test_a_job_cancelled_while_we_wait_ends_the_wait() -> None:
    job = FakeJob()
    job.add(1)
    job.seal()
    threading.Timer(0.2, lambda: job.tell(state="cancelled")).start()
    with pytest.raises(JobFailed, match="cancelled"):
        list(StreamingDataset(job, timeout=20))


def test_a_source_that_could_not_be_planned(tmp_path: Path) -> None:
    job = finished_job(tmp_path, 2, 2)
    job.tell(state="failed", not_planned=(failure(0, source="s3://b/none/*"),))
    with pytest.raises(JobFailed, match=r"s3://b/none/\*"):
        list(StreamingDataset(job))
    assert list(StreamingDataset(job, on_failure="skip")) == expected(2, 2)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_absent_ledger_reaches_who_waits_and_landed_files_are_read_before(tmp_path: Path, workers: int) -> None:
    job = FakeJob()
    job.add(1, 1)
    job.seal()
    job.end(0, [write_lines(tmp_path, "0.jsonl", [1, 2])])
    dataset = StreamingDataset(job, timeout=30)
    with iterating(loader(dataset, workers)) as samples:
        assert next(samples) == 1
        job.tell(error=LedgerUnavailable("redis://r:1/0", "refused"))
        assert next(samples) == 2
        with pytest.raises(LedgerUnavailable, match="no ledger at redis://r:1/0: refused"):
            next(samples)
    job.tell(error=None)  # and back again: a new iterator goes on
    job.end(1, [write_lines(tmp_path, "1.jsonl", [3])])
    until(lambda: dataset._feeds.lead("x")._error is None, "the feed to try again")
    assert list(loader(dataset, workers)) == [1, 2, 3]


def test_a_reader_that_breaks_is_an_error_for_who_waits() -> None:
    job = FakeJob(error=KeyError("surprise"))
    with pytest.raises(IngestError, match=r"following job job1 failed.*surprise"):
        list(StreamingDataset(job))


def test_epochs_persistent_workers_and_iterators_side_by_side(tmp_path: Path) -> None:
    dataset = StreamingDataset(finished_job(tmp_path, 6, 4), shuffle=True, seed=1)
    batches = loader(dataset, 2, persistent_workers=True)
    epochs = []
    for epoch in range(3):
        dataset.set_epoch(epoch % 2)
        epochs.append(list(batches))
    assert all(sorted(epoch) == expected(6, 4) for epoch in epochs)
    assert epochs[0] == epochs[2] != epochs[1]
    one, two = iter(dataset), iter(dataset)
    assert [pair for pair in zip(one, two, strict=True) if pair[0] != pair[1]] == []


def test_empty_jobs_and_empty_shares(tmp_path: Path) -> None:
    empty = FakeJob()
    empty.tell(complete=True, state="done")
    assert list(StreamingDataset(empty)) == []
    assert list(loader(StreamingDataset(finished_job(tmp_path, 1, 1)), 3)) == [0]


def test_tar_samples_are_decoded_and_collated(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as archive:
        for n in range(4):
            for name, data in ((f"{n}.cls", str(n).encode()), (f"{n}.txt", b"t")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                archive.addfile(info, BytesIO(data))
    job = FakeJob()
    job.add(1)
    job.end(0, [path])
    job.tell(complete=True, state="done")
    (batch,) = torch_data.DataLoader(StreamingDataset(job, decode=True), batch_size=4)
    assert batch["cls"].tolist() == [0, 1, 2, 3] and batch["txt"] == ["t"] * 4 and batch["__key__"] == list("0123")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_sample_keeps_its_class_through_a_worker(tmp_path: Path, workers: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("1\n{\n")
    job = FakeJob()
    job.add(1)
    job.end(0, [path])
    job.tell(complete=True, state="done")
    with iterating(loader(StreamingDataset(job), workers)) as samples:
        assert next(samples) == 1
        with pytest.raises(DataError, match=r"(?s)a\.jsonl: https://host/a\.jsonl: line 2"):
            next(samples)


def a_bad_line(folder: Path) -> FakeJob:
    path = folder / "a.tar"
    with tarfile.open(path, "w") as archive:
        for n, data in enumerate((b"0", b"one", b"2")):
            info = tarfile.TarInfo(f"{n}.cls")
            info.size = len(data)
            archive.addfile(info, BytesIO(data))
    job = FakeJob()
    job.add(1)
    job.end(0, [path])
    job.tell(complete=True, state="done")
    return job


def instead(error: DataError) -> dict[str, object]:
    return {"cls": str(error)[-50:]}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bad_sample_is_left_out_or_replaced(tmp_path: Path, workers: int, caplog: pytest.LogCaptureFixture) -> None:
    job = a_bad_line(tmp_path)
    with pytest.raises(DataError, match="'1', field 'cls'"):
        list(loader(StreamingDataset(job, decode=True), 0))
    left = loader(StreamingDataset(job, decode=True, on_bad="skip"), workers)
    assert sorted(sample["cls"] for sample in left) == [0, 2]
    assert workers or "dataset.bad_sample" in caplog.text
    replaced = loader(StreamingDataset(job, decode=True, on_bad=instead), workers)
    said = [sample["cls"] for sample in replaced if isinstance(sample["cls"], str)]
    assert len(said) == 1 and "invalid literal" in said[0]


def test_leaving_out_is_refused_where_ranks_must_have_as_many(tmp_path: Path) -> None:
    job = a_bad_line(tmp_path)
    with pytest.raises(UsageError, match="on_bad='skip' leaves some ranks with fewer"):
        list(StreamingDataset(job, decode=True, on_bad="skip", rank=0, world_size=2))
    options = {"decode": True, "on_bad": "skip", "tail": "uneven", "world_size": 2}
    got = [sample["cls"] for rank in range(2) for sample in StreamingDataset(job, rank=rank, **options)]
    assert sorted(got) == [0, 2]


def test_a_wait_speaks(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ingest.dataset.follow._SPEAK_S", 0.1)
    monkeypatch.setattr("ingest.dataset.follow._SLICE_S", 0.05)
    job = FakeJob()
    job.add(1)
    job.seal()
    dataset = StreamingDataset(job, timeout=20)
    got: list[object] = []
    reader = threading.Thread(target=lambda: got.extend(dataset))
    reader.start()
    until(lambda: "shard 0: it is in the queue of node-0" in caplog.text, "the wait to speak")
    assert caplog.text.count("dataset.waiting") == 1
    job.end(0, [write_lines(tmp_path, "0.jsonl", [1])])
    job.tell(state="done")
    reader.join(20)
    stats = dataset.stats()
    assert got == [1] and stats["waits"] >= 1 and stats["waited_s"] >= 0.1 and stats["first_sample_s"] >= 0.1


@pytest.mark.parametrize("workers", [0, 2])
def test_what_it_cost(tmp_path: Path, workers: int) -> None:
    dataset = StreamingDataset(finished_job(tmp_path, 4, 5))
    list(loader(dataset, workers))
    stats = dataset.stats()
    assert stats["samples"] == 20 and stats["files"] == 4 * max(1, workers) and stats["samples_per_s"] > 0
    assert stats["hit_rate"] == 0 and stats["first_sample_s"] > 0 and stats["waited_s"] < 20


def breaks(path: Path) -> Iterator[int]:
    raise ZeroDivisionError(path.name)
    yield 1


def test_an_error_of_the_users_function_says_which_file(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(StreamingDataset(finished_job(tmp_path, 1, 1), read=breaks))
    assert "https://host/0.jsonl" in caught.value.__notes__[0]


def test_format_and_columns_override(tmp_path: Path) -> None:
    (sample,) = StreamingDataset(finished_job(tmp_path, 1, 1), format="raw")
    assert sample["bytes"] == b"0\n"


@pytest.mark.parametrize(
    "wrong",
    [
        {"timeout": 0},
        {"on_failure": "ignore"},
        {"format": "xls"},
        {"tail": "cut"},
        {"shuffle": "all"},
        {"on_bad": "ignore"},
        {"streams": 0},
        {"batch_size": True},
        {"columns": "a"},
        {"rank": 1},
        {"rank": 2, "world_size": 2},
        {"read": breaks, "format": "tar"},
    ],
    ids=lambda options: "-".join(options),
)
def test_wrong_options_are_refused_before_anything_starts(wrong: dict[str, object]) -> None:
    job = FakeJob()
    job.reader = pytest.fail  # type: ignore[assignment,method-assign]  # no reader may be made
    with pytest.raises(UsageError):
        StreamingDataset(job, **wrong)  # type: ignore[arg-type]


def test_the_options_are_named_in_the_signature() -> None:
    for cls in (StreamingDataset, MapDataset):
        assert {"job", "format", "timeout", "open_files"} < set(inspect.signature(cls).parameters)
        with pytest.raises(TypeError, match="unexpected keyword argument 'shufle'"):
            cls(FakeJob(), shufle=True)


def test_rank_and_world_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = finished_job(tmp_path, 2, 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    parts = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        parts.append(list(StreamingDataset(job)))
    assert list(itertools.chain(*zip(*parts, strict=True))) == expected(2, 2)
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(IngestError, match="RANK='2' and WORLD_SIZE='2'"):
        list(StreamingDataset(job))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_ledger_is_told_what_is_read_now_and_next(tmp_path: Path, workers: int, shuffle: bool) -> None:
    job = finished_job(tmp_path, 4, 5)
    dataset = StreamingDataset(job, keep=False, shuffle=shuffle)
    for _ in range(2):
        with iterating(loader(dataset, workers)) as samples:
            first = next(samples)
            until(lambda: job.needed and set(job.needed[-1]) == {0, 1, 2, 3}, f"all are told: {job.needed}")
            assert sorted([first, *samples]) == expected(4, 5)
        until(lambda: job.needed[-1] == [], f"nothing is needed in the end: {job.needed}")
    assert not job.kept
    dataset.close()


def test_a_window_begins_with_what_is_read_and_lets_go_of_what_is_over(tmp_path: Path) -> None:
    job = FakeJob()
    job.add(2, 1, 1)
    paths = [write_lines(tmp_path, f"{n}.jsonl", [n]) for n in range(4)]
    job.end(0, paths[:2])
    job.end(1, paths[2:3])
    job.tell(complete=True, state="running")
    samples = iter(StreamingDataset(job, keep=False, timeout=30))
    for sample, window in ((0, [0, 1, 2]), (1, [0, 1, 2]), (2, [1, 2])):
        assert next(samples) == sample
        until(lambda window=window: job.needed and job.needed[-1] == window, f"{window} is needed: {job.needed}")
    job.end(2, paths[3:])
    job.tell(state="done")
    assert list(samples) == [3]


def test_workers_of_an_iteration_that_was_broken_off_need_nothing(tmp_path: Path) -> None:
    job = finished_job(tmp_path, 6, 5)
    dataset = StreamingDataset(job, keep=False)
    with iterating(loader(dataset, 3)) as samples:
        next(samples)
        until(lambda: job.needed and job.needed[-1], "something is needed")
    assert list(dataset) == expected(6, 5)
    until(lambda: job.needed[-1] == [], f"nothing is needed: {job.needed[-1]}")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_end_of_an_epoch_says_what_it_cost(tmp_path: Path, caplog: pytest.LogCaptureFixture, workers: int) -> None:
    class Writer:
        """What TensorBoard's has."""

        def __init__(self) -> None:
            self.scalars: dict[str, tuple[float, int]] = {}

        def add_scalar(self, tag: str, value: float, step: int) -> None:
            self.scalars[tag] = (value, step)

    dataset = StreamingDataset(finished_job(tmp_path, 3, 4), timeout=30)
    with caplog.at_level("INFO", logger="ingest.dataset.feed"):
        for epoch in range(2):
            dataset.set_epoch(epoch)
            assert len(list(loader(dataset, workers))) == 12
    said = [record.getMessage() for record in caplog.records]
    assert [line.partition(";")[0] for line in said] == [
        f"dataset.epoch epoch {epoch} on rank 0 of 1: 12 samples" for epoch in range(2)
    ]
    dataset.write_scalars(writer := Writer(), 7)
    assert writer.scalars["ingest/samples"] == (24, 7) and "ingest/hit_rate" in writer.scalars
