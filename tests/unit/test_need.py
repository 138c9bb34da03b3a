"""What a reader needs, in the ledger: what is claimed first, what is held, and what is fetched again. In a real
Redis."""

from __future__ import annotations

from collections import Counter

import pytest

from ingest.ledger import Claim, Result, WorkLedger
from ingest.ledger.space import Dry
from ingest.model import JobOptions
from tests.servers.node import until
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
    state,
    submit,
)

MOST, STORE = 1000, "s1"
INFO = {"node": "n1", "store": STORE, "slots": 2, "connections": [], "version": "1", "free_bytes": 1, "pid": 1}


def taken(ledger: WorkLedger, count: int, pid: str = "t") -> list[str]:
    """The numbers of the next shards to be claimed."""
    return [claim(ledger, pid=f"{pid}{n}:1").number for n in range(count)]


def end(ledger: WorkLedger, count: int) -> None:
    for n in range(count):
        assert ledger.commit(claim(ledger, pid=f"e{n}:1"), "done", done(), ()).ok


class TestOrder:
    def test_what_is_needed_goes_first_the_nearest_first(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 200)
        ledger.need(job, "r1", [199, 7, 150])
        assert taken(ledger, 5) == ["199", "7", "150", "0", "1"]
        check(ledger, job)

    def test_it_is_safe_to_say_it_again_and_of_what_is_not_there(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 3, seal=False)
        for _ in range(3):
            assert ledger.need(job, "r1", [9, 2]) == ([], [])
            check(ledger, job)
        ledger.need("j0", "r1", [0])
        assert taken(ledger, 3) == ["2", "0", "1"]

    def test_the_windows_of_many_readers_in_one_process(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 5000)
        ledger.need(job, "r1", range(5000), holds="window")
        ledger.need(job, "r1", range(1, 5000), holds="window")
        assert taken(ledger, 2) == ["1", "2"]
        assert ledger.redis.hlen(ledger.key("window", job, "r1")) == 5000

    def test_of_several_readers_the_nearest_then_who_asked_first(self, ledger: WorkLedger) -> None:
        one, two = submit(ledger, 20), submit(ledger, 20)
        ledger.need(one, "r1", range(10, 14))
        ledger.need(two, "r2", range(15, 18))
        ledger.need(one, "r1", range(10, 14))  # says it again, and is the first still
        found = [claim(ledger, pid=f"{n}:1") for n in range(7)]
        assert [(work.job, work.number) for work in found] == [
            (one, "10"), (two, "15"), (one, "11"), (two, "16"), (one, "12"), (two, "17"), (one, "13"),
        ]  # fmt: skip

    def test_two_readers_of_one_shard_it_is_as_near_as_to_the_nearer(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 9)
        ledger.need(job, "r1", [5, 6, 7, 8])
        ledger.need(job, "r2", [8, 4])
        assert taken(ledger, 5) == ["5", "8", "6", "4", "7"]

    def test_a_reader_that_moves_on_or_jumps_takes_its_need_with_it(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 30)
        ledger.need(job, "r1", [20, 21, 22])
        ledger.need(job, "r1", [9, 22])
        assert taken(ledger, 2) == ["9", "22"] and taken(ledger, 3, "u") != ["20", "21", "0"]
        ledger.need(job, "r1", [29])
        ledger.need(job, "r2", [28])
        ledger.need(job, "r1", [])
        assert taken(ledger, 1, "v") == ["28"]
        check(ledger, job)

    def test_nothing_is_kept_of_a_reader_that_is_gone(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 9)
        before = set(ledger.redis.scan_iter())
        ledger.need(job, "r1", [8, 7], ttl_s=0.05)
        work = claim(ledger)
        assert work.number == "8"
        left = {key: ledger.redis.pttl(key) for key in set(ledger.redis.scan_iter()) - before}
        kinds = {key.split(b":")[2]: ms for key, ms in left.items()}
        assert kinds.keys() <= {b"needs", b"window", b"turns", b"leases", b"held", b"fence"}
        assert -1 not in {kinds.get(b"window"), kinds.get(b"turns")}, "they end by themselves"
        until(lambda: not ledger.redis.exists(ledger.key("window", f"{job}:r1")), "its window is over")
        ledger.back(work, 0, False, "", None, ())  # it goes to where it would be
        (record,) = ledger.units(job, ["8"])
        assert record and record.need is None and claim(ledger, pid="2:2").number == "7", "its place it keeps"

    def test_one_in_sixteen_is_of_what_nobody_needs(self, ledger: WorkLedger) -> None:
        """A trainer that waits for its line all the time does not keep a small job from its end."""
        job, other = submit(ledger, 100), submit(ledger, 2)
        ledger.need(job, "r1", range(10, 100))
        found = Counter[str]()
        for n in range(40):
            found[claim(ledger, pid=f"{n}:1").job] += 1
        assert found[other] == 1 or found[other] == 2
        assert found[job] >= 38

    def test_planning_and_other_queues_go_on(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 9, seal=False)
        ledger.add(job, "p", 0, 0, [plan()])
        ledger.need(job, "r1", range(9))
        assert claim(ledger, queues=(PLANS,)).is_plan

    def test_in_whichever_of_the_queues_of_a_node_it_is(self, ledger: WorkLedger) -> None:
        shared, own = submit(ledger, 3), submit(ledger, 3, queue=f"{QUEUE}.n1")
        queues = (f"{QUEUE}.n1", QUEUE)
        ledger.need(shared, "r1", [2])
        assert [(c.job, c.number) for c in (claim(ledger, pid=f"{n}:1", queues=queues) for n in range(2))] == [
            (shared, "2"),
            (own, "0"),
        ]

    def test_what_is_delayed_keeps_its_time_and_is_ahead_when_that_is_over(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 9)
        work = claim(ledger)
        ledger.back(work, 60, True, "Throttled: later", None, ())
        assert ledger.need(job, "r1", [0]).queues == []
        assert taken(ledger, 2) == ["1", "2"], "what nobody needs goes on"
        ledger.redis.zadd(ledger.key("delayed"), {work.unit: 1})
        assert taken(ledger, 1, "u") == ["0"]

    def test_what_is_leased_is_needed_still_when_it_comes_back(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 9)
        work = claim(ledger)
        ledger.need(job, "r1", [5, 0])
        expire(ledger, work.unit)
        assert taken(ledger, 3) == ["5", "0", "1"]
        check(ledger, job)

    def test_a_queue_that_moves_takes_the_need_along(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 9, queue=f"{QUEUE}.n1")
        ledger.need(job, "r1", [8])
        assert ledger.move(f"{QUEUE}.n1", QUEUE) == 9
        assert taken(ledger, 2) == ["8", "0"]


