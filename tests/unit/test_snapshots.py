"""Pictures in the ledger: one moment for all partitions of a source, held by somebody, lost and had again; and cursors
that move on when all is there. In a real Redis, without databases. Also how a file's moment is recognised."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ingest.client.job import Job
from ingest.errors import NoSnapshot
from ingest.ledger import Claim, Cursor, NewUnit, Picture, Result, Taken, Wish, WorkLedger
from ingest.model import FileSpec, JobOptions
from ingest.sources import Sql
from tests.unit.ledgers import (
    PLANS,
    QUEUE,
    check,
    claim,
    done,
    expire,
    failed,
    happened,
    ripen,
    shards,
    state,
)
from workers.fetchers.sql.databases.moments import FileState

SQL = Sql("pg", table="t", partition_on="id", partitions=4)
WISH = Wish("held", "n1", "pg", SQL.uri, 3)
KEEPER = ("w1", "n1", 12.0)


def begun(ledger: WorkLedger, wish: Wish = WISH, *, source: int = 2) -> Claim:
    """The claim of a planner that has wished for a picture."""
    job = ledger.create(JobOptions(), None).job
    assert ledger.add(job, "p", 0, 0, [NewUnit.plan(SQL, source, PLANS)]) == "ok"
    ledger.seal(job)
    planner = claim(ledger, pid="plan:1", queues=(PLANS,))
    assert look(ledger, planner, wish).state == ("none" if wish.kind == "none" else "wanted")
    return planner


def look(ledger: WorkLedger, work: Claim, wish: Wish | None = None) -> Picture:
    found = ledger.look(work, wish)
    assert isinstance(found, Picture)
    return found


def name(work: Claim) -> str:
    return f"{work.job}.{work.record.source}"


def take(ledger: WorkLedger, room: int = 9, node: str = "n1", worker: str = "w1", known: str = "pg") -> list[Taken]:
    past, taken = ledger.hold(worker, node, 12.0, room, [known], {})
    assert past == []
    return taken


def held(ledger: WorkLedger, planner: Claim, moment: str = "m1") -> Taken:
    (taken,) = take(ledger)
    assert ledger.offer(taken.name, taken.generation, "w1", moment, 12.0) is not None
    return taken


def planned(ledger: WorkLedger, count: int = 4, wish: Wish = WISH, cursor: Cursor | None = None) -> Claim:
    """A planner's claim after it has added its shards and ended; their moment is held."""
    planner = begun(ledger, wish)
    if wish.kind == "held":
        held(ledger, planner)
    assert ledger.remember(planner, 1, b"plan", cursor) == "ok"
    made = [NewUnit.shard([FileSpec(2, n, f"sql://pg/t?{n}")], QUEUE) for n in range(count)]
    assert ledger.add_planned(planner, "c", made) == "ok"
    assert ledger.commit(planner, "done", Result(), ()).ok
    return planner


def numbers(*works: Claim) -> set[str]:
    return {work.number for work in works}


