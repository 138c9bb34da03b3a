"""What every format promises alike: any samples by number, in any order, in processes that share an open file."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from contextlib import closing
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.dataset import formats
from ingest.dataset.formats import Samples
from ingest.errors import DataError
from tests.unit.dataset.files import MAKERS, lines, opened

ROWS = [{"id": n, "text": f"{n} " * (n * 37 % 900)} for n in range(300)]
LINES = lines(ROWS)


@pytest.fixture(scope="module", params=MAKERS)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("formats") / str(request.param)
    MAKERS[path.name](path, ROWS)
    return path


@pytest.fixture(scope="module")
def every(path: Path) -> list[Any]:
    with closing(opened(path)) as samples:
        return list(samples.take(range(len(samples))))


@pytest.fixture(scope="module")
def samples(path: Path) -> Iterator[Samples]:
    with closing(opened(path)) as samples:
        yield samples


def test_all_of_them_are_there(path: Path, every: list[Any]) -> None:
    found = {"a.text": LINES.count(b"\n"), "a.bin": 1}.get(path.name, 300)
    assert len(every) == found
    if path.name not in ("a.text", "a.bin"):
        assert formats.count_samples(path) == found
    if path.name not in ("a.text", "a.bin", "a.mds") and "tar" not in path.name:
        assert every == ROWS


@settings(max_examples=25, derandomize=True, deadline=None)
@given(st.data())
def test_any_samples_in_any_order(samples: Samples, every: list[Any], data: st.DataObject) -> None:
    places = st.integers(0, len(every) - 1)
    stretches = st.builds(lambda a, b: range(min(a, b), max(a, b) + 1), places, places)
    steps = st.builds(lambda a, b, step: range(a, b, step), places, places, st.sampled_from([-3, -1, 2, 7]))
    numbers = data.draw(st.lists(places, max_size=40) | stretches | steps | st.permutations(range(len(every))))
    assert list(samples.take(numbers)) == [every[number] for number in numbers]


def test_samples_are_values_of_their_own(samples: Samples, every: list[Any]) -> None:
    first, second = samples.take([0, 0])
    assert first == second and (first is not second or isinstance(first, str))


def test_what_is_left_half_taken_disturbs_nobody(samples: Samples, every: list[Any]) -> None:
    half = samples.take(range(len(every)))
    assert next(half) == every[0]
    assert list(samples.take([len(every) - 1, 0])) == [every[-1], every[0]]
    assert list(half) == every[1:]


def _child(samples: Samples, numbers: list[int], out: Connection) -> None:
    out.send([repr(sample) for _ in range(5) for sample in samples.take(numbers)])


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12 on: other tests leave threads behind
def test_processes_after_a_fork_share_an_open_file(path: Path, every: list[Any]) -> None:
    numbers = list(range(0, len(every), 2))
    with closing(opened(path)) as samples:
        assert next(iter(samples.take([0]))) == every[0]
        context = multiprocessing.get_context("fork")
        pipes = [context.Pipe() for _ in range(2)]
        children = [context.Process(target=_child, args=(samples, numbers, theirs), daemon=True) for _, theirs in pipes]
        for child, (_, theirs) in zip(children, pipes, strict=True):
            child.start()
            theirs.close()  # the child's alone: if it fails, there is an end to be read
        expected = [repr(every[n]) for n in numbers] * 5
        assert [repr(s) for _ in range(5) for s in samples.take(numbers)] == expected
        assert [ours.recv() == expected for ours, _ in pipes] == [True, True]
        for child in children:
            child.join()


def test_closing_twice(path: Path) -> None:
    samples = opened(path)
    samples.close()
    samples.close()


@pytest.mark.parametrize("name", [name for name in MAKERS if name not in ("a.text", "a.bin")])
def test_a_file_that_is_cut_off_names_itself(tmp_path: Path, name: str) -> None:
    """Also one of JSON lines: its last line is none."""
    path = tmp_path / name
    MAKERS[name](path, ROWS)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    if name == "a.csv":
        path.write_bytes(path.read_bytes()[: path.read_bytes().rindex(b",")])
    with pytest.raises(DataError, match=rf"{name}: src: "), closing(opened(path)) as samples:
        list(samples.take(range(len(samples))))


@pytest.mark.parametrize("name", MAKERS)
def test_an_empty_file(tmp_path: Path, name: str) -> None:
    """No lines are no samples; what has a header of any kind is not whole without it."""
    path = tmp_path / name
    path.write_bytes(b"")
    if "jsonl" in name or name == "a.text":
        assert list(formats.read(formats.by_name(name.split(".")[1][:5]), path, "src")) == []
    elif name == "a.bin":
        assert next(formats.read(formats.by_name("raw"), path, "src"))["bytes"] == b""
    else:
        with pytest.raises(DataError, match=rf"{name}: src: "):
            opened(path)
