"""http:// and https://: one GET, its body streamed, a cut-off body continued, a large one over several connections.

What an answer means is in ``answers``, requests and redirects are in ``exchange``, several connections in ``ranges``.
Retries are the ledger's: one call here is one attempt.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing

import requests

from ingest.errors import BadResponse, SourceChanged, Truncated, Unsupported
from ingest.model import FileSpec
from ingest.sources import AnySource
from ingest.store.scratch import Scratch
from ingest.store.spans import Span
from workers.fetchers.base import Context, Fetched, Known
from workers.fetchers.http import answers, found
from workers.fetchers.http.exchange import CLIENT_ERRORS, Exchange, Route, new_session, release
from workers.fetchers.http.learned import Learned
from workers.fetchers.http.pieces import Pace, Plan
from workers.fetchers.http.ranges import NO_RANGE, Download, RangesRefused, Spare
from workers.fetchers.http.signing import signer
from workers.fetchers.http.wire import Reply, watched
from workers.logs import log

#: Bytes that came are in the file, and seen as progress, after at most this long.
_FLUSH_S = 0.5
#: What was taken up is hashed beside the download from so many bytes on: before it, the origin would wait for us.
_HASH_ASIDE_BYTES = 64 << 20
#: Fewer bytes than these are fetched again rather than asked for in a second way.
_WORTH_KEEPING_BYTES = 1 << 20


class HttpFetcher:
    """Keeps one requests session per thread, for its open connections only: no cookie and no credential stays in it."""

    def __init__(self) -> None:
        self._local = threading.local()
        self.spare = Spare()
        self.learned = Learned()

    def fetch(self, spec: FileSpec, scratch: Scratch, known: Known | None, context: Context) -> Fetched | None:
        """See :class:`~workers.fetchers.base.Fetcher`. Profile keys: ``headers``, ``bearer``, ``user``, ``password``,
        ``cert`` (a path, or [certificate, key]), ``verify`` (a path, or false), ``refresh`` (see ``signing``)."""
        route = Route(signer(spec.uri, context))
        exchange = Exchange(self._session(), spec.uri, context, scratch.check, route=route)
        with watched(exchange.watch):
            try:
                return _Transfer(self, exchange, spec, scratch, known).run()
            except SourceChanged:
                scratch.restart()  # no mixture is ever gone on with
                raise

    def expand(self, source: AnySource, context: Context) -> Iterator[FileSpec]:
        raise Unsupported(
            source.uri,
            "http has no way to list files; name them, use a brace range such as part-{000..127}.tar, or give a "
            "Manifest that lists them (a literal * or [ is written %2A or %5B)",
        )

    def _session(self) -> requests.Session:
        session: requests.Session | None = getattr(self._local, "session", None)
        if session is None:
            session = self._local.session = new_session()
        return session


class _Transfer:
    """One attempt at one file."""

    def __init__(
        self, fetcher: HttpFetcher, exchange: Exchange, spec: FileSpec, scratch: Scratch, known: Known | None
    ) -> None:
        self._fetcher, self._exchange, self._spec, self._scratch = fetcher, exchange, spec, scratch
        self._known = (known.validator or known.version) if known else None

    def run(self) -> Fetched | None:
        asked = answers.conditional(self._known)
        response, span = self._continued(asked) or (self._exchange.get(asked), None)
        status, headers = response.status_code, response.headers
        with closing(response):
            etag = answers.strong_etag(headers)
            unchanged = status in {200, 203} and etag and etag == self._known
            if (status == 304 and asked) or unchanged:  # not every origin knows conditional requests
                if status == 304:
                    release(response)
                self._scratch.restart()
                return None
            if status == 416 and span and self._scratch.journal:
                release(response)
                tag = self._scratch.journal.validator
                return Fetched(version=tag, validator=tag)
            if status in {304, 416} or (status == 206 and not span):
                raise answers.status_error(self._spec.uri, status, headers, self._exchange.profile)
            try:
                self._receive(response, span)
            except RangesRefused as refused:
                self._distrust(refused.why)
            else:
                if etag is None and status == 206 and self._scratch.journal:
                    etag = self._scratch.journal.validator  # If-Range has answered for it
                return Fetched(etag, answers.validator(headers) or etag, answers.disposition_name(headers))
        return self._anew()

    def _anew(self) -> Fetched:
        """From byte 0 and over one connection, after ranges have led to nothing good."""
        self._scratch.restart()
        with closing(self._exchange.get({})) as response:
            headers = response.headers
            if response.status_code not in {200, 203}:
                raise answers.status_error(self._spec.uri, response.status_code, headers, self._exchange.profile)
            self._receive(response, None)
            return Fetched(answers.strong_etag(headers), answers.validator(headers), answers.disposition_name(headers))

    def _continued(self, asked: dict[str, str]) -> tuple[Reply, Span] | None:
        """An answer that goes on with what an earlier attempt left, or says that it is complete, with the bytes that it
        was asked for; None to begin anew. An answer of the whole new version is one as well, of no span."""
        for again in (False, True):
            span = self._resumable()
            journal = self._scratch.journal
            if span is None or journal is None:
                return None
            start, end = span
            last = "" if end in (0, journal.length) else str(end - 1)
            # If-Range makes the server send the whole new version rather than the rest of another one
            # (RFC 9110 §13.1.5).
            wanted = {"Range": f"bytes={start}-{last}", "If-Range": journal.validator}
            response = self._exchange.get(asked | wanted, also=NO_RANGE)
            if response.status_code in {200, 203, 304}:
                if again or not self._same_by_digest(response):
                    return response, (0, 0)
                response.close()
            elif _continues(response, self._scratch, span):
                return response, span
            else:
                tag = answers.strong_etag(response.headers)
                if response.status_code != 416 and tag in (None, journal.validator):
                    self._distrust(f"{response.status_code} to bytes {start}-{last}")
                release(response)
                return None
        return None

    def _same_by_digest(self, response: Reply) -> bool:
        """Whether to go on although the validator is another one, as between mirrors, or the machines behind a load
        balancer: only where a digest will tell at the end whether it was the same file."""
        journal, headers = self._scratch.journal, response.headers
        etag = answers.strong_etag(headers)
        same = (
            response.status_code == 200
            and self._spec.digest is not None
            and journal is not None
            and journal.length is not None
            and self._scratch.held >= _WORTH_KEEPING_BYTES
            and etag is not None
            and answers.content_length(self._spec.uri, headers) == journal.length
            and _takes_ranges(headers)
        )
        if same:
            assert journal is not None and etag is not None
            self._scratch.note(etag, journal.length, mixed=True)
        return same

    def _receive(self, response: Reply, span: Span | None) -> None:
        spec, scratch, headers = self._spec, self._scratch, response.headers
        found.judge(spec, self._exchange.settings.http, headers)
        partial = response.status_code == 206
        if not partial and (scratch.held or scratch.journal):
            scratch.restart()
        length = answers.content_length(spec.uri, headers)
        total = answers.content_range(headers)[2] if partial else length
        if spec.size is not None and total is not None and total != spec.size:
            raise BadResponse(
                spec.uri, f"{total} bytes are announced, {spec.size} were expected; nothing was downloaded"
            )
        if total is not None:
            scratch.announce(total)
        etag = answers.strong_etag(headers)
        # A body encoded on the fly may come out differently at the next request, whatever its ETag says.
        if etag and (partial or _takes_ranges(headers)) and not answers.content_coding(headers):
            mixed = scratch.journal is not None and scratch.journal.mixed
            scratch.note(etag, total, mixed=mixed)
        found.expect(spec, scratch, response.status_code, headers)
        if total is not None and (most := self._connections(total)):
            self._download(response, total, most, on=not partial or span is None or span[1] in (0, total))
        else:
            self._read_body(response)
        if total is not None and scratch.size != total:
            raise Truncated(spec.uri, f"{scratch.size} of {total} bytes came")
        if spec.size is not None and scratch.size != spec.size:
            raise BadResponse(spec.uri, f"{scratch.size} bytes came, {spec.size} were expected")

    def _resumable(self) -> Span | None:
        """The first bytes that are missing, (start, 0) where the end is not known; those behind the last where none
        are."""
        scratch, journal = self._scratch, self._scratch.journal
        if journal is None or journal.facts is not None or not scratch.held:
            return None
        if journal.length is None:
            return scratch.size, 0
        gaps = scratch.gaps(journal.length)
        if not gaps:
            return journal.length, journal.length
        if not self._many(gaps):
            return gaps[0]
        # One piece, so that this connection is of further use instead of being closed where the next one has begun.
        piece = Plan(gaps, self._exchange.settings.http.range_bytes).take(0.0)
        assert piece is not None
        return piece.at, piece.end

    def _many(self, gaps: list[Span]) -> bool:
        http = self._exchange.settings.http
        worth = sum(end - start for start, end in gaps) >= http.ranges_from_bytes
        return worth and http.ranges > 1 and self._fetcher.learned.trusts(self._spec.uri)

    def _connections(self, total: int) -> int:
        """How many connections there may be; 0 where one that writes from end to end will do."""
        scratch = self._scratch
        gaps = scratch.gaps(total)
        if scratch.journal is None or not gaps:
            return 0
        if self._many(gaps):
            return self._exchange.settings.http.ranges
        several = len(gaps) > 1 or gaps[0][1] != total
        return 1 if several or scratch.size >= _HASH_ASIDE_BYTES else 0

    def _download(self, response: Reply, total: int, most: int, *, on: bool) -> None:
        journal = self._scratch.journal
        assert journal is not None
        uri, learned = self._spec.uri, self._fetcher.learned
        pace = Pace(most, time.monotonic(), learned.of_use(uri))
        download = Download(
            self._exchange, self._scratch, response,
            validator=journal.validator, total=total, on=on, pace=pace, spare=self._fetcher.spare,
        )  # fmt: skip
        try:
            download.run()
            if most > 1:
                learned.were_of_use(uri, pace.target)
        finally:
            if download.refused is not None:
                self._distrust(download.refused)

    def _distrust(self, why: str) -> None:
        self._fetcher.learned.distrust(self._spec.uri)
        log.warning("ranges.refused", extra={"source": self._spec.uri, "reason": why})

    def _read_body(self, response: Reply) -> None:
        """All bytes as they were sent (a Content-Encoding is not undone), in writes of about ``chunk_bytes``."""
        exchange, scratch = self._exchange, self._scratch
        chunk_bytes = exchange.settings.http.chunk_bytes
        pending: list[bytes] = []
        held = 0
        flushed = time.monotonic()
        exchange.watch.restart()
        try:
            while True:
                try:
                    # read1 gives what has come instead of waiting for a whole chunk: a slow body is seen to advance.
                    data: bytes = response.raw.read1(chunk_bytes, decode_content=False)
                except CLIENT_ERRORS as error:
                    exchange.fail(error)
                if not data:
                    return
                pending.append(data)
                held += len(data)
                if held >= chunk_bytes or time.monotonic() - flushed >= _FLUSH_S:
                    whole = data if len(pending) == 1 else b"".join(pending)
                    pending, held = [], 0
                    scratch.write(whole)
                    flushed = time.monotonic()
        finally:
            if pending:  # also when it broke off: the next attempt goes on from here
                scratch.write(b"".join(pending))


def _takes_ranges(headers: answers.Headers) -> bool:
    return headers.get("Accept-Ranges", "").strip().lower() == "bytes"


def _continues(response: Reply, scratch: Scratch, span: Span) -> bool:
    """Whether an answer to a ranged request is of use: exactly those bytes of the same version, or no such bytes."""
    journal = scratch.journal
    assert journal is not None
    start, end = span
    first, last, total = answers.content_range(response.headers)
    if total is None or (journal.length is not None and total != journal.length):
        return False
    if (answers.strong_etag(response.headers) or journal.validator) != journal.validator:
        return False
    if answers.content_coding(response.headers):
        return False
    if response.status_code == 416:
        return total == start
    return response.status_code == 206 and (first, last) == (start, (end or total) - 1)
