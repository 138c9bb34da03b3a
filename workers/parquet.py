"""What pyarrow writes Parquet to. No pyarrow here: it is loaded by those who write."""

from __future__ import annotations

import io
from typing import Any

from ingest.store import Scratch


class Sink(io.RawIOBase):
    """A scratch as a Python file: it counts and hashes on the way, and may interrupt us."""

    def __init__(self, scratch: Scratch) -> None:
        super().__init__()
        self._scratch: Scratch | None = scratch

    def leave(self) -> None:
        """Nothing reaches the scratch any more: an interrupted writer still writes a footer when it is collected."""
        self._scratch = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        view = memoryview(data)
        if self._scratch is not None:
            self._scratch.write(view)
        return view.nbytes
