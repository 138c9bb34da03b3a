"""The one retry policy: whether a file is tried again, and when. Retries wait in the ledger, never in a worker."""

from __future__ import annotations

import random

from ingest.errors import FetchError, NodeUnfit, Throttled, TransientFetchError
from ingest.settings import Retry

#: How long a shard whose node cannot work now waits before somebody looks again.
UNFIT_DELAY_S = 10.0


def delay_s(policy: Retry, error: TransientFetchError, attempt: int) -> float:
    """Seconds until try number ``attempt + 1``: what the origin asked for, else full jitter under an exponential cap.

    (Full jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.)
    """
    if isinstance(error, NodeUnfit):
        return UNFIT_DELAY_S
    ceiling = min(policy.cap_s, policy.base_s * 2 ** min(attempt, 30))
    jitter = random.uniform(0, ceiling)
    if isinstance(error, Throttled) and error.retry_after_s is not None:
        return min(error.retry_after_s, policy.retry_after_cap_s) + jitter
    return jitter


def is_final(
    policy: Retry, error: FetchError, attempt: int, attempts: int | None, age_s: float, deadline_s: float | None
) -> bool:
    """Whether the failure of try number ``attempt`` (from 1) is the file's last. ``age_s`` is the job's,
    ``attempts`` its limit."""
    if not isinstance(error, TransientFetchError):
        return True
    if age_s >= min(deadline_s or policy.deadline_s, policy.deadline_s):
        return True
    if isinstance(error, NodeUnfit):
        return False
    most = attempts or policy.attempts
    return attempt >= min(most, error.max_attempts or most)
