"""What one attempt at a shard came to, while it is being made. What becomes of it is decided in ``fetch``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from ingest.errors import FetchError, TransientFetchError
from ingest.ledger import Claim, Result
from ingest.model import Failure, FileRecord, FileSpec
from ingest.sources import Pack
from workers.logs import log
from workers.node import Node
from workers.retry import is_final, not_yet


@dataclass
class Outcome:
    """``files`` that are there, ``failures`` for good, ``transient`` ones to be tried again, ``busy`` what another unit
    is fetching; ``stopped`` why the attempt ended early (see Control), ``why`` a sentence about it. ``max_failed`` is
    the share of the shard's ``listed`` files that may fail without failing the shard."""

    listed: int = 0
    max_failed: float = 0.0
    files: list[FileRecord] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    transient: list[tuple[FileSpec, TransientFetchError]] = field(default_factory=list)
    busy: list[FileSpec] = field(default_factory=list)
    stopped: str = ""
    why: str = ""

    @classmethod
    def of(cls, claim: Claim) -> Outcome:
        """What earlier attempts already have. Failures count only until somebody asks for another try of the shard."""
        failures = list(claim.earlier.failures) if claim.record.failed else []
        allowed = Pack.from_json(claim.options.pack).max_failed if claim.options.pack else 0.0
        return cls(claim.record.files, allowed, list(claim.earlier.files), failures)

    def missed(
        self, node: Node, claim: Claim, specs: Sequence[FileSpec], found: FetchError, tries: int
    ) -> TransientFetchError | None:
        """Why none of these files, which are one source, came in try number ``tries``: to be tried again, then the
        error is returned; or for good."""
        policy, options = node.settings.retry, claim.options
        error = not_yet(policy, found, claim.age_s)
        if isinstance(error, TransientFetchError) and not is_final(
            policy, error, tries, options.attempts, claim.age_s, options.deadline_s
        ):
            self.transient.append((specs[0], error))
            return error
        self.failures += [failure_of(node, claim, spec.uri, spec.index, found) for spec in specs]
        return None

    @property
    def result(self) -> Result:
        return Result(
            tuple(sorted(self.files, key=lambda f: f.place)),
            tuple(sorted(self.failures, key=lambda f: f.index)),
        )

    @property
    def is_failed(self) -> bool:
        return len(self.failures) > self.max_failed * self.listed


def failure_of(node: Node, claim: Claim, uri: str, index: tuple[int, int], error: FetchError) -> Failure:
    """What becomes of an error that is final: a line in the log, and the record that every waiter gets."""
    name = type(error).__name__
    facts = {"job": claim.job, "shard": claim.number, "node": node.settings.node, "source": uri, "error": name}
    log.warning("file.failed", extra=facts | {"reason": error.reason})
    tries = claim.record.attempts + 1
    return Failure(uri, name, error.reason, tries, claim.unit, node.settings.node, index, error.details)