class TestHaving:
    def test_a_planner_waits_for_what_a_keeper_opens(self, ledger: WorkLedger) -> None:
        planner = begun(ledger)
        ledger.back(planner, 30, False, "waits", None, ())
        assert ledger.claim("w1", "1:1", 9, [PLANS]) is None
        (taken,) = take(ledger)
        assert taken == Taken(name(planner), 1, "pg", SQL.uri, 0) and take(ledger, worker="w2") == []
        assert ledger.offer(taken.name, 1, "w1", "m1", 12.0) == [PLANS]
        again = claim(ledger, queues=(PLANS,))
        found = look(ledger, again, WISH)
        assert (found.state, found.moment, found.generation, found.plan) == ("held", "m1", 1, b"")
        assert ledger.offer(taken.name, 1, "w1", "m1", 12.0) is not None, "a lost reply may be repeated"
        assert ledger.offer(taken.name, 1, "w2", "m2", 12.0) is None
        check(ledger, planner.job)

    def test_one_that_is_offered_while_the_planner_goes_to_bed_is_not_slept_through(self, ledger: WorkLedger) -> None:
        planner = begun(ledger)
        held(ledger, planner)
        ledger.back(planner, 30, False, "waits", None, ())
        assert claim(ledger, queues=(PLANS,)).unit == planner.unit

    def test_who_takes_it(self, ledger: WorkLedger) -> None:
        planner = begun(ledger)
        assert take(ledger, node="n2", worker="w2") == [], "its own node comes first"
        assert take(ledger, known="other") == [] and take(ledger, room=0) == []
        ledger.redis.zadd(ledger.key("pictures"), {name(planner): 1})
        assert len(take(ledger, node="n2", worker="w2")) == 1, "nobody came"

    def test_a_keeper_is_told_at_once(self, ledger: WorkLedger) -> None:
        begun(ledger)
        assert ledger.redis.llen(ledger.key("wishes", "n1")) == 1
        ledger.await_wish("n1", 1)
        assert ledger.redis.llen(ledger.key("wishes", "n1")) == 0

    def test_refused_for_now_and_for_good(self, ledger: WorkLedger) -> None:
        planner = begun(ledger)
        ledger.back(planner, 30, False, "waits", None, ())
        (taken,) = take(ledger)
        why = NoSnapshot(SQL.uri, "too many")
        assert ledger.refuse(taken, "w2", False, 0, why) is None, "it is not that keeper's"
        assert ledger.refuse(taken, "w1", False, 60, why) == [] and take(ledger) == []
        (record,) = ledger.units(planner.job, [planner.number])
        assert record and record.reason == "too many"
        ledger.redis.zadd(ledger.key("pictures"), {name(planner): 1})
        (taken,) = take(ledger)
        assert taken.refusals == 1
        assert ledger.refuse(taken, "w1", True, 0, why) == [PLANS]
        found = look(ledger, claim(ledger, queues=(PLANS,)), WISH)
        assert found.state == "refused" and repr(found.refusal("u")) == repr(NoSnapshot("u", "too many"))

    def test_the_plan_is_kept_for_whoever_goes_on(self, ledger: WorkLedger) -> None:
        planner = begun(ledger)
        held(ledger, planner)
        assert ledger.remember(planner, 2, b"x", None) == "old"
        assert ledger.remember(planner, 1, b"plan", None) == "ok"
        expire(ledger, planner.unit)
        second = claim(ledger, pid="plan:2", queues=(PLANS,))
        assert look(ledger, second, WISH).plan == b"plan" and ledger.remember(planner, 1, b"x", None) == "lost"

    def test_a_file_needs_no_keeper_and_the_first_word_counts(self, ledger: WorkLedger) -> None:
        planner = begun(ledger, Wish("file", "n1", "lite", "sql://lite/t", 3))
        assert take(ledger, known="lite") == []
        assert ledger.offer(name(planner), 1, "", "state-1", 0) is not None
        assert ledger.offer(name(planner), 1, "", "state-2", 0) is None
        assert look(ledger, planner, WISH).moment == "state-1"


