"""Any other file: one sample, with its path and its bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ingest.dataset.formats.base import Format, no_columns
from ingest.dataset.formats.streams import naming


def read(path: Path, source: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """``{"__key__": name up to its first dot, "__url__": source, "path": str, "bytes": bytes}``."""
    no_columns(source, columns)
    with naming(path, source):
        content = path.read_bytes()
    yield {"__key__": path.name.partition(".")[0], "__url__": source, "path": str(path), "bytes": content}


def count(path: Path) -> None:
    """None: a file of unknown format may be many samples to the user's function."""
    return None


FORMAT = Format("raw", (), read, count)