class TestSpace:
    """A store that is full: what waits for space, and what may not have any yet."""

    @pytest.fixture(autouse=True)
    def _counted(self, ledger: WorkLedger) -> None:
        ledger.counted(STORE, 0, 0, [])
        ledger.beat("w1", INFO, [], [])

    def take(self, ledger: WorkLedger, work: Claim, need: int) -> str:
        return ledger.reserve(work.unit, work.fence, STORE, need, most=MOST).answer

    def test_what_is_needed_comes_first_in_the_turn_and_looks_at_once(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 12)
        works = sorted((claim(ledger, pid=f"{n}:1") for n in range(12)), key=lambda work: work.record.part)
        self.take(ledger, works[0], MOST)
        for work in works[1:]:
            assert self.take(ledger, work, 300) == "full"
            ledger.back(work, 60, False, "NoRoom: waits", None, ())
        assert ledger.need(job, "r1", [11, 10]).queues == [QUEUE]
        assert taken(ledger, 2) == ["11", "10"] and ledger.claim("w1", "9:9", 99, [QUEUE]) is None
        assert ledger.need(job, "r1", [11, 10]).queues == []
        self.take(ledger, works[0], 0)
        eleven, ten = (claim(ledger, pid=f"t{n}:1") for n in range(2))
        assert self.take(ledger, ten, 300) == "full", "the nearer comes first"
        assert [self.take(ledger, work, 300) for work in (eleven, ten)] == ["ok", "ok"]

    def test_what_nobody_needs_of_a_job_read_by_a_window_waits_when_the_store_is_full(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 6)
        ledger.need(job, "r1", [5], holds="window")
        five, zero = claim(ledger, pid="1:1"), claim(ledger, pid="2:1")
        assert (five.number, zero.number) == ("5", "0")
        assert self.take(ledger, zero, 850) == "ok"
        assert ledger.can_wait(zero.unit) and not ledger.can_wait(five.unit)
        grant = ledger.reserve(zero.unit, zero.fence, STORE, 950, most=MOST)
        assert (grant.answer, grant.why, grant.can_wait) == ("full", "", True), (
            "somebody is to look whether other things may go"
        )
        ledger.turn(STORE, "t", 0, dry=Dry("held are 7 B", "", 60, later=True))
        grant = ledger.reserve(zero.unit, zero.fence, STORE, 950, most=MOST)
        assert grant.why.startswith("nobody needs it yet") and grant.why.endswith("held are 7 B") and grant.wait_s > 50
        assert self.take(ledger, five, 100) == "ok", "a tenth is left to what is needed"
        assert ledger.claim("w1", "3:1", 99, [QUEUE]) is None, "the others are not due any more"
        assert state(ledger, f"{job}.1") == "due" and ledger.space(STORE).waiting == 5
        check(ledger, job)
        ledger.need(job, "r1", [5, 3], holds="window")
        assert claim(ledger, pid="3:1").number == "3"
        assert ledger.claim("w1", "4:1", 99, [QUEUE]) is None
        ledger.need(job, "r1", [3], holds="window")
        assert ledger.claim("w1", "4:1", 99, [QUEUE]) is None, "a window moves all the time"
        ledger.read("r1", [job], 0)  # nobody reads it any more
        assert claim(ledger, pid="4:1").number in {"1", "2", "4"}
        check(ledger, job)

    def test_with_room_all_of_it_comes(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 6)
        ledger.need(job, "r1", [5], holds="window")
        self.take(ledger, claim(ledger, pid="1:1"), 100)
        assert taken(ledger, 5) == ["0", "1", "2", "3", "4"]


