"""A job in its global order, whatever the order in which things happen to it. The ledger is in a real Redis."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ingest.client.lease import Leases
from ingest.client.reader import JobReader, ShardLayout
from ingest.client.waiting import describe
from ingest.errors import NotLocalError, StoreError, UnknownJob, UsageError
from ingest.ledger import Claim, JobLedger, Result, WorkLedger
from ingest.model import FileRecord, FileSpec, JobOptions
from ingest.sections import StoreLimits
from ingest.store import Store
from tests.unit.ledgers import PLANS, QUEUE, done, expire, failed, plan, shards, submit

Open = Callable[..., JobReader]


@pytest.fixture
def read(ledger: WorkLedger) -> Iterator[Open]:
    made: list[JobReader] = []

    def opened(job: str, kind: type[JobLedger] = JobLedger, store: Store | None = None) -> JobReader:
        made.append(JobReader(kind(ledger.settings), job, store))
        return made[-1]

    yield opened
    for reader in made:
        reader.close()


def drain(reader: JobReader) -> JobReader:
    while reader.poll(0):
        pass
    return reader


def places(reader: JobReader) -> list[tuple[int, int]]:
    return [(s.source, s.part) for s in reader.order]


def planner(ledger: WorkLedger, pid: str = "p:1") -> Claim:
    found = ledger.claim("planner", pid, 99, [PLANS])
    assert found is not None
    return found


def mixed_job(ledger: WorkLedger) -> str:
    """Sources 0 and 3 are literal, 1 and 2 are planned; the submission is complete."""
    job = ledger.create(JobOptions(), None).job
    ledger.add(job, "", 0, 0, shards(0, 2))
    ledger.add(job, "p", 0, 2, [plan(1), plan(2)])
    ledger.add(job, "", 2, 3, shards(0, 2, source=3))
    ledger.seal(job)
    return job


class TestOrder:
    def test_by_source_then_part_whatever_arrives_first(self, ledger: WorkLedger, read: Open) -> None:
        job = mixed_job(ledger)
        reader = drain(read(job))
        assert places(reader) == [(0, 0), (0, 1)] and not reader.complete and reader.state == "planning"
        one, two = planner(ledger, "p:1"), planner(ledger, "p:2")
        assert (one.record.source, two.record.source) == (1, 2)
        ledger.add_planned(two, "2", shards(0, 2, source=2))
        assert places(drain(reader)) == [(0, 0), (0, 1)]
        ledger.add_planned(one, "1", shards(0, 1, source=1))
        assert places(drain(reader)) == [(0, 0), (0, 1), (1, 0)]
        ledger.commit(two, "done", Result(), ())
        ledger.add_planned(one, "2", shards(1, 2, source=1))
        ledger.commit(one, "done", Result(), ())
        assert places(drain(reader)) == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1), (3, 0), (3, 1)]
        assert reader.complete and reader.state == "running"
        assert reader.order[-1] == ShardLayout(3, 3, 1, 1)

    def test_it_only_grows_at_its_end_whatever_happens_when(self, ledger: WorkLedger, read: Open) -> None:
        for seed in range(6):
            self._shuffled(ledger, read, random.Random(seed))

    def _shuffled(self, ledger: WorkLedger, read: Open, chance: random.Random) -> None:
        job = mixed_job(ledger)
        reader, late = read(job), read(job)
        plans = [planner(ledger, f"p:{n}") for n in range(2)]
        left = {work.unit: chance.randint(0, 3) for work in plans}
        added = dict.fromkeys(left, 0)
        working: list[Claim] = []
        before: list[ShardLayout] = []
        while not reader.over:
            what = chance.choice(["plan", "claim", "end", "read"])
            if what == "plan" and plans:
                work = chance.choice(plans)
                n = added[work.unit]
                if n < left[work.unit]:
                    ledger.add_planned(work, str(n + 1), shards(n, n + 1, source=work.record.source))
                    added[work.unit] += 1
                else:
                    ledger.commit(work, "done", Result(), ())
                    plans.remove(work)
            elif what == "claim" and (found := ledger.claim("w", f"{chance.random()}:1", 99, [QUEUE])):
                working.append(found)
            elif what == "end" and working:
                work = working.pop(chance.randrange(len(working)))
                ledger.commit(work, "done", done(), ())
            elif what == "read":
                reader.poll(0)
                assert reader.order[: len(before)] == before
                before = [*reader.order]
        drain(late)
        assert reader.complete and places(reader) == sorted(places(reader)) == places(late)
        assert len(reader.order) == len(reader.ends) == 4 + sum(left.values())

    def test_a_planner_that_ends_between_two_looks_has_its_shards_in_place(
        self, ledger: WorkLedger, read: Open
    ) -> None:
        job = mixed_job(ledger)
        works = [planner(ledger, f"p:{n}") for n in range(2)]

        class Racing(JobLedger):
            """The planners add their last shards and end right after the reader's first look at the job."""

            def meta(self, job: str) -> dict[str, str]:
                found = super().meta(job)
                while works:
                    work = works.pop()
                    ledger.add_planned(work, "1", shards(0, 1, source=work.record.source))
                    ledger.commit(work, "done", Result(), ())
                return found

        reader = drain(read(job, Racing))
        assert reader.complete and places(reader) == [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0), (3, 1)]

    def test_a_submission_that_is_still_being_written(self, ledger: WorkLedger, read: Open) -> None:
        job = submit(ledger, 2, seal=False)
        reader = drain(read(job))
        assert places(reader) == [(0, 0), (0, 1)] and not reader.complete
        ledger.add(job, "", 2, 5, shards(2, 3, source=5))
        assert places(drain(reader)) == [(0, 0), (0, 1), (5, 2)] and not reader.complete
        ledger.seal(job)
        assert drain(reader).complete and reader.state == "running"

    def test_thousands_of_shards(self, ledger: WorkLedger, read: Open) -> None:
        job = submit(ledger, 2500)
        reader = drain(read(job))
        assert [s.shard for s in reader.order] == list(range(2500)) and reader.complete