class TestLosing:
    def test_everything_goes_back_whatever_it_was(self, ledger: WorkLedger) -> None:
        planner = planned(ledger, 5)
        first, second, third, fourth = (claim(ledger, pid=f"{n}:1") for n in range(4))
        assert ledger.commit(first, "done", done(), ()).ok
        assert ledger.commit(second, "failed", failed(second.unit), ()).ok
        assert ledger.back(third, 0, True, "slow", done(), ()).ok
        assert look(ledger, fourth).moment == "m1"
        check(ledger, planner.job)
        assert ledger.anew(name(planner), 1, "its holder died") == []
        check(ledger, planner.job)
        meta = ledger.meta(planner.job)
        assert (meta["files_done"], meta["files_failed"], meta["bytes"], meta["state"]) == ("0", "0", "0", "running")
        assert ledger.results(planner.job, ["0", "1", "2", "3", "4"]) == [None] * 5
        assert not ledger.commit(fourth, "done", done(), ()).ok, "what was read at the old moment"
        assert ledger.look(fourth) == "lost"
        assert ledger.claim("w1", "9:1", 9, [QUEUE]) is None, "nobody begins before the new moment is there"
        assert sorted(happened(ledger, planner.job, "again")) == [("again", "0", "anew"), ("again", "1", "anew")]
        held(ledger, planner, "m2")
        works = [claim(ledger, pid=f"{n}:2") for n in range(5)]
        assert numbers(*works) == {"0", "1", "2", "3", "4"} and {w.earlier for w in works} == {Result()}
        assert {look(ledger, w).moment for w in works} == {"m2"}
        for work in works:
            assert ledger.commit(work, "done", done(), ()).ok
        check(ledger, planner.job)
        assert ledger.meta(planner.job)["state"] == "done"
        (record,) = ledger.units(planner.job, ["0"])
        assert record and record.again == 1

    def test_it_is_lost_once(self, ledger: WorkLedger) -> None:
        planner = planned(ledger)
        assert ledger.anew(name(planner), 1, "x") is not None
        assert ledger.anew(name(planner), 1, "x") is None, "a second partition says so, too"
        held(ledger, planner, "m2")
        assert ledger.anew(name(planner), 1, "x") is None
        assert look(ledger, claim(ledger)).generation == 2

    def test_after_so_many_it_is_given_up_and_every_shard_is_told(self, ledger: WorkLedger) -> None:
        planner = planned(ledger, 2)
        for generation in (1, 2, 3):
            queues = ledger.anew(name(planner), generation, "its holder died")
            assert queues == ([QUEUE] * 2 if generation == 3 else [])
            if generation < 3:
                held(ledger, planner, f"m{generation + 1}")
        for pid in ("1:1", "2:1"):
            found = look(ledger, claim(ledger, pid=pid))
            assert (found.state, found.error) == ("refused", "SnapshotLost")
            assert found.reason == "3 snapshots of it were lost, so it was given up; the last: its holder died"
        check(ledger, planner.job)

    def test_a_keeper_that_forgot_what_it_held(self, ledger: WorkLedger) -> None:
        planner = planned(ledger)
        past, taken = ledger.hold(*KEEPER, 9, ["pg"], {name(planner): 1})
        assert past == [] and taken == []
        (taken_again,) = take(ledger)
        assert taken_again.generation == 2
        assert [t.generation for t in take(ledger)] == [2], "it was only being opened: no moment was lost"

    def test_a_keeper_that_died_with_its_node(self, ledger: WorkLedger) -> None:
        planner = planned(ledger)
        ledger.tick(0, 900)
        ledger.redis.zadd(ledger.key("pictures"), {name(planner): 1})
        ledger.tick(0, 900)
        (taken,) = take(ledger, node="n2", worker="w2")
        assert taken.generation == 2
        assert ledger.hold(*KEEPER, 0, ["pg"], {name(planner): 1}) == ([name(planner)], []), "when it wakes up"
        ledger.redis.zadd(ledger.key("pictures"), {name(planner): 1})
        ledger.tick(0, 900)
        assert [t.generation for t in take(ledger, node="n3", worker="w3")] == [2]
        check(ledger, planner.job)

    def test_a_ledger_that_was_away_loses_no_moments(self, ledger: WorkLedger) -> None:
        planner = planned(ledger)
        ledger.tick(0, 900)
        ledger.redis.zadd(ledger.key("pictures"), {name(planner): 1})
        ledger.redis.set(ledger.key("tick"), 1)
        ledger.tick(0, 900)
        assert look(ledger, claim(ledger)).moment == "m1"

    def test_who_follows_gets_the_files_again(self, ledger: WorkLedger) -> None:
        planner = planned(ledger, 1)
        work = claim(ledger)
        assert ledger.back(work, 0, False, "slice", done(1, 10), ()).ok
        stream = Job(planner.job, ledger.settings, ledger, None).as_completed(timeout=10)
        assert next(stream).size == 10
        ledger.anew(name(planner), 1, "x")
        held(ledger, planner, "m2")
        assert ledger.commit(claim(ledger), "done", done(1, 20), ()).ok
        assert [file.size for file in stream] == [20]


