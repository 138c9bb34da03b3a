"""Text, plain or packed with gzip or zstd: a sample a line, as a str without its end. Only where it is asked for by
name: to most who have them, a ``.txt`` is one text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from ingest.dataset.formats.base import Format, damaged, no_columns
from ingest.dataset.formats.content import opening
from ingest.dataset.formats.lines import Lines, count_lines


class Text(Lines):
    """Lines end with LF or CR LF. One that is not UTF-8 is a DataError when it is taken."""

    blank = True

    def take(self, numbers: Sequence[int]) -> Iterator[str]:
        for number, line in self.lines(numbers):
            try:
                sample = line.removesuffix(b"\r").decode()
            except ValueError as error:
                raise damaged(self.path, self.source, f"line {self.line_number(number)}", error) from error
            yield sample


def open_text(path: Path, source: str, columns: Sequence[str] | None = None) -> Text:
    no_columns(source, columns)
    with opening(path, source) as content:
        return Text(content)


FORMAT = Format("text", (), open_text, partial(count_lines, blank=True))
