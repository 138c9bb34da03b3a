"""Every error that may cross the queue or reach a user. Imports nothing of ours.

    IngestError
    ├── UsageError (ValueError)          the request itself is wrong: exit status 2
    │   ├── BadSource                    a URI, brace range, digest or query that cannot be right
    │   └── UnknownConnection            no data node knows a connection of that name
    ├── ConfigError                      ingest.toml or the environment is wrong: exit status 2
    ├── LedgerUnavailable                Redis cannot be reached, or refuses us
    ├── NoDataNode                       nobody is there who could do the work
    ├── ServiceFailed                    a part of the embedded service did not start, or ended by itself
    ├── UnknownJob                       never submitted, or expired
    ├── WaitTimeout (TimeoutError)       the wait ended, the job goes on
    │   └── NotSubmitted                 the rank that should have submitted the job did not
    ├── JobFailed                        some sources failed; carries what arrived and what did not
    ├── NotLocalError                    the file is on another node
    ├── StoreError                       a store root that cannot be used, a file that is not what it was
    ├── DataError                        a fetched file that cannot be read as samples
    ├── ResumeError                      a dataset cannot go on exactly where its state says
    └── FetchError                       one source could not be had
        ├── TransientFetchError          worth another try: retried with backoff
        │   ├── FetchTimeout             nothing came for too long
        │   ├── ConnectionLost           refused, reset, cut off, name not resolved
        │   ├── OriginUnavailable        the origin says that it cannot now (5xx, SlowDown)
        │   ├── Throttled                the origin says when to come back
        │   ├── Truncated                fewer or more bytes than announced
        │   ├── SourceChanged            it changed while it was read
        │   ├── UploadFailed             what is at the destination is not what was sent there
        │   ├── SnapshotLost             the moment that all partitions are read at is past
        │   ├── DigestMismatch           the bytes are not those that were asked for (tried once more only)
        │   └── NodeUnfit                this node cannot do it now (disk full, mount gone); another may
        │       └── NoRoom               its store is full of what jobs hold; it goes on when one of them lets go
        └── PermanentFetchError          no use in trying again: the source fails now
            ├── NotFound
            ├── AccessDenied
            ├── BadResponse              an answer that makes no sense, or a source of another shape
            ├── TooLarge                 more bytes than allowed
            ├── EgressDenied             our own policy forbids that address or path
            ├── NothingMatched           a glob or prefix with no file under it
            ├── NoSnapshot               the partitions of a table cannot be read at one moment
            ├── VersionGone              evicted, and the origin has something else by now
            ├── MissingExtra             a library is not installed on the data node
            ├── Unsupported              nobody here can fetch that scheme, or that type
            ├── Quarantined              the shard killed its worker again and again
            └── Cancelled                its job was cancelled

Celery's JSON backend rebuilds an error as ``cls(*exc.args)``: every field here is therefore positional,
``args`` holds them all, and the sentence is made in ``__str__``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar


class IngestError(Exception):
    """Base of everything that this package raises on purpose."""


class UsageError(IngestError, ValueError):
    """A request that cannot be right, whatever the state of the world. ``UsageError(what)``."""


class BadSource(UsageError):
    """A source that cannot be right. ``BadSource(uri, reason)``."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(uri, reason)
        self.uri, self.reason = uri, reason

    def __str__(self) -> str:
        return f"{self.uri}: {self.reason}"


class UnknownConnection(UsageError):
    """``UnknownConnection(name, known)``: no ``[connections.NAME]`` on any live data node."""

    def __init__(self, name: str, known: Sequence[str] = ()) -> None:
        super().__init__(name, list(known))
        self.name, self.known = name, list(known)

    def __str__(self) -> str:
        known = f"known: {', '.join(self.known)}" if self.known else "none is configured"
        where = f"add [connections.{self.name}] to ingest.toml on the data nodes"
        return f"connection {self.name!r} is unknown ({known}); {where}"


