"""A shard that was done, and of which files are gone from the store: what is here still is kept, and the rest must come
back as it was. Whoever reads it counts on that: the order of an epoch is made of sample counts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from ingest.errors import VersionGone
from ingest.ledger import Claim
from ingest.model import FileRecord, FileSpec
from ingest.store import Store
from workers.node import Node
from workers.outcome import Outcome, failure_of
from workers.snapshots.pins import wants_moment

Place = tuple[int, int]


def begin(node: Node, claim: Claim) -> Outcome:
    """What is here of a claim: of one that is fetched again, the files that are not gone."""
    outcome = Outcome.of(claim)
    if claim.record.gone:
        gone = {f.index for f in outcome.files if f.store == node.store.id and not is_whole(node.store, f)}
        if gone and claim.options.pack:
            outcome.files.clear()  # one list, packed alike, is one file; a part of it would be another
        outcome.files[:] = [f for f in outcome.files if f.index not in gone]
    return outcome


def is_whole(store: Store, file: FileRecord) -> bool:
    """Whether a file of this store is there, by its size; then it stays for ``quiet_s`` at the least."""
    try:
        return store.touch(file.path) and store.path_of(file.path).stat().st_size == file.size
    except OSError:
        return False


def refuse(claim: Claim, spec: FileSpec) -> bool:
    """Whether a file cannot be had again whatever the origin says: it was read at one moment with others, which is
    past, and another moment would take all of them back."""
    return claim.record.gone and wants_moment(spec)


def moment_is_past(spec: FileSpec) -> VersionGone:
    return VersionGone(
        spec.uri,
        "it was evicted from the store, and was read at one moment with the other partitions, which is past; "
        "submit it again, and read it with keep=True or from a store that has room for all of it",
    )


def check(node: Node, claim: Claim, outcome: Outcome) -> None:
    """What was fetched again must be what it was; else it has failed."""
    if not claim.record.gone:
        return
    before, now = _by_place(claim.earlier.files), _by_place(outcome.files)
    made = bool(claim.options.convert or claim.options.pack)
    for place, files in now.items():
        known = before.get(place, [])
        if len(known) == len(files) and all(_same(a, b, made) for a, b in zip(known, files, strict=True)):
            continue
        uri = files[0].uri
        error = VersionGone(
            uri,
            f"it was evicted from the store, and the origin has something else by now: it was {_said(known)}, and is "
            f"{_said(files)}; submit it again to read what it is now",
        )
        outcome.files[:] = [f for f in outcome.files if f.index != place]
        outcome.failures.append(failure_of(node, claim, uri, place, error))
        outcome.max_failed = 0.0  # not one of the samples that a packed shard may lack


def _by_place(files: Iterable[FileRecord]) -> dict[Place, list[FileRecord]]:
    found: dict[Place, list[FileRecord]] = defaultdict(list)
    for file in sorted(files, key=lambda f: f.place):
        found[file.index].append(file)
    return found


def _same(was: FileRecord, now: FileRecord, made: bool) -> bool:
    """The same bytes; of what a step has made, which may hold a time, as many samples out of the same version."""
    return was.digest == now.digest or (made and (was.version, was.samples) == (now.version, now.samples))


def _said(files: list[FileRecord]) -> str:
    return ", ".join(f"{file.digest} ({file.size} bytes)" for file in files[:3]) or "nothing"
