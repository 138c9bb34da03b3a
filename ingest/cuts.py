"""How many files a shard has: pure rules, for lists whose length is known (the client's) and for those that are still
being read (a data node's). What a shard is, is in ``model``."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ingest.model import FileSpec

#: A list of so many files is cut into shards of one: files of which there are few are mostly large.
FEW = 64
#: What a shard costs by itself is as much as several small files do, so of more files so many are together …
SOME = 16
#: … and of very many so many, so that a shard is seconds of work.
MOST = 256
#: A list that is longer than this times MOST has shards of MOST files.
SHARDS = 256
#: Shards for each process of the fleet, as far as there are files: so that all have work until the end.
EACH = 4
#: A shard of listed files holds about this much, in bytes, where the listing says how large they are.
SHARD_BYTES = 64 << 20


def shard_size(files: int, wanted: int | None, slots: int = 0) -> int:
    """Files per shard for that many literal files in all, on a fleet of so many processes."""
    if wanted is not None:
        return wanted
    size = max(min(SOME, math.ceil(files / FEW)), min(MOST, math.ceil(files / SHARDS)))
    return max(1, min(size, files // (EACH * slots) if slots else size))


def cut_listed(specs: Iterator[FileSpec], wanted: int | None, seen: int = 0) -> Iterator[list[FileSpec]]:
    """Shards from a listing whose length is not known, ``seen`` files of which came before: small ones at first, so
    that work begins and is spread at once, larger ones as the list goes on."""
    shard: list[FileSpec] = []
    size = 0
    for number, spec in enumerate(specs, seen):
        most = wanted or min(MOST, max(min(SOME, 1 + number // SOME), number // SHARDS))
        if shard and (len(shard) >= most or (wanted is None and size + (spec.size or 0) > SHARD_BYTES)):
            yield shard
            shard, size = [], 0
        shard.append(spec)
        size += spec.size or 0
    if shard:
        yield shard