class TestEnds:
    def test_each_end_with_its_files_and_failures(self, ledger: WorkLedger, read: Open, tmp_path: Path) -> None:
        job = submit(ledger, 3)
        reader = read(job)
        store = Store.open(StoreLimits(tmp_path))
        for n, end in enumerate(("done", "failed")):
            work = ledger.claim("w", f"{n}:1", 9, [QUEUE])
            assert work is not None
            ledger.commit(work, end, failed(work.unit) if end == "failed" else done(2), ())
        ledger.sweep("cancel", job)
        drain(reader)
        assert {n: (e.state, len(e.files), len(e.failures)) for n, e in reader.ends.items()} == {
            0: ("done", 2, 0),
            1: ("failed", 0, 1),
            2: ("cancelled", 0, 0),
        }
        assert reader.over and reader.state == "cancelled"
        with pytest.raises(NotLocalError):
            _ = drain(read(job, store=store)).ends[0].files[0].path

    def test_what_is_tried_again_is_not_over(self, ledger: WorkLedger, read: Open) -> None:
        job = submit(ledger, 1)
        reader = read(job)
        work = ledger.claim("w", "1:1", 9, [QUEUE])
        assert work is not None
        ledger.commit(work, "failed", failed(work.unit), ())
        assert drain(reader).over and reader.ends[0].state == "failed"
        ledger.sweep("retry", job)
        drain(reader)
        assert reader.ends == {} and not reader.over and reader.state == "running" and len(reader.order) == 1
        work = ledger.claim("w", "1:1", 9, [QUEUE])
        assert work is not None
        ledger.commit(work, "done", done(), ())
        for each in (reader, read(job)):  # also one that reads all of it at once
            assert drain(each).ends[0].state == "done" and each.state == "done" and len(each.order) == 1

    def test_a_source_that_could_not_be_planned(self, ledger: WorkLedger, read: Open) -> None:
        job = ledger.create(JobOptions(), None).job
        ledger.add(job, "p", 0, 0, [plan()])
        ledger.seal(job)
        work = planner(ledger)
        ledger.commit(work, "failed", failed(work.unit), ())
        reader = drain(read(job))
        assert reader.complete and reader.order == [] and reader.state == "failed" and reader.ends == {}
        assert [f.error for f in reader.plan_failures()] == ["NotFound"]
        ledger.sweep("retry", job)
        assert not drain(reader).complete and reader.state == "planning"


