"""The ledger's transitions, one by one, in a real Redis. What holds at any time is in ``ledgers.check``."""

from __future__ import annotations

import threading
from collections import Counter

import pytest

from ingest.errors import LedgerUnavailable, UnknownJob
from ingest.ledger import Claim, NewUnit, Result, WorkLedger
from ingest.model import FileSpec, JobOptions
from ingest.sections import Limits
from ingest.settings import Settings
from tests.unit.ledgers import (
    DEATHS,
    QUEUE,
    check,
    claim,
    done,
    expire,
    failed,
    happened,
    shards,
    state,
    submit,
)


def commit(ledger: WorkLedger, work: Claim, end: str = "done") -> bool:
    result = failed(work.unit) if end == "failed" else Result() if end == "cancelled" else done()
    return ledger.commit(work, end, result, ()).ok


class TestSubmitting:
    def test_the_same_key_gives_the_same_job(self, ledger: WorkLedger) -> None:
        made = ledger.create(JobOptions(name="a"), "key")
        first = made.job
        assert made.is_new and made.epoch and ledger.now_ms() - made.created < 60_000
        assert ledger.create(JobOptions(name="b"), "key") == made._replace(is_new=False) and made.is_open
        assert ledger.create(JobOptions(), "other").job != first and ledger.create(JobOptions(), None).job != first
        ledger.seal(first)
        assert ledger.create(JobOptions(), "key")[:3] == (first, False, False)

    def test_a_repeated_call_whose_answer_was_lost_says_the_same(self, ledger: WorkLedger) -> None:
        assert ledger.create(JobOptions(), None, "j1")[:3] == ("j1", True, True)
        assert ledger.create(JobOptions(), None, "j1")[:3] == ("j1", True, False)
        batch = shards(0, 3)
        for _ in range(2):
            assert ledger.add("j1", "", 0, 0, batch) == "ok"
        assert ledger.add("j1", "", 1, 0, shards(1, 5)) == "ok"  # some of it was there
        for _ in range(2):
            assert ledger.seal("j1") == "running"
        meta = ledger.meta("j1")
        assert (meta["next"], meta["files"], meta["open"], meta["c:due"]) == ("5", "5", "5", "5")
        check(ledger, "j1")

    @pytest.mark.parametrize("whole", [True, False])
    def test_a_job_begins_with_its_first_units(self, ledger: WorkLedger, whole: bool) -> None:
        begun = ledger.begin(JobOptions(), "j1", "", 0, shards(0, 2), whole=whole)
        assert begun == ("ok", *ledger.create(JobOptions(), None, "j1")[3:])
        assert claim(ledger).unit == "j1.0"
        assert ledger.begin(JobOptions(), "j1", "", 0, shards(0, 2), whole=whole) == begun, "its answer was lost"
        meta = ledger.meta("j1")
        assert (meta["next"], meta["state"]) == ("2", "running" if whole else "planning")
        tick = ledger.tick(0, -1)
        assert tick and tick.abandoned == ([] if whole else ["j1"])
        check(ledger, "j1")

    def test_an_unknown_job(self, ledger: WorkLedger) -> None:
        assert ledger.add("j0", "", 0, 0, shards(0, 1)) == "unknown" and ledger.seal("j0") == "unknown"
        assert ledger.sweep("cancel", "j0") == [] and ledger.units("j0", ["0"]) == [None]
        with pytest.raises(UnknownJob):
            ledger.meta("j0")
        assert [*ledger.redis.scan_iter()] == [ledger.key("clock").encode()]

    def test_a_job_of_nothing_is_done_when_it_is_sealed(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 0)
        assert ledger.meta(job)["state"] == "done"
        assert [k for k, _, _ in happened(ledger, job)] == ["sealed", "planned", "end"]

    @pytest.mark.parametrize("first", ["commit", "seal"])
    def test_seal_and_the_last_commit_in_either_order(self, ledger: WorkLedger, first: str) -> None:
        job = submit(ledger, 1, seal=False)
        work = claim(ledger)
        if first == "seal":
            assert ledger.seal(job) == "running"
        assert commit(ledger, work)
        assert ledger.meta(job)["state"] == ("done" if first == "seal" else "planning")
        assert ledger.seal(job) == "done"
        assert happened(ledger, job, "shard", "end") == [("shard", "0", "done"), ("end", "", "done")]
        check(ledger, job)

    def test_an_abandoned_submission_fails_and_one_that_was_sealed_meanwhile_does_not(self, ledger: WorkLedger) -> None:
        left, sealed = submit(ledger, 1, seal=False), submit(ledger, 1)
        tick = ledger.tick(0, -1)
        assert tick and tick.abandoned == [left]
        for job in (left, sealed):
            ledger.seal(job, "given up")
            assert commit(ledger, claim(ledger))
        assert (ledger.meta(left)["state"], ledger.meta(left)["error"]) == ("failed", "given up")
        assert ledger.meta(sealed)["state"] == "done" and "error" not in ledger.meta(sealed)

    def test_a_submission_that_was_given_up_begins_anew_under_its_key(self, ledger: WorkLedger) -> None:
        left = ledger.create(JobOptions(), "key").job
        ledger.add(left, "", 0, 0, shards(0, 2))
        ledger.seal(left, "its submission was interrupted")
        # Its submitter was only stopped, and goes on.
        assert ledger.add(left, "", 2, 0, shards(2, 4)) == "given up" and ledger.seal(left) == "given up"
        assert len([*ledger.all_units(left)]) == 2
        job, made, *_ = ledger.create(JobOptions(), "key")
        assert made and job != left and ledger.job_of("key") == job
        assert ledger.create(JobOptions(), "key")[:2] == (job, True), "it is open, and taken up by whoever asks"
        assert ledger.add(job, "", 0, 0, shards(0, 4)) == "ok" and ledger.seal(job) == "running"
        assert ledger.create(JobOptions(), "key")[:2] == (job, False)
        for n in range(6):
            assert commit(ledger, claim(ledger, pid=f"{n}:1"))
        assert [ledger.meta(each)["state"] for each in (left, job)] == ["failed", "done"]
        ledger.forget(left)
        assert ledger.job_of("key") == job

    def test_a_key_whose_job_was_cancelled_half_submitted_begins_anew(self, ledger: WorkLedger) -> None:
        left = ledger.create(JobOptions(), "key").job
        ledger.add(left, "", 0, 0, shards(0, 1))
        ledger.sweep("cancel", left)
        assert ledger.add(left, "", 1, 0, shards(1, 2)) == "cancelled" and ledger.seal(left) == "cancelled"
        ledger.sweep("retry", left)
        assert ledger.add(left, "", 1, 0, shards(1, 2)) == "cancelled", "what there is of it is tried again, no more"
        assert ledger.create(JobOptions(), "key").job != left

    def test_names_that_are_not_ascii_come_through(self, ledger: WorkLedger) -> None:
        job = ledger.create(JobOptions(name="größe 数据"), "ключ").job
        specs = [FileSpec(0, 0, "file:///tmp/\udcff 数"), FileSpec(0, 1, "s3://bücket/😀")]
        ledger.add(job, "", 0, 0, [NewUnit.shard(specs, QUEUE), NewUnit.shard(specs[1:], QUEUE)])
        work = claim(ledger)
        assert work.options.name == "größe 数据" and ledger.specs(job, ["0", "1"]) == [specs, specs[1:]]
        assert ledger.back(work, 0, True, "reset: file:///tmp/\udcff", None, ()).ok
        (first, second) = ledger.units(job, ["0", "1"])
        assert first and "\\udcff" in first.reason and second and second.origin == "s3://bücket"


