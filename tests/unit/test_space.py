"""Space in a store: what is reserved, what is held and for whom, with a real Redis."""

from __future__ import annotations

import os
import random

import pytest

from ingest.client.lease import Leases
from ingest.ledger import Claim, Result, WorkLedger
from ingest.model import JobOptions
from tests.unit.ledgers import check, claim, expire, state, submit

MOST = 1000
STORE = "s1"


def take(ledger: WorkLedger, work: Claim, need: int, **more: int) -> tuple[str, int]:
    """The answer, and what was granted or is missing."""
    grant = ledger.reserve(work.unit, work.fence, STORE, need, most=MOST, **more)
    return grant.answer, grant.granted or grant.missing


def counts(ledger: WorkLedger) -> tuple[int | None, int]:
    space = ledger.space(STORE)
    return space.used, space.reserved


class TestReserving:
    @pytest.fixture(autouse=True)
    def _counted(self, ledger: WorkLedger) -> None:
        ledger.counted(STORE, 0, 0, [])

    def test_units_share_what_there_is_and_get_a_step_more_where_it_is_free(self, ledger: WorkLedger) -> None:
        submit(ledger, 3)
        a, b, c = (claim(ledger, pid=f"{n}:1") for n in range(3))
        assert take(ledger, a, 100, wish=500) == ("ok", 500)
        assert take(ledger, b, 450, wish=900) == ("ok", 450)
        assert take(ledger, c, 51) == ("full", 1)
        assert counts(ledger) == (0, 950) and ledger.space(STORE).waiting == 1
        assert take(ledger, a, 449) == ("ok", 449)  # it gives back what it does not need
        assert take(ledger, c, 51) == ("ok", 51) and ledger.space(STORE).waiting == 0
        check(ledger, a.job)

    def test_a_store_that_was_never_counted_grants_nothing(self, ledger: WorkLedger) -> None:
        ledger.redis.delete(ledger.key("space", STORE))
        submit(ledger, 1)
        assert take(ledger, claim(ledger), 1) == ("uncounted", 0)

    def test_what_is_published_is_used_and_what_is_left_stays_reserved_until_the_lease_ends(
        self, ledger: WorkLedger
    ) -> None:
        submit(ledger, 1)
        work = claim(ledger)
        take(ledger, work, 300)
        for _ in range(2):  # a repeated call, its answer was lost
            assert take(ledger, work, 100, published=200) == ("ok", 100)
            assert counts(ledger) == (200, 100)
        ledger.back(work, 0, False, "", None, ())  # 100 bytes of a partial file lie there
        assert counts(ledger) == (300, 0)
        again = claim(ledger)
        for _ in range(2):
            assert take(ledger, again, 150, moved=100) == ("ok", 150)
            assert counts(ledger) == (200, 150)
        take(ledger, again, 0, published=150)
        ledger.commit(again, "done", Result(), ())
        assert counts(ledger) == (350, 0)

    def test_what_is_there_already_is_taken_up_in_a_full_store(self, ledger: WorkLedger) -> None:
        ledger.counted(STORE, MOST, 0, [])
        submit(ledger, 1)
        work = claim(ledger)
        assert take(ledger, work, 400, moved=400, wish=500) == ("ok", 400)
        assert take(ledger, work, 401) == ("full", 1)
        assert counts(ledger) == (600, 400)

    def test_the_dead_reserve_nothing_and_a_lost_lease_gets_nothing(self, ledger: WorkLedger) -> None:
        submit(ledger, 1)
        work = claim(ledger)
        take(ledger, work, 300)
        expire(ledger, work.unit)
        assert counts(ledger) == (300, 0)  # perhaps all of it was written: the next count of the disk says it
        other = claim(ledger, "w2")
        assert take(ledger, work, 1) == ("lost", 0)
        assert take(ledger, other, 700) == ("ok", 700)
        key = f"{ledger.prefix}space:{STORE}"
        ledger.counted(STORE, 0, int(ledger.redis.hget(key, "add")), [])
        assert counts(ledger) == (0, 700)

    def test_those_that_wait_are_woken_when_space_comes_free(self, ledger: WorkLedger) -> None:
        submit(ledger, 2)
        a, b = claim(ledger, pid="1:1"), claim(ledger, pid="2:1")
        take(ledger, a, MOST)
        assert take(ledger, b, 10)[0] == "full"
        ledger.back(b, 60, False, "waits", None, ())
        assert ledger.claim("w1", "3:1", 9, ("ingest.fetch",)) is None
        take(ledger, a, 10)
        assert claim(ledger, pid="3:1").unit == b.unit

    def test_one_that_is_woken_before_it_has_gone_back_does_not_lie_down(self, ledger: WorkLedger) -> None:
        submit(ledger, 2)
        a, b = claim(ledger, pid="1:1"), claim(ledger, pid="2:1")
        take(ledger, a, MOST)
        assert take(ledger, b, 10)[0] == "full"
        take(ledger, a, 10)
        ledger.back(b, 60, False, "waits", None, ())
        assert claim(ledger, pid="3:1").unit == b.unit

    def test_where_shards_wait_the_first_of_a_job_come_first(self, ledger: WorkLedger) -> None:
        """Else the later ones could fill the store, and who reads would wait for the first for ever."""
        job = submit(ledger, 12)
        works = sorted((claim(ledger, pid=f"{n}:1") for n in range(12)), key=lambda work: work.record.part)
        take(ledger, works[0], MOST)
        for work in (works[11], works[10], works[2], works[1]):
            assert take(ledger, work, 300)[0] == "full"
        take(ledger, works[0], 0)
        assert take(ledger, works[10], 300)[0] == "full", "shard 1 may have it, though it is slow to ask"
        grant = ledger.reserve(works[2].unit, works[2].fence, STORE, 300, most=MOST)
        assert grant.why == f"shard {works[1].unit} of its job comes first"
        assert [take(ledger, work, 300)[0] for work in (works[1], works[2], works[10], works[11])] == ["ok"] * 3 + [
            "full"
        ]
        ledger.commit(works[11], "failed", Result(), ())
        assert ledger.space(STORE).waiting == 0
        check(ledger, job)

    def test_who_waits_for_its_origin_does_not_keep_others_from_the_space(self, ledger: WorkLedger) -> None:
        submit(ledger, 2)
        first, second = sorted((claim(ledger, pid=f"{n}:1") for n in range(2)), key=lambda work: work.unit)
        assert take(ledger, first, MOST + 1)[0] == "full"
        assert take(ledger, second, 1)[0] == "full"
        ledger.back(first, 60, True, "its origin is away", None, ())
        assert take(ledger, second, 1)[0] == "ok"

    def test_never_more_than_there_is_whatever_units_do(self, ledger: WorkLedger) -> None:
        """Against a model: what each unit was granted and has published, at most, is never more than the budget."""
        dice = random.Random(7)
        job = submit(ledger, 8)
        open_: dict[str, tuple[Claim, int, int]] = {}
        for _ in range(600):
            if len(open_) < 5 and (found := ledger.claim("w1", f"{dice.random()}:1", 99, ("ingest.fetch",))):
                open_[found.unit] = (found, 0, 0)
                continue
            if not open_:
                break
            unit = dice.choice(sorted(open_))
            work, granted, published = open_[unit]
            act = dice.random()
            if act < 0.6:
                out = dice.randrange(granted + 1) if dice.random() < 0.3 and granted < 20 else 0
                need = dice.randrange(250)
                grant = ledger.reserve(
                    work.unit, work.fence, STORE, need, wish=need + 50, most=MOST, published=published + out
                )
                if grant.answer == "ok":
                    open_[unit] = (work, grant.granted, published + out)
                else:
                    open_[unit] = (work, max(0, granted - out), published + out)
            elif act < 0.9:
                del open_[unit]
                ledger.back(work, 0, False, "", None, ())
            else:
                del open_[unit]
                expire(ledger, unit) if dice.random() < 0.5 else ledger.commit(work, "done", Result(), ())
            used, reserved = counts(ledger)
            assert used is not None and used >= 0 and used + reserved <= MOST
            assert reserved == sum(each[1] for each in open_.values())
            if used > 800:
                ledger.counted(STORE, 100, int(ledger.redis.hget(f"{ledger.prefix}space:{STORE}", "add")), [])
        check(ledger, job)