class TestWaiting:
    def test_nothing_new(self, ledger: WorkLedger, read: Open) -> None:
        reader = drain(read(submit(ledger, 1)))
        assert not reader.poll(0.05) and not reader.poll(0)

    def test_a_job_that_is_not_there(self, ledger: WorkLedger, read: Open) -> None:
        with pytest.raises(UnknownJob):
            read("j0").poll(0)

    def test_what_it_waits_for_as_a_sentence(self, ledger: WorkLedger, read: Open) -> None:
        job = submit(ledger, 1)
        reader = read(job)
        said = reader.waiting_for(0)
        assert (
            said
            == f"shard {job}.0 from https://host waits in queue {QUEUE}; it is the next there; no data node is alive"
        )
        assert "is not planned yet" in reader.waiting_for(7)
        info = {"node": "n1", "store": "s1", "slots": 2, "connections": [], "version": "1", "free_bytes": 1, "pid": 1}
        ledger.beat("w1", {**info, "queues": ["ingest.plan"]}, [], [])
        assert reader.waiting_for(0).endswith("; no live node consumes that queue (see -Q)")
        work = ledger.claim("w1", "1:1", 9, [QUEUE])
        assert work is not None and "is being fetched by w1, attempt 1" in reader.waiting_for(0)
        ledger.back(work, 30, True, "FetchTimeout: no data", None, ())
        assert re.search("is tried again in (29|30) s: FetchTimeout: no data", reader.waiting_for(0))
        ledger.redis.zadd(ledger.key("delayed"), {work.unit: 1})
        work = ledger.claim("w1", "1:1", 9, [QUEUE])
        assert work is not None
        expire(ledger, work.unit)
        assert "waits in queue ingest.fetch: its worker died" in reader.waiting_for(0)
        ledger.sweep("cancel", job)
        (record,) = ledger.units(job, ["0"])
        assert record and "is cancelled" in describe(record, 0)

    def test_where_it_stands_at_what_rate_it_comes_and_who_is_not_there(self, ledger: WorkLedger, read: Open) -> None:
        job = submit(ledger, 9, queue=f"{QUEUE}.n7")
        reader = read(job)
        info = {"node": "n1", "store": "s1", "slots": 2, "connections": [], "version": "1", "free_bytes": 1, "pid": 1}
        ledger.beat("w1", info, [], [])
        assert reader.waiting_for(3).endswith(f"waits in queue {QUEUE}.n7; 3 are before it there; node n7 is not alive")
        reader.need([8, 3])
        assert "; 1 is before it there" in reader.waiting_for(3)
        ledger.beat("w7", {**info, "node": "n7", "unfit": "its disk is full"}, [], [])
        assert "; node n7 is unfit: its disk is full" in reader.waiting_for(3)
        ledger.beat("w7", {**info, "node": "n7", "queues": [QUEUE]}, [], [])
        assert reader.waiting_for(3).endswith("; node n7 does not consume that queue (see -Q)")
        work = ledger.claim("w1", "1:1", 9, [f"{QUEUE}.n7"])
        assert work is not None and work.number == "8"
        ledger.progress(work, 3_000_000)
        said = reader.waiting_for(8)
        assert re.search(r"is being fetched by w1, attempt 1; 3\.0 MB in \d+ s, [\d.]+ [kM]B/s$", said), said
        ledger.back(
            work, 30, False, "NoRoom: waits for 1.0 MB in the store of node n7; held are 2 B by job j1", None, ()
        )
        assert "held are 2 B by job j1" in reader.waiting_for(8)