class ConfigError(IngestError):
    """``ConfigError(where, reason)``."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


class LedgerUnavailable(IngestError):
    """``LedgerUnavailable(url, reason, cure)``; the URL is without its password. With a cure, Redis is there and
    refuses."""

    def __init__(self, url: str, reason: str, cure: str = "") -> None:
        super().__init__(url, reason, *([cure] if cure else []))
        self.url, self.reason, self.cure = url, reason, cure

    def __str__(self) -> str:
        cure = self.cure or "start one with `ingest up`, or set INGEST_REDIS_URL"
        return f"no ledger at {self.url}: {self.reason}; {cure}"


class NoDataNode(IngestError):
    """``NoDataNode(where)``: nobody alive consumes that queue."""

    def __init__(self, where: str) -> None:
        super().__init__(where)
        self.where = where

    def __str__(self) -> str:
        return (
            f"no data node is alive for {self.where}; start one with `celery -A workers worker` or `ingest up`, "
            "or queue the work all the same with require_node=False"
        )


class ServiceFailed(IngestError):
    """``ServiceFailed(part, reason)``: a part of the embedded service (redis, worker, flower) is not there."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(part, reason)
        self.part, self.reason = part, reason

    def __str__(self) -> str:
        return f"{self.part}: {self.reason}"


class UnknownJob(IngestError):
    """``UnknownJob(job)``."""

    def __init__(self, job: str) -> None:
        super().__init__(job)
        self.job = job

    def __str__(self) -> str:
        return (
            f"no job {self.job!r} in the ledger: it was never submitted there, it has expired, or Redis lost it; "
            "submit it again: files that are in the stores are not fetched twice"
        )


class WaitTimeout(IngestError, TimeoutError):
    """``WaitTimeout(job, seconds, waiting_for)``: the wait is over, the job goes on."""

    def __init__(self, job: str, seconds: float, waiting_for: str = "") -> None:
        super().__init__(job, seconds, waiting_for)
        self.args = (job, seconds, waiting_for)  # OSError, which TimeoutError is, keeps two of three
        self.job, self.seconds, self.waiting_for = job, seconds, waiting_for

    def __str__(self) -> str:
        what = f" ({self.waiting_for})" if self.waiting_for else ""
        again = f"attach again with client.job({self.job!r})"
        return f"job {self.job} is not finished after {self.seconds:g} s{what}; it goes on: {again}"


class NotSubmitted(WaitTimeout):
    """``NotSubmitted(key, seconds, who)``: who waited for the job of that key, which another rank was to submit."""

    def __str__(self) -> str:
        return (
            f"{self.waiting_for} waited {self.seconds:g} s for the job that local rank 0 of its node submits, and it "
            f"is not there (key {self.job}): look at that rank's log"
        )


class JobFailed(IngestError):
    """``JobFailed(files, failures)``: what arrived, and what did not."""

    def __init__(self, files: Sequence[Any], failures: Sequence[Any]) -> None:
        super().__init__(files, failures)
        self.files, self.failures = list(files), list(failures)

    def __str__(self) -> str:
        shown = "; ".join(str(failure) for failure in self.failures[:3])
        more = f"; and {len(self.failures) - 3} more" if len(self.failures) > 3 else ""
        return f"{len(self.failures)} failed, {len(self.files)} arrived: {shown}{more}"


class NotLocalError(IngestError):
    """``NotLocalError(source, node)``: fetched, but into a store that this process does not share."""

    def __init__(self, source: str, node: str) -> None:
        super().__init__(source, node)
        self.source, self.node = source, node

    def __str__(self) -> str:
        return (
            f"{self.source} was fetched into the store of node {self.node}, which is not the store here; "
            "read it there, set INGEST_STORE to the store that both share, or submit with placement='here'"
        )


class StoreError(IngestError):
    """``StoreError(path, reason)``."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"store: {self.path}: {self.reason}"


class DataError(IngestError):
    """``DataError(path, reason)``: a local file whose samples cannot be read; the reason names source and sample."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class ResumeError(IngestError):
    """``ResumeError(job, reason)``: a dataset cannot go on exactly where its state says."""

    def __init__(self, job: str, reason: str) -> None:
        super().__init__(job, reason)
        self.job, self.reason = job, reason

    def __str__(self) -> str:
        return f"cannot resume the dataset of job {self.job}: {self.reason}"


class FetchError(IngestError):
    """``FetchError(uri, reason)``: one source could not be had, and why."""

    #: How often a file may fail with this error before it is failed for good; None leaves it to the retry policy.
    max_attempts: ClassVar[int | None] = None

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(uri, reason)
        self.uri, self.reason = uri, reason

    def __str__(self) -> str:
        return f"{self.uri}: {self.reason}"

    @property
    def details(self) -> tuple[Any, ...]:
        """What it was made of beside the URI, where that is more than the reason; else ()."""
        return () if self.args[1:] == (self.reason,) else self.args[1:]


