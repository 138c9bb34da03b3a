"""A packed shard: its samples are fetched several at once into the spool, and written in their order when all are
there.

A sample that fails for good is left out and listed; what the shard is worth then is decided in ``fetch``. One that may
come yet is tried again here for as long as that is a matter of seconds, and else by the ledger: the spool waits.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ingest.errors import FetchError, NodeUnfit, TooLarge
from ingest.ledger import Claim, WorkLedger
from ingest.model import FileRecord, FileSpec
from ingest.names import base_name
from ingest.sources import Pack
from ingest.store import Piece, Scratch, Stored
from workers.control import Control
from workers.fetchers.base import Interrupted
from workers.outcome import Outcome
from workers.pack.samples import Entry, entries, runs
from workers.pack.spool import Spoilt, Spool
from workers.pack.writers import WRITERS
from workers.parallel import each
from workers.retry import delay_s
from workers.transfer import Transfer

#: What is tried again soon is waited for here, at most so long and so often; beyond that the slot is worth more.
_PATIENCE_S = 5.0
_ROUNDS = 4


def pack_shard(ledger: WorkLedger, claim: Claim, transfer: Transfer, control: Control, outcome: Outcome) -> None:
    """Fetch and pack what is missing of a shard: ``outcome`` gets files, failures, and what is to be tried again."""
    Packing(ledger, claim, transfer, control, outcome).run()


class Packing:
    """One attempt at a packed shard."""

    def __init__(
        self, ledger: WorkLedger, claim: Claim, transfer: Transfer, control: Control, outcome: Outcome
    ) -> None:
        self._ledger, self._claim, self._transfer = ledger, claim, transfer
        self._control, self._outcome = control, outcome
        self._pack = Pack.from_json(claim.options.pack or {})
        self._settings = transfer.node.settings
        self._store = transfer.node.store
        self._room = transfer.space.of(f"pack://{claim.unit}") if transfer.space else None

    def run(self) -> None:
        arrived = self._outcome.result.arrived
        specs = [spec for spec in self._claim.files if spec.index not in arrived]
        while specs and (stored := self._reusable(specs)) is not None:
            # What another run packed of the same list. Whatever it could not have is asked for again, and only that.
            self._take(stored, specs, reused=True)
            packed = {position for piece in stored.outputs for position in _positions(piece.covers)}
            specs = [spec for position, spec in enumerate(specs) if position not in packed]
        if not specs:
            return
        key = self._key(specs)
        flight = f"{self._store.id}/{key}"
        free = self._ledger.takeoff(self._claim, [flight])
        if free is None:
            raise Interrupted("lost")
        if not free[0]:
            self._outcome.busy = [specs[0]]
            return
        self._control.flights = [flight]
        spool = Spool(self._store.root / "scratch", key)
        finished = False
        try:
            self._take_room(spool, specs)
            finished = self._fill(spool, specs, key)
        except FetchError as error:  # of the whole: its space, or the disk under it
            failed = {failure.index for failure in self._outcome.failures}
            rest = [spec for spec in specs if spec.index not in failed]
            self._outcome.missed(self._transfer.node, self._claim, rest, error, self._claim.record.attempts + 1)
        finally:
            spool.close(discard=finished)
            if self._room and finished:
                self._room.shrink(spool.held)

    def _take_room(self, spool: Spool, specs: Sequence[FileSpec]) -> None:
        """Space for what is in the spool already. Raises :class:`TooLarge` where it is known that there will never be
        enough: what has come is there twice while it is packed."""
        if self._room is None or self._transfer.space is None:
            return
        known = sum(spec.size or 0 for spec in specs)
        why = "are needed to pack the shard, of which all is there twice for a while"
        self._transfer.space.check_fits(specs[0].uri, 2 * known, why)
        if spool.held:
            self._room.took_up(spool.held)

    def _spool(self, spool: Spool, group: Sequence[int], path: Path, size: int, digest: str, name: str) -> None:
        if self._room is not None:
            self._room.grow(size)
        spool.add(group, path, size, digest, name)

    def _key(self, specs: Sequence[FileSpec]) -> str:
        """What these samples would be packed to: the same list, packed alike, is the same file."""
        digest = hashlib.sha256(json.dumps(self._pack.to_json(), sort_keys=True).encode())
        for spec in specs:
            named = dataclasses.replace(spec, source=0, part=0)
            text = json.dumps(named.to_json(), sort_keys=True, ensure_ascii=False)
            digest.update(text.encode("utf-8", "surrogatepass"))
            if not spec.key:  # then its place is in the file
                digest.update(f" {spec.source} {spec.part}".encode())
        return digest.hexdigest()[:40]

    def _reusable(self, specs: Sequence[FileSpec]) -> Stored | None:
        stored = self._store.lookup(self._key(specs))
        if stored is None or not stored.pieces or time.time() - stored.validated > self._transfer.fresh_s:
            return None
        return stored if self._store.touch(stored.outputs[0].path) else None

    # -- fetching ----------------------------------------------------------------------------------------------------

    def _fill(self, spool: Spool, specs: list[FileSpec], key: str) -> bool:
        """True once everything that can be had is packed."""
        failed = {failure.index for failure in self._outcome.failures}
        for turn in range(_ROUNDS):
            missing = [
                group
                for group in _alike(specs)
                if group[0] not in spool.samples and specs[group[0]].index not in failed
            ]
            wait_s = self._gather(spool, specs, missing, turn, key)
            failed = {failure.index for failure in self._outcome.failures}
            if self._outcome.stopped:
                return False
            if not self._outcome.transient:
                try:
                    self._publish(spool, specs, key)
                except Spoilt:  # that sample is missing again
                    continue
                return True
            if wait_s > _PATIENCE_S:
                return False
            if turn < _ROUNDS - 1:
                self._sleep(wait_s)
                self._outcome.transient.clear()
        if not self._outcome.transient:
            raise NodeUnfit(specs[0].uri, f"the store at {self._store.root} does not give back what was written to it")
        return False

    def _sleep(self, wait_s: float) -> None:
        end = time.monotonic() + wait_s
        while time.monotonic() < end:
            self._control.check()
            time.sleep(min(0.2, wait_s))

    def _gather(self, spool: Spool, specs: list[FileSpec], missing: list[list[int]], turn: int, key: str) -> float:
        """Fetch what is missing, each group of positions once. Returns how long to wait before the next turn."""
        tries = self._claim.record.attempts + 1 + turn
        wait_s = 0.0

        def fetch(group: list[int]) -> FetchError | Interrupted | None:
            try:
                self._control.check()
                self._fetch(spool, specs, group, key)
            except (FetchError, Interrupted) as error:
                return error
            return None

        for group, error in each(missing, fetch, self._settings.http.parallel, self._control):
            if isinstance(error, Interrupted):
                self._outcome.stopped = self._outcome.stopped or error.why
            elif error is not None:
                again = self._outcome.missed(
                    self._transfer.node, self._claim, [specs[at] for at in group], error, tries
                )
                wait_s = max(wait_s, delay_s(self._settings.retry, again, tries) if again else 0.0)
        return wait_s

    def _fetch(self, spool: Spool, specs: list[FileSpec], group: list[int], key: str) -> None:
        spec = self._transfer.listed(self._transfer.resolve(specs[group[0]]))
        stored = self._transfer.find(spec)
        if stored is not None and stored.path:
            self._check_size(spec, stored.size)
            path = self._store.path_of(stored.path)
            self._spool(spool, group, path, stored.size, stored.digest, path.name)
            return
        # Under the name of the whole: what kill -9 leaves of it is found by the next attempt.
        with self._transfer.scratch(key, spec, keep=False) as scratch:
            fetched = self._transfer.bring(spec, scratch, None)
            assert fetched is not None
            self._store.verify(spec, scratch)
            self._check_size(spec, scratch.size)
            name = fetched.name or scratch.name or (spec.name or "").rpartition("/")[2] or base_name(spec.uri)
            self._spool(spool, group, scratch.path, scratch.size, scratch.digest(), name)

    def _check_size(self, spec: FileSpec, size: int) -> None:
        most = WRITERS[self._pack.format].most_bytes
        if most is not None and size > most:
            raise TooLarge(
                spec.uri, f"{size} bytes, and a row of a packed Parquet file may have {most}; a tar has no such limit"
            )

    # -- writing -----------------------------------------------------------------------------------------------------

    def _publish(self, spool: Spool, specs: list[FileSpec], key: str) -> None:
        """The samples that came, in order, as files of the target size."""
        if not spool.samples:
            return
        number, begun = int(self._claim.number), len(self._outcome.files)
        whole = FileSpec(specs[0].source, specs[0].part, f"pack://{self._claim.job}/{number}")
        with self._transfer.scratch(key, whole, keep=False) as scratch:
            for batch in _batches(entries(specs, spool.samples), self._pack.bytes):
                self._write(scratch, spool, specs, batch, f"{number:06}-{begun + len(scratch.pieces):03}")
            version = " ".join(piece.digest() for piece in scratch.pieces)
            stored = self._store.publish(key, whole, scratch, version=version, converted=True)
        self._take(stored, specs, reused=False)

    def _write(self, scratch: Scratch, spool: Spool, specs: list[FileSpec], batch: list[Entry], stem: str) -> None:
        kind = WRITERS[self._pack.format]
        piece = scratch.piece(f"{stem}.{kind.suffix}")
        writer = kind(piece)
        for entry in batch:
            writer.add(entry, spool.read(entry.sample))
        writer.finish()
        piece.samples = len(batch)
        piece.covers = tuple((first, last) for _, first, last in runs([(0, e.sample.position) for e in batch]))

    def _take(self, stored: Stored, specs: list[FileSpec], *, reused: bool) -> None:
        for number, piece in enumerate(stored.outputs):
            covered = [specs[at].index for at in _positions(piece.covers)]
            self._outcome.files.append(self._record(stored, piece, number, covered, reused))

    def _record(
        self, stored: Stored, piece: Piece, number: int, covered: list[tuple[int, int]], reused: bool
    ) -> FileRecord:
        name = f"{int(self._claim.number):06}-{len(self._outcome.files):03}.{WRITERS[self._pack.format].suffix}"
        spec = FileSpec(*covered[0], stored.uri, name=name)
        record = self._transfer.record(spec, stored, piece, number, reused=reused)
        return dataclasses.replace(record, covers=tuple(runs(covered)))


def _alike(specs: Sequence[FileSpec]) -> list[list[int]]:
    """Positions of one and the same source, so that each is fetched once however often it is listed."""
    groups: dict[tuple[object, ...], list[int]] = {}
    for position, spec in enumerate(specs):
        groups.setdefault((spec.uri, spec.connection, spec.digest, spec.size, spec.name), []).append(position)
    return list(groups.values())


def _batches(found: Iterator[Entry], most_bytes: int) -> Iterator[list[Entry]]:
    batch: list[Entry] = []
    size = 0
    for entry in found:
        if batch and size + entry.sample.size > most_bytes:
            yield batch
            batch, size = [], 0
        batch.append(entry)
        size += entry.sample.size
    if batch:
        yield batch


def _positions(covers: Sequence[Sequence[int]]) -> Iterator[int]:
    for first, last in covers:
        yield from range(first, last + 1)
