"""``decompress``: a packed file becomes what is in it. What packed it is told by its first bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ingest.errors import BadResponse, MissingExtra, Unsupported
from workers.convert.plain import Damaged, Unpackable, kind_of, plain
from workers.convert.work import File, Meter, Work

HEAD_BYTES = 8
_SUFFIXES = {".gz": "", ".bz2": "", ".xz": "", ".zst": "", ".zstd": ""}
_SUFFIXES |= {".tgz": ".tar", ".tbz2": ".tar", ".tbz": ".tar", ".txz": ".tar", ".tzst": ".tar"}


@contextmanager
def named(work: Work, file: File) -> Iterator[None]:
    """What is wrong with a stream, said of the file."""
    try:
        yield
    except Damaged as error:
        raise BadResponse(work.uri, f"{file.name} is damaged: {error}") from error
    except Unpackable as error:
        raise Unsupported(work.uri, f"{file.name}: {error}") from error
    except ImportError as error:
        raise MissingExtra(work.uri, str(error.name or error)) from error


def decompress(files: Sequence[File], work: Work, *, max_bytes: int | None, max_ratio: float, others: str) -> None:
    """See docs/sources.md."""
    for file in files:
        with open(file.path, "rb") as packed:
            kind = kind_of(packed.read(HEAD_BYTES))
            if kind is None and others == "keep":
                work.keep(file)
                continue
            if kind is None:
                raise BadResponse(
                    work.uri, f"{file.name} is not gzip, bzip2, xz or zstd; others='keep' keeps what is not packed"
                )
            packed.seek(0)
            meter = Meter(work, file, max_bytes, max_ratio)
            with work.create(_stripped(file.name)) as out, named(work, file):
                for piece in plain(packed, kind):
                    meter.add(len(piece))
                    out.write(piece)


def _stripped(name: str) -> str:
    for suffix, instead in _SUFFIXES.items():
        if name.lower().endswith(suffix) and len(name.rpartition("/")[2]) > len(suffix):
            return name[: -len(suffix)] + instead
    return name
