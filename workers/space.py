"""The space that a claim takes in its node's store: reserved in the ledger before bytes are fetched, and made where
there is none. How room is made is in ``ingest.space``."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence

from ingest.errors import LedgerUnavailable, NodeUnfit, NoRoom, TooLarge
from ingest.ledger import Claim, WorkLedger
from ingest.ledger.space import Grant
from ingest.model import FileRecord, FileSpec
from ingest.space import Evictor, Made, size
from ingest.store import Store
from workers.control import Control
from workers.fetchers.base import Interrupted
from workers.node import Node
from workers.outcome import Outcome

#: What is not known to be larger is reserved in steps of so much; a sixteenth of the store where that is less.
STEP_BYTES = 64 << 20
COUNT_EVERY_S = 300.0
_COUNT_SHARE = 0.02  # of a node's time, at most
#: What waits for space looks again after so many seconds and a tenth of one for each that waits: it is woken when
#: something changes, and a hundred thousand that look are work for nothing.
_WAIT_S, _WAIT_EACH_S, _WAIT_MOST_S = 10.0, 0.1, 900.0
_FEW = 16
#: That nothing may go from a store, to the good of its disk, was found out just now: when, and why.
_dry_disks: dict[tuple[str, bool], tuple[float, str]] = {}
_DRY_S = 15.0


class Space:
    """One per claim; used by its threads. Without a budget (``max_bytes`` 0) only the disk's free floor is looked at,
    and the ledger is not asked."""

    def __init__(self, node: Node, ledger: WorkLedger, claim: Claim, control: Control) -> None:
        self.node, self._ledger, self._claim, self._control = node, ledger, claim, control
        self.limits = node.store.limits
        self.most = self.limits.max_bytes
        self._step = min(STEP_BYTES, max(1, self.most // 16))
        self.alone = claim.options.into is not None  # nothing that has arrived need stay for the others
        self._earlier = sum(f.size for f in claim.earlier.files if f.store == node.store.id and not self.alone)
        self._numbers, self._asking = threading.Lock(), threading.Lock()
        self._open = self._published = self._synced = self._granted = 0
        self._unwatched = 0

    def of(self, uri: str) -> FileRoom:
        return FileRoom(self, uri)

    def check_fits(self, uri: str, whole: int, why: str = "") -> None:
        """Raises :class:`TooLarge` for what will never fit."""
        if self.most and whole > self.most:
            raise TooLarge(
                uri,
                f"{size(whole)} {why or 'are needed for it'}, and the store of node {self.node.settings.node} may hold "
                f"max_bytes = {self.most} ([store] in its ingest.toml)",
            )

    def take(self, uri: str, count: int, own: int, moved: int = 0) -> None:
        """``count`` bytes more, for a source that then has ``own``. Raises :class:`TooLarge`, :class:`NoRoom`,
        :class:`Interrupted`."""
        with self._numbers:
            self._open += count
            together = self._earlier + self._published + self._open
            enough = self._open + self._published - self._synced <= self._granted and not moved
            self._unwatched += count
            watch, self._unwatched = self._unwatched >= STEP_BYTES, self._unwatched % STEP_BYTES
        try:
            self.check_fits(uri, own)
            if not self.alone:
                self.check_fits(uri, together, "are needed for all files of its shard together (see shard_files=)")
            if self.most and not enough:
                with self._asking:
                    self._reserve(uri, moved)
            if watch:
                self.watch(uri, count)
        except BaseException:
            self.put_back(count)
            raise

    def put_back(self, count: int) -> None:
        with self._numbers:
            self._open -= count

    def publish(self, count: int, asked: int) -> None:
        with self._numbers:
            self._open -= asked
            self._published += count
            news = self._published - self._synced >= max(1, self._step // 4)
        if self.most and news:
            with self._asking:
                self._sync()

    def close(self) -> None:
        """The attempt is over: only what lies there is still reserved, until the lease ends."""
        if self.most and (self._granted or self._published):
            with self._asking:
                self._sync(exact=True)

    def _sync(self, *, exact: bool = False) -> None:
        with self._numbers:
            need, published = self._open, self._published
            wish = need if exact else max(need, self._granted - (published - self._synced))
        try:
            self._ask(need, wish, published)
        except (LedgerUnavailable, Interrupted):
            return  # the next count of the disk says it

    def _reserve(self, uri: str, moved: int) -> None:
        """Until the ledger grants what is open. While there is no ledger, bytes go on to come as those do that are in
        flight: whether they count is decided at the commit."""
        try:
            grant = self._missing(moved)
        except LedgerUnavailable:
            return
        if grant.missing <= 0:
            return
        made = Made(0, grant.why, grant.wait_s)
        try:
            if not grant.why:
                evictor = Evictor(self._ledger, self.node.store, self._control.check, gently=grant.can_wait)
                made = evictor.make_room(lambda: self._missing(moved).missing, self.most // 20)
                if not made.why:
                    return
            raise self._no_room(uri, grant.missing, made)
        except LedgerUnavailable as error:
            raise NoRoom(uri, f"waits for {size(grant.missing)} in {self._store()}: {error}") from error

    def _missing(self, moved: int) -> Grant:
        """How many bytes are ``missing`` for what is open, and ``why`` nothing can go, where that was found out just
        now."""
        with self._numbers:
            need, published = self._open, self._published
            if not moved and need + published - self._synced <= self._granted:
                return Grant("ok")  # another thread asked meanwhile
        return self._ask(need, need + self._step, published, moved)

    def _ask(self, need: int, wish: int, published: int, moved: int = 0) -> Grant:
        store, claim = self.node.store, self._claim
        while True:
            grant = self._ledger.reserve(
                claim.unit, claim.fence, store.id, need, wish=wish, most=self.most, moved=moved, published=published
            )
            if grant.answer == "ok":
                with self._numbers:
                    self._granted, self._synced = grant.granted, published
                return grant
            if grant.answer == "lost":
                raise Interrupted("lost")
            if grant.answer == "full":
                with self._numbers:  # what was published is known there
                    self._granted, self._synced = max(0, self._granted - (published - self._synced)), published
                return grant
            if not Evictor(self._ledger, store, self._control.check).count():
                return Grant("full", missing=need, why="it is being counted", wait_s=1.0)

    def _no_room(self, uri: str, missing: int, made: Made) -> NoRoom:
        space = self._ledger.space(self.node.store.id)
        filled = f"{size(space.used or 0)} used and {size(space.reserved)} reserved of max_bytes = {size(self.most)}"
        error = NoRoom(uri, f"waits for {size(missing)} in {self._store()}: {filled}; {made.why}")
        wait_s = min(_WAIT_MOST_S, _WAIT_S + _WAIT_EACH_S * space.waiting)
        if space.waiting <= _FEW:  # what was used a moment ago may go soon
            wait_s = min(wait_s, made.again_s)
        error.wait_s = wait_s * random.uniform(1.0, 1.25)
        return error

    def _store(self) -> str:
        return f"the store of node {self.node.settings.node} ({self.node.store.root})"

    def watch(self, uri: str, count: int) -> None:
        """See that the disk's floor is free after ``count`` bytes more. Raises :class:`NoRoom`."""
        floor = count + self.limits.min_free_bytes
        store = self.node.store
        if store.free_bytes() >= floor:
            return
        why = self._make_room_on_disk(floor)
        if (free := store.free_bytes()) >= floor:
            return
        raise NoRoom(
            uri,
            f"waits for {size(floor - free)} in {self._store()}: its disk has {size(free)} free, of which "
            f"min_free_bytes = {size(self.limits.min_free_bytes)} stay; {why}",
        )

    def _make_room_on_disk(self, floor: int) -> str:
        slack = min(self.limits.min_free_bytes, 1 << 30) // 4
        store = self.node.store
        try:
            gently = self._ledger.can_wait(self._claim.unit)
            at, why = _dry_disks.get((store.id, gently), (0.0, ""))
            if not why or time.monotonic() - at > _DRY_S:
                evictor = Evictor(self._ledger, store, self._control.check, gently=gently)
                why = evictor.make_room(lambda: floor - store.free_bytes(), slack, of_disk=True).why
                _dry_disks[store.id, gently] = time.monotonic(), why
        except LedgerUnavailable:
            return "and without a ledger nobody knows what may go"
        return why