class TransientFetchError(FetchError):
    """Worth another try."""

    #: Whether the next attempt has less to do than this one had. Known on the data node only, it does not travel.
    progressed: bool = False


class FetchTimeout(TransientFetchError):
    """Nothing came for too long."""


class ConnectionLost(TransientFetchError):
    """Refused, reset, cut off, or a name that did not resolve."""


class OriginUnavailable(TransientFetchError):
    """The origin says that it cannot now."""


class Throttled(TransientFetchError):
    """``Throttled(uri, reason, retry_after_s)``; ``retry_after_s`` is None where the origin did not say."""

    def __init__(self, uri: str, reason: str, retry_after_s: float | None = None) -> None:
        IngestError.__init__(self, uri, reason, retry_after_s)
        self.uri, self.reason, self.retry_after_s = uri, reason, retry_after_s


class Truncated(TransientFetchError):
    """Not as many bytes as the origin announced."""


class SourceChanged(TransientFetchError):
    """It changed while it was read; nothing of the mixture is kept."""


class UploadFailed(TransientFetchError):
    """What is at the destination is not what was sent there; the file itself is in the store."""


class SnapshotLost(TransientFetchError):
    """The moment that all partitions are read at is past. All of them are read again at another one, some times."""

    max_attempts = 1  # the ledger counts the moments; whoever gets to see this has seen the last one go


class DigestMismatch(TransientFetchError):
    """``DigestMismatch(uri, expected, found, size)``: not the bytes that were asked for; nothing was published."""

    max_attempts = 2  # once for a bit lost on the way; twice the same is the origin's content

    def __init__(self, uri: str, expected: str, found: str, size: int) -> None:
        IngestError.__init__(self, uri, expected, found, size)
        self.uri, self.expected, self.found, self.size = uri, expected, found, size
        self.reason = (
            f"expected {expected}, got {found} over {size} bytes; nothing was published. "
            "The file at the origin changed, the digest is of another file, or the bytes were damaged on the way"
        )


class NodeUnfit(TransientFetchError):
    """This node cannot do it now (disk full, read-only, mount gone). Not the origin's fault: no attempt is counted."""


class NoRoom(NodeUnfit):
    """The store has no room for it, and nothing in it may go now. The reason says for whom it waits."""

    #: When to look again unless something changes before. Known on the data node only, it does not travel.
    wait_s: float = 10.0


class PermanentFetchError(FetchError):
    """No use in trying again."""


class NotFound(PermanentFetchError):
    """The origin has no such thing."""


class AccessDenied(PermanentFetchError):
    """The origin refuses us; look at the connection on the data node."""


class BadResponse(PermanentFetchError):
    """An answer that makes no sense."""


class TooLarge(PermanentFetchError):
    """More bytes than allowed."""


class EgressDenied(PermanentFetchError):
    """Our own policy forbids that address or path."""


class NothingMatched(PermanentFetchError):
    """A glob or prefix under which there is nothing."""


class NoSnapshot(PermanentFetchError):
    """The partitions of a table cannot be read at one moment, and nobody said that they need not."""


class VersionGone(PermanentFetchError):
    """It was evicted, and the origin has not what it was any more: whoever reads on would read something else."""


class MissingExtra(PermanentFetchError):
    """``MissingExtra(uri, extra)``: the data node lacks a library."""

    def __init__(self, uri: str, extra: str) -> None:
        IngestError.__init__(self, uri, extra)
        self.uri, self.extra = uri, extra
        self.reason = f"the data node lacks a library for it: pip install {extra!r} there"


class Unsupported(PermanentFetchError):
    """Nobody here can do that."""


class Quarantined(PermanentFetchError):
    """The shard killed its worker again and again; ``ingest retry`` gives it another chance."""


class Cancelled(PermanentFetchError):
    """Its job was cancelled before it arrived."""


def by_name(name: str) -> type[FetchError]:
    """The fetch error class of that name; PermanentFetchError for one that a newer worker may have written."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, FetchError) else PermanentFetchError
