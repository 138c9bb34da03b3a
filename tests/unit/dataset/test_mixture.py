"""Several jobs as one: weights kept at every place, the same order under every layout, and resume at any place."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("torch")

import ingest
from ingest.dataset import StreamingDataset
from ingest.dataset.epoch import Epoch
from ingest.dataset.order import Recipe
from ingest.dataset.shuffle import KINDS
from ingest.dataset.turns import BLOCK, Turns
from ingest.errors import JobFailed, ResumeError, UsageError, WaitTimeout
from tests.unit.dataset.fakes import FakeJob, failure, until, write_lines
from tests.unit.dataset.loaders import all_of, stop_and_resume_anywhere
from tests.unit.dataset.orders import Counts, epoch_of, slots_of

WEIGHTS = st.lists(st.sampled_from([1, 1e-9, 0.3, 0.7, 2.5, 1000.0]) | st.floats(1e-3, 1e3), min_size=1, max_size=9)


@settings(max_examples=40, deadline=None)
@given(WEIGHTS, st.integers(0, 3), st.integers(0, 10**7))
def test_counts_follow_the_weights_at_every_place(weights: list[float], seed: int, first: int) -> None:
    """Webster's rule keeps each count within (1 + share * (jobs - 2)) / 2 of its share, after any number of blocks."""
    turns, total = Turns(weights, str(seed)), sum(map(Fraction, weights))
    shares = [Fraction(weight) / total for weight in weights]
    start = first // BLOCK * BLOCK
    counts = turns.before(start)
    for place in range(start, start + 3 * BLOCK):
        assert turns.before(place) == counts and sum(counts) == place
        for count, share in zip(counts, shares, strict=True):
            off, bound = abs(count - place * share), (1 + share * max(0, len(weights) - 2)) / 2
            assert off <= bound + (place % BLOCK and BLOCK * min(share, 1 - share) + 2 * bound)
        job, number = turns.at(place)
        assert number == counts[job]
        counts[job] += 1


def test_turns_are_the_same_for_ever() -> None:
    """A checkpoint of this version is to be resumed by the next one, on another Python."""
    turns = Turns([0.7, 0.3], "0/0")
    assert "".join(str(turns.at(place)[0]) for place in range(40)) == "0100111001100100000111001010000000000011"
    assert turns.before(10**12) == [700_000_000_000, 300_000_000_000]


def samples_of(epoch: Epoch, places: range) -> list[tuple[int, int, int]]:
    """(job, file, number) at these places, in as many steps as it takes."""
    return slots_of(epoch.locate, lambda pick, n: (pick.job, pick.position, n), places)


