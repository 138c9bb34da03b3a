"""Whether a file is tried again, and when."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import errors
from ingest.errors import DigestMismatch, FetchError, FetchTimeout, NodeUnfit, NotFound, Throttled, TransientFetchError
from ingest.settings import Retry
from workers.retry import UNFIT_DELAY_S, delay_s, is_final

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
        assert not is_final(policy, make(cls), 1, None, 0, None)
        assert is_final(policy, make(cls), 1, None, policy.deadline_s, None)
        assert is_final(policy, make(cls), 1, None, 60, 60) and not is_final(policy, make(cls), 1, None, 59, 60)
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

    def test_another_digest_twice_is_what_the_origin_has(self) -> None:
        error = make(DigestMismatch)
        assert [is_final(Retry(), error, n, None, 0, None) for n in (1, 2)] == [False, True]
        assert [is_final(Retry(), error, n, 99, 0, None) for n in (1, 2)] == [False, True]
        assert is_final(Retry(), error, 1, 1, 0, None)

    def test_an_unfit_node_is_not_the_sources_fault(self) -> None:
        assert not is_final(Retry(), NodeUnfit(URI, "disk full"), 10_000, 1, 0, None)
        assert is_final(Retry(), NotFound(URI, "404"), 1, None, 0, None)
