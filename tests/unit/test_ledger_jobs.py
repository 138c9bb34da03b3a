"""What is done with whole jobs in the ledger: cancel, retry, planning, flights, moving a dead node's work. In a real
Redis."""

from __future__ import annotations

import random

import pytest

from ingest.embedded.ports import free_port
from ingest.errors import LedgerUnavailable
from ingest.ledger import JobLedger, Result, WorkLedger
from ingest.model import JobOptions
from ingest.settings import Settings
from tests.unit.ledgers import (
    PLANS,
    QUEUE,
    check,
    claim,
    done,
    expire,
    failed,
    happened,
    plan,
    ripen,
    shards,
    state,
    submit,
)


class TestCancel:
    def test_every_state_of_a_shard(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 6)
        work = [claim(ledger, pid=f"{n}:1") for n in range(5)]
        ledger.commit(work[0], "done", done(), ())
        ledger.commit(work[1], "failed", failed(work[1].unit), ())
        ledger.back(work[2], 60, True, "x", None, ())
        expire(ledger, work[3].unit)
        assert ledger.sweep("cancel", job) == []
        check(ledger, job)
        assert [state(ledger, w.unit) for w in work] == ["done", "failed", "cancelled", "cancelled", "leased"]
        assert state(ledger, f"{job}.5") == "cancelled" and ledger.due_count(QUEUE) == 0
        assert ledger.meta(job)["state"] == "running"  # one is told, and has not answered
        assert ledger.beat("w1", INFO, [(work[4].unit, work[4].fence)], []) == [work[4].unit]
        assert ledger.progress(work[3], 1) == "lost"
        ledger.commit(work[4], "cancelled", Result(), ())
        assert ledger.meta(job)["state"] == "cancelled" and happened(ledger, job)[-1] == ("end", "", "cancelled")
        check(ledger, job)

    def test_twice_is_once_and_a_finished_job_stays_what_it_is(self, ledger: WorkLedger) -> None:
        job, over = submit(ledger, 3), submit(ledger, 1)
        ledger.commit(claim(ledger), "done", done(), ())
        ledger.commit(claim(ledger), "done", done(), ())
        for _ in range(2):
            ledger.sweep("cancel", job)
            ledger.sweep("cancel", over)
        assert (ledger.meta(job)["state"], ledger.meta(over)["state"]) == ("cancelled", "done")
        assert ledger.meta(job)["stopped"] == "2" and "cancelled" not in ledger.meta(over)
        check(ledger, job, over)

    def test_one_that_is_done_when_it_is_told_is_done(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        work = claim(ledger)
        ledger.sweep("cancel", job)
        assert ledger.commit(work, "done", done(), ()).ok and ledger.meta(job)["state"] == "done"

    @pytest.mark.parametrize("count", [0, 1])
    def test_a_job_that_is_still_being_submitted_is_cancelled_whatever_came(
        self, ledger: WorkLedger, count: int
    ) -> None:
        """It must not be called done: what was asked for is not there."""
        job = submit(ledger, count, seal=False)
        for _ in range(count):
            ledger.commit(claim(ledger), "done", done(), ())
        ledger.sweep("cancel", job)
        assert ledger.meta(job)["state"] == "cancelled" and "submission" in ledger.meta(job)["error"]
        assert ledger.add(job, "", count, 0, shards(count, 9)) == "cancelled"
        assert ledger.seal(job) == "cancelled"
        check(ledger, job)

    def test_a_death_ends_it(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        work = claim(ledger)
        ledger.sweep("cancel", job)
        ledger.beat("w1", INFO, [], [(work.unit, work.fence)])
        assert ledger.meta(job)["state"] == "cancelled"
        check(ledger, job)

    def test_a_thousand_shards(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1000)
        work = [claim(ledger, pid=f"{n}:1") for n in range(10)]
        ledger.sweep("cancel", job)
        meta = ledger.meta(job)
        assert (meta["c:cancelled"], meta["c:leased"], meta["state"]) == ("990", "10", "running")
        for w in work:
            ledger.commit(w, "cancelled", Result(), ())
        check(ledger, job)
        queues = ledger.sweep("retry", job)
        assert queues == [QUEUE] * 1000 and ledger.due_count(QUEUE) == 1000
        assert ledger.meta(job)["state"] == "running"
        check(ledger, job)


class TestRetry:
    def test_only_what_failed_is_due_again(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 3)
        for end in ("done", "failed", "failed"):
            work = claim(ledger)
            ledger.commit(work, end, done() if end == "done" else failed(work.unit), ())
        assert ledger.meta(job)["state"] == "failed"
        assert ledger.sweep("retry", job) == [QUEUE, QUEUE]
        meta = ledger.meta(job)
        assert (meta["state"], meta["files_failed"], meta["files_done"], meta["open"]) == ("running", "0", "1", "2")
        check(ledger, job)
        for _ in range(2):
            work = claim(ledger)
            assert (work.record.attempts, work.record.reason, work.record.failed) == (0, "", 0)
            ledger.commit(work, "done", done(), ())
        assert ledger.meta(job)["state"] == "done"
        assert [e for e in happened(ledger, job) if e[0] == "end"] == [("end", "", "failed"), ("end", "", "done")]
        assert ledger.sweep("retry", job) == [] and ledger.meta(job)["state"] == "done"
        check(ledger, job)

    def test_deadlines_count_from_it(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        ledger.redis.hset(ledger.key("job", job), "created", ledger.now_ms() - 10**9)
        work = claim(ledger)
        assert work.age_s >= 10**6
        ledger.commit(work, "failed", failed(work.unit), ())
        ledger.sweep("retry", job)
        assert claim(ledger).age_s < 60

    def test_one_who_was_told_to_stop_before_it_stops_nothing_now(self, ledger: WorkLedger) -> None:
        """cancel, then retry, and only then does the worker answer the cancel."""
        job = submit(ledger, 2)
        work = claim(ledger)
        ledger.sweep("cancel", job)
        ledger.sweep("retry", job)
        assert ledger.commit(work, "cancelled", done(), ()).ok
        check(ledger, job)
        assert state(ledger, work.unit) == "due" and ledger.meta(job)["state"] == "running"
        for _ in range(2):
            ledger.commit(claim(ledger), "done", done(), ())
        assert ledger.meta(job)["state"] == "done"

    def test_an_old_lease_has_nothing_to_say_after_it(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        work = claim(ledger)
        ledger.sweep("cancel", job)
        expire(ledger, work.unit)
        assert state(ledger, work.unit) == "cancelled"
        ledger.sweep("retry", job)
        assert not ledger.commit(work, "cancelled", Result(), ()).ok and not ledger.back(work, 0, True, "", None, ()).ok
        assert state(ledger, work.unit) == "due"
        check(ledger, job)

    def test_while_the_job_is_still_planned(self, ledger: WorkLedger) -> None:
        job = ledger.create(JobOptions(), None).job
        ledger.add(job, "", 0, 0, shards(0, 1))
        ledger.add(job, "p", 0, 1, [plan(1)])
        ledger.seal(job)
        work = claim(ledger)
        ledger.commit(work, "failed", failed(work.unit), ())
        ledger.sweep("retry", job)
        assert ledger.meta(job)["state"] == "planning"
        ledger.commit(claim(ledger, queues=(PLANS,)), "done", Result(), ())
        assert ledger.meta(job)["state"] == "running" and happened(ledger, job)[-1][0] == "planned"


class TestPlanning:
    def test_shards_come_while_it_is_planned(self, ledger: WorkLedger) -> None:
        job = ledger.create(JobOptions(), None).job
        ledger.add(job, "p", 0, 0, [plan()])
        ledger.seal(job)
        work = claim(ledger, queues=(PLANS,))
        assert work.is_plan and work.cursor == "" and ledger.meta(job)["state"] == "planning"
        for _ in range(2):  # the answer to the first was lost
            assert ledger.add_planned(work, "3", shards(0, 3)) == "ok"
        assert ledger.add_planned(work, "5", shards(3, 5)) == "ok"
        meta = ledger.meta(job)
        assert (meta["next"], meta["files"], meta["plans"], meta["open"]) == ("5", "5", "1", "6")
        check(ledger, job)
        for _ in range(5):
            ledger.commit(claim(ledger, pid="2:1"), "done", done(), ())
        assert ledger.meta(job)["state"] == "planning"  # there may be more
        ledger.commit(work, "done", Result(), ())
        assert ledger.meta(job)["state"] == "done"
        assert [e[0] for e in happened(ledger, job)][-2:] == ["planned", "end"]
        check(ledger, job)

    def test_another_goes_on_where_a_dead_planner_was(self, ledger: WorkLedger) -> None:
        job = ledger.create(JobOptions(), None).job
        ledger.add(job, "p", 0, 0, [plan()])
        ledger.seal(job)
        first = claim(ledger, queues=(PLANS,))
        ledger.add_planned(first, "3", shards(0, 3))
        expire(ledger, first.unit)
        second = claim(ledger, "w2", queues=(PLANS,))
        assert second.cursor == "3"
        assert ledger.add_planned(first, "5", shards(3, 5)) == "lost"
        assert ledger.add_planned(second, "5", shards(3, 5)) == "ok"
        assert ledger.meta(job)["next"] == "5"
        check(ledger, job)

    def test_a_source_that_cannot_be_planned_fails_the_job(self, ledger: WorkLedger) -> None:
        job = ledger.create(JobOptions(), None).job
        ledger.add(job, "p", 0, 0, [plan()])
        ledger.seal(job)
        work = claim(ledger, queues=(PLANS,))
        ledger.commit(work, "failed", failed(work.unit), ())
        assert ledger.meta(job)["state"] == "failed"
        check(ledger, job)
        assert ledger.sweep("retry", job) == [PLANS]
        assert ledger.meta(job)["state"] == "planning"
        check(ledger, job)

    def test_a_planner_of_a_cancelled_job_is_told(self, ledger: WorkLedger) -> None:
        job = ledger.create(JobOptions(), None).job
        ledger.add(job, "p", 0, 0, [plan()])
        ledger.seal(job)
        work = claim(ledger, queues=(PLANS,))
        ledger.sweep("cancel", job)
        assert ledger.add_planned(work, "3", shards(0, 3)) == "cancelled"
        ledger.commit(work, "cancelled", Result(), ())
        assert ledger.meta(job)["state"] == "cancelled"
        check(ledger, job)


class TestFlights:
    def test_one_fetches_and_the_other_is_woken(self, ledger: WorkLedger) -> None:
        a, b = submit(ledger, 1), submit(ledger, 1)
        first, second = claim(ledger, "w1"), claim(ledger, "w2")
        assert ledger.takeoff(first, ["k", "l"]) == [True, True]
        assert ledger.takeoff(first, ["k"]) == [True]  # asked again
        assert ledger.takeoff(second, ["k", "m"]) == [False, True]
        ledger.back(second, 30, False, "waits", None, ["k", "m"])
        assert ledger.claim("w2", "1:1", 9, [QUEUE]) is None, "it is to sleep until the other one has landed"
        assert ledger.commit(first, "done", done(), ["k", "l"]).due == 1
        again = claim(ledger, "w2")
        assert again.unit == second.unit and ledger.takeoff(again, ["k"]) == [True]
        check(ledger, a, b)

    def test_one_that_landed_before_the_other_lay_down_need_not_be_waited_for(self, ledger: WorkLedger) -> None:
        submit(ledger, 1), submit(ledger, 1)
        first, second = claim(ledger, "w1"), claim(ledger, "w2")
        ledger.takeoff(first, ["k"])
        ledger.takeoff(second, ["k"])
        ledger.commit(first, "done", done(), ["k"])
        assert ledger.back(second, 30, False, "waits", None, ["k"]).due == 1
        assert claim(ledger, "w2").unit == second.unit
        assert ledger.back(claim(ledger, "w2"), 30, False, "waits", None, []).due == 0  # it is said once

    @pytest.mark.parametrize("before", [True, False])
    def test_landing_wakes_nobody_who_backs_off_from_an_origin(self, ledger: WorkLedger, before: bool) -> None:
        submit(ledger, 1), submit(ledger, 1)
        first, second = claim(ledger, "w1"), claim(ledger, "w2")
        ledger.takeoff(first, ["k"])
        ledger.takeoff(second, ["k"])
        if before:
            ledger.commit(first, "done", done(), ["k"])
        ledger.back(second, 30, True, "Throttled: come back in 30 s", None, ["k"])
        if not before:
            ledger.commit(first, "done", done(), ["k"])
        assert ledger.claim("w2", "1:1", 9, [QUEUE]) is None

    def test_the_flight_of_a_dead_lease_is_free(self, ledger: WorkLedger) -> None:
        job, other = submit(ledger, 1), submit(ledger, 1)
        first, second = claim(ledger, "w1"), claim(ledger, "w2")
        ledger.takeoff(first, ["k"])
        expire(ledger, first.unit)
        assert ledger.takeoff(second, ["k"]) == [True]
        again = claim(ledger, "w3")
        assert ledger.takeoff(again, ["k"]) == [False] and ledger.takeoff(first, ["k"]) is None
        check(ledger, job, other)

    def test_a_unit_does_not_wake_itself_out_of_its_backoff(self, ledger: WorkLedger) -> None:
        submit(ledger, 1), submit(ledger, 1)
        first, second = claim(ledger, "w1"), claim(ledger, "w2")
        ledger.takeoff(first, ["k"])
        ledger.takeoff(second, ["k"])
        ledger.back(second, 30, False, "waits", None, ["k"])
        expire(ledger, first.unit)  # it never lands
        ripen(ledger, second.unit)
        second = next(c for c in (claim(ledger, "w2", pid=f"{n}:9") for n in range(2)) if c.unit == second.unit)
        assert ledger.takeoff(second, ["k"]) == [True]
        ledger.back(second, 30, True, "reset", None, ["k"])
        (record,) = ledger.units(second.job, ["0"])
        assert record and record.due_ms > ledger.now_ms() + 20_000

    def test_wanted_by_a_job_that_lives(self, ledger: WorkLedger) -> None:
        submit(ledger, 1), submit(ledger, 1)
        first, second = claim(ledger, "w1"), claim(ledger, "w2")
        ledger.takeoff(first, ["k"])
        assert not ledger.wanted(["k"]) and not ledger.wanted([])
        ledger.takeoff(second, ["k"])
        ledger.sweep("cancel", first.job)
        assert ledger.wanted(["k"]) and ledger.wanted(["x", "k"]) and not ledger.wanted(["x"])
        ledger.sweep("cancel", second.job)
        assert not ledger.wanted(["k"])


class TestMove:
    def test_a_dead_nodes_work_goes_to_another_queue(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 5, queue=f"{QUEUE}.n1")
        held = claim(ledger, queues=(f"{QUEUE}.n1",))
        assert ledger.move(f"{QUEUE}.n1", QUEUE) == 4 and ledger.move(f"{QUEUE}.n1", QUEUE) == 0
        assert (ledger.due_count(f"{QUEUE}.n1"), ledger.due_count(QUEUE)) == (0, 4)
        check(ledger, job)
        expire(ledger, held.unit)
        assert ledger.move(f"{QUEUE}.n1", QUEUE) == 1
        # Its holder wakes up, and nobody has begun it: still its own.
        assert ledger.progress(held, 1) == "ok"
        check(ledger, job)
        for n in range(4):
            assert claim(ledger, pid=f"{n}:5").record.queue == QUEUE
        check(ledger, job)

    def test_a_tick_says_what_is_due_where_and_one_at_a_time_does_it(self, ledger: WorkLedger) -> None:
        submit(ledger, 3)
        submit(ledger, 2, queue=f"{QUEUE}.n1")
        tick = ledger.tick(5, 900)
        assert tick and tick.due == {QUEUE: 3, f"{QUEUE}.n1": 2}
        assert ledger.tick(5, 900) is None
        for n in range(3):
            claim(ledger, pid=f"{n}:1")
        tick = ledger.tick(0, 900)
        assert tick and tick.due == {f"{QUEUE}.n1": 2}


INFO = {"node": "n1", "store": "s1", "slots": 5, "connections": [], "version": "1", "free_bytes": 1, "pid": 1}


def test_the_numbers_of_a_training_process_stay_what_its_seed_makes_them() -> None:
    before = random.getstate()
    away = JobLedger(Settings(ledger_url=f"redis://127.0.0.1:{free_port()}/0"), retries=3)
    with pytest.raises(LedgerUnavailable):
        away.ping()
    assert random.getstate() == before
