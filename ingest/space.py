"""Making room in a store: the disk is counted, what may go is asked of the ledger, and the least recently used goes.

Correctness lies elsewhere: that a file which somebody has just touched stays is ``ingest.store.evict``'s, that no more
is written than reserved is the ledger's. One process at a time does it for a store, which only saves the others work.
"""

from __future__ import annotations

import dataclasses
import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from ingest.ledger import JobLedger, Result, batched
from ingest.ledger.space import Dry, Turn
from ingest.store import Store
from ingest.store.evict import Held, Leftover, Survey, drop, leftovers, manifest_files, now_ns, remove, survey

#: So long nobody makes room after kill -9 of the process that did.
_TURN_S = 15.0
_RENEW_S = 4.0
#: How long another process that evicts from the same store is waited for.
_PATIENCE_S = 20.0
_AT_ONCE = 50
_OTHER = "another process makes room there"
#: After the ledger was wiped or away, for at most so long.
YOUNG = "the ledger has just come back, and readers of files there are waited for"
YOUNG_S = 30.0
#: For so long nobody looks again, unless a job or a reader comes or goes.
DRY_S = 15.0
#: For so long nothing is looked for on behalf of what nobody needs yet.
_LATER_S = 60.0


class Made(NamedTuple):
    """How much went, and why no more could; something may within ``again_s``."""

    freed: int
    why: str
    again_s: float = DRY_S


class Busy(Exception):
    """Another process has the turn."""


@dataclass
class Hold:
    """What is held in a store, and by whom: (who, bytes). Asked ``at`` that time (ns since 1970, by the filesystem's
    clock), as of that ``version`` of the holders and of those that came."""

    held: Held = field(default_factory=Held)
    by: list[tuple[str, int]] = field(default_factory=list)
    version: str = ""
    comers: str = ""
    at: int = 0

    def __str__(self) -> str:
        first = sorted(self.by, key=lambda each: -each[1])
        said = "; ".join(f"{size(held)} by {who}" for who, held in first[:3] if held)
        more = f"; and {len(first) - 3} more jobs" if len(first) > 3 else ""
        return f"held are {said}{more}" if said else "no job holds anything"