class TestHolding:
    def why(self, ledger: WorkLedger, hold_s: float = 600) -> dict[str, str]:
        return {holder.job: holder.why for holder in ledger.holders(hold_s)}

    def test_a_job_holds_until_it_is_over_and_some_minutes_more_if_nobody_read_it(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1, options=JobOptions(name="run"))
        assert self.why(ledger) == {job: f"job {job} (run), which is not over and which nobody reads"}
        ledger.commit(claim(ledger), "done", Result(), ())
        assert "just ended" in self.why(ledger)[job] and self.why(ledger, 0) == {}
        ledger.read("r1", [job])
        assert "1 process reads" in self.why(ledger, 0)[job]
        ledger.read("r2", [job])
        ledger.read("r1", [job], 0)
        assert "1 process reads" in self.why(ledger)[job]
        ledger.read("r2", [job], 0)
        assert self.why(ledger) == {}, "whoever read it is done"
        ledger.redis.zadd(ledger.key("expire"), {job: 1})
        ledger.forget(job)
        assert list(ledger.redis.scan_iter("*holding*")) == []

    def test_a_reader_that_is_not_heard_holds_nothing_and_those_that_wait_look_again(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        ledger.commit(claim(ledger), "done", Result(), ())
        ledger.read("r1", [job])
        ledger.counted(STORE, MOST, 0, [])
        submit(ledger, 1)
        work = claim(ledger)
        assert take(ledger, work, 1)[0] == "full"
        ledger.back(work, 600, False, "waits", None, ())
        ledger.tick(0, 900)  # the ledger was not away
        for key in (ledger.key("reading"), ledger.key("readers", job)):
            for member, _ in ledger.redis.zrange(key, 0, -1, withscores=True):
                ledger.redis.zadd(key, {member: 1})
        assert job not in self.why(ledger)
        ledger.tick(0, 900)
        assert claim(ledger).unit == work.unit

    def test_after_an_absence_of_the_ledger_readers_get_one_more_term(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        ledger.commit(claim(ledger), "done", Result(), ())
        ledger.tick(0, 900)
        ledger.read("r1", [job])
        now = ledger.now_ms()
        ledger.redis.set(ledger.key("tick"), now - 100_000)
        for key, member in ((ledger.key("reading"), job), (ledger.key("readers", job), "r1")):
            ledger.redis.zadd(key, {member: now - 40_000})
        assert ledger.turn(STORE, "t", 30, patient="0").answer == "young", "nobody has looked after the readers yet"
        ledger.tick(0, 900)
        assert job in self.why(ledger)
        assert ledger.turn(STORE, "t", 30, patient="0").answer == "young", "it may have lost those who came last"
        assert 20_000 < int(ledger.redis.get(ledger.key("deaf"))) - ledger.now_ms() <= 30_000
        ledger.redis.delete(ledger.key("deaf"))
        assert ledger.turn(STORE, "t", 30, patient="0").answer == "ok"

    def test_what_is_read_is_not_forgotten(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        ledger.commit(claim(ledger), "done", Result(), ())
        ledger.read("r1", [job])
        ledger.redis.zadd(ledger.key("expire"), {job: 1})
        ledger.forget(job)
        assert ledger.meta(job)["state"] == "done"
        ledger.read("r1", [job], 0)
        ledger.redis.zadd(ledger.key("expire"), {job: 1})
        ledger.forget(job)
        assert ledger.recent(9) == []

    def test_what_every_reader_released_is_not_held(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 3)
        ledger.release(job, "r1", [0, 1, 2])  # nobody of that name reads it
        ledger.read("r1", [job])
        ledger.read("r2", [job])
        ledger.release(job, "r1", [0, 1])
        ledger.release(job, "r2", [1, 2])
        (holder,) = ledger.holders(0)
        assert holder.released == {"1"}
        ledger.read("r2", [job], 0)
        (holder,) = ledger.holders(0)
        assert holder.released == {"0", "1"}

    def test_what_went_to_a_directory_is_held_only_by_who_reads_it(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1, options=JobOptions(into="/x"))
        assert self.why(ledger) == {}
        ledger.read("r1", [job])
        assert list(self.why(ledger)) == [job]

    def test_a_job_that_redis_lost_is_held_by_those_who_read_it(self, ledger: WorkLedger) -> None:
        ledger.read("r1", ["jlost"])
        assert list(self.why(ledger)) == ["jlost"]

    def test_one_connection_holds_for_a_process_and_its_forks_hold_nothing(self, ledger: WorkLedger) -> None:
        job = submit(ledger, 1)
        first, second = Leases(ledger.settings), Leases(ledger.settings)
        first.keep(job)
        first.keep(job)
        second.keep(job)
        assert "1 process reads" in self.why(ledger)[job]
        if (child := os.fork()) == 0:
            first.close()
            second.done(job, [0])
            os._exit(0)
        os.waitpid(child, 0)
        (holder,) = ledger.holders(0)
        assert "1 process" in holder.why and holder.released == frozenset()
        first.drop(job)
        second.done(job, [0])
        (holder,) = ledger.holders(0)
        assert holder.released == {"0"}
        second.close()
        assert "nobody reads" in self.why(ledger)[job]


def test_a_unit_that_settles_reserves_nothing_more(ledger: WorkLedger) -> None:
    ledger.counted(STORE, 0, 0, [])
    job = submit(ledger, 1)
    work = claim(ledger)
    take(ledger, work, 5)
    ledger.sweep("cancel", job)
    ledger.commit(work, "cancelled", Result(), ())
    assert state(ledger, work.unit) == "cancelled" and counts(ledger) == (5, 0)
    assert take(ledger, work, 6) == ("lost", 0)
