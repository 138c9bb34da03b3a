"""Planning against a real ledger and a real store: cut into shards, gone on with, paced, mended; and dry runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from celery import Celery

from ingest.app import app_for
from ingest.cuts import cut_listed
from ingest.ledger import Claim, NewUnit, Result, WorkLedger
from ingest.ledger.redis import text
from ingest.model import Failure, FileSpec, JobOptions
from ingest.queues import FETCH_QUEUE
from ingest.record import unpack_json
from ingest.sections import Limits, StoreLimits
from ingest.settings import Settings
from ingest.sources import AnySource, Manifest, Source, source_from_json
from ingest.store import Store
from tests.servers.redis import redis_server
from tests.unit.ledgers import PLANS, check, claim, connect, expire, ripen, state
from workers.control import Control
from workers.counting import count_unit, listing_requests, requests_for
from workers.node import Node
from workers.plan import Planning, go, plan_source


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@dataclasses.dataclass
class World:
    """A node, its ledger, and a folder for lists. Nothing here fetches but the planner."""

    app: Celery
    node: Node
    ledger: WorkLedger
    root: Path

    def put(self, name: str, *lines: str) -> str:
        (self.root / name).write_text("".join(f"{line}\n" for line in lines))
        return f"file://{self.root}/{name}"

    def submit(self, *sources: AnySource, options: JobOptions | None = None) -> str:
        job = self.ledger.create(options or JobOptions(shard_files=1, fresh_s=0), None).job
        units = [NewUnit.plan(source, index, PLANS) for index, source in enumerate(sources)]
        self.ledger.add(job, "p", 0, 0, units)
        self.ledger.seal(job)
        return job

    def claim(self) -> Claim:
        return claim(self.ledger, queues=(PLANS,))

    def plan(self) -> None:
        plan_source(self.app, self.node, self.ledger, self.claim(), None)

    def listed(self, job: str) -> list[str]:
        """The URIs in the job's shards, in the order of (source, part)."""
        found = sorted(self.specs(job), key=lambda spec: (spec.source, spec.part))
        return [spec.uri for spec in found]

    def specs(self, job: str) -> list[FileSpec]:
        numbers = [str(n) for n in range(int(self.ledger.meta(job)["next"]))]
        return [spec for specs in self.ledger.specs(job, numbers) for spec in specs]

    def failed_rows(self, job: str) -> list[int]:
        return [f.index[1] for f in self.failures(job)]

    def failures(self, job: str) -> list[Failure]:
        (packed,) = self.ledger.results(job, ["p0"])
        return sorted(Result.unpacked(packed).failures, key=lambda f: f.index)


@pytest.fixture
def world(url: str, tmp_path: Path) -> Iterator[World]:
    limits = StoreLimits(root=tmp_path / "store", min_free_bytes=0)
    settings = Settings(redis_url=url, broker_url=url, result_url=url, ledger_url=url, store=limits, node="n1")
    ledger = connect(url)
    yield World(app_for(settings), Node(settings, Store.open(limits), "w1"), ledger, tmp_path)
    ledger.close()


def uris(count: int, start: int = 0) -> list[str]:
    return [f"https://h/{n:05d}" for n in range(start, start + count)]


class Stops(Planning):
    """A go that ends after its first step, in one way or another."""

    def __init__(self, world: World, work: Claim, then: Callable[[], None]) -> None:
        never = Control(world.ledger, work, slice_s=60, every_s=60, stopping=lambda: False)
        source = source_from_json(unpack_json(work.spec))
        super().__init__(world.app, world.node, world.ledger, work, never, source)
        self._then = then

    def step(self, shards: list[list[FileSpec]], nodes: list[str]) -> None:
        super().step(shards, nodes)
        self.control.interrupt("stopping")
        self._then()


class Died(Exception): ...


def die() -> None:
    raise Died


def one_step(world: World) -> Claim:
    """The first step of planning, and then the worker is told to stop."""
    work = world.claim()
    go(Stops(world, work, lambda: None), None)
    return work


def killed_after_one_step(world: World) -> None:
    work = world.claim()
    with pytest.raises(Died):
        go(Stops(world, work, die), None)
    expire(world.ledger, work.unit)


BAD = {5: "nonsense", 150: "https://me:secret@h/x", 300: "more nonsense", 420: "s3:///"}
GOOD = 450


def a_list_with_bad_rows(world: World) -> tuple[Manifest, list[str]]:
    lines = [BAD.get(n, f"https://h/{n:05d}") for n in range(1, GOOD + 1)]
    return Manifest(world.put("list.txt", *lines)), [line for n, line in enumerate(lines, 1) if n not in BAD]


