"""Several URIs of the same bytes: the next one is tried when one fails, with what came from the last as far as it is of
use. One file's way is in ``transfer``; whether its failure is tried again, in ``retry``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from ingest.errors import DigestMismatch, FetchError, NodeUnfit, PermanentFetchError, Throttled, TransientFetchError
from ingest.model import FileSpec
from ingest.store import Scratch
from workers.fetchers.base import Fetched, Known

Bring = Callable[[FileSpec, Scratch, Known | None], Fetched | None]


def bring_from_any(
    bring: Bring, verify: Callable[[FileSpec, Scratch], object], spec: FileSpec, scratch: Scratch, known: Known | None
) -> Fetched | None:
    """From the source's own URI, else from the first of its mirrors that has it. Raises the FetchError of the only URI,
    or one that gives the reason of each.

    A fetcher goes on with what another URI's left only where that is the same file: by its strong ETag and length, or
    because a digest will tell. What a mirror says of versions is no word of the source's.
    """
    if not spec.mirrors:
        return bring(spec, scratch, known)
    failed: list[tuple[str, FetchError]] = []
    for uri in (spec.uri, *spec.mirrors):
        own = uri == spec.uri
        at = spec if own else dataclasses.replace(spec, uri=uri, connection=None, version=None, mirrors=())
        scratch.mirror = None if own else uri
        try:
            fetched = _bring_whole(bring, verify, at, scratch, known if own else None)
            # An earlier one may have brought the beginning: then it was not the source alone that said what this is.
            mirrors = (*(scratch.journal.mirrors if scratch.journal else ()), *(() if own else (uri,)))
            if fetched is None or not mirrors:
                return fetched
            return dataclasses.replace(fetched, version=None, validator=None, mirrors=tuple(dict.fromkeys(mirrors)))
        except NodeUnfit:
            raise  # no mirror makes room on our disk
        except FetchError as error:
            failed.append((uri, error))
            if isinstance(error, DigestMismatch) or scratch.journal is None:
                scratch.restart()
    raise combined(spec.uri, failed)


def _bring_whole(
    bring: Bring, verify: Callable[[FileSpec, Scratch], object], spec: FileSpec, scratch: Scratch, known: Known | None
) -> Fetched | None:
    """From one URI. Wrong bytes that came from another one as well are no fault of this one: then all from this one."""
    fetched = bring(spec, scratch, known)
    try:
        if fetched is not None:
            verify(spec, scratch)
        return fetched
    except DigestMismatch:
        if scratch.journal is None or not scratch.journal.mixed:
            raise
    scratch.restart()
    fetched = bring(spec, scratch, known)
    if fetched is not None:
        verify(spec, scratch)
    return fetched


def combined(uri: str, failed: Sequence[tuple[str, FetchError]]) -> FetchError:
    """One error for all mirrors: worth another try if any of theirs is; it names each and its reason."""
    transient = [error for _, error in failed if isinstance(error, TransientFetchError)]
    chief = transient[0] if transient else failed[0][1]
    reason = "; ".join(f"{where}: {error.reason}" for where, error in failed)
    if isinstance(chief, DigestMismatch):
        others = [error for error in transient if not isinstance(error, DigestMismatch)]
        if not others:
            found = ", ".join(e.found for _, e in failed if isinstance(e, DigestMismatch))
            return DigestMismatch(uri, chief.expected, found, chief.size)
        chief = others[0]
    if isinstance(chief, Throttled):
        return Throttled(uri, reason, chief.retry_after_s)
    if type(chief).__init__ is FetchError.__init__:
        return type(chief)(uri, reason)
    return (TransientFetchError if transient else PermanentFetchError)(uri, reason)
