"""How a unit comes back or ends in the ledger, and what is left when its job is forgotten. In a real Redis."""

from __future__ import annotations

import time

from ingest.ledger import Claim, Result, WorkLedger
from ingest.model import Failure, JobOptions
from tests.unit.ledgers import (
    PLANS,
    QUEUE,
    check,
    claim,
    done,
    expire,
    failed,
    file,
    happened,
    plan,
    ripen,
    shards,
    state,
    submit,
)


def commit(ledger: WorkLedger, work: Claim, end: str = "done") -> bool:
    result = failed(work.unit) if end == "failed" else Result() if end == "cancelled" else done()
    return ledger.commit(work, end, result, ()).ok


class TestComingBack:
    def test_later(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        work = claim(ledger)
        assert ledger.back(work, 30, True, "FetchTimeout: no data", done(2), ()) == (True, 0, QUEUE)
        (record,) = ledger.units(job, ["0"])
        assert record and (record.state, record.attempts, record.reason) == ("due", 1, "FetchTimeout: no data")
        assert 29_000 < record.due_ms - ledger.now_ms() <= 30_000
        assert ledger.claim("w1", "1:1", 9, [QUEUE]) is None and ledger.meta(job)["retries"] == "1"
        check(ledger, job)
        ripen(ledger, work.unit)
        again = claim(ledger)
        assert (again.unit, again.record.attempts, again.earlier) == (work.unit, 1, done(2))
        assert happened(ledger, job, "part") == [("part", "0", "")]
        check(ledger, job)

    def test_it_matures_by_itself(self, ledger: WorkLedger) -> None:
        submit(ledger, 1)
        ledger.back(claim(ledger), 0.05, True, "", None, ())
        assert ledger.claim("w1", "1:1", 9, [QUEUE]) is None
        ends = time.monotonic() + 5
        while ledger.claim("w1", "1:1", 9, [QUEUE]) is None:
            assert time.monotonic() < ends

    def test_an_agent_that_is_late_takes_nothing_from_who_has_it_now(self, ledger: WorkLedger) -> None:
        """Another process of the same worker has it, under another token."""
        job = submit(ledger, 1)
        old = claim(ledger, pid="1:1")
        ledger.back(old, 0, False, "", None, ())
        claim(ledger, pid="2:1")
        info = {"node": "n1", "store": "s1", "slots": 2, "connections": [], "version": "1", "free_bytes": 1, "pid": 1}
        assert ledger.beat("w1", info, [(old.unit, old.fence)], []) == [old.unit]
        assert ledger.held("w1")[old.unit][0] == "2:1"
        check(ledger, job)

    def test_a_repeated_back_or_commit_is_one(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        work = claim(ledger)
        for _ in range(3):
            assert ledger.back(work, 0, True, "x", done(), ()).ok
        assert ledger.meta(job)["retries"] == "1"
        work = claim(ledger)
        for _ in range(3):
            assert ledger.commit(work, "done", done(2), ()).ok
        assert (ledger.meta(job)["files_done"], ledger.meta(job)["bytes"]) == ("2", "20")
        assert len(happened(ledger, job, "shard", "end")) == 2
        check(ledger, job)

    def test_bytes_of_more_than_32_bits(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 2)
        for _ in range(2):
            ledger.commit(claim(ledger), "done", done(3, 7 << 40), ())
        assert ledger.meta(job)["bytes"] == str(6 * (7 << 40))

    def test_what_comes_back_of_a_cancelled_job_ends_there(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        work = claim(ledger)
        ledger.sweep("cancel", job)
        assert ledger.progress(work, 1) == "cancelled"
        assert ledger.back(work, 60, True, "x", done(), ()).ok
        assert (state(ledger, work.unit), ledger.meta(job)["state"]) == ("cancelled", "cancelled")
        assert Result.unpacked(ledger.results(job, ["0"])[0]) == done()
        check(ledger, job)


class TestEnding:
    def test_states_of_a_job(self, ledger: WorkLedger) -> None:
        for ends, expected in ((["done", "done"], "done"), (["done", "failed"], "failed")):
            job = submit(ledger, len(ends))
            for end in ends:
                assert commit(ledger, claim(ledger), end)
                check(ledger, *ledger.recent(9))
            assert ledger.meta(job)["state"] == expected
            assert happened(ledger, job, "end") == [("end", "", expected)]

    def test_results_and_failures_come_back(self, ledger: WorkLedger) -> None:
        submit(ledger, 1)
        work = claim(ledger)
        result = Result(
            (file(0), file(1)), (Failure("u", "Throttled", "slow", 3, work.unit, "n1", (0, 2), ("slow", 5.0)),)
        )
        ledger.commit(work, "failed", result, ())
        (packed,) = ledger.results(work.job, ["0"])
        assert Result.unpacked(packed) == result
        assert ledger.meta(work.job)["files_failed"] == "1"

    def test_the_outbox_holds_what_ended_until_it_is_reported(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 2, options=JobOptions(reply=True))
        assert not ledger.wants_reply(job)
        for _ in range(2):
            commit(ledger, claim(ledger))
        assert ledger.wants_reply(job)
        members = {f"{job}.0", f"{job}.1", job}
        assert {m.decode() for m in ledger.redis.zrange(ledger.key("outbox"), 0, -1)} == members
        assert ledger.outbox(9, 30) == [], "whoever committed them gets a moment"
        for member in members:
            ledger.redis.zadd(ledger.key("outbox"), {member: 1})
        taken = ledger.outbox(2, 30)
        assert len(taken) == 2 and {*taken, *ledger.outbox(9, 0)} == members, "nobody is asked for what another has"
        (other,) = members - {*taken}
        assert ledger.outbox(9, 30) == [other], "until its time for it is over"
        ledger.reported(other)
        assert {m.decode() for m in ledger.redis.zrange(ledger.key("outbox"), 0, -1)} == {*taken}

    def test_what_is_tried_again_has_no_result_to_report(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1, options=JobOptions(reply=True))
        commit(ledger, claim(ledger), "failed")
        ledger.sweep("retry", job)
        assert ledger.redis.zcard(ledger.key("outbox")) == 0 and not ledger.wants_reply(job)

    def test_forgetting_leaves_nothing(self, ledger: WorkLedger) -> None:
        job = ledger.create(JobOptions(), "key").job
        ledger.add(job, "p", 0, 0, [plan()])
        ledger.seal(job)
        work = claim(ledger, queues=(PLANS,))
        ledger.add_planned(work, "2", shards(0, 2))
        ledger.commit(work, "done", Result(), ())
        for _ in range(2):
            work = claim(ledger)
            ledger.takeoff(work, ["k"])
            ledger.progress(work, 5)
            ledger.commit(work, "done", done(), ["k"])
            ledger.reported(work.unit)
        ledger.forget(job)
        left = {k.decode() for k in ledger.redis.scan_iter()}
        named = {key for key in left if job in key}
        for key in left - named:
            kind = ledger.redis.type(key)
            reads = {b"zset": "zrange", b"set": "smembers", b"hash": "hgetall", b"string": "get"}
            value = getattr(ledger.redis, reads[kind])(key, *((0, -1) if kind == b"zset" else ()))
            named |= {key} if job in str(value) else set()
        # That it is gone on purpose is remembered until nobody would put it back; an epoch has its first job's name.
        assert named == {ledger.key("gone"), ledger.key("epoch")}
        own = {
            ledger.key(*k)
            for k in [
                ("clock",),
                ("fence",),
                ("holders",),
                ("leavers",),
                ("queues",),
                ("vtime", QUEUE),
                ("vtime", PLANS),
            ]
        }
        assert left <= own | named
        assert ledger.create(JobOptions(), "key").job != job

    def test_a_job_that_came_back_to_life_is_not_forgotten(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        commit(ledger, claim(ledger), "failed")
        ledger.redis.zadd(ledger.key("expire"), {job: 1})
        tick = ledger.tick(0, 900)
        assert tick and tick.expired == [job]
        ledger.sweep("retry", job)
        ledger.forget(job)
        assert commit(ledger, claim(ledger)) and ledger.meta(job)["state"] == "done"


class TestDamage:
    """What somebody deleted or wrote into: it concerns its own job, and nobody else's."""

    def test_a_record_that_cannot_be_read_keeps_no_other_from_its_end(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 3)
        ledger.redis.hset(ledger.key("job", job, "shard"), "1", "?")
        ledger.sweep("cancel", job)
        assert [state(ledger, f"{job}.{n}") for n in (0, 2)] == ["cancelled"] * 2
        ledger.sweep("retry", job)
        assert [state(ledger, f"{job}.{n}") for n in (0, 2)] == ["due"] * 2
        assert ledger.units(job, ["1"]) == [None] and len([*ledger.all_units(job)]) == 2

    def test_a_job_whose_hash_is_gone_keeps_nobody_from_working(self, ledger: WorkLedger) -> None:
        lost, other = submit(ledger, 4), submit(ledger, 4)
        ledger.takeoff(claim(ledger, pid="1:1"), ["k"])
        assert ledger.redis.delete(ledger.key("job", lost)) == 1
        for pid in ("1:1", "1:2", "1:3", "1:4"):
            found = claim(ledger, pid=pid)
            assert found.job == other
            ledger.commit(found, "done", done(), ())
        assert ledger.claim("w1", "1:1", 1000, (QUEUE,)) is None
        for unit in map(bytes.decode, ledger.redis.zrange(ledger.key("leases"), 0, -1)):
            expire(ledger, unit)
        assert ledger.meta(other)["state"] == "done" and not ledger.held("w1")
        assert not ledger.redis.zcard(ledger.key("leases")), "what it had leased is dropped with the lease"

    def test_a_record_that_cannot_be_read_stops_no_tick(self, ledger: WorkLedger) -> None:
        lost, other = submit(ledger, 1), submit(ledger, 1)
        first, second = claim(ledger, pid="1:1"), claim(ledger, pid="1:2")
        assert {first.job, second.job} == {lost, other}
        ledger.redis.hset(ledger.key("job", lost, "shard"), "0", b'{"s": "leas')
        ledger.tick(0, 900)
        ledger.redis.zadd(ledger.key("leases"), {f"{job}.0": 1 for job in (lost, other)}, xx=True)
        ledger.tick(0, 900)
        assert state(ledger, f"{other}.0") == "due"
        assert claim(ledger).job == other


def test_a_retry_right_after_a_cancel_is_heeded(ledger: WorkLedger) -> None:
    """All of it was in hand, so nothing had ended that could be tried again."""
    job = submit(ledger, 1)
    work = claim(ledger)
    info = {"node": "n1", "store": "s"}
    ledger.sweep("cancel", job)
    assert ledger.beat("w1", info, [(work.unit, work.fence)], []) == [work.unit], "it is told to stop"
    ledger.sweep("retry", job)
    assert ledger.beat("w1", info, [(work.unit, work.fence)], []) == []
    ledger.commit(work, "done", done(), ())
    assert ledger.meta(job)["state"] == "done"
