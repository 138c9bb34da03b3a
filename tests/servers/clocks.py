"""Another clock for a process that a test starts, which the test may move while it runs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


def faketime() -> str:
    """The library that shows a process another clock (Debian: faketime). Skips the test where there is none."""
    found = [
        path for under in ("*/faketime", "faketime") for path in Path("/usr/lib").glob(f"{under}/libfaketimeMT.so.1")
    ]
    if not found or not shutil.which("faketime"):
        pytest.skip("no libfaketime; apt-get install faketime")
    return str(found[0])


class MovableClock:
    """``env`` is for the process; how much its clock is ahead is in a file, which it reads whenever it asks for the
    time."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.env = {
            "LD_PRELOAD": faketime(),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
        }
        self.move(0)

    def move(self, seconds: int) -> None:
        new = self._file.with_suffix(".new")
        new.write_text(f"{seconds:+d}\n")
        new.replace(self._file)