def size(count: float) -> str:
    """Bytes for people: ``1.5 MB``. Powers of ten, as disks and links are sold."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError


class Evictor:
    """Makes room in ``store``. ``check`` is called between steps and may raise, to interrupt. With ``gently`` it is for
    what nobody needs yet: what jobs that are read by windows have fetched stays, needed or not."""

    def __init__(
        self, ledger: JobLedger, store: Store, check: Callable[[], None] = lambda: None, *, gently: bool = False
    ) -> None:
        self._ledger, self._store, self._check, self._gently = ledger, store, check, gently
        self._token = uuid.uuid4().hex
        self._step = 0
        self._soon = DRY_S
        self._renewed = 0.0
        self._holders = self._comers = ""

    def count(self) -> bool:
        """Tell the ledger what the disk holds. False if somebody else is at it."""
        try:
            turn = self._begin()
        except Busy:
            return False
        try:
            self._count(survey(self._store, Held(), self._tick, most=0), turn.added)
        except Busy:
            return False
        finally:
            self._end()
        return True

    def make_room(self, missing: Callable[[], int], slack: int = 0, *, of_disk: bool = False) -> Made:
        """Evict until ``missing`` says that no bytes are, and ``slack`` more, so that not every file costs a walk.
        ``of_disk``: only what gives space back to the disk.

        Raises :class:`LedgerUnavailable`, OSError, and what ``check`` raises.
        """
        end = time.monotonic() + _PATIENCE_S
        while True:
            try:
                turn = self._begin()
                break
            except Busy:
                if time.monotonic() > end:
                    return Made(0, _OTHER)
                self._check()
                time.sleep(0.05)
                if missing() <= 0:
                    return Made(0, "")
        if turn.answer == "young":
            self._end()
            return Made(0, YOUNG)
        try:
            return self._make_room(missing, slack, of_disk, turn.added)
        except Busy:
            return Made(0, _OTHER)
        finally:
            self._end()

    def _make_room(self, missing: Callable[[], int], slack: int, of_disk: bool, added: int) -> Made:
        freed = 0
        while True:
            hold, self._soon = self.hold(), DRY_S
            found = survey(self._store, hold.held, self._tick)
            left = self._count(found, added)
            want = missing()
            if want <= 0:
                return Made(freed, "")
            went = self._evict(found, want + slack, hold, of_disk)
            freed += went
            if (want := missing()) <= 0:
                return Made(freed, "")
            if not went and not self._gently:
                freed += (went := self._drop(left, want))
                if went and missing() <= 0:
                    return Made(freed, "")
            if not went:
                if not of_disk:
                    self._end(str(hold), hold.version)
                return Made(freed, str(hold), self._soon)

    def looked(self) -> Hold:
        """What jobs hold here, for a person: without the turn."""
        self._renewed = math.inf
        return self._hold()

    def hold(self) -> Hold:
        """What jobs hold here now."""
        self._say(0)
        return self._hold()

    def _hold(self) -> Hold:
        made = Hold(version=self._holders, comers=self._comers, at=now_ns(self._store))
        for holder in self._ledger.holders(self._store.limits.hold_s):
            held = 0
            if self._gently and holder.only is not None:
                holder = dataclasses.replace(holder, only=None)
            seen = set(holder.released)
            for shard, path, count in manifest_files(self._store, holder.job, holder.released, holder.only):
                seen.add(shard)
                made.held.add(path)
                held += count
                self._tick()
            parted = [n for n in self._ledger.parted(holder.job) if holder.only is None or n in holder.only]
            for some in batched((n for n in parted if n not in seen), 100):
                for packed in self._ledger.results(holder.job, some):
                    for file in Result.unpacked(packed).files:
                        if file.store == self._store.id:
                            made.held.add(file.path)
                            held += file.size
                self._tick()
            made.by.append((holder.why, held))
            self._tick()
        return made

    def _evict(self, found: Survey, want: int, hold: Hold, of_disk: bool) -> int:
        freed = 0
        quiet_s = self._store.limits.quiet_s
        for some in batched(found.oldest, _AT_ONCE):
            self._say(0)
            if self._comers != hold.comers:
                hold = self.hold()
            # Whoever takes a file touches it, and then holds it within quiet_s. So what was not touched since that long
            # before we asked who holds what, nobody has taken meanwhile, however long ago we asked.
            limit = hold.at - int(quiet_s * 1e9)
            aloft = self._ledger.aloft(self._store.id, [version.key for version in some])
            went = 0
            for version, flies in zip(some, aloft, strict=True):
                if freed + went >= want or self._is_old(hold):
                    break
                gain = version.frees if of_disk else version.size
                if not gain or flies or version.folder in hold.held:
                    continue
                if version.used > limit:
                    self._soon = min(self._soon, max(0.1, (version.used - limit) / 1e9))
                elif remove(self._store, version, limit):
                    went += gain
            freed += went
            self._say(went)
            if freed >= want:
                break
        return freed

    def _is_old(self, hold: Hold) -> bool:
        """Whether more may be held by now: asked in time also by a process that was stopped for a while."""
        self._tick()
        return self._comers != hold.comers

    def _drop(self, left: list[Leftover], want: int) -> int:
        """Partial files, of which nobody has written for a while: the last that is given up, as it costs a download."""
        limit = now_ns(self._store) - int(self._store.limits.quiet_s * 1e9)
        old = [each for each in left if each.written < limit]
        went = 0
        for each, flies in zip(old, self._ledger.aloft(self._store.id, [each.key for each in old]), strict=True):
            if went < want and not flies:
                drop(each)
                went += each.bytes
        self._say(went)
        return went

    def _count(self, found: Survey, added: int) -> list[Leftover]:
        left = leftovers(self._store)
        self._ledger.counted(self._store.id, found.bytes, added, [(each.key, each.bytes) for each in left])
        return left

    # -- the turn ----------------------------------------------------------------------------------------------------

    def _begin(self) -> Turn:
        """Take the turn. Raises :class:`Busy`."""
        patient = "1" if _has_manifests(self._store) else "0"
        turn = self._ledger.turn(self._store.id, self._token, _TURN_S, patient=patient)
        if turn.answer == "busy":
            raise Busy
        self._renewed, self._holders, self._comers = time.monotonic(), turn.holders, turn.comers
        return turn

    def _tick(self) -> None:
        self._check()
        if time.monotonic() - self._renewed > _RENEW_S:
            self._say(0)

    def _say(self, freed: int) -> None:
        """Keep the turn. Raises :class:`Busy`: this process was stopped for so long that another took it, and what it
        knows of who holds what is old."""
        self._step += 1
        turn = self._ledger.turn(self._store.id, self._token, _TURN_S, step=self._step, freed=freed)
        if turn.answer == "busy":
            raise Busy
        self._renewed, self._holders, self._comers = time.monotonic(), turn.holders, turn.comers

    def _end(self, why: str = "", version: str = "") -> None:
        dry_s = _LATER_S if self._gently and self._soon == DRY_S else self._soon
        self._ledger.turn(self._store.id, self._token, 0, dry=Dry(why, version, dry_s, self._gently))


def _has_manifests(store: Store) -> bool:
    try:
        return next((store.root / "manifests").iterdir(), None) is not None
    except OSError:
        return False