class TestWindow:
    """A reader on the node where the files are, with a real store."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return Store.open(StoreLimits(tmp_path / "store", fsync=False))

    def job(self, ledger: WorkLedger, store: Store, shards: int = 3) -> str:
        """All of it has landed; each file holds the number of its shard."""
        info = {
            "node": "n1",
            "store": store.id,
            "slots": 2,
            "connections": [],
            "version": "1",
            "free_bytes": 1,
            "pid": 1,
        }
        ledger.beat("w", info, [], [])
        job = submit(ledger, shards)
        for n in range(shards):
            work = ledger.claim("w", f"{n}:1", 9, [QUEUE])
            assert work is not None
            ledger.commit(work, "done", Result((self.put(store, n),)), ())
        return job

    def put(self, store: Store, n: int) -> FileRecord:
        path = store.root / f"data/00/{'0' * 39}{n}/v/f"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(n))
        return FileRecord(
            0, n, f"https://host/{n}-0", str(path.relative_to(store.root)), 1, "sha256:aa", store.id, "n1", "v"
        )

    def file(self, store: Store, n: int) -> Path:
        return store.root / f"data/00/{'0' * 39}{n}/v/f"

    def test_what_is_gone_is_fetched_again_and_read(self, ledger: WorkLedger, read: Open, store: Store) -> None:
        job = self.job(ledger, store)
        reader, other = (drain(read(job, store=store)) for _ in range(2))
        self.file(store, 1).unlink()
        self.file(store, 2).write_text("2 and more")
        for each in (reader, other):
            each.need([0, 1, 2])
        assert sorted(drain(reader).ends) == [0] and reader.state == "done" and reader.over
        works = [ledger.claim("w", f"{n}:2", 9, [QUEUE]) for n in range(3)]
        assert [work and work.number for work in works] == ["1", "2", None]
        reader.need([0, 1, 2])
        for n, work in enumerate(works[:2], 1):
            assert work is not None
            ledger.commit(work, "done", Result((self.put(store, n),)), ())
        other.need([0, 1, 2])  # which has not heard of it yet
        assert ledger.claim("w", "9:2", 9, [QUEUE]) is None
        assert [drain(each).ends[n].files[0].path.read_text() for each in (reader, other) for n in range(3)] == [
            *"012",
            *"012",
        ]

    def test_files_are_looked_for_when_they_come_into_the_window_and_when_they_are_doubted(
        self, ledger: WorkLedger, read: Open, store: Store
    ) -> None:
        reader = drain(read(self.job(ledger, store), store=store))
        reader.need([0])
        self.file(store, 0).unlink()
        reader.need([0, 1])
        assert drain(reader).ends.keys() == {0, 1, 2}
        reader.doubt([0])
        reader.need([0, 1])
        assert drain(reader).ends.keys() == {1, 2}
        self.file(store, 1).unlink()
        reader.need([2])
        reader.need([1, 2])
        assert drain(reader).ends.keys() == {2}

    def test_a_store_that_is_not_mounted_is_an_error_and_nothing_is_fetched(
        self, ledger: WorkLedger, read: Open, store: Store, tmp_path: Path
    ) -> None:
        job = self.job(ledger, store)
        reader, far = drain(read(job, store=store)), drain(read(job, store=Store.open(StoreLimits(tmp_path / "other"))))
        far.need([0, 1, 2])  # they are in another store than the one here
        store.root.rename(tmp_path / "away")
        with pytest.raises(StoreError, match="mounted"):
            reader.need([0])
        (store.root / "data").mkdir(parents=True)
        with pytest.raises(StoreError, match="mounted"):
            reader.need([0])
        Store.open(store.limits)
        with pytest.raises(StoreError, match="another store"):
            reader.need([0])
        assert drain(reader).ends.keys() == drain(far).ends.keys() == {0, 1, 2}

    def test_it_goes_to_a_node_that_has_the_store(self, ledger: WorkLedger, read: Open, store: Store) -> None:
        reader = drain(read(self.job(ledger, store), store=store))
        info = {"store": "another", "slots": 2, "connections": [], "version": "1", "free_bytes": 1, "pid": 1}
        ledger.bye("w")
        ledger.beat("w2", {"node": "n2", **info}, [], [])
        for n, node in enumerate(("n1", "n3")):
            self.file(store, n).unlink()
            reader.need([n])
            (record,) = ledger.units(reader.job, [str(n)])
            assert record and record.queue == f"{QUEUE}.{node}"
            ledger.beat("w3", {"node": "n3", **info, "store": store.id}, [], [])

    def test_a_process_holds_the_windows_of_its_readers_or_all(self, ledger: WorkLedger, store: Store) -> None:
        job = self.job(ledger, store, 9)

        def held() -> frozenset[str] | None:
            (holder,) = ledger.holders(0)
            return holder.only

        made = [
            JobReader(JobLedger(ledger.settings), job, store, leases=Leases(ledger.settings), keep=False)
            for _ in range(2)
        ]
        assert held() == frozenset()
        made[0].need([3, 4])
        made[1].need([8, 3])
        assert held() == {"3", "4", "8"}
        whole = Leases(ledger.settings)
        whole.keep(job)
        assert held() is None
        whole.drop(job)
        assert held() == {"3", "4", "8"}
        made[0].close()
        assert held() == {"3", "8"}
        made[1].close()
        assert ledger.holders(0) == []

    def test_a_window_is_what_is_read_next(self, ledger: WorkLedger, read: Open) -> None:
        with pytest.raises(UsageError, match="1000 at most"):
            read(submit(ledger, 1)).need(range(2000))


def test_a_plan_is_told_by_its_number(ledger: WorkLedger) -> None:
    job = mixed_job(ledger)
    assert ledger.specs(job, ["0"]) == [[FileSpec(0, 0, "https://host/0-0")]]
    assert [r.unit for r in ledger.units(job, ["p0", "p1"]) if r] == [f"{job}.p0", f"{job}.p1"]