JOBS = st.lists(st.lists(st.sampled_from([0, 1, 5, 40]), min_size=1, max_size=4).filter(any), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(JOBS, st.sampled_from(KINDS), st.sampled_from(["first", "all", 1, 200]), st.data())
def test_each_job_is_read_in_its_own_order_and_the_epoch_ends_where_it_should(
    jobs: list[list[int]], shuffle: str, stop: str | int, data: st.DataObject
) -> None:
    weights = tuple(data.draw(st.sampled_from([1.0, 2.0, 0.3])) for _ in jobs)
    recipe = Recipe(1, 2, shuffle, 3, 16, data.draw(st.sampled_from([1, 3])), weights, stop)

    def made() -> Epoch:
        return Epoch({f"job{n}": Counts(counts) for n, counts in enumerate(jobs)}, recipe)

    whole = samples_of(made(), range(10**6))
    for n, counts in enumerate(jobs):
        passes = (epoch_of(counts, Recipe(1, 2, shuffle, 3, 16, recipe.streams, passed=p)) for p in itertools.count())
        own = [sample for job, *sample in whole if job == n]
        assert own == list(map(list, itertools.islice(itertools.chain.from_iterable(passes), len(own))))
    had, (job, _) = Counter(job for job, *_ in whole), Turns(weights, recipe.random).at(len(whole))
    if stop == "first":
        assert all(had[n] <= sum(counts) for n, counts in enumerate(jobs)) and had[job] == sum(jobs[job])
    elif stop == "all":
        assert all(had[n] >= sum(counts) for n, counts in enumerate(jobs)) and had[job] == sum(jobs[job])
    else:
        assert len(whole) == stop
    assert made().count() == len(whole)
    start, step = data.draw(st.integers(0, len(whole))), data.draw(st.sampled_from([1, 2, 8]))
    assert samples_of(made(), range(start, len(whole) + 9, step)) == whole[start::step]
    epoch = made()
    assert [epoch.has(place) for place in range(len(whole) + 2)] == [True] * len(whole) + [False] * 2


@settings(max_examples=40, deadline=None)
@given(JOBS, st.sampled_from(KINDS), st.sampled_from(["first", "all", 300]), st.integers(1, 90))
def test_what_is_over_is_not_read_until_it_is_dealt_again(
    jobs: list[list[int]], shuffle: str, stop: str | int, size: int
) -> None:
    recipe = Recipe(0, 0, shuffle, 3, 16, 1, (1.0,) * len(jobs), stop)
    epoch = Epoch({f"job{n}": Counts(counts) for n, counts in enumerate(jobs)}, recipe)
    for at in itertools.count(0, size):
        for passes, over in zip(epoch.jobs, epoch.over(at), strict=True):
            assert sorted({*over, *passes.read}) == sorted([*over, *passes.read])
            assert stop == "first" or passes.ahead(1), "a file comes next, if need be of the next pass"
        found = samples_of(epoch, range(at, at + size))
        for n, passes in enumerate(epoch.jobs):
            assert {file for job, file, _ in found if job == n} <= set(passes.read)
        if not found:
            break
    epoch.over(None)
    assert not any(passes.read for passes in epoch.jobs)


RANKS, WORKERS = (1, 2, 3, 8), (0, 1, 3)
COUNTS = ((7, 0, 12, 1, 5), (20, 3), (4, 9, 30, 1))


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> list[FakeJob]:
    return [job_of(tmp_path_factory.mktemp(f"job{n}"), n, counts) for n, counts in enumerate(COUNTS)]


def job_of(folder: Path, job: int, counts: tuple[int, ...], id: str | None = None) -> FakeJob:
    made, folder = FakeJob(id or f"job{job}"), folder / f"{id or job}"
    folder.mkdir()
    made.add(*[1] * len(counts))
    for file, count in enumerate(counts):
        made.end(file, [write_lines(folder, f"{file}.jsonl", [f"{job}.{file}.{n}" for n in range(count)])])
    made.tell(complete=True, state="done")
    return made


def mixed(jobs: list[FakeJob], stop: str | int = "all", weights: tuple[float, ...] = (5, 2, 3)) -> Any:
    return ingest.mix(zip(jobs, weights, strict=True), stop=stop)


@pytest.mark.parametrize(("stop", "samples"), [("first", None), ("all", None), (100, 100)])
@pytest.mark.parametrize("shuffle", [False, "window"])
def test_the_global_order_is_that_of_one_rank(
    jobs: list[FakeJob], stop: Any, samples: int | None, shuffle: bool | str
) -> None:
    options: dict[str, Any] = {"shuffle": shuffle, "shuffle_window": 16, "seed": 3, "tail": "uneven"}
    one = all_of(mixed(jobs, stop), **options)
    distinct = {"first": len(one), "all": sum(map(sum, COUNTS))}
    assert len(one) == samples or len(set(one)) == distinct[stop]
    for world, workers in ((1, 3), (2, 0), (3, 1), (8, 3)):
        assert all_of(mixed(jobs, stop), world=world, workers=workers, **options) == one, (world, workers)


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_stopped_anywhere_and_resumed_under_any_layout(jobs: list[FakeJob], data: st.DataObject) -> None:
    mixture = mixed(jobs, data.draw(st.sampled_from(["first", "all", 70])))
    stop_and_resume_anywhere(mixture, data, ranks=RANKS, workers=WORKERS)


def test_behind_a_state_each_job_counts_its_own_samples(jobs: list[FakeJob]) -> None:
    def told() -> list[int]:
        return [job.progress()["samples"] for job in jobs]

    def counts(samples: list[str]) -> list[int]:
        return [sum(sample.startswith(f"{job}.") for sample in samples) for job in range(len(jobs))]

    one, other = (StreamingDataset(mixed(jobs, stop=200), shuffle=True, seed=1, batch_size=4) for _ in range(2))
    begun = list(itertools.islice(one, 100))
    other.load_state_dict(one.state_dict())
    rest = iter(other)
    assert told() == counts(begun), "before a sample is read"
    assert counts(begun + list(rest)) == told() and sum(told()) == 200
    assert {job.progress()["step"] for job in jobs} == {None}, "a step is of all jobs together"
    one.close()
    other.close()


def test_a_state_names_the_job_whose_files_are_others(jobs: list[FakeJob], tmp_path: Path) -> None:
    dataset = StreamingDataset(mixed(jobs))
    first = list(itertools.islice(iter(dataset), 110))  # the first job was begun again
    state = dataset.state_dict()
    assert [mark["files"] for mark in state["jobs"]] == [5, 2, 3] and len(json.dumps(state)) < 700
    dataset.load_state_dict(state)
    rest = list(dataset)
    new = [job_of(tmp_path, n, counts, f"new{n}") for n, counts in enumerate(COUNTS)]
    again = StreamingDataset(mixed(new))
    again.load_state_dict(state)
    assert list(again) == rest and first + rest == list(dataset)
    longer = [*new[:2], job_of(tmp_path, 2, (4, 9, 31, 1), "other")]
    other = StreamingDataset(mixed(longer))
    other.load_state_dict(state)
    with pytest.raises(ResumeError, match="job other: the first 3 files of its order are not those of job job2 then"):
        next(iter(other))
    changes = (({"weights": (1, 1, 1)}, r"weights=\[0.5, 0.2, 0.3\]"), ({"stop": "first"}, "stop='all', not 'first'"))
    for change, said in changes:
        made = StreamingDataset(mixed(jobs, **change))
        with pytest.raises(UsageError, match=said):
            made.load_state_dict(state)
        made.close()
    with pytest.raises(UsageError, match="another number of jobs"):
        dataset.load_state_dict({**state, "jobs": state["jobs"][1:]})
    for made in (dataset, again, other):
        made.close()


@pytest.mark.parametrize("tail", ["pad", "drop"])
def test_ranks_have_as_many(jobs: list[FakeJob], tail: str) -> None:
    each = [list(StreamingDataset(mixed(jobs, "first"), tail=tail, rank=rank, world_size=8)) for rank in range(8)]
    (count,) = set(map(len, each))
    samples = len(list(StreamingDataset(mixed(jobs, "first"))))
    assert count == (-(-samples // 8) if tail == "pad" else samples // 8)


def test_every_rank_sees_every_job(jobs: list[FakeJob]) -> None:
    """Turns in strict alternation would give each of two ranks one of the two jobs."""
    mixture = ingest.mix([(jobs[0], 1), (jobs[2], 1)])
    for rank in range(2):
        assert {sample[0] for sample in StreamingDataset(mixture, rank=rank, world_size=2)} == {"0", "2"}


def test_one_job_again_and_again_is_shuffled_anew(jobs: list[FakeJob]) -> None:
    dataset = StreamingDataset(ingest.mix({KeyOf(jobs[0]): 1}, stop=75), shuffle=True)
    samples = list(dataset)
    passes = [samples[at : at + 25] for at in (0, 25, 50)]
    assert passes[0] == list(StreamingDataset(jobs[0], shuffle=True))
    assert len(set(map(tuple, passes))) == 3 and len({tuple(sorted(each)) for each in passes}) == 1
    assert dataset.state_dict()["samples"] == 75
    dataset.close()


class KeyOf:
    """A job that can be a key, as a client's can."""

    def __init__(self, job: FakeJob) -> None:
        self.id, self.reader = job.id, job.reader


def test_it_waits_and_fails_as_one_job_does_and_says_which(jobs: list[FakeJob], tmp_path: Path) -> None:
    late = FakeJob("late")
    late.add(1, 1)
    late.seal()
    dataset = StreamingDataset(ingest.mix([(jobs[0], 1), (late, 1)]), timeout=0.3)
    with pytest.raises(WaitTimeout, match=r"(?s)job late .*shard 0: it is in the queue of node-0"):
        list(dataset)
    assert late.needed[0] == [0, 1], "what comes next of it is known before its turn"
    late.end(0, [write_lines(tmp_path, "late.jsonl", ["x"])])
    late.end(1, failures=[failure(1)], state="failed")
    late.tell(state="failed")
    with pytest.raises(JobFailed, match=r"bad\.tar"):
        list(dataset)
    assert dataset.stats()["files"] == 3
    dataset.close()
    until(lambda: late.closed == 1, "every reader to be closed")


def test_windows_hold_what_is_read_of_each_job(tmp_path: Path) -> None:
    """With keep=False each job has its part of the room."""
    both = [job_of(tmp_path, n, (3,) * 9) for n in range(2)]
    for job in both:
        size = 100
        job.tell(
            budget_bytes=8 * size,
            ends={n: type(end)(n, "done", (replace(end.files[0], size=size),), ()) for n, end in job.ends.items()},
        )
    dataset = StreamingDataset(ingest.mix([(job, 1) for job in both], stop="all"), keep=False)
    list(dataset)
    for job in both:
        until(lambda job=job: job.needed[-1] == [], "the end of the epoch to be told")
        assert not job.kept and max(map(len, job.needed)) <= 3, "alone, one has room for four"
    dataset.close()


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([], "no jobs"),
        ([("a", 0)], "weight 0 of job a: give a number above 0"),
        ([("a", -1)], "weight -1"),
        ([("a", float("nan"))], "weight nan"),
        ([("a", float("inf"))], "weight inf"),
        ([("a", None)], "weight None"),
        ([("a", 10**400)], "weight 1000"),
        ([("a", 1), ("b", 1), ("a", 2)], "job a is in the mixture twice"),
        ([("a", 1e300), ("b", 1e-300)], "too far apart"),
    ],
)
def test_what_is_no_mixture_is_refused(pairs: list[tuple[str, float]], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        ingest.mix([(FakeJob(id), weight) for id, weight in pairs])


@pytest.mark.parametrize("stop", ["last", 0, -1, True, 1.5, None])
def test_a_stop_that_is_none_is_refused(stop: Any) -> None:
    with pytest.raises(UsageError, match="use one of first, all, or a number of samples"):
        ingest.mix([(FakeJob(), 1)], stop=stop)


@pytest.mark.parametrize("stop", ["first", "all", 50])
def test_a_job_without_samples_is_named(jobs: list[FakeJob], stop: str | int) -> None:
    empty = FakeJob("empty")
    empty.tell(complete=True, state="done")
    with pytest.raises(UsageError, match="job empty has no samples, and cannot be part of a mixture"):
        list(StreamingDataset(ingest.mix([(jobs[0], 1), (empty, 1)], stop=stop)))
