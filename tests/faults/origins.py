"""Origins of the fault suite: every file's bytes follow from its name, so that whoever has the name knows what is
right."""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from functools import lru_cache
from pathlib import Path

from tests.servers.http.origin import Handler

_SEND = 32 << 10


@lru_cache(maxsize=64)
def content(name: str, size: int) -> bytes:
    return hashlib.shake_128(name.encode()).digest(size)


def digest_of(name: str, size: int) -> str:
    return f"sha256:{hashlib.sha256(content(name, size)).hexdigest()}"


class Paced:
    """A file that comes at ``rate`` bytes a second, with an ETag and ranges. ``hold`` keeps its last ``held`` bytes
    back until it is set; ``starts`` are the offsets that were asked for."""

    def __init__(self, name: str, size: int, rate: float = 4e6, *, hold: threading.Event | None = None, held: int = 1):
        self.name, self.size, self.rate = name, size, rate
        self.hold, self.held = hold, held
        self.starts: list[int] = []
        self.sent = 0

    def __call__(self, to: Handler) -> None:
        data, tag = content(self.name, self.size), f'"{self.name}"'
        asked, first, end = to.headers.get("Range", ""), 0, self.size
        fields = {"ETag": tag, "Accept-Ranges": "bytes"}
        if to.headers.get("If-None-Match") == tag:
            return to.head(304, fields)
        if asked and to.headers.get("If-Range", tag) == tag:
            low, _, high = asked.removeprefix("bytes=").partition("-")
            first, end = int(low), min(int(high) + 1, end) if high else end
            fields["Content-Range"] = f"bytes {first}-{end - 1}/{self.size}"
        self.starts.append(first)
        to.head(206 if "Content-Range" in fields else 200, {**fields, "Content-Length": str(end - first)})
        closing = to.server.origin.closing
        at = first
        while at < end:
            if self.hold is not None and not self.hold.is_set() and at >= self.size - self.held:
                while not self.hold.wait(0.05):
                    if closing.is_set() or to.gone():
                        return to.cut()
            step = min(_SEND, end - at)
            if self.hold is not None and at < self.size - self.held:
                step = min(step, self.size - self.held - at)
            to.send(data[at : at + step])
            self.sent += step
            at += step
            if self.rate and closing.wait(step / self.rate):
                return to.cut()
        return None


ROWS = 4000


def make_database(path: Path) -> None:
    """A table of ``ROWS`` rows; a query for one residue of ``id`` is one file."""
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE samples (id INTEGER PRIMARY KEY, body TEXT NOT NULL)")
        rows = ((n, hashlib.sha256(str(n).encode()).hexdigest() * 4) for n in range(ROWS))
        db.executemany("INSERT INTO samples VALUES (?, ?)", rows)
    db.close()


def query(modulus: int, residue: int) -> str:
    return f"SELECT id, body FROM samples WHERE id % {modulus} = {residue} ORDER BY id"


def right_rows(path: Path, modulus: int, residue: int) -> bool:
    """Whether a Parquet file holds just the rows that the query asks for."""
    import pyarrow.parquet as pq

    table = pq.read_table(path).sort_by("id")
    wanted = list(range(residue, ROWS, modulus))
    bodies = [hashlib.sha256(str(n).encode()).hexdigest() * 4 for n in wanted]
    return table["id"].to_pylist() == wanted and table["body"].to_pylist() == bodies
