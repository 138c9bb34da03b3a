"""JSON Lines, plain or packed with gzip or zstd: a sample a line, whatever JSON value it is. Blank lines are none."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ingest.dataset.formats.base import Format, damaged, no_columns
from ingest.dataset.formats.content import opening
from ingest.dataset.formats.lines import Lines, count_lines

_decode = json.JSONDecoder().decode


class JsonLines(Lines):
    """A line that is no JSON is a DataError when it is taken; the others can be had all the same."""

    blank = False

    def take(self, numbers: Sequence[int]) -> Iterator[Any]:
        for number, line in self.lines(numbers):
            try:
                sample = _decode(line.decode())
            except ValueError:
                try:
                    sample = json.loads(line)  # which knows of more encodings, and takes its time for that
                except ValueError as error:
                    raise damaged(self.path, self.source, f"line {self.line_number(number)}", error) from error
            yield sample


def open_jsonl(path: Path, source: str, columns: Sequence[str] | None = None) -> JsonLines:
    no_columns(source, columns)
    with opening(path, source) as content:
        return JsonLines(content)


_PLAIN = (".jsonl", ".ndjson")
_SUFFIXES = (*_PLAIN, *(f"{s}.gz" for s in _PLAIN), *(f"{s}.zst" for s in _PLAIN))
FORMAT = Format("jsonl", _SUFFIXES, open_jsonl, partial(count_lines, blank=False))
