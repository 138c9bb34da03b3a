"""JSON Lines, plain or packed with gzip or zstd: a sample a line, whatever JSON value it is. Blank lines are none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ingest.dataset.formats.base import Format, damaged, no_columns
from ingest.dataset.formats.streams import naming, open_plain

_PIECE_BYTES = 1 << 20  # counting reads no line longer than this at once, so that memory stays flat


def read(path: Path, source: str, columns: Sequence[str] | None = None) -> Iterator[Any]:
    no_columns(source, columns)
    number = 0
    with naming(path, source), open_plain(path) as file:
        lines = iter(file)
        while True:
            with naming(path, source, f"after line {number}"):
                line = next(lines, None)
            if line is None:
                return
            number += 1
            if not line.strip():
                continue
            try:
                sample = json.loads(line)
            except ValueError as error:
                raise damaged(path, source, f"line {number}", error) from error
            yield sample


def count(path: Path) -> int:
    found, blank = 0, True
    with naming(path, path.name), open_plain(path) as file:
        while piece := file.readline(_PIECE_BYTES):
            blank = blank and not piece.strip()
            if piece.endswith(b"\n"):
                found, blank = found + (not blank), True
    return found + (not blank)


_PLAIN = (".jsonl", ".ndjson")
FORMAT = Format("jsonl", (*_PLAIN, *(f"{s}.gz" for s in _PLAIN), *(f"{s}.zst" for s in _PLAIN)), read, count)
