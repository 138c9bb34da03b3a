"""Watches what a store holds."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def never_more(root: Path, most: int) -> Iterator[None]:
    """Whatever is done meanwhile, that store never holds more than so many bytes."""
    over: list[int] = []
    end = threading.Event()

    def seen() -> dict[tuple[str, int], int]:
        found = {}
        for part in ("data", "scratch"):
            for above, _, names in os.walk(root / part):
                for name in names:
                    if ".json" not in name:  # records and journals
                        with suppress(OSError):
                            is_ = os.stat(path := os.path.join(above, name))
                            found[path, is_.st_ino] = is_.st_size
        return found

    def look() -> None:
        # A walk takes its time: what goes, and what comes instead, is not there at once. What two walks saw was.
        before = seen()
        while not end.wait(0.02):
            after = seen()
            both = {
                inode: min(size, after[path, inode]) for (path, inode), size in before.items() if (path, inode) in after
            }
            if sum(both.values()) > most:
                over.append(sum(both.values()))
            before = after

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()
    assert not over, f"up to {max(over)} bytes, in {len(over)} looks"