class TestHolding:
    def held(self, ledger: WorkLedger, job: str) -> tuple[frozenset[str], frozenset[str] | None]:
        (holder,) = [h for h in ledger.holders(600) if h.job == job]
        return holder.released, holder.only

    def test_the_window_alone(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 9)
        ledger.need(job, "r1", [3, 4], holds="window")
        assert self.held(ledger, job) == (frozenset(), {"3", "4"})
        ledger.need(job, "r2", [8], holds="window")
        assert self.held(ledger, job) == (frozenset(), {"3", "4", "8"})
        ledger.need(job, "r1", [4, 5], holds="window")
        assert self.held(ledger, job) == (frozenset(), {"4", "5", "8"})
        ledger.read("r2", [job], 0)
        assert self.held(ledger, job) == (frozenset(), {"4", "5"})
        ledger.need(job, "r1", [], holds="window")
        assert self.held(ledger, job) == (frozenset(), frozenset())

    def test_beside_one_that_keeps_all_or_releases(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 9)
        ledger.need(job, "r1", [3], holds="window")
        ledger.need(job, "r2", [1], holds="all")
        ledger.release(job, "r2", [3, 4])
        assert self.held(ledger, job) == ({"4"}, None)

    def test_those_that_wait_look_again_when_a_window_moves(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 3)
        ledger.need(job, "r1", [1], holds="window")
        other = submit(ledger, 1)
        ledger.counted(STORE, MOST, 0, [])
        works = [claim(ledger, pid=f"{n}:1") for n in range(4)]
        work = next(work for work in works if work.job == other)
        assert ledger.reserve(work.unit, work.fence, STORE, 1, most=MOST).answer == "full"
        ledger.back(work, 600, False, "NoRoom: waits", None, ())
        ledger.need(job, "r1", [1, 2], holds="window")
        assert ledger.claim("w1", "9:1", 99, [QUEUE]) is None, "not because more is held"
        ledger.need(job, "r1", [2], holds="window")
        assert claim(ledger, pid="9:1").unit == work.unit

    def test_what_is_needed_later_is_not_in_the_way_of_what_is_needed_before(self, ledger: WorkLedger) -> None:
        """A store that is smaller than the window, and the nearest shard comes last: it would wait for ever."""
        job = submit(ledger, 4)
        ledger.need(job, "r1", [3, 0, 1, 2], holds="window")
        works = {work.number: work for work in (claim(ledger, pid=f"{n}:1") for n in range(4))}
        ledger.counted(STORE, MOST, 0, [])
        near = works["0"]
        assert ledger.reserve(near.unit, near.fence, STORE, 1, most=MOST).answer == "full"
        assert ledger.need(job, "r1", [3, 0, 1, 2], holds="window").loose == [], "it looks just now"
        ledger.back(near, 60, False, "NoRoom: waits", None, ())
        assert ledger.need(job, "r1", [3, 0, 1, 2], holds="window").loose == [1, 2]
        assert self.held(ledger, job)[1] == {"0", "3"}
        near = claim(ledger, pid="n:1")
        assert near.number == "0", "it was woken"
        assert ledger.need(job, "r1", [3, 0, 1, 2], holds="window").loose == [1, 2], "until it has its space"
        ledger.commit(near, "done", done(), ())
        assert ledger.need(job, "r1", [3, 0, 1, 2], holds="window").loose == []
        assert self.held(ledger, job)[1] == {"0", "1", "2", "3"}


