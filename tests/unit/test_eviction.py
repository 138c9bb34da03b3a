"""What goes from a store to make room, and that nothing goes that is held, with a real Redis and a real store."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ingest.ledger import Result, WorkLedger
from ingest.model import FileRecord, FileSpec
from ingest.sections import StoreLimits
from ingest.space import Evictor
from ingest.store import Store, Stored
from ingest.store.audit import usage, verify
from ingest.store.evict import Held, Survey, leftovers, remove, survey
from tests.unit.ledgers import claim, submit

MOST = 1000
#: A moment (ns since 1970) after which nothing was used but what a test touches: the first hour of 2020.
LONG_AGO = (1577836800 + 3600) * 10**9


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(
        StoreLimits(tmp_path / "store", min_free_bytes=0, max_bytes=MOST, hold_s=0, quiet_s=0.001, fsync=False)
    )


def put(store: Store, name: str, size: int = 100, used: float = 0.0, **more: str) -> Stored:
    """A published file, last used so many seconds after the first of 2020."""
    wanted = FileSpec(0, 0, f"https://host/{name}")
    key = store.key(wanted)
    with store.scratch(key, wanted, on_bytes=lambda n: None, max_bytes=1 << 40) as scratch:
        scratch.write(name.encode().ljust(size, b"."))
        made = store.publish(key, wanted, scratch, **more)
    age(store, made, used)
    return made


def age(store: Store, stored: Stored, used: float) -> None:
    os.utime(store.root / Path(stored.outputs[0].path).parent, (0, 1577836800 + used))


def names(store: Store) -> list[str]:
    return sorted(path.name for path in (store.root / "data").rglob("*") if path.is_file() and path.suffix != ".json")


def record(store: Store, stored: Stored, part: int = 0) -> FileRecord:
    return FileRecord(0, part, stored.uri, stored.path, stored.size, stored.digest, store.id, "n1", stored.version)


def manifest(store: Store, job: str, shard: int, *files: Stored) -> None:
    said = {"files": [record(store, each).to_json() for each in files]}
    store.write_manifest(job, str(shard), json.dumps(said).encode())


def nothing() -> None:
    """A check that never interrupts."""


class TestOnDisk:
    def test_a_walk_finds_what_there_is_and_the_oldest(self, store: Store) -> None:
        made = {name: put(store, name, size, used) for name, size, used in (("a", 10, 3), ("b", 20, 1), ("c", 30, 2))}
        held = Held()
        held.add(made["b"].path)
        held.add("data/../x")
        found = survey(store, held, nothing)
        assert found.bytes == 60 and [v.size for v in found.oldest] == [30, 10]
        assert [v.size for v in survey(store, Held(), nothing, most=2).oldest] == [20, 30]
        assert made["b"].path in held and made["a"].path not in held

    def test_what_goes_leaves_nothing_behind(self, store: Store) -> None:
        put(store, "a")
        (version,) = survey(store, Held(), nothing).oldest
        assert remove(store, version, LONG_AGO)
        assert list((store.root / "data").rglob("*")) == list((store.root / "data").iterdir())
        assert not remove(store, version, LONG_AGO)

    def test_a_source_of_several_files_goes_with_all_of_them(self, store: Store) -> None:
        wanted = FileSpec(0, 0, "https://host/many")
        with store.scratch("0" * 40, wanted, on_bytes=lambda n: None, max_bytes=99) as scratch:
            scratch.write(b"origin")
            for name in ("x", "sub/y"):
                piece = scratch.piece(name)
                piece.write(name.encode())
                piece.settle()
            made = store.publish("0" * 40, wanted, scratch)
        age(store, made, 0)
        (version,) = survey(store, Held(), nothing).oldest
        assert version.size == made.size == 12 and remove(store, version, LONG_AGO)
        assert store.lookup("0" * 40) is None and names(store) == []

    def test_what_was_touched_meanwhile_stays(self, store: Store) -> None:
        made = put(store, "a")
        (version,) = survey(store, Held(), nothing).oldest
        assert store.touch(made.path)
        assert not remove(store, version, LONG_AGO)
        assert store.lookup(store.key(FileSpec(0, 0, made.uri)), made.digest) is not None
        age(store, made, 0)
        assert remove(store, version, LONG_AGO) and not store.touch(made.path)

    def test_a_touch_at_any_moment_is_seen_or_finds_nothing(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The touch comes between any two steps of the removal: either it fails, or the file is there afterwards."""
        rename = Path.rename
        for moment in range(3):
            made = put(store, f"m{moment}")
            (version,) = survey(store, Held(), nothing).oldest
            steps: list[bool] = []

            def stepping(
                path: Path, target: Path, at: int = moment, mine: Stored = made, did: list[bool] = steps
            ) -> Path:
                if len(did) == at:
                    did.append(store.touch(mine.path))
                done = rename(path, target)
                did.append(len(did) == at and store.touch(mine.path))
                return done

            monkeypatch.setattr(Path, "rename", stepping)
            went = remove(store, version, LONG_AGO)
            monkeypatch.undo()
            assert went != any(steps), (moment, steps)
            assert (store.lookup(store.key(FileSpec(0, 0, made.uri))) is None) == went
            assert list(verify(store, remove=False)) == []
            if not went:
                age(store, made, 0)
                assert remove(store, version, LONG_AGO)

    def test_what_a_dead_process_left_goes_after_an_hour(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        made = put(store, "a")
        folder = store.root / Path(made.path).parent
        folder.with_name(folder.name + ".json").unlink()
        (folder.parent / f"{folder.name}.json.12345678.gone").write_text("{}")
        assert survey(store, Held(), nothing).bytes == 100 and names(store) != []
        monkeypatch.setattr("ingest.store.evict._HALF_GONE_S", -1)
        assert survey(store, Held(), nothing).orphans == 1 and names(store) != []
        monkeypatch.setattr("ingest.store.evict._ORPHAN_S", -1)
        assert survey(store, Held(), nothing).orphans == 1 and names(store) == []

    @pytest.mark.parametrize("step", [0, 1, 2])
    def test_a_process_that_dies_in_the_middle_of_a_removal_leaves_nothing_wrong(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, step: int
    ) -> None:
        """kill -9 before, between and after the two renames: the file is there as a whole or for nobody, what is on the
        disk is counted, the source can be published again at once, and what is left over goes."""
        made = put(store, "a")
        (version,) = survey(store, Held(), nothing).oldest
        if (child := os.fork()) == 0:
            rename, did = Path.rename, [0]

            def dies(path: Path, target: Path) -> Path:
                if did[0] == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                did[0] += 1
                return rename(path, target)

            Path.rename = dies  # type: ignore[method-assign, assignment]
            shutil.rmtree = lambda *a, **b: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
            remove(store, version, LONG_AGO)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        key = store.key(FileSpec(0, 0, made.uri))
        assert (store.lookup(key) is not None) == (step == 0)
        assert survey(store, Held(), nothing).bytes == 100
        assert list(verify(store, remove=False)) == []
        again = put(store, "a")
        assert store.lookup(key) is not None and store.path_of(again.path).read_bytes().startswith(b"a")
        monkeypatch.setattr("ingest.store.evict._HALF_GONE_S", -1)
        survey(store, Held(), nothing)
        assert survey(store, Held(), nothing).bytes == 100 and names(store) == ["a"]
        assert list(store.root.rglob("*.gone")) == []


class TestMakingRoom:
    @pytest.fixture(autouse=True)
    def _known(self, ledger: WorkLedger, store: Store) -> None:
        """The ledger has seen this store before there was anything in it."""
        ledger.turn(store.id, "t", 0)

    def want(self, store: Store, most: int) -> Callable[[], int]:
        return lambda: usage(store).bytes - most

    def test_the_least_recently_used_goes_and_what_is_held_stays(self, ledger: WorkLedger, store: Store) -> None:
        made = [put(store, f"f{n}", 100, n) for n in range(6)]
        job = submit(ledger, 1)
        work = claim(ledger)
        manifest(store, job, 0, made[0], made[2])
        ledger.commit(work, "done", Result(), ())
        ledger.read("r1", [job])
        evictor = Evictor(ledger, store)
        assert evictor.make_room(self.want(store, 450))[:2] == (200, "")
        assert names(store) == ["f0", "f2", "f4", "f5"]
        freed, why, _ = evictor.make_room(self.want(store, 100))
        assert (freed, names(store)) == (200, ["f0", "f2"])
        assert why == f"held are 200 B by job {job}, which 1 process reads"
        ledger.release(job, "r1", [0])
        assert evictor.make_room(self.want(store, 100))[:2] == (100, "") and names(store) == ["f2"]
        ledger.read("r1", [job], 0)
        assert evictor.make_room(self.want(store, 0))[:2] == (100, "")
        assert list(verify(store, remove=False)) == []

    def test_for_what_nobody_needs_yet_nothing_goes_that_is_read_by_a_window(
        self, ledger: WorkLedger, store: Store
    ) -> None:
        """What is needed drives out what lies outside of all windows; the rest of such a job only what nobody reads."""
        made = [put(store, f"f{n}", 100, n) for n in range(5)]
        job = submit(ledger, 4)
        for n in range(4):
            manifest(store, job, n, made[n])
            ledger.commit(claim(ledger), "done", Result(), ())
        ledger.need(job, "r1", [3, 1], holds="window")
        gently = Evictor(ledger, store, gently=True)
        assert gently.make_room(self.want(store, 300)).freed == 100 and names(store) == ["f0", "f1", "f2", "f3"]
        assert Evictor(ledger, store).make_room(self.want(store, 0)).freed == 200 and names(store) == ["f1", "f3"]
        ledger.need(job, "r1", [3], holds="window")
        assert Evictor(ledger, store).make_room(self.want(store, 0)).freed == 100 and names(store) == ["f3"]

    def test_what_a_running_job_has_so_far_stays(self, ledger: WorkLedger, store: Store) -> None:
        made = [put(store, f"f{n}", 100, n) for n in range(3)]
        submit(ledger, 1)
        work = claim(ledger)
        ledger.back(work, 0, False, "", Result((record(store, made[0]),)), ())
        freed, why, _ = Evictor(ledger, store).make_room(self.want(store, 0))
        assert (freed, names(store)) == (200, ["f0"]) and "held are 100 B by job" in why

    def test_what_is_in_flight_stays(self, ledger: WorkLedger, store: Store) -> None:
        made = put(store, "a")
        submit(ledger, 1)
        work = claim(ledger)
        ledger.takeoff(work, [f"{store.id}/{store.key(FileSpec(0, 0, made.uri))}"])
        assert Evictor(ledger, store).make_room(self.want(store, 0)).freed == 0
        ledger.commit(work, "done", Result(), ())
        assert Evictor(ledger, store).make_room(self.want(store, 0)).freed == 100

    def test_a_reader_that_comes_in_the_middle_is_heeded(self, ledger: WorkLedger, store: Store) -> None:
        made = [put(store, f"f{n:03}", 4, n) for n in range(70)]
        job = submit(ledger, 1)
        work = claim(ledger)
        manifest(store, job, 0, *made)
        ledger.commit(work, "done", Result(), ())

        def comes() -> None:
            if len(names(store)) == 65 and ledger.holders(0) == []:
                ledger.read("r1", [job])

        freed, why, _ = Evictor(ledger, store, comes).make_room(self.want(store, 0))
        assert 5 * 4 <= freed <= 50 * 4 and f"by job {job}, which 1 process reads" in why  # what was decided by then

    def test_who_was_stopped_in_the_middle_and_lost_its_turn_removes_nothing_more(
        self, ledger: WorkLedger, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As if it had been stopped for longer than its turn: another has it by now, and a reader has come."""
        for n in range(20):
            put(store, f"f{n:03}", 4, n)
        monkeypatch.setattr("ingest.space._RENEW_S", -1)  # as if each step came late
        lock = ledger.key("evicting", store.id)

        def stopped() -> None:
            if len(names(store)) == 15:
                ledger.redis.set(lock, f"another {ledger.now_ms() + 15_000}")

        freed, why, _ = Evictor(ledger, store, stopped).make_room(self.want(store, 0))
        assert (freed, why, len(names(store))) == (0, "another process makes room there", 15)
        assert ledger.redis.get(lock).startswith(b"another "), "whose turn it is stays"

    def test_what_was_taken_since_it_was_asked_who_holds_what_stays_however_long_ago_that_was(
        self, ledger: WorkLedger, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A walk may take longer than ``quiet_s``. A shard that finds a file meanwhile touches it and commits; that
        changes nothing for those who read, so nobody is told."""
        made = [put(store, f"f{n}", 100, n) for n in range(2)]
        submit(ledger, 1)
        work = claim(ledger)
        walk = survey

        def long(*args: Any, **more: Any) -> Survey:
            found = walk(*args, **more)
            assert store.touch(made[0].path)
            ledger.back(work, 0, False, "", Result((record(store, made[0]),)), ())
            later = time.time_ns() + 10**9
            os.utime(store.root / Path(made[0].path).parent, ns=(later, later))
            monkeypatch.setattr("ingest.space.now_ns", lambda store: later + 10**12)
            return found

        monkeypatch.setattr("ingest.space.survey", long)
        Evictor(ledger, store).make_room(self.want(store, 100))
        assert names(store)[0] == "f0"

    def test_what_another_node_finished_is_held_in_the_store_where_it_was_begun(
        self, ledger: WorkLedger, store: Store
    ) -> None:
        """A shard is handed back with one file here; a node with a store of its own does the rest, and its manifest."""
        here, free = put(store, "here"), put(store, "free")
        job = submit(ledger, 1)
        there = dataclasses.replace(record(store, free), part=1, store="another")
        ledger.back(claim(ledger), 0, False, "", Result((record(store, here),)), ())
        ledger.commit(claim(ledger, "w2"), "done", Result((record(store, here), there)), ())
        ledger.read("r1", [job])
        assert Evictor(ledger, store).make_room(self.want(store, 0)).freed == 100
        assert names(store) == ["here"]

    def test_a_job_that_was_cancelled_holds_nothing_unless_it_is_read(self, ledger: WorkLedger, store: Store) -> None:
        made = put(store, "a")
        job = submit(ledger, 2)
        work = claim(ledger)
        manifest(store, job, 0, made)
        ledger.commit(work, "done", Result(), ())
        assert [holder.job for holder in ledger.holders(600)] == [job]
        ledger.sweep("cancel", job)
        assert ledger.holders(600) == []
        ledger.read("r1", [job])
        assert Evictor(ledger, store).make_room(self.want(store, 0)).freed == 0
        ledger.sweep("retry", job)
        ledger.read("r1", [job], 0)
        assert ["not over" in holder.why for holder in ledger.holders(0)] == [True]

    def test_a_file_of_two_jobs_stays_until_both_let_it_go(self, ledger: WorkLedger, store: Store) -> None:
        made = put(store, "a")
        jobs = [submit(ledger, 1) for _ in range(2)]
        for job in jobs:
            manifest(store, job, 0, made)
            ledger.commit(claim(ledger), "done", Result(), ())
            ledger.read("r1", [job])
        for job in jobs:
            assert Evictor(ledger, store).make_room(self.want(store, 0)).freed == 0
            ledger.read("r1", [job], 0)
        assert Evictor(ledger, store).make_room(self.want(store, 0)).freed == 100

    def test_a_job_that_is_tried_again_in_the_middle_is_heeded(self, ledger: WorkLedger, store: Store) -> None:
        """It was over and unread, so nothing of it was held; and is not over any more. Readers that release, meanwhile,
        take nobody's time: less is held than was found."""
        made = [put(store, f"f{n:03}", 4, n) for n in range(70)]
        job = submit(ledger, 1)
        manifest(store, job, 0, *made)
        ledger.commit(claim(ledger), "failed", Result(), ())
        other = submit(ledger, 1)
        ledger.commit(claim(ledger), "done", Result(), ())
        ledger.read("r1", [other])
        asked: list[int] = []

        def comes() -> None:
            ledger.release(other, "r1", [len(asked)])
            asked.append(len(names(store)))
            if asked[-1] == 65 and all(holder.job != job for holder in ledger.holders(0)):
                ledger.sweep("retry", job)

        freed, why, _ = Evictor(ledger, store, comes).make_room(self.want(store, 0))
        assert 5 * 4 <= freed <= 50 * 4 and f"job {job}, which is not over" in why, (freed, why)

    def test_one_process_at_a_time(self, ledger: WorkLedger, store: Store) -> None:
        put(store, "a")
        assert ledger.turn(store.id, "other", 30).answer == "ok"
        assert not Evictor(ledger, store).count()
        waits: list[int] = []

        def other_ends() -> None:
            waits.append(ledger.turn(store.id, "other", 0).answer == "ok")

        assert Evictor(ledger, store, other_ends).make_room(self.want(store, 0))[:2] == (100, "") and waits

    def test_that_nothing_may_go_is_found_out_once(self, ledger: WorkLedger, store: Store) -> None:
        made = put(store, "a", MOST)
        job = submit(ledger, 2)
        ledger.back(claim(ledger), 0, False, "", Result((record(store, made),)), ())
        work = claim(ledger)
        Evictor(ledger, store).count()
        ask = dataclasses.replace(work).fence
        Evictor(ledger, store).make_room(self.want(store, 0))
        grant = ledger.reserve(work.unit, ask, store.id, 1, most=MOST)
        assert grant.answer == "full" and f"by job {job}" in grant.why
        ledger.read("r9", [job])
        assert ledger.reserve(work.unit, ask, store.id, 1, most=MOST).why == "", "another question by now"

    def test_after_a_wipe_of_the_ledger_readers_are_waited_for(self, ledger: WorkLedger, store: Store) -> None:
        made = put(store, "a")
        manifest(store, "jold", 0, made)
        ledger.redis.flushdb()
        Evictor(ledger, store).count()
        assert "readers" in Evictor(ledger, store).make_room(self.want(store, 0)).why
        assert names(store) == ["a"]
        ledger.read("r1", ["jold"])
        ledger.redis.hset(ledger.key("space", store.id), "young", 0)  # they had their time
        assert "by job jold, which 1 process reads" in Evictor(ledger, store).make_room(self.want(store, 0)).why
        ledger.read("r1", ["jold"], 0)
        assert Evictor(ledger, store).make_room(self.want(store, 0)).freed == 100

    def test_the_count_leaves_out_what_is_in_flight(self, ledger: WorkLedger, store: Store) -> None:
        put(store, "a")
        for letter in "bc":
            (store.root / "scratch" / f"{letter * 40}.1.part").write_bytes(b"x" * 50)
        submit(ledger, 1)
        ledger.takeoff(claim(ledger), [f"{store.id}/{'b' * 40}"])
        assert Evictor(ledger, store).count()
        assert ledger.space(store.id)[:2] == (150, 0)

    def test_partial_files_are_the_last_to_go(self, ledger: WorkLedger, store: Store) -> None:
        put(store, "a")
        for letter, used in (("b", 1), ("c", 2)):
            path = store.root / "scratch" / f"{letter * 40}.1.part"
            path.write_bytes(b"x" * 50)
            os.utime(path, (used, used))
        (store.root / "scratch" / ("d" * 40 + ".1.part")).write_bytes(b"new")

        def missing() -> int:
            return usage(store).bytes + usage(store).scratch_bytes - 60

        patient = Store(store.root, store.id, dataclasses.replace(store.limits, quiet_s=60))
        assert Evictor(ledger, patient).make_room(missing)[:2] == (150, "")
        assert [left.key[0] for left in leftovers(store)] == ["c", "d"]

    def test_space_for_the_disk_is_what_the_disk_gets_back(
        self, ledger: WorkLedger, store: Store, tmp_path: Path
    ) -> None:
        linked, free = put(store, "linked", 100, 1), put(store, "free", 100, 2)
        os.link(store.path_of(linked.path), tmp_path / "elsewhere")
        made = Evictor(ledger, store).make_room(lambda: int(store.path_of(free.path).exists()), of_disk=True)
        assert made[:2] == (100, "") and names(store) == ["linked"]