class TestOrder:
    def test_a_small_job_is_served_with_a_huge_one_not_behind_it(self, ledger: WorkLedger) -> None:
        huge, small = submit(ledger, 10_000), submit(ledger, 10)
        taken = [claim(ledger, pid=f"{n}:1").job for n in range(24)]
        assert taken.count(small) == 10, Counter(taken)
        assert taken[-1] == huge

    def test_one_that_comes_late_starts_at_the_clock_not_at_zero(self, ledger: WorkLedger) -> None:
        submit(ledger, 100)
        for n in range(50):
            claim(ledger, pid=f"{n}:1")
        late = submit(ledger, 50)
        taken = Counter(claim(ledger, pid=f"b{n}:1").job for n in range(40))
        assert 18 <= taken[late] <= 22, taken  # it does not make up for what it did not ask for

    def test_a_shard_that_comes_back_again_and_again_lets_others_through(self, ledger: WorkLedger) -> None:
        long = submit(ledger, 1)
        work = claim(ledger)
        short = submit(ledger, 3)
        turns = []
        for _ in range(8):
            assert ledger.back(work, 0, False, "time slice over", None, ()).ok
            work = claim(ledger)
            turns.append(work.job)
            if work.job == short:
                commit(ledger, work)
                work = claim(ledger)
        assert turns.count(short) == 3, turns
        assert ledger.meta(long)["retries"] == "0"

    def test_one_that_comes_back_goes_before_the_rest_of_its_job(self, ledger: WorkLedger) -> None:
        submit(ledger, 100)
        first = claim(ledger)
        ledger.back(first, 0, True, "reset", None, ())
        assert first.unit in {claim(ledger, pid=f"{n}:1").unit for n in range(2)}

    def test_queues_are_asked_in_their_order(self, ledger: WorkLedger) -> None:
        shared, own = submit(ledger, 1), submit(ledger, 1, queue=f"{QUEUE}.n1")
        assert claim(ledger, queues=(f"{QUEUE}.n1", QUEUE)).job == own
        assert ledger.claim("w2", "1:1", 9, [f"{QUEUE}.n1"]) is None
        assert claim(ledger, "w2", queues=(f"{QUEUE}.n1", QUEUE)).job == shared