class TestEnding:
    def test_after_the_last_shard_it_is_let_go(self, ledger: WorkLedger) -> None:
        planner = planned(ledger, 2)
        for _ in range(2):
            assert ledger.hold(*KEEPER, 9, ["pg"], {name(planner): 1}) == ([], [])
            ledger.commit(claim(ledger), "done", done(), ())
        assert ledger.redis.llen(ledger.key("wishes", "n1")) > 0
        assert ledger.hold(*KEEPER, 9, ["pg"], {name(planner): 1}) == ([name(planner)], [])
        assert ledger.anew(name(planner), 1, "x") is None and ledger.redis.zcard(ledger.key("pictures")) == 0

    def test_a_cancelled_job_lets_it_go(self, ledger: WorkLedger) -> None:
        planner = planned(ledger, 3)
        work = claim(ledger)
        ledger.sweep("cancel", planner.job)
        assert ledger.look(work) == "cancelled"
        ledger.commit(work, "cancelled", Result(), ())
        assert ledger.hold(*KEEPER, 9, ["pg"], {name(planner): 1})[0] == [name(planner)]
        check(ledger, planner.job)

    def test_a_moment_that_is_lost_when_the_job_is_cancelled_is_not_missed(self, ledger: WorkLedger) -> None:
        planner = planned(ledger, 3)
        claim(ledger)
        ledger.sweep("cancel", planner.job)
        ledger.anew(name(planner), 1, "x")
        assert take(ledger) == []
        check(ledger, planner.job)

    @pytest.mark.parametrize("end", ["failed", "cancelled"])
    def test_what_is_tried_again_after_the_end_takes_all_with_it(self, ledger: WorkLedger, end: str) -> None:
        planner = planned(ledger, 3)
        assert ledger.commit(claim(ledger), "done", done(), ()).ok
        if end == "failed":
            for _ in range(2):
                work = claim(ledger)
                ledger.commit(work, "failed", failed(work.unit), ())
        else:
            ledger.sweep("cancel", planner.job)
        assert ledger.meta(planner.job)["state"] == end
        ledger.sweep("retry", planner.job)
        check(ledger, planner.job)
        work = claim(ledger)
        assert ledger.look(work) == "lost", "its moment is past"
        check(ledger, planner.job)
        assert ledger.meta(planner.job)["files_done"] == "0"
        held(ledger, planner, "m2")
        works = [claim(ledger, pid=f"{n}:1") for n in range(3)]
        for work in works:
            assert look(ledger, work).moment == "m2"
            ledger.commit(work, "done", done(), ())
        assert ledger.meta(planner.job)["state"] == "done"
        check(ledger, planner.job)

    def test_one_that_is_tried_again_before_the_end_stays_in_the_picture(self, ledger: WorkLedger) -> None:
        planner = planned(ledger, 2)
        work = claim(ledger)
        ledger.commit(work, "failed", failed(work.unit), ())
        ledger.sweep("retry", planner.job)
        for _ in range(2):
            work = claim(ledger)
            assert look(ledger, work).moment == "m1"
            ledger.commit(work, "done", done(), ())
        assert ledger.meta(planner.job)["state"] == "done"

    def test_given_up_and_tried_again(self, ledger: WorkLedger) -> None:
        planner = planned(ledger, 1, WISH._replace(most=1))
        ledger.anew(name(planner), 1, "x")
        work = claim(ledger)
        assert look(ledger, work).state == "refused"
        ledger.commit(work, "failed", failed(work.unit), ())
        ledger.sweep("retry", planner.job)
        assert ledger.look(claim(ledger)) == "lost"
        held(ledger, planner, "m3")
        assert look(ledger, claim(ledger)).moment == "m3"
        check(ledger, planner.job)

    def test_forgetting_leaves_nothing_but_cursors(self, ledger: WorkLedger) -> None:
        planner = planned(ledger, 1, cursor=Cursor("k", "", "v"))
        ledger.commit(claim(ledger), "done", done(), ())
        ledger.forget(planner.job)
        left = {key.decode().removeprefix(ledger.prefix).partition(":")[0] for key in ledger.redis.scan_iter()}
        assert not {"picture", "pictured", "pictures", "holds"} & left and ledger.cursor("k") == "v"


