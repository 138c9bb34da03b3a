"""What is written of a sample in a packed file: its key, the extension of its bytes, and the JSON beside them. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ingest.model import FileSpec
from ingest.names import safe_parts
from workers.pack.spool import Sample

#: Of these, the extension before says what is inside.
_COMPRESSED = {"gz", "bz2", "xz", "zst"}
_EXTENSION = re.compile(r"[a-z0-9_+-]{1,16}")


@dataclass(frozen=True)
class Entry:
    """One sample, ready to be written: ``key`` is unique in its shard, ``extension`` is without a dot."""

    spec: FileSpec
    sample: Sample
    key: str
    extension: str

    @property
    def facts(self) -> dict[str, Any]:
        """The JSON of the sample: where it is from and what it was, and what the manifest says of it."""
        about: dict[str, Any] = {"key": self.key, "uri": self.spec.uri, "status": "ok"}
        about |= {"size": self.sample.size, "digest": self.sample.digest, "name": self.sample.name}
        return {**about, **({"metadata": dict(self.spec.metadata)} if self.spec.metadata else {})}


def entries(specs: Sequence[FileSpec], samples: dict[int, Sample]) -> Iterator[Entry]:
    """The samples that are there, in the order of the list.

    A key is the manifest's, else made of the sample's place in the job, so that keys sort as the request does.
    """
    taken: set[str] = set()
    for position, spec in enumerate(specs):
        sample = samples.get(position)
        if sample is None:
            continue
        key = plain_key(spec.key) if spec.key else f"{spec.source:04}-{spec.part:09}"
        while key in taken:
            key = f"{key}_{spec.source:04}-{spec.part:09}"
        taken.add(key)
        yield Entry(spec, sample, key, extension(sample.name))


def plain_key(text: str) -> str:
    """A manifest's key as WebDataset can hold it: its last part has no dot, because a key ends at the first one."""
    parts = safe_parts(text)
    if not parts:
        return "sample"
    return "/".join((*parts[:-1], parts[-1].replace(".", "_")))


def extension(name: str) -> str:
    """``"a.v2.JPG"`` → ``"jpg"``, ``"a.tar.gz"`` → ``"tar.gz"``; ``"bin"`` for a name without one."""
    _, *found = name.lower().split(".")
    if not found or not _EXTENSION.fullmatch(found[-1]):
        return "bin"
    if found[-1] in _COMPRESSED and len(found) > 1 and _EXTENSION.fullmatch(found[-2]):
        return ".".join(found[-2:])
    return found[-1]


def runs(places: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(source, part) pairs, in order, as runs of (source, first part, last part)."""
    made: list[tuple[int, int, int]] = []
    for source, part in places:
        if made and made[-1][0] == source and made[-1][2] + 1 == part:
            made[-1] = (source, made[-1][1], part)
        else:
            made.append((source, part, part))
    return made
