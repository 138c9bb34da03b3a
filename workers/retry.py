"""The one retry policy: whether a file is tried again, and when. Retries wait in the ledger, never in a worker."""

from __future__ import annotations

import random

from ingest.errors import FetchError, NodeUnfit, NoRoom, NotFound, OriginUnavailable, Throttled, TransientFetchError
from ingest.sections import Retry

#: An attempt got further if it brought so much more of a file, or this part of it: then attempts are counted anew. That
#: is what a line of 10 Mbit/s brings while a connection is made; whoever brings less for each one does not get far. A
#: file cannot grow by it more often than it has such parts, so nothing is tried without end.
PROGRESS_BYTES, PROGRESS_PART = 1 << 20, 10

#: How long a shard whose node cannot work now waits before somebody looks again.
UNFIT_DELAY_S = 10.0


def is_progress(advanced: int, length: int | None) -> bool:
    """Whether ``advanced`` bytes more than before, of a file of ``length``, are worth going on for."""
    return advanced > 0 and advanced >= min(PROGRESS_BYTES, (length or PROGRESS_BYTES * PROGRESS_PART) // PROGRESS_PART)


class NotThereYet(OriginUnavailable):
    """``NotThereYet(uri, reason, age_s)``: not found, in a job that is no older than ``not_found_s``. It ends here."""

    progressed = True  # no attempt is counted

    def __init__(self, uri: str, reason: str, age_s: float) -> None:
        super().__init__(uri, reason)
        self.age_s = age_s


def not_yet(policy: Retry, error: FetchError, age_s: float) -> FetchError:
    """The error that decides: what is not found in a job's first ``not_found_s`` may only not be there yet."""
    if not isinstance(error, NotFound) or age_s >= policy.not_found_s:
        return error
    until = f"it is looked for again until the job is {policy.not_found_s:g} s old"
    return NotThereYet(error.uri, f"{error.reason}; {until}", age_s)


def delay_s(policy: Retry, error: TransientFetchError, attempt: int) -> float:
    """Seconds until try number ``attempt + 1``: what the origin asked for, else full jitter under an exponential cap.

    (Full jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.)
    """
    if isinstance(error, NoRoom):
        return error.wait_s
    if isinstance(error, NodeUnfit):
        return UNFIT_DELAY_S
    if isinstance(error, NotThereYet):
        return random.uniform(0.5, 1.0) * min(policy.cap_s, max(policy.base_s, error.age_s / 4))
    ceiling = min(policy.cap_s, policy.base_s * 2.0 ** min(attempt, 30))
    jitter = random.uniform(0, ceiling)
    if not isinstance(error, Throttled):
        return jitter
    if error.retry_after_s is not None:
        return min(error.retry_after_s, policy.retry_after_cap_s) + jitter
    # It asks to be left alone and does not say how long: never at once, and never all at the same time.
    return (ceiling + jitter) / 2


def is_final(
    policy: Retry, error: FetchError, attempt: int, attempts: int | None, age_s: float, deadline_s: float | None
) -> bool:
    """Whether the failure of try number ``attempt`` (from 1) is the file's last. ``age_s`` is the job's,
    ``attempts`` its limit."""
    if not isinstance(error, TransientFetchError):
        return True
    if age_s >= min(deadline_s or policy.deadline_s, policy.deadline_s):
        return True
    if isinstance(error, NodeUnfit) or (error.progressed and error.max_attempts is None):
        return False
    # Who asks for patience gets twice as much: by the defaults three minutes at the least.
    patient = isinstance(error, Throttled) and policy.attempts > 1
    most = attempts or policy.attempts * (2 if patient else 1)
    return attempt >= min(most, error.max_attempts or most)
