"""Any other file: one sample, with its path and its bytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ingest.dataset.formats.base import Format, Reader, check, no_columns
from ingest.dataset.formats.content import Content
from ingest.dataset.formats.streams import naming


class Raw(Reader):
    """``{"__key__": name up to its first dot, "__url__": source, "path": str, "bytes": bytes}``, read when it is
    taken."""

    def __init__(self, path: Path, source: str) -> None:
        super().__init__(path, source)
        with naming(path, source):
            self._content = Content(path, source, open(path, "rb", buffering=0))  # noqa: SIM115 - close() does

    def __len__(self) -> int:
        return 1

    def take(self, numbers: Sequence[int]) -> Iterator[dict[str, Any]]:
        for number in numbers:
            check(number, 1)
            content = self._content.read(0, self._content.size)
            yield {
                "__key__": self.path.name.partition(".")[0],
                "__url__": self.source,
                "path": str(self.path),
                "bytes": content,
            }

    def kind(self, field: str) -> str | None:
        return self.path.suffix[1:].lower() if field == "bytes" else None

    def close(self) -> None:
        self._content.close()


def open_raw(path: Path, source: str, columns: Sequence[str] | None = None) -> Raw:
    no_columns(source, columns)
    return Raw(path, source)


def count(path: Path) -> int:
    """1, to those who have chosen this format. What a file of unknown format is to others, ``count_samples`` knows."""
    with naming(path, path.name), open(path, "rb"):
        return 1


FORMAT = Format("raw", (), open_raw, count)