@pytest.mark.parametrize("end", [one_step, killed_after_one_step], ids=["told to stop", "killed"])
def test_a_planner_that_is_followed_by_another_loses_no_row_and_no_bad_one(
    world: World, end: Callable[[World], object]
) -> None:
    source, good = a_list_with_bad_rows(world)
    job = world.submit(source)
    end(world)
    assert len(world.listed(job)) == 200 and state(world.ledger, f"{job}.p0") == "due"
    world.plan()
    assert world.listed(job) == good
    assert state(world.ledger, f"{job}.p0") == "failed" and world.failed_rows(job) == sorted(BAD)
    assert "secret" not in str(world.failures(job))
    check(world.ledger, job)


def test_bad_rows_count_as_failed_once_however_often_it_is_gone_on_with(world: World) -> None:
    source, _ = a_list_with_bad_rows(world)
    job = world.submit(source)
    one_step(world)
    assert world.ledger.meta(job)["files_failed"] == "2"
    one_step(world)
    world.plan()
    assert world.ledger.meta(job)["files_failed"] == "4"
    check(world.ledger, job)


def test_a_list_is_gone_on_with_in_the_version_in_which_it_was_begun(world: World) -> None:
    manifest = Manifest(world.put("list.txt", *uris(450)))
    job = world.submit(manifest)
    one_step(world)
    world.put("list.txt", "https://h/new", *uris(450))
    other = world.submit(manifest)  # another job has the new version brought here
    world.ledger.sweep("cancel", job)
    world.plan()
    assert world.listed(other) == ["https://h/new", *uris(450)]
    world.ledger.sweep("retry", job)
    world.plan()
    assert world.listed(job) == uris(450)


def test_a_list_whose_begun_version_is_nowhere_any_more_fails_honestly(world: World) -> None:
    manifest = Manifest(world.put("list.txt", *uris(450)))
    job = world.submit(manifest)
    one_step(world)
    world.put("list.txt", *uris(500, 1000))
    for record in (world.root / "store" / "data").rglob("*.json"):
        record.unlink()
    world.plan()
    ripen(world.ledger, f"{job}.p0")
    world.plan()
    (failure,) = world.failures(job)
    assert failure.error == "DigestMismatch" and world.listed(job) == uris(200)


def test_a_mended_row_is_added_on_retry_also_if_it_is_the_last_files_uri_again(world: World) -> None:
    last = "https://h/last"
    manifest = Manifest(world.put("list.txt", "https://h/first", "nonsense", last))
    job = world.submit(manifest)
    world.plan()
    assert world.listed(job) == ["https://h/first", last] and world.failed_rows(job) == [2]
    world.put("list.txt", "https://h/first", last, last)
    world.ledger.sweep("retry", job)
    world.plan()
    assert world.listed(job) == ["https://h/first", last, last] and state(world.ledger, f"{job}.p0") == "done"
    assert [spec.part for spec in sorted(world.specs(job), key=lambda s: s.part)] == [1, 2, 3]


def test_a_retry_that_is_cut_off_keeps_the_rows_that_it_did_not_come_to(world: World) -> None:
    """Rows 2 and 302 were bad; both are mended, and the retry gets as far as a step that holds only the first."""
    lines = uris(450)
    lines[1] = lines[301] = "nonsense"
    manifest = Manifest(world.put("list.txt", *lines))
    job = world.submit(manifest)
    world.plan()
    assert world.failed_rows(job) == [2, 302]
    more = uris(300, 9000)  # behind the end: so that the first step does not hold all there is to add
    lines[1] = "https://h/mended-1"
    world.put("list.txt", *lines, *more)
    world.ledger.sweep("retry", job)
    one_step(world)
    world.plan()
    added = world.listed(job)
    assert len(added) == len(set(added)) == 449 + 300 and "https://h/mended-1" in added
    assert world.failed_rows(job) == [302]
    check(world.ledger, job)


def test_more_bad_rows_than_a_list_can_have(world: World) -> None:
    job = world.submit(Manifest(world.put("list.txt", *["nonsense"] * 1001)))
    world.plan()
    failures = world.failures(job)
    assert "more than 1000 of its lines" in failures[0].reason and len(failures) == 1001


# -- not too far ahead -------------------------------------------------------------------------------------------------