class TestGone:
    def test_it_is_fetched_again_once_and_the_job_stays_what_it_is(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 3)
        end(ledger, 3)
        before = ledger.meta(job)
        for _ in range(3):  # a lost answer, and another reader that saw the same
            ledger.need(job, "r1", [1, 2], gone={1: 0})
            check(ledger, job)
        ledger.need(job, "r2", [1], gone={1: 0})
        after = ledger.meta(job)
        assert (after["state"], after["finished"], after["files_done"]) == ("done", before["finished"], "3")
        assert {k: v for k, v in after.items() if k.startswith("c:") and v != "0"} == {"c:done": "2", "c:due": "1"}
        work = claim(ledger)
        assert work.number == "1" and work.record.gone and work.earlier == done() and work.files, "what it was"
        assert work.age_s < 60
        ledger.back(work, 0, True, "reset", None, ())
        assert ledger.results(job, ["1"]) == [done().packed()]
        assert ledger.commit(claim(ledger), "done", done(), ()).ok
        assert happened(ledger, job, "end", "gone", "there", "shard")[3:] == [
            ("end", "", "done"), ("gone", "1", ""), ("there", "1", "done"),
        ]  # fmt: skip
        assert ledger.meta(job)["gone"] == "0"
        check(ledger, job)
        ledger.need(job, "r1", [1], gone={1: 0})
        assert state(ledger, f"{job}.1") == "done", "said of what was there before"
        ledger.need(job, "r1", [1], gone={1: 1})
        assert state(ledger, f"{job}.1") == "due"

    def test_it_goes_to_a_node_that_has_the_store_ahead_of_all(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        end(ledger, 1)
        own = f"{QUEUE}.n1"
        submit(ledger, 9, queue=own)
        assert ledger.need(job, "r1", [0], gone={0: 0}, queue=own).queues == [own]
        assert claim(ledger, queues=(own,)).job == job
        check(ledger, job, *(j for j in ledger.recent(9) if j != job))

    def test_a_job_is_over_when_all_of_it_has_arrived_once(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 2)
        end(ledger, 1)
        ledger.need(job, "r1", [0], gone={0: 0})
        check(ledger, job)
        again, last = claim(ledger, pid="1:1"), claim(ledger, pid="2:1")
        assert again.number == "0" and ledger.commit(last, "done", done(), ()).ok
        assert ledger.meta(job)["state"] == "done"
        check(ledger, job)
        ledger.commit(again, "done", done(), ())
        check(ledger, job)

    def test_what_cannot_be_had_any_more_fails_it_and_can_be_retried(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 2)
        end(ledger, 2)
        ledger.need(job, "r1", [0], gone={0: 0})
        work = claim(ledger)
        ledger.commit(work, "failed", failed(work.unit), ())
        assert ledger.meta(job)["state"] == "failed" and ledger.need(job, "r1", [0], gone={0: 1}).queues == []
        check(ledger, job)
        assert ledger.sweep("retry", job) == [QUEUE]
        check(ledger, job)
        ledger.commit(claim(ledger), "done", done(), ())
        assert ledger.meta(job)["state"] == "done"
        check(ledger, job)
        ledger.need(job, "r1", [0], gone={0: 2})
        assert state(ledger, work.unit) == "due", "a retry counts, too"

    def test_it_does_not_expire_meanwhile(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        end(ledger, 1)
        ledger.need(job, "r1", [0], gone={0: 0})
        ledger.redis.zadd(ledger.key("expire"), {job: 1})
        ledger.forget(job)
        work = claim(ledger)
        assert work.job == job
        ledger.commit(work, "done", done(), ())
        ledger.need(job, "r1", [0], holds="window")
        ledger.redis.zadd(ledger.key("expire"), {job: 1})
        ledger.forget(job)
        assert ledger.meta(job), "somebody reads it"
        ledger.read("r1", [job], 0)
        ledger.redis.zadd(ledger.key("expire"), {job: 1})
        ledger.forget(job)
        assert ledger.recent(9) == [] and not list(ledger.redis.scan_iter("*window*"))

    def test_of_a_job_that_was_cancelled_nothing_is_fetched_again(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 3)
        end(ledger, 2)
        ledger.need(job, "r1", [0], gone={0: 0})
        ledger.sweep("cancel", job)
        check(ledger, job)
        assert [state(ledger, f"{job}.{n}") for n in range(3)] == ["cancelled", "done", "cancelled"]
        ledger.need(job, "r1", [1], gone={1: 0})
        assert state(ledger, f"{job}.1") == "done"
        ledger.sweep("retry", job)
        check(ledger, job)

    def test_five_deaths_end_it_as_they_end_any(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        end(ledger, 1)
        ledger.need(job, "r1", [0], gone={0: 0})
        for _ in range(3):
            expire(ledger, claim(ledger).unit)
        assert state(ledger, f"{job}.0") == "quarantined" and ledger.meta(job)["state"] == "failed"
        check(ledger, job)


def test_a_source_that_waits_for_another_is_ahead_when_it_has_landed(ledger: WorkLedger) -> None:
    submit(ledger, 1)
    job = submit(ledger, 1, options=JobOptions(name="second"))
    both = [claim(ledger, pid=f"{n}:1") for n in range(2)]
    first, second = sorted(both, key=lambda work: work.job == job)
    ledger.takeoff(first, ["k"])
    assert ledger.takeoff(second, ["k"]) == [False]
    ledger.back(second, 30, False, "waits", None, ())
    more = submit(ledger, 5)
    ledger.need(job, "r1", [0])
    assert claim(ledger, pid="3:1").job == more
    ledger.commit(first, "done", Result(), ["k"])
    assert claim(ledger, pid="4:1").job == job
