"""``api://connection/path``: page after page into one file of JSON Lines, resumed at the last whole page.

What is asked next is in ``pages``, one request in ``calls``, what an answer holds in ``records``, Parquet in ``table``.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

from ingest.apis import Paging, check_api, records_way
from ingest.errors import BadResponse, BadSource, MissingExtra, Throttled, Truncated, Unsupported
from ingest.model import FileSpec
from ingest.sources import AnySource, Api
from ingest.store.scratch import Scratch
from workers.fetchers.api import rates
from workers.fetchers.api.calls import Answer, Caller, Refused, Sessions
from workers.fetchers.api.pages import Pages, State
from workers.fetchers.api.records import NotRecords, Page, read
from workers.fetchers.base import Context, Fetched, Known
from workers.fetchers.http import answers

#: Records go to the file in blocks of this size: between two, the work may be told to stop.
_WRITE_BYTES = 1 << 20


class ApiFetcher:
    """Keeps sessions for their open connections, and the pace of each profile."""

    def __init__(self) -> None:
        self._sessions = Sessions()
        self._paces: defaultdict[str, rates.Pace] = defaultdict(rates.Pace)

    def fetch(self, spec: FileSpec, scratch: Scratch, known: Known | None, context: Context) -> Fetched | None:
        """All pages, as JSON Lines or Parquet. ``samples`` is the number of records."""
        api, paging = _asked(spec)
        write = _table_writer(spec.uri) if api.format == "parquet" else None
        caller = Caller(spec.uri, context, self._sessions.session, lambda: scratch.write(b""))
        per_s = rates.per_second(spec.uri, caller.profile, context.value("requests_per_s"))
        pace = self._paces[f"{caller.profile} {caller.base}"]
        run = _Run(spec.uri, api, paging, caller, scratch, pace, per_s)
        if not run.go(known):
            return None
        if write:
            _to_parquet(write, scratch, spec.uri)
        return Fetched(validator=run.validator, samples=run.state.records)

    def expand(self, source: AnySource, context: Context) -> Iterator[FileSpec]:
        """One file. No request is made: how many pages there are, only the pages say."""
        if not isinstance(source, Api):
            raise Unsupported(str(getattr(source, "uri", source)), "an API is asked with ingest.Api")
        spec = FileSpec(0, 0, source.uri, connection=source.connection, request=source.to_json())
        api, _ = _asked(spec)
        Caller(spec.uri, context, self._sessions.session, lambda: None)
        last = re.sub(r"[^\w.-]", "_", unquote(api.path).rstrip("/").rpartition("/")[2]) or api.connection
        yield FileSpec(
            0, 0, source.uri, connection=source.connection, request=spec.request, name=f"{last}.{api.format}"
        )


class _Run:
    """One attempt at one source."""

    def __init__(
        self,
        uri: str,
        api: Api,
        paging: Paging,
        caller: Caller,
        scratch: Scratch,
        pace: rates.Pace,
        per_s: float | None,
    ) -> None:
        self.uri, self.api, self.paging = uri, api, paging
        self.validator: str | None = None
        self._caller, self._scratch = caller, scratch
        self._pace, self._per_s = pace, per_s
        self._records, self._optional = records_way(api.records)
        request = {"path": api.path, "params": api.params, "body": api.body}
        self._pages = Pages(uri, paging, caller.base, request, caller.secret)
        self.state = self._taken_up()

    def go(self, known: Known | None) -> bool:
        """Every page that is not here yet; False when there is one only, and the origin still has what is known."""
        resumed = self.state.pages > 0
        while self.state.at is not None:
            try:
                answer = self._answer(self.state, known)
            except Refused as refused:
                if not resumed:
                    raise refused.error from None
                # Cursors age. What was fetched from here on would not be known to follow what is here: all of it anew.
                self._scratch.restart()
                self.state, resumed = State(), False
                continue
            if answer.body is None:
                return False
            resumed = False
            self._take(answer)
        return True

    def _take(self, answer: Answer) -> None:
        """A page into the file, and then into the journal."""
        page = self._read(answer)
        asked = self._pages.request(self.state).url
        after = self._pages.after(self.state, page, answer.headers, asked)
        with memoryview(page.lines) as lines:
            for at in range(0, len(lines), _WRITE_BYTES):
                self._scratch.write(lines[at : at + _WRITE_BYTES])
        self.state = after
        self._scratch.mark(after.to_json())
        if after.at is None:
            self.validator = answers.validator(answer.headers) if self.paging.kind == "one" else None
            return
        wait_s = rates.until_open_s(answer.headers)
        if wait_s > rates.PATIENCE_S:
            raise Throttled(self.uri, f"the rate limit is used up after page {after.pages}", wait_s)
        rates.pause(wait_s, self._idle)

    def _read(self, answer: Answer) -> Page:
        try:
            return read(answer.text(), answer.headers, self._records, self.paging.ways, self._optional)
        except NotRecords as error:
            cls = Truncated if error.cut else BadResponse
            raise cls(self.uri, f"page {self.state.pages + 1}: {error}") from None

    def _answer(self, state: State, known: Known | None) -> Answer:
        """The answer for the next page; waits here for a short while where the server asks for it."""
        extra = {}
        if known and self.paging.kind == "one" and self.api.method == "GET":
            extra = answers.conditional(known.validator)
        waits = 0
        while True:
            if self._per_s is not None:
                rates.pause(self._pace.turn_s(self._per_s), self._idle)
            try:
                return self._caller.ask(self._pages.request(state), self.api.method, extra)
            except Throttled as error:
                waits += 1
                wait_s = rates.short_wait_s(error, waits)
                if wait_s is None:
                    raise
                rates.pause(wait_s, self._idle)

    def _idle(self) -> None:
        self._scratch.write(b"")

    def _taken_up(self) -> State:
        """Where an earlier attempt stopped, if what it left is here."""
        facts = self._scratch.journal.facts if self._scratch.journal else None
        if facts is not None:
            return State.from_json(facts)
        if self._scratch.size:
            self._scratch.restart()
        return State()


def _asked(spec: FileSpec) -> tuple[Api, Paging]:
    """What the request asks for, checked here too: whoever can write to the queue may have written it."""
    if spec.request is None:
        raise Unsupported(spec.uri, "is no source of records; submit it as ingest.Api")
    try:
        api = Api.from_json(spec.request)
        return api, check_api(api)
    except BadSource as error:
        raise BadResponse(spec.uri, error.reason) from None
    except TypeError:
        raise BadResponse(spec.uri, "is no source of records; submit it as ingest.Api") from None


Writer = Callable[[Path, Path, str, Callable[[], None]], int]


def _table_writer(uri: str) -> Writer:
    """Looked for before the first page comes. Raises :class:`MissingExtra`."""
    try:
        from workers.fetchers.api.table import write
    except ImportError as error:
        raise MissingExtra(uri, "ingest[sql]") from error
    return write


def _to_parquet(write: Writer, scratch: Scratch, uri: str) -> None:
    """Until the table is whole the pages stay: a worker that dies here costs no request."""
    made = scratch.path.with_suffix(".table")
    try:
        write(scratch.path, made, uri, lambda: scratch.write(b""))
        scratch.replace(made)
    finally:
        made.unlink(missing_ok=True)
