"""What planners and fetchers of partitions do: ask the ledger for the moment to read at, and say when it is past.

The partitions of a source that needs a picture are planned at its moment, once: a planner that goes on after another
one, and every generation of the picture, has the same ones. They are cut so that together they are the whole table at
any moment, so only what they are read at changes.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ingest.errors import LedgerUnavailable, NoSnapshot, SnapshotLost, StoreError
from ingest.ledger import Claim, Picture, Result, Wish, WorkLedger
from ingest.model import FileRecord, FileSpec
from ingest.record import pack, unpack
from ingest.sources import Sql
from ingest.store.links import same_file
from workers.fetchers.base import Context, Interrupted
from workers.logs import log
from workers.snapshots import increments
from workers.snapshots.pins import PICTURE, pinned, wants_moment

if TYPE_CHECKING:
    from workers.transfer import Transfer


class Moments:
    """The moment of one claim: all its files are of one source. Used by one thread until the fetching begins."""

    def __init__(self, ledger: WorkLedger, claim: Claim, transfer: Transfer) -> None:
        self._ledger, self._claim, self._transfer = ledger, claim, transfer
        self._found: Picture | None = None

    @property
    def name(self) -> str:
        return f"{self._claim.job}.{self._claim.record.source}"

    def pinned(self, spec: FileSpec) -> FileSpec:
        """The spec with the moment at which it is to be read, which makes it another file to the store than the same
        partition of any other moment.

        Raises :class:`Interrupted` while there is none, and the error that says why there will be none.
        """
        if not wants_moment(spec):
            return spec
        if self._found is None:
            self._found = self.found(spec.uri, spec.connection, self._look(None))
            if self._found.generation > 1 and self._claim.options.into:
                dropped = self._ledger.dropped(self._claim.job, self._claim.number)
                self._clear(Result.unpacked(dropped).files, same_file)
        return pinned(spec, self._found.moment)

    def found(self, uri: str, connection: str | None, picture: Picture) -> Picture:
        """That picture, once it has a moment. Raises as :meth:`pinned`."""
        if picture.kind == "file" and picture.state == "wanted":
            self._offer_file(uri, connection, picture)
            picture = self._look(None)
        if picture.state == "held":
            return picture
        if picture.state == "refused":
            raise picture.refusal(uri)
        policy, options = self._transfer.node.settings.retry, self._claim.options
        if self._claim.age_s >= min(options.deadline_s or policy.deadline_s, policy.deadline_s):
            reason = f"; {picture.reason}" if picture.reason else ""
            raise NoSnapshot(uri, f"no snapshot of it came before the job's deadline{reason}")
        raise Interrupted("snapshot", reason=f"waits for a snapshot of {uri} {picture.reason}".rstrip())

    def lost(self, error: SnapshotLost, generation: int | None = None) -> Interrupted:
        """Tell the ledger, which takes back all that was read at that moment, this claim included."""
        if generation is None:
            assert self._found is not None
            generation = self._found.generation
        if self._ledger.anew(self.name, generation, error.reason) is not None:
            facts = {"job": self._claim.job, "source": error.uri, "attempt": generation, "reason": error.reason}
            log.warning("snapshot.lost", extra=facts)
        return Interrupted("lost")

    def take_back(self, files: Iterable[FileRecord]) -> None:
        """Their claim was lost: where another moment counts by now, what ``into=`` made of them goes."""
        with suppress(LedgerUnavailable):
            if self._found is not None and self._ledger.generation(self.name) > self._found.generation:
                self._clear(files, os.path.samefile)  # another file of the same bytes may be the other moment's

    def _clear(self, files: Iterable[FileRecord], is_same: Callable[[Path, Path], bool]) -> None:
        """Take away what ``into=`` made of files that do not count any more: beside those of another moment they would
        be taken for a part of the table. Only what is in a directory, and as we made it."""
        store = self._transfer.node.store
        for record in files:
            if record.into is not None and os.path.isabs(record.into) and record.store == store.id:
                with suppress(OSError, StoreError):
                    if is_same(store.path_of(record.path), Path(record.into)):
                        os.unlink(record.into)

    def _look(self, wish: Wish | None) -> Picture:
        found = self._ledger.look(self._claim, wish)
        if isinstance(found, str):
            raise Interrupted(found)
        return found

    def _offer_file(self, uri: str, connection: str | None, picture: Picture) -> None:
        from workers.fetchers.sql.databases import opened

        _, context = self._transfer.context(uri, connection)
        with opened(uri, context) as database:
            moment = database.moment()
        assert moment is not None
        self._ledger.offer(self.name, picture.generation, "", moment, 0.0)

    # The planner's side

    def planned(self, source: Sql) -> Iterator[FileSpec]:
        """The partitions of a source, with ``source=0`` and the moment's kind in what they ask for. Raises as
        :meth:`pinned`, and what the database says."""
        _, context = self._transfer.context(source.uri, source.connection)
        kind = _kind(source, context)
        if kind is None:
            yield from self._transfer.fetcher(source.uri).expand(source, context)
            return
        settings, options = self._transfer.node.settings, self._claim.options
        most = options.attempts or settings.retry.attempts
        picture = self._look(Wish(kind, settings.node, source.connection, source.uri, most))
        if picture.plan:
            yield from unpack(FileSpec, picture.plan)
            return
        if kind != "none":
            picture = self.found(source.uri, source.connection, picture)
            context = dataclasses.replace(context, moment=picture.moment)
        try:
            specs = self._plan(source, context, kind, picture)
        except SnapshotLost as error:
            self.lost(error, picture.generation)
            raise Interrupted("snapshot", reason=f"waits for another snapshot of {source.uri}") from error
        yield from specs

    def _plan(self, source: Sql, context: Context, kind: str, picture: Picture) -> list[FileSpec]:
        narrowed = increments.narrowed(self._ledger, self._claim.job, source, context)
        more: dict[str, Any] = {PICTURE: kind} if kind != "none" else {}
        more |= {increments.INCREMENT: narrowed.facts} if narrowed.facts else {}
        specs = [
            dataclasses.replace(spec, request={**(spec.request or {}), **more})
            for spec in self._transfer.fetcher(source.uri).expand(narrowed.source, context)
        ]
        answer = self._ledger.remember(self._claim, picture.generation, pack(specs), narrowed.cursor)
        if answer == "old":
            raise Interrupted("snapshot", reason=f"waits for another snapshot of {source.uri}")
        if answer != "ok":
            raise Interrupted(answer)
        return specs


def _kind(source: Sql, context: Context) -> str | None:
    """How the partitions of a source come to see one moment: ``held``, ``file``, or ``none`` where they need not but
    something is kept of the planning; None where they are only one, which a single statement reads."""
    if source.partitions == 1:
        return "none" if source.incremental_on else None
    if not source.consistent:
        return "none"
    kind, name = _of_database(source.uri, context)
    if kind is None:
        raise NoSnapshot(
            source.uri,
            f"{name} has no snapshot that several connections could share: partitions=1 reads all at one moment, "
            "consistent=False reads each partition at a moment of its own",
        )
    return kind


def _of_database(uri: str, context: Context) -> tuple[str | None, str]:
    try:
        from workers.fetchers.sql.databases import url_of
        from workers.fetchers.sql.databases.moments import KINDS
    except ImportError:
        return "none", ""  # the extra is missing, which the fetcher says
    name = url_of(uri, context).get_backend_name()
    return KINDS.get(name), name
