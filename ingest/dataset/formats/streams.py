"""Plain bytes out of a file that may be compressed, for the formats: what is damaged is said as they say it."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ingest.dataset.formats.base import damaged
from ingest.streams import open_plain

__all__ = ["is_on_disk", "naming", "open_plain"]


def is_on_disk(plain: BinaryIO) -> bool:
    """Whether what ``open_plain`` gave is the file itself, and nothing that is unpacked on the way."""
    return isinstance(getattr(plain, "raw", None), io.FileIO)


@contextmanager
def naming(path: Path, source: str, where: str = "content") -> Iterator[None]:
    """Turn what the decompressors and the disk raise into a :class:`~ingest.errors.DataError`."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, source, where, error) from error