def test_a_planner_rests_while_much_is_open_and_is_woken_when_half_is_done(world: World) -> None:
    settings = dataclasses.replace(world.node.settings, limits=Limits(plan_ahead=200))
    world.node = dataclasses.replace(world.node, settings=settings)
    job = world.submit(Manifest(world.put("list.txt", *uris(1000))))
    planner = f"{job}.p0"
    world.plan()
    assert len(world.listed(job)) == 200
    while state(world.ledger, planner) != "done":
        if world.ledger.due_count(PLANS):
            world.plan()
            assert world.ledger.open_units(job) <= 200 + 200
            continue
        assert world.ledger.redis.zscore(world.ledger.key("delayed"), planner), "it rests"
        assert world.ledger.open_units(job) > 100, "and not once half is done"
        work = claim(world.ledger, pid="2:2", queues=(FETCH_QUEUE,))
        world.ledger.commit(work, "done", work.earlier, ())
    assert int(world.ledger.meta(job)["files"]) == 1000
    check(world.ledger, job)


def test_a_planner_that_looks_too_early_adds_nothing(world: World) -> None:
    settings = dataclasses.replace(world.node.settings, limits=Limits(plan_ahead=100))
    world.node = dataclasses.replace(world.node, settings=settings)
    job = world.submit(Manifest(world.put("list.txt", *uris(1000))))
    world.plan()
    for _ in range(3):
        ripen(world.ledger, f"{job}.p0")
        world.plan()
    assert len(world.listed(job)) == 200 and world.ledger.meta(job)["retries"] == "0"


def test_the_list_of_files_of_a_shard_stays_as_long_as_its_job(world: World) -> None:
    """What is done is fetched again when it was evicted and a reader needs it."""
    job = world.submit(Manifest(world.put("list.txt", *uris(3))))
    world.plan()
    for end in ("done", "failed"):
        work = claim(world.ledger, pid="2:2", queues=(FETCH_QUEUE,))
        world.ledger.commit(work, end, work.earlier, ())
    kept = {text(n) for n in world.ledger.redis.hkeys(world.ledger.key("job", job, "spec"))}
    assert kept == {"p0", "0", "1", "2"}


# -- cutting -----------------------------------------------------------------------------------------------------------


def test_shards_of_a_listing_grow_with_it() -> None:
    specs = (FileSpec(0, n, "https://h/x") for n in range(70_000))
    sizes = [len(shard) for shard in cut_listed(specs, None)]
    assert sum(sizes) == 70_000 and sizes[:15] == [1] * 15 and len(sizes) < 1100 and max(sizes) == 256
    assert sizes[:-1] == sorted(sizes[:-1])


def test_shards_of_large_files_hold_few() -> None:
    specs = (FileSpec(0, n, "https://h/x", size=40 << 20) for n in range(4))
    assert [len(shard) for shard in cut_listed(specs, None, seen=10_000)] == [1, 1, 1, 1]
    specs = (FileSpec(0, n, "https://h/x", size=40 << 20) for n in range(4))
    assert [len(shard) for shard in cut_listed(specs, 3)] == [3, 1]


# -- dry runs ----------------------------------------------------------------------------------------------------------


def counted(world: World, source: AnySource, options: JobOptions) -> dict[str, int]:
    job = world.submit(source, options=options)
    work = world.claim()
    count_unit(world.app, world.node, world.ledger, work, None)
    (packed,) = world.ledger.results(job, ["p0"])
    return dict(Result.unpacked(packed).counts or {})


def test_a_dry_run_counts_as_planning_would_cut(world: World) -> None:
    source = Manifest(world.put("list.txt", *uris(1000)))
    planned = world.submit(source, options=JobOptions())
    world.plan()
    found = counted(world, source, JobOptions(dry_run=True))
    assert found == {
        "files": 1000,
        "shards": int(world.ledger.meta(planned)["next"]),
        "unsized": 1000,
        "fetch": 1000,
        "manifests": 1,
    }


def test_a_dry_run_that_takes_too_long_says_the_least(world: World) -> None:
    source = Manifest(world.put("list.txt", *uris(30_000)))
    settings = dataclasses.replace(world.node.settings, limits=Limits(connect_s=1e-9, stall_s=2e-9, soft_s=1e-6))
    world.node = dataclasses.replace(world.node, settings=settings)
    found = counted(world, source, JobOptions(dry_run=True))
    assert found["partial"] == 1 and found.get("files", 0) < 30_000


def test_what_a_dry_run_knows_of_object_stores(world: World) -> None:
    assert [requests_for("s3://b/k", size) for size in (None, 0, 1, 8 << 20, (8 << 20) + 1, 5 << 40)] == [
        1, 1, 1, 1, 2, 655_360,
    ]  # fmt: skip
    assert requests_for("https://h/a", 5 << 40) == 1 and requests_for("file:///a", 1) == 0
    assert listing_requests(Source("s3://b/p/"), 10_001) == 11 and listing_requests(Source("s3://b/{a,b}/*"), 0) == 2
    assert listing_requests(Source("file:///a/*"), 5) == 0
