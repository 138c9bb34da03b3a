"""What a source stands for, file by file, in flat memory: a listing of its origin, or the rows of a manifest; and how
far a piece of planning has come in it. What becomes of the files is in ``plan``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ingest.braces import count_braces, expand_braces
from ingest.errors import BadResponse, NodeUnfit
from ingest.ledger import Claim, WorkLedger
from ingest.manifests import MOST_BAD, Mark, Reading
from ingest.model import Failure, FileRecord, FileSpec, JobOptions
from ingest.sources import AnySource, Manifest, Source, Sql
from workers.control import Control
from workers.fetchers.base import Interrupted
from workers.node import Node
from workers.outcome import failure_of
from workers.snapshots.reading import Moments
from workers.transfer import Transfer

#: Rows between two looks at whether to stop.
CHECK_ROWS = 10_000


@dataclass(frozen=True)
class Reached:
    """Up to which file there are shards, and how many files are in them, for whoever goes on. ``digest`` is the
    manifest's, and ``mark`` a place in it that is not behind that file. ``deaths`` of planners were known."""

    part: int = -1
    uri: str = ""
    files: int = 0
    digest: str | None = None
    mark: Mark | None = None
    deaths: int = 0

    @property
    def text(self) -> str:
        """As the ledger keeps it. Another text for every step, as ``files`` grows: two that end with the same file are
        two."""
        return json.dumps([self.part, self.uri, self.files, self.digest, self.mark, self.deaths])

    @classmethod
    def parse(cls, text: str) -> Reached:
        if not text:
            return cls()
        part, uri, files, digest, mark, deaths = json.loads(text)
        return cls(part, uri, files, digest, tuple(mark) if mark else None, deaths)


