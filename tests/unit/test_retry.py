"""Whether a file is tried again, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import errors
from ingest.errors import DigestMismatch, FetchError, FetchTimeout, NodeUnfit, NotFound, Throttled, TransientFetchError
from ingest.sections import Retry
from workers.retry import UNFIT_DELAY_S, delay_s, is_final, is_progress, not_yet

URI = "https://host/a"
TIMEOUT = FetchTimeout(URI, "no data for 30 s")


def transient() -> list[type[FetchError]]:
    return [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, TransientFetchError)]


def permanent() -> list[type[FetchError]]:
    return [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.PermanentFetchError)]


def make(cls: type[FetchError]) -> FetchError:
    return DigestMismatch(URI, "sha256:a", "sha256:b", 1) if cls is DigestMismatch else cls(URI, "reason")


class TestDelay:
    @given(st.integers(1, 10_000), st.floats(0.01, 10), st.floats(10, 1000))
    def test_jitter_under_a_ceiling_that_doubles_up_to_the_cap(self, attempt: int, base: float, cap: float) -> None:
        policy = Retry(base_s=base, cap_s=cap)
        assert 0 <= delay_s(policy, TIMEOUT, attempt) <= min(cap, base * 2.0 ** min(attempt, 30))

    def test_it_is_spread_over_all_of_it(self) -> None:
        delays = [delay_s(Retry(), TIMEOUT, 4) for _ in range(500)]  # ceiling 0.5 × 2^4 = 8 s
        assert max(delays) > 6 and min(delays) < 2 and 3 < sum(delays) / 500 < 5

    @pytest.mark.parametrize(("asked", "least"), [(30.0, 30.0), (0.0, 0.0), (1e9, 600.0)])
    def test_what_the_origin_asked_for_is_obeyed_up_to_a_cap_and_spread(self, asked: float, least: float) -> None:
        policy = Retry()
        delays = [delay_s(policy, Throttled(URI, "429", asked), 1) for _ in range(50)]
        assert all(least <= delay <= least + policy.base_s * 2 for delay in delays) and len(set(delays)) > 40

    def test_an_origin_that_did_not_say(self) -> None:
        assert delay_s(Retry(base_s=0.5), Throttled(URI, "503"), 1) <= 1.0

    def test_an_origin_that_is_away_for_two_minutes_is_waited_for(self) -> None:
        policy, error = Retry(), Throttled(URI, "503")
        for _ in range(50):
            waited, attempt = 0.0, 1
            while not is_final(policy, error, attempt, None, waited, None):
                waited += delay_s(policy, error, attempt)
                attempt += 1
            assert 120 < waited < 600 and attempt == 2 * policy.attempts

    def test_a_node_that_is_unfit_is_looked_at_again_soon(self) -> None:
        assert delay_s(Retry(), NodeUnfit(URI, "disk full"), 50) == UNFIT_DELAY_S

    def test_no_delay_reaches_the_deadline(self) -> None:
        policy = Retry()
        assert policy.retry_after_cap_s + policy.cap_s < policy.deadline_s


class TestFinal:
    @pytest.mark.parametrize("cls", permanent(), ids=lambda c: c.__name__)
    def test_a_permanent_error_is_at_once(self, cls: type[FetchError]) -> None:
        assert is_final(Retry(), make(cls), 1, None, 0, None) and is_final(Retry(), make(cls), 1, 99, 0, 1e9)

    @pytest.mark.parametrize("cls", transient(), ids=lambda c: c.__name__)
    def test_a_transient_one_is_not_at_first_but_after_the_deadline(self, cls: type[FetchError]) -> None:
        policy = Retry()
        once = cls.max_attempts == 1  # where something else has counted before
        assert is_final(policy, make(cls), 1, None, 0, None) == once
        assert is_final(policy, make(cls), 1, None, policy.deadline_s, None)
        assert is_final(policy, make(cls), 1, None, 60, 60) and is_final(policy, make(cls), 1, None, 59, 60) == once
        assert is_final(policy, make(cls), 1, None, policy.deadline_s, policy.deadline_s * 2)  # ours is the most

    def test_attempts_are_counted(self) -> None:
        assert [is_final(Retry(attempts=3), TIMEOUT, n, None, 0, None) for n in (1, 2, 3, 4)] == [
            False,
            False,
            True,
            True,
        ]
        assert [is_final(Retry(attempts=3), TIMEOUT, n, 5, 0, None) for n in (3, 4, 5)] == [False, False, True]
        assert is_final(Retry(), TIMEOUT, 1, 1, 0, None)

    def test_an_origin_that_asks_for_patience_gets_more_unless_the_job_says_how_much(self) -> None:
        error = Throttled(URI, "429")
        assert [is_final(Retry(attempts=3), error, n, None, 0, None) for n in (3, 5, 6)] == [False, False, True]
        assert is_final(Retry(attempts=3), error, 3, 3, 0, None) and is_final(
            Retry(attempts=1), error, 1, None, 0, None
        )

    def test_another_digest_twice_is_what_the_origin_has(self) -> None:
        error = make(DigestMismatch)
        assert [is_final(Retry(), error, n, None, 0, None) for n in (1, 2)] == [False, True]
        assert [is_final(Retry(), error, n, 99, 0, None) for n in (1, 2)] == [False, True]
        assert is_final(Retry(), error, 1, 1, 0, None)

    def test_an_unfit_node_is_not_the_sources_fault(self) -> None:
        assert not is_final(Retry(), NodeUnfit(URI, "disk full"), 10_000, 1, 0, None)
        assert is_final(Retry(), NotFound(URI, "404"), 1, None, 0, None)

    def test_one_that_got_further_is_not_before_the_deadline(self) -> None:
        for cls in transient():
            error = make(cls)
            assert isinstance(error, TransientFetchError)
            error.progressed = True
            assert is_final(Retry(), error, 10_000, 1, 0, None) == (error.max_attempts is not None)
            assert is_final(Retry(), error, 1, None, Retry().deadline_s, None)


@pytest.mark.parametrize(
    ("advanced", "length", "far"),
    [
        (0, 100, False), (-5, 100, False), (9, 100, False), (10, 100, True), (1 << 20, 1 << 40, True),
        ((1 << 20) - 1, 1 << 40, False), (1 << 20, None, True), ((1 << 20) - 1, None, False), (1, 5, True),
    ],
)  # fmt: skip
def test_progress_is_a_mebibyte_or_a_tenth(advanced: int, length: int | None, far: bool) -> None:
    assert is_progress(advanced, length) == far


class TestNotYet:
    def test_what_is_not_found_is_looked_for_so_long(self) -> None:
        policy, missing = Retry(not_found_s=60), NotFound(URI, "404")
        error = not_yet(policy, missing, 59)
        assert isinstance(error, TransientFetchError) and "404" in error.reason and "60 s" in error.reason
        assert not is_final(policy, error, 10_000, 1, 59, None)
        assert not_yet(policy, missing, 60) is missing and not_yet(Retry(), missing, 0) is missing
        assert not_yet(policy, TIMEOUT, 0) is TIMEOUT

    def test_at_intervals_that_grow(self) -> None:
        policy, missing = Retry(not_found_s=3600), NotFound(URI, "404")
        for age, least, most in ((0, 0.25, 0.5), (40, 5, 10), (3000, 30, 60)):
            error = not_yet(policy, missing, age)
            assert isinstance(error, TransientFetchError) and least <= delay_s(policy, error, 1) <= most
