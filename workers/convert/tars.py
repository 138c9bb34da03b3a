"""``tar``: the files so far become one WebDataset tar. The same files give the same bytes, whoever packs them."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence

from ingest.dataset.formats.index import split
from ingest.errors import BadResponse
from workers.convert.work import File, Work, stem

_COPY_BYTES = 1 << 20


def tar(files: Sequence[File], work: Work, *, name: str | None) -> None:
    """See docs/sources.md."""
    with work.create(name or stem(work.name).rpartition("/")[2] + ".tar") as out:
        for file in _by_sample(files, work):
            info = tarfile.TarInfo(file.name)
            info.size = file.size  # time, owner and group stay 0, the mode 0644
            out.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
            with open(file.path, "rb") as body:
                while data := body.read(_COPY_BYTES):
                    out.write(data)
            out.write(bytes(-file.size % tarfile.BLOCKSIZE))
        out.write(bytes(2 * tarfile.BLOCKSIZE))
        out.write(bytes(-out.size % tarfile.RECORDSIZE))


def _by_sample(files: Sequence[File], work: Work) -> list[File]:
    """In their order, but the files of one sample together, where the first of them is: a reader takes a sample for
    over when another one begins."""
    samples: dict[str, list[File]] = {}
    fields = set()
    for file in files:
        place = split(file.name)
        if place is not None and place in fields:
            raise BadResponse(work.uri, f"sample {place[0]!r} would have two fields {place[1]!r}: {file.name!r}")
        fields.add(place)
        samples.setdefault(place[0] if place else f"\0{file.name}", []).append(file)
    return [file for sample in samples.values() for file in sample]