class Listing:
    """One go at listing a source: its files, and of a manifest the rows that are none."""

    def __init__(
        self, node: Node, ledger: WorkLedger, claim: Claim, control: Control, source: AnySource, begin: str
    ) -> None:
        """``begin`` is what an earlier go said that it had reached."""
        self.source = source
        self.begin = Reached.parse(begin)
        #: The file that a manifest is, once it is here.
        self.file: FileRecord | None = None
        self._node, self._ledger, self._claim, self._control = node, ledger, claim, control
        self._reading: Reading | None = None
        earlier = {failure.index: failure for failure in claim.earlier.failures}
        # Somebody asked to try again what failed: what was there then is not what is looked at.
        self._anew = bool(earlier) and not claim.record.failed
        self._failed = {row for _, row in earlier} if self._anew else set()
        # What a planner that died had found to be no file, nobody knows: all rows are looked at again.
        self._whole = self._anew or claim.record.deaths != self.begin.deaths
        self._bad = {} if self._anew else earlier

    @property
    def goes_on(self) -> bool:
        """Whether it can be read on from where a planner stopped, for little."""
        one = isinstance(self.source, Source) and count_braces(self.source.uri) == 1
        return isinstance(self.source, Manifest) or (
            one and self.source.uri.startswith(("s3://", "gs://", "gcs://", "az://"))
        )

    @property
    def bad(self) -> list[Failure]:
        """The rows that are no files, of this go and of those that it continues."""
        return [self._bad[index] for index in sorted(self._bad)]

    def specs(self) -> Iterator[FileSpec]:
        """What of it is not in shards yet, in order. Raises a FetchError, or Interrupted."""
        if isinstance(self.source, Manifest):
            return self._from_manifest(self.source)
        transfer, index = Transfer(self._node, self._claim.options, self._control), self._claim.record.source
        if isinstance(self.source, Sql):
            planned = Moments(self._ledger, self._claim, transfer).planned(self.source)
            return self._remaining(dataclasses.replace(spec, source=index) for spec in planned)
        one = isinstance(self.source, Source) and count_braces(self.source.uri) == 1
        after = self.begin.uri if one and self.begin.part >= 0 else None
        return self._remaining(from_origin(transfer, self.source, index, after))

    def reached(self, end: FileSpec, files: int) -> Reached:
        """After a step that ends with that file, with so many in shards. A row that was mended lies before others that
        are in shards already."""
        mark = self._reading.mark(end.part) if self._reading else None
        digest = self.file.digest if self.file else None
        deaths = self._claim.record.deaths
        return Reached(max(end.part, self.begin.part), end.uri, files, digest, mark, deaths)

    def failures(self, upto: int) -> tuple[Failure, ...]:
        """What is known of bad rows when a go ends early, with row ``upto``: whoever goes on finds those behind it."""
        known = {failure.index: failure for failure in self._claim.earlier.failures}
        kept = {index: failure for index, failure in known.items() if not self._anew or index[1] > upto}
        return tuple((kept | {index: bad for index, bad in self._bad.items() if index[1] <= upto}).values())

    def _remaining(self, specs: Iterator[FileSpec]) -> Iterator[FileSpec]:
        """A list that changed since must give no file twice. Keys come in ascending order, so what sorts after the last
        one is new, and is numbered after it."""
        last, uri = self.begin.part, self.begin.uri
        if last < 0:
            yield from specs
        elif isinstance(self.source, Source) and count_braces(self.source.uri) == 1:
            after = (spec for spec in specs if _bytes(spec.uri) > _bytes(uri))
            yield from (dataclasses.replace(spec, part=part) for part, spec in enumerate(after, last + 1))
        else:
            yield from (spec for spec in specs if spec.part > last)

    def _from_manifest(self, source: Manifest) -> Iterator[FileSpec]:
        """Rows have their numbers: one that is mended later does not move the others."""
        last = self.begin.part
        path = self._manifest_path(source)
        self._reading = Reading(path, source, self._claim.record.source)
        try:
            for spec in self._reading.specs(self._on_bad, None if self._whole else self.begin.mark):
                if spec.part % CHECK_ROWS == 0:
                    self._control.check()
                if spec.part > last or spec.part in self._failed:
                    yield spec
        except OSError as error:
            reason = f"the store at {self._node.store.root} failed: {error.strerror}"
            raise NodeUnfit(source.uri, reason) from error

    def _on_bad(self, row: int, error: Exception) -> None:
        source, index = self.source, (self._claim.record.source, row)
        if index in self._bad or (row <= self.begin.part and not self._whole):
            return  # whoever came so far has said it
        if len(self._bad) >= MOST_BAD:
            raise BadResponse(source.uri, f"more than {MOST_BAD} of its lines are no sources: is it a manifest?")
        what = "line" if self._reading and self._reading.kind in {"txt", "jsonl"} else "row"
        found = BadResponse(source.uri, f"{what} {row}: {error}")
        self._bad[index] = failure_of(self._node, self._claim, source.uri, index, found)

    def _manifest_path(self, source: Manifest) -> Path:
        """The manifest as a local file. It is fetched like any file: verified, published, fetched once for all.

        Whoever goes on with one goes on with the same bytes, or the numbers of its rows would be others'.
        """
        options = JobOptions(fresh_s=0.0 if self._anew else self._claim.options.fresh_s)
        transfer = Transfer(self._node, options, self._control)
        digest = None if self._anew else self.begin.digest
        spec = transfer.resolve(FileSpec(0, 0, source.uri, digest, connection=source.connection))
        records = transfer.reuse(spec)
        if records is None:
            flights = [transfer.flight(spec)]
            free = self._ledger.takeoff(self._claim, flights)
            if free is None:
                raise Interrupted("lost")
            if not free[0]:
                raise Interrupted("busy")
            self._control.flights = flights
            records = transfer.fetch(spec)
        self.file = records[0]
        return self._node.store.path_of(self.file.path)


def from_origin(transfer: Transfer, source: AnySource, index: int, after: str | None = None) -> Iterator[FileSpec]:
    """What the origin lists of each URI that the braces of a pattern stand for, one after the other. What sorts before
    ``after`` may be missing, and then the numbers are others."""
    part = 0
    for uri in expand_braces(source.uri) if isinstance(source, Source) else [source.uri]:
        one = dataclasses.replace(source, uri=uri) if isinstance(source, Source) else source
        name, context = transfer.context(uri, source.connection)
        for spec in transfer.fetcher(uri).expand(one, dataclasses.replace(context, after=after)):
            checksums = source.checksums if isinstance(source, Source) else None
            yield dataclasses.replace(spec, source=index, connection=name, part=part, checksums=checksums)
            part += 1


def _bytes(uri: str) -> bytes:
    return uri.encode("utf-8", "surrogatepass")