class TestLeases:
    def test_asking_again_gives_the_same_unit(self, ledger: WorkLedger) -> None:
        submit(ledger, 3)
        first = claim(ledger)
        again = claim(ledger)
        assert (again.unit, again.fence) == (first.unit, first.fence)
        # Another process, also one whose name looks like it to a pattern, gets another.
        others = {claim(ledger, pid="2:1").unit, claim(ledger, pid=".:.").unit}
        assert len(others | {first.unit}) == 3

    def test_no_more_than_the_slots_that_may_be_taken(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 5)
        for n in range(2):
            claim(ledger, pid=f"{n}:1", most=2)
        assert ledger.claim("w1", "9:1", 2, [QUEUE]) is None
        assert len(ledger.held("w1")) == 2
        check(ledger, job)

    def test_a_lease_that_another_has_taken_over_can_do_nothing(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        old = claim(ledger)
        expire(ledger, old.unit)
        new = claim(ledger, "w2")
        assert new.unit == old.unit and new.fence != old.fence
        assert not commit(ledger, old) and not ledger.back(old, 0, True, "", None, ()).ok
        assert ledger.progress(old, 5) == "lost" and ledger.takeoff(old, ["k"]) is None
        assert ledger.add_planned(old, "1", shards(0, 1)) == "lost"
        assert ledger.beat("w1", INFO, [(old.unit, old.fence)], []) == [old.unit]
        check(ledger, job)
        assert commit(ledger, new) and not commit(ledger, old, "failed")
        assert ledger.meta(job)["state"] == "done"
        check(ledger, job)

    @pytest.mark.parametrize("how", ["commit", "back", "progress"])
    def test_a_lease_that_ran_out_is_its_holders_while_nobody_else_has_it(self, ledger: WorkLedger, how: str) -> None:
        job = submit(ledger, 1)
        work = claim(ledger)
        expire(ledger, work.unit)
        assert state(ledger, work.unit) == "due" and ledger.held("w1") == {}
        check(ledger, job)
        if how == "progress":
            assert ledger.progress(work, 7) == "ok" and ledger.live_bytes(job) == 7
            assert ledger.held("w1") == {work.unit: ("1:1", work.fence)} and state(ledger, work.unit) == "leased"
            assert ledger.claim("w2", "1:1", 9, [QUEUE]) is None
        elif how == "back":
            assert ledger.back(work, 0, False, "", done(), ()).ok and claim(ledger).earlier == done()
        check(ledger, job)
        if how != "back":
            assert commit(ledger, work) and state(ledger, work.unit) == "done"
            (record,) = ledger.units(job, ["0"])
            assert record and record.deaths == 0
        check(ledger, job)

    def test_a_ledger_that_was_away_takes_nothing_from_anybody(self, ledger: WorkLedger) -> None:
        submit(ledger, 1)
        work = claim(ledger)
        ledger.tick(0, 900)
        ledger.redis.zadd(ledger.key("leases"), {work.unit: 1})
        ledger.redis.set(ledger.key("tick"), ledger.now_ms() - 60_000)
        ledger.tick(0, 900)
        assert state(ledger, work.unit) == "leased"

    def test_a_lease_that_is_its_holders_again_is_as_long_as_the_first(self, ledger: WorkLedger, url: str) -> None:
        other = WorkLedger(Settings(ledger_url=url, limits=Limits(lease_s=9)))
        submit(other, 1)
        work = claim(other)
        expire(other, work.unit)
        assert other.reserve(work.unit, work.fence, "s1", 1, most=10).answer == "uncounted"
        left_ms = ledger.redis.zscore(ledger.key("leases"), work.unit) - ledger.now_ms()
        assert 5000 < left_ms <= 9000
        other.close()

    def test_a_flushed_ledger_does_not_issue_an_old_token(self, ledger: WorkLedger) -> None:
        ledger.create(JobOptions(), None, "j1")
        ledger.add("j1", "", 0, 0, shards(0, 1))
        old = claim(ledger)
        ledger.redis.flushdb()
        ledger.create(JobOptions(), None, "j1")
        ledger.add("j1", "", 0, 0, shards(0, 1))
        new = claim(ledger)
        assert new.unit == old.unit and not commit(ledger, old) and commit(ledger, new)

    def test_a_heartbeat_renews_the_living_and_takes_from_the_dead(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 2)
        living, dead = claim(ledger, pid="1:1"), claim(ledger, pid="2:1")
        before = ledger.redis.zscore(ledger.key("leases"), living.unit)
        ledger.redis.zadd(ledger.key("leases"), {living.unit: 1})
        assert ledger.beat("w1", INFO, [(living.unit, living.fence)], [(dead.unit, dead.fence)]) == []
        assert ledger.redis.zscore(ledger.key("leases"), living.unit) >= before
        assert state(ledger, dead.unit) == "due" and not commit(ledger, dead) and commit(ledger, living)
        (worker,) = ledger.workers()
        assert (worker.id, worker.node, worker.store, worker.slots) == ("w1", "n1", "s1", 5)
        assert ledger.store_of("n1") == "s1" and ledger.store_of("n2") is None
        ledger.bye("w1")
        assert ledger.workers() == [] and ledger.store_of("n1") == "s1"
        check(ledger, job)

    def test_workers_come_and_go(self, ledger: WorkLedger) -> None:
        alive: list[str] = []
        for name in ("w2", "w1", "w3"):
            ledger.beat(name, INFO, [], [])
            alive = sorted([*alive, name])
            for _ in range(2):
                assert sorted(worker.id for worker in ledger.workers()) == alive
        for name in ("w1", "w2", "w3"):
            ledger.bye(name)
            alive.remove(name)
            for _ in range(2):
                assert sorted(worker.id for worker in ledger.workers()) == alive

    def test_a_unit_that_kills_its_workers_is_quarantined(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 2)
        first, other = claim(ledger), claim(ledger, "w2")
        ledger.back(first, 0, False, "", None, ())
        for n in range(DEATHS):
            assert state(ledger, f"{job}.0") == "due"
            work = claim(ledger, pid=f"{n}:1")
            assert work.unit == f"{job}.0"
            ledger.beat("w1", INFO, [], [(work.unit, work.fence)])
            check(ledger, job)
        assert state(ledger, f"{job}.0") == "quarantined"
        commit(ledger, other)
        assert ledger.meta(job)["state"] == "failed"
        ledger.sweep("retry", job)
        assert claim(ledger).record.deaths == 0 and ledger.meta(job)["failed"] == "0"
        check(ledger, job)

    def test_one_that_gets_further_from_death_to_death_is_not(self, ledger: WorkLedger) -> None:
        submit(ledger, 1)
        for n in range(DEATHS * 2):
            work = claim(ledger, pid=f"{n}:1")
            assert ledger.progress(work, 1, n << 20) == "ok"
            ledger.beat("w1", INFO, [], [(work.unit, work.fence)])
        assert state(ledger, work.unit) == "due"
        for n in range(DEATHS - 1):  # as far as before, and no further
            work = claim(ledger, pid=f"{n}:2")
            assert ledger.progress(work, 1 << 30, (DEATHS * 2 - 1) << 20) == "ok"
            ledger.beat("w1", INFO, [], [(work.unit, work.fence)])
        assert state(ledger, work.unit) == "quarantined"

    def test_after_a_retry_it_may_get_further_from_the_beginning(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        work = claim(ledger)
        ledger.progress(work, 1, 100 << 20)
        assert commit(ledger, work, "failed")
        ledger.sweep("retry", job)
        for n in range(1, DEATHS * 2):
            work = claim(ledger, pid=f"{n}:1")
            ledger.progress(work, 1, n << 20)
            ledger.beat("w1", INFO, [], [(work.unit, work.fence)])
        assert state(ledger, work.unit) == "due"

    def test_attempts_are_counted_anew_after_one_that_got_further(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        for anew, attempts in ((False, 1), (False, 2), (True, 0), (False, 1)):
            work = claim(ledger)
            assert ledger.back(work, 0, not anew, "reset", None, (), anew=anew).ok
            assert claim(ledger).record.attempts == attempts
            ledger.back(claim(ledger), 0, False, "", None, ())
        assert ledger.meta(job)["retries"] == "4"

    def test_a_death_is_forgotten_once_the_unit_is_handed_back(self, ledger: WorkLedger) -> None:
        submit(ledger, 1)
        for n in range(DEATHS * 2):
            work = claim(ledger, pid=f"{n}:1")
            ledger.beat("w1", INFO, [], [(work.unit, work.fence)])
            work = claim(ledger, pid=f"{n}:2")
            ledger.back(work, 0, False, "", None, ())
        assert state(ledger, work.unit) == "due"


INFO = {"node": "n1", "store": "s1", "slots": 5, "connections": [], "version": "1", "free_bytes": 1, "pid": 1}


class TestUnavailable:
    def test_says_where_without_the_password(self) -> None:
        ledger = WorkLedger(Settings(ledger_url="redis://:hunter2@127.0.0.1:1/0"), retries=0)
        with pytest.raises(LedgerUnavailable) as raised:
            ledger.create(JobOptions(), None)
        assert "127.0.0.1:1" in str(raised.value) and "hunter2" not in str(raised.value)
        ledger.close()

    def test_many_at_once_share_out_the_work(self, url: str, ledger: WorkLedger) -> None:
        job = submit(ledger, 60)
        settled: list[bool] = []

        def work(name: str) -> None:
            mine = WorkLedger(Settings(ledger_url=url))
            while (found := mine.claim(name, "1:1", 9, [QUEUE])) is not None:
                settled.append(mine.commit(found, "done", done(), ()).ok)
            mine.close()

        threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert settled == [True] * 60 and ledger.meta(job)["state"] == "done"
        check(ledger, job)
