"""Record batches in Arrow's file format, mapped into memory: any row without reading the others, and nothing held but
what the system may take back at any time."""

from __future__ import annotations

import mmap
from array import array
from bisect import bisect_right
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from ingest.dataset.formats.content import Anonymous
from ingest.dataset.formats.tables import arrow


class Starts:
    """The first row of each of some batches, by their numbers of rows."""

    def __init__(self, rows: Iterable[int]) -> None:
        self._starts = array("Q", [0])
        for each in rows:
            self._starts.append(self._starts[-1] + each)

    @property
    def rows(self) -> int:
        return self._starts[-1]

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, batch: int) -> int:
        return self._starts[batch]

    def batch_of(self, row: int) -> int:
        return bisect_right(self._starts, row) - 1


class Mapped:
    """Batches that were written into a file without a name, to be read in any order. What holds it holds its room on
    disk: it goes with the last batch that points into it."""

    def __init__(self, path: Path, source: str, batches: Iterable[Any]) -> None:
        """``path`` and ``source`` are what is to blame for the room that is taken: StoreError where there is none."""
        pa = arrow("tables")
        file = Anonymous(path, source)
        with closing(file.file):
            sink: Any = pa.PythonFile(file, mode="w")
            writer = None
            counts = []
            for batch in map(_plain, batches):
                writer = writer or pa.ipc.new_file(sink, batch.schema)
                writer.write_batch(batch)
                counts.append(batch.num_rows)
            self._reader = None
            if writer is not None:
                writer.close()
                self._reader = pa.ipc.open_file(map_file(file.file))
        self.starts, self.size = Starts(counts), file.written

    def close(self) -> None:
        self._reader = None

    def find(self, row: int) -> tuple[int, Any]:
        assert self._reader is not None
        batch = self.starts.batch_of(row)
        return self.starts[batch], self._reader.get_batch(batch)


def map_file(file: Any) -> Any:
    """The bytes of an open file as an Arrow buffer, valid after it is closed. No reading, and no file offset."""
    return arrow("tables").py_buffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))


def _plain(batch: Any) -> Any:
    """Without dictionaries, of which a file may have but one for a column."""
    pa = arrow("tables")
    if not any(pa.types.is_dictionary(field.type) for field in batch.schema):
        return batch
    columns = [c.dictionary_decode() if pa.types.is_dictionary(c.type) else c for c in batch.columns]
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)
