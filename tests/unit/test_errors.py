"""Errors cross the queue as Celery's JSON backend writes them, and come back as what they were."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator

import pytest
from celery import Celery

from ingest import errors
from ingest.errors import FetchError, IngestError, PermanentFetchError, by_name
from ingest.model import Failure

URI = "s3://bucket/ключ.tar"

#: What each class is made of. A class that is not here is made like the one above it in the tree.
MADE_OF: dict[str, tuple[object, ...]] = {
    "IngestError": ("something",),
    "UsageError": ("what is wrong",),
    "BadSource": (URI, "a reason"),
    "UnknownConnection": ("lake", ["a", "b"]),
    "ConfigError": ("ingest.toml [http]", "a reason"),
    "LedgerUnavailable": ("redis://host:6379/0", "a reason"),
    "NoDataNode": ("any queue",),
    "ServiceFailed": ("redis", "a reason"),
    "UnknownJob": ("j1",),
    "WaitTimeout": ("j1", 2.5, "2 of 3 files are there"),
    "NotSubmitted": ("run/1", 2.5, "rank 1 of 2"),
    "JobFailed": (["/a", "/b"], ["x: no", "y: no", "z: no", "w: no"]),
    "NotLocalError": (URI, "n1"),
    "StoreError": ("/store", "a reason"),
    "DataError": ("/store/a.tar", "a reason"),
    "ResumeError": ("j1", "a reason"),
    "FetchError": (URI, "a reason"),
    "Throttled": (URI, "a reason", 7.5),
    "DigestMismatch": (URI, "sha256:aa", "sha256:bb", 17),
    "MissingExtra": (URI, "ingest[s3]"),
}


def tree(cls: type[Exception] = IngestError) -> Iterator[type[Exception]]:
    yield cls
    for below in cls.__subclasses__():
        if below.__module__ == errors.__name__:
            yield from tree(below)


CLASSES = list(tree())
FETCH_CLASSES = [cls for cls in CLASSES if issubclass(cls, FetchError)]


def make(cls: type[Exception]) -> Exception:
    args = next(MADE_OF[above.__name__] for above in cls.__mro__ if above.__name__ in MADE_OF)
    return cls(*args)


def through_celery(error: Exception) -> BaseException:
    """Written and read as the result backend does."""
    backend = Celery(set_as_current=False, backend="cache+memory://").backend
    stored = json.loads(backend.encode(backend.prepare_exception(error, serializer="json")))
    back = backend.exception_to_python(stored)
    assert isinstance(back, BaseException)
    return back


def test_every_class_is_in_the_tree_that_is_drawn() -> None:
    """Same classes, same nesting, same order; what else a class is stands in brackets."""
    drawn = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        depth, _, text = line.rpartition("── ")
        if "── " in line or line.strip() == "IngestError":
            drawn.append((len(depth) // 4 + ("── " in line), text.split()[0]))

    def real(cls: type[Exception], depth: int) -> Iterator[tuple[int, str]]:
        yield depth, cls.__name__
        for below in cls.__subclasses__():
            if below.__module__ == errors.__name__:
                yield from real(below, depth + 1)

    # The drawn depth counts characters; only the nesting matters.
    steps = sorted({depth for depth, _ in drawn})
    assert {(steps.index(depth), name) for depth, name in drawn} == set(real(IngestError, 0))
    assert len(drawn) == len({name for _, name in drawn})


def test_every_error_of_the_module_is_of_the_tree() -> None:
    defined = {
        found
        for found in vars(errors).values()
        if isinstance(found, type) and issubclass(found, BaseException) and found.__module__ == errors.__name__
    }
    assert defined == set(CLASSES)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_comes_through_celery_as_it_was(cls: type[Exception]) -> None:
    error = make(cls)
    back = through_celery(error)
    assert type(back) is cls
    assert [*map(str, back.args)] == [*map(str, error.args)]
    assert str(back) == str(error)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_comes_through_pickle_as_it_was(cls: type[Exception]) -> None:
    """A DataLoader's workers hand theirs over so."""
    error = make(cls)
    back = pickle.loads(pickle.dumps(error))
    assert (type(back), back.args, str(back)) == (cls, error.args, str(error))


@pytest.mark.parametrize("cls", FETCH_CLASSES, ids=lambda cls: cls.__name__)
def test_a_failure_is_the_error_again(cls: type[FetchError]) -> None:
    """Through the ledger (a failure's JSON) and through Celery: type, sentence and fields are what the fetcher
    raised."""
    error = make(cls)
    assert isinstance(error, FetchError)
    failure = Failure(error.uri, cls.__name__, error.reason, 2, "j1.0", "n1", (3, 4), error.details)
    read = Failure.from_json(json.loads(json.dumps(failure.to_json())))
    assert read == failure
    again = through_celery(read.exception())
    assert (type(again), str(again)) == (cls, str(error))
    assert vars(again) == vars(error)


def test_a_failure_that_says_too_little_is_still_an_error() -> None:
    error = Failure(URI, "DigestMismatch", "of an older version", 1, "j1.0").exception()
    assert type(error) is PermanentFetchError
    assert "DigestMismatch: of an older version" in str(error) and URI in str(error)


@pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
def test_the_sentence_is_one_line_and_names_what_it_was_given(cls: type[Exception]) -> None:
    error = make(cls)
    assert "\n" not in str(error)
    assert str(error.args[0]) in str(error) or cls.__name__ == "JobFailed"


def test_job_failed_shows_the_first_and_counts_the_rest() -> None:
    assert str(make(errors.JobFailed)) == "4 failed, 2 arrived: x: no; y: no; z: no; and 1 more"


def test_some_are_also_what_python_calls_them() -> None:
    assert issubclass(errors.WaitTimeout, TimeoutError)
    assert issubclass(errors.UsageError, ValueError)


@pytest.mark.parametrize("cls", FETCH_CLASSES, ids=lambda cls: cls.__name__)
def test_by_name(cls: type[FetchError]) -> None:
    assert by_name(cls.__name__) is cls


@pytest.mark.parametrize(
    "name", ["OfTomorrow", "", "UsageError", "IngestError", "by_name", "annotations", "Sequence", "Any"]
)
def test_by_name_of_what_is_no_fetch_error(name: str) -> None:
    assert by_name(name) is PermanentFetchError


def test_details_are_what_the_reason_does_not_hold() -> None:
    assert errors.NotFound(URI, "no").details == ()
    assert errors.Throttled(URI, "slow down", 3.0).details == ("slow down", 3.0)
    assert errors.MissingExtra(URI, "ingest[s3]").details == ("ingest[s3]",)
