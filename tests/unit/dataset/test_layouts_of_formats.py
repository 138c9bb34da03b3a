"""Every format under every layout: all samples once, in the order that one rank sees."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from ingest.dataset.shuffle import KINDS
from tests.unit.dataset.fakes import FakeJob
from tests.unit.dataset.files import MAKERS
from tests.unit.dataset.loaders import global_batches

RANKS, WORKERS = (1, 2, 3, 8), (0, 1, 3)
COUNTS = (7, 1, 12, 20, 2, 5, 3, 9, 4)
SEED = 5


def layouts() -> Iterator[Any]:
    """All of them; those of one way to go round are short: every format meets every shuffle and every number of ranks,
    and nearly every number of workers."""
    for (f, name), (s, shuffle) in itertools.product(enumerate(MAKERS), enumerate(KINDS)):
        for (r, ranks), (w, workers) in itertools.product(enumerate(RANKS), enumerate(WORKERS)):
            is_short = r == (f + s) % len(RANKS) and w == (f // len(RANKS) + s) % len(WORKERS)
            yield pytest.param(name, shuffle, ranks, workers, marks=() if is_short else pytest.mark.long)


@pytest.fixture(scope="module")
def job_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], FakeJob]:
    """A job of a file for each number in COUNTS, made once for each format."""
    made: dict[str, FakeJob] = {}

    def get(name: str) -> FakeJob:
        if name not in made:
            job, folder = FakeJob(), tmp_path_factory.mktemp("files")
            job.add(*[1] * len(COUNTS))
            for number, count in enumerate(COUNTS):
                path = folder / f"{number}{Path(name).name[1:]}"
                MAKERS[name](path, [{"id": 3 * (number * 100 + n), "text": f"{number}/{n}"} for n in range(count)])
                job.end(number, [path])
            job.tell(complete=True, state="done")
            made[name] = job
        return made[name]

    return get


@pytest.mark.parametrize(("name", "shuffle", "ranks", "workers"), [*layouts()])
def test_the_order_is_that_of_one_rank(
    job_of: Callable[[str], FakeJob], name: str, shuffle: str, ranks: int, workers: int
) -> None:
    job = job_of(name)
    options: dict[str, Any] = {"shuffle": shuffle, "shuffle_window": 16, "seed": SEED, "tail": "uneven"}
    options |= {"format": "text"} if name == "a.text" else {}
    plain = [
        repr(sample) for sample in itertools.chain(*global_batches(job, tail="uneven", format=options.get("format")))
    ]
    one, found = (
        [repr(sample) for sample in itertools.chain(*global_batches(job, *layout, **options))]
        for layout in ((1, 0), (ranks, workers))
    )
    assert found == one and sorted(one) == sorted(plain)
    assert len(set(plain)) == len(plain) == (len(COUNTS) if name == "a.bin" else sum(COUNTS))
    assert shuffle == "none" or name == "a.bin" or one != plain