class TestCursors:
    NONE = Wish("none", "n1", "pg", SQL.uri, 3)

    def test_it_moves_when_all_is_there(self, ledger: WorkLedger) -> None:
        planner = planned(ledger, 2, self.NONE, Cursor("k", "", "5"))
        ledger.commit(claim(ledger), "done", done(), ())
        work = claim(ledger)
        ledger.commit(work, "failed", failed(work.unit), ())
        assert ledger.cursor("k") == "" and ledger.meta(planner.job)["state"] == "failed"
        ledger.sweep("retry", planner.job)
        work = claim(ledger)
        assert look(ledger, work).state == "none", "what is done stays so"
        ledger.commit(work, "done", done(), ())
        assert ledger.cursor("k") == "5" and ledger.meta(planner.job)["files_done"] == "2"
        check(ledger, planner.job)

    def test_of_two_at_once_one_moves_it(self, ledger: WorkLedger) -> None:
        values = {planned(ledger, 1, self.NONE, Cursor("k", "", value)).job: value for value in ("5", "7")}
        first = claim(ledger)
        ledger.commit(first, "done", done(), ())
        ledger.commit(claim(ledger), "done", done(), ())
        assert ledger.cursor("k") == values[first.job], "what lies between is read again, not left out"

    def test_since_moves_it_whatever_it_was(self, ledger: WorkLedger) -> None:
        ledger.set_cursor("k", "9")
        planned(ledger, 1, self.NONE, Cursor("k", "*", "7"))
        ledger.commit(claim(ledger), "done", done(), ())
        assert ledger.cursor("k") == "7"
        ledger.set_cursor("k", "")
        assert ledger.cursor("k") == ""


def test_shards_of_other_sources_have_no_picture(ledger: WorkLedger) -> None:
    job = ledger.create(JobOptions(), None).job
    ledger.add(job, "", 0, 0, shards(0, 1))
    work = claim(ledger)
    assert ledger.look(work) == "lost" and state(ledger, work.unit) == "leased"
    ripen(ledger, work.unit)


@pytest.mark.parametrize("mode", ["delete", "wal", "truncate"])
def test_every_transaction_is_another_moment_of_a_file(tmp_path: Path, mode: str) -> None:
    path = str(tmp_path / "db")
    read_only = f"file:{path}?mode=ro"
    with (
        closing(sqlite3.connect(path)) as writer,
        closing(FileState(path)) as state,
        closing(sqlite3.connect(read_only, uri=True)) as reader,
    ):
        writer.execute(f"PRAGMA journal_mode = {mode}")
        writer.execute("CREATE TABLE t (i INTEGER)")
        seen = set()
        for n in range(20):
            reader.execute("SELECT count(*) FROM t").fetchone()
            assert state.now() not in seen
            seen.add(state.now())
            assert state.now() in seen
            writer.execute("DELETE FROM t" if n % 3 == 2 else "INSERT INTO t VALUES (1)")
            writer.commit()
            if n % 7 == 6 and mode == "wal":
                writer.execute("PRAGMA wal_checkpoint(RESTART)")
