"""Pictures in the ledger: sources whose partitions are read at one moment, or whose cursor moves on when all of them is
there. What a moment is, and who holds it, is in ``workers.snapshots``; the transitions are in the scripts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from ingest.errors import FetchError, by_name
from ingest.ledger.jobs import JobLedger
from ingest.ledger.redis import text


class Claimed(Protocol):
    """A unit, and the token under which it is held."""

    @property
    def unit(self) -> str: ...
    @property
    def fence(self) -> str: ...


@dataclass(frozen=True)
class Picture:
    """``state`` is none, wanted, opening, held or refused; ``moment`` what partitions are read at, once it is held;
    ``reason`` why there is none (now), as an error of class ``error``; ``plan`` the packed partitions, for planners."""

    state: str
    generation: int
    moment: str
    reason: str
    error: str
    kind: str
    plan: bytes

    def refusal(self, uri: str) -> FetchError:
        """Why there is no moment, as the error that it is."""
        return by_name(self.error)(uri, self.reason)


class Wish(NamedTuple):
    """A planner's wish for a picture. ``kind``: ``none``, ``held`` or ``file``; ``most``: moments that may be lost."""

    kind: str
    node: str
    connection: str
    source: str
    most: int


class Cursor(NamedTuple):
    """Where an increment begins and ends: ``before`` is what the cursor was (``*``: whatever it was), ``after`` what it
    becomes when all is there."""

    key: str
    before: str
    after: str


class Taken(NamedTuple):
    """A picture whose moment this worker is to open. ``name`` is JOB.SOURCE."""

    name: str
    generation: int
    connection: str
    source: str
    refusals: int


class PictureLedger(JobLedger):
    """Beside jobs, what workers and keepers ask and say of pictures."""

    def look(self, claim: Claimed, wish: Wish | None = None) -> Picture | str:
        """The picture of a claim's source, made by the planner's ``wish``; ``lost`` or ``cancelled`` instead."""
        answer = self.run("look", claim.unit, claim.fence, *(wish or ("", "", "", "", 0)))
        if len(answer) == 1:
            return text(answer[0])
        state, generation, moment, reason, error, kind, plan = answer
        return Picture(text(state), int(generation), text(moment), text(reason), text(error), text(kind), plan)

    def remember(self, claim: Claimed, generation: int, plan: bytes, cursor: Cursor | None) -> str:
        """Keep the partitions that were planned, and the cursor: ``ok``, ``lost``, or ``old``: there is another
        generation, for which they were not made."""
        return text(self.run("remember", claim.unit, claim.fence, generation, plan, *(cursor or ("", "", ""))))

    def offer(self, name: str, generation: int, worker: str, moment: str, lease_s: float) -> list[str] | None:
        """A moment for a picture, held by ``worker`` ("": by nobody, it is recognised). The queues to ring for; None:
        it is not wanted any more."""
        return self._queues(self.run("offer", *_split(name), generation, worker, moment, int(lease_s * 1000)))

    def refuse(self, taken: Taken, worker: str, final: bool, delay_s: float, error: FetchError) -> list[str] | None:
        """The moment cannot be had: for good, or not before ``delay_s``. As :meth:`offer`."""
        facts = (taken.generation, worker, int(final), int(delay_s * 1000), type(error).__name__, error.reason)
        return self._queues(self.run("refuse", *_split(taken.name), *facts))

    def anew(self, name: str, generation: int, reason: str, node: str = "*") -> list[str] | None:
        """The moment of a generation is lost: all is read again at another, opened by ``node`` ("": by anybody, ``*``:
        by the node that was to open it before). As :meth:`offer`; None when somebody else said so before."""
        queues = self._queues(self.run("anew", *_split(name), generation, reason, node))
        return None if queues is None else queues[1:]

    def generation(self, name: str) -> int:
        """How many moments a picture has had; 0 for one that is gone."""
        with self.translated():
            return int(self.redis.hget(self.key("picture", name), "g") or 0)

    def dropped(self, job: str, number: str) -> bytes | None:
        """The packed result that a shard had at the moment that was lost last."""
        return self.results(job, [f"old:{number}"])[0]

    @staticmethod
    def _queues(answer: list[bytes]) -> list[str] | None:
        first, *queues = map(text, answer)
        return queues if first == "ok" else None

    def hold(
        self, worker: str, node: str, lease_s: float, room: int, connections: Sequence[str], mine: dict[str, int]
    ) -> tuple[list[str], list[Taken]]:
        """A keeper's round: renew ``mine`` (picture → generation) and take up to ``room`` more. Returns the pictures to
        let go, and those to open."""
        pairs = [value for pair in mine.items() for value in pair]
        # As long as two rounds: by then the node that was asked would have come.
        lapse_ms = int(self.settings.limits.renew_s * 2000)
        past, taken = self.run(
            "hold", worker, node, int(lease_s * 1000), lapse_ms, room, len(connections), *connections, *pairs
        )
        rows = [taken[at : at + 5] for at in range(0, len(taken), 5)]
        return [text(name) for name in past], [
            Taken(text(name), int(generation), text(connection), text(source), int(refusals))
            for name, generation, connection, source, refusals in rows
        ]

    def await_wish(self, node: str, timeout_s: float) -> None:
        """Until something happened that concerns that node's keeper, or for so long."""
        with self.translated():
            self.redis.blpop([self.key("wishes", node)], timeout=max(1, round(timeout_s)))  # whole, for Redis 5


def _split(name: str) -> tuple[str, str]:
    job, _, source = name.rpartition(".")
    return job, source