class FileRoom:
    """What one source takes, with all that is made of it."""

    def __init__(self, space: Space, uri: str) -> None:
        self._space, self._uri, self._own = space, uri, 0
        self._lock = threading.Lock()

    def begin(self, size: int | None) -> None:
        self._space.check_fits(self._uri, size or 0)
        self._space.watch(self._uri, size or 0)

    def grow(self, size: int) -> None:
        self._take(size, 0)

    def took_up(self, size: int) -> None:
        self._take(size, size)

    def _take(self, size: int, moved: int) -> None:
        own = self._add(size)
        try:
            self._space.take(self._uri, size, own, moved)
        except BaseException:
            self._add(-size)
            raise

    def shrink(self, size: int) -> None:
        self._add(-size)
        self._space.put_back(size)

    def published(self, size: int, asked: int) -> None:
        self._add(-asked)
        self._space.publish(size, asked)

    def _add(self, size: int) -> int:
        with self._lock:
            self._own += size
            return self._own


class Counting:
    """In a node's agent: the disk is counted now and then, so that what nobody told of is corrected."""

    def __init__(self, ledger: WorkLedger, store: Store, every_s: float = COUNT_EVERY_S) -> None:
        self._ledger, self._store = ledger, store
        self._every_s = self._least_s = every_s

    def step(self) -> None:
        """Raises :class:`LedgerUnavailable` and OSError."""
        if not self._store.limits.max_bytes:
            return
        counted = self._ledger.space(self._store.id).counted_s
        if counted is None or counted >= self._every_s:  # nodes that share a store need not all do it
            begun = time.monotonic()
            Evictor(self._ledger, self._store).count()
            self._every_s = max(self._least_s, (time.monotonic() - begun) / _COUNT_SHARE)


def confirm(node: Node, claim: Claim, outcome: Outcome) -> None:
    """Before a commit: the files are all here still, and stay until the job holds them. What was evicted while the
    others came is asked for again; unless it was put elsewhere, by ``into=``."""
    if claim.options.into is not None:
        return
    here: list[FileRecord] = []
    gone: list[FileRecord] = []
    for file in outcome.files:
        (here if file.store != node.store.id or node.store.touch(file.path) else gone).append(file)
    if not gone:
        return
    outcome.files[:] = here
    if not outcome.transient:
        specs = [FileSpec(file.source, file.part, file.uri) for file in gone]
        outcome.missed(node, claim, specs, _evicted(gone), claim.record.attempts + 1)


def _evicted(gone: Sequence[FileRecord]) -> NodeUnfit:
    error = NoRoom(gone[0].uri, f"{len(gone)} files were evicted before the shard was done; they are fetched again")
    error.wait_s = 0.0
    return error
