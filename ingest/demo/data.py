"""The demo's dataset: noisy pictures of digits, drawn from the bitmaps below, and the files that they come in.

Generated, so that nothing has to be downloaded: the same bytes on every machine with the same libraries. Who serves
the files is in ``origins``.
"""

from __future__ import annotations

import io
import sqlite3
import tarfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

#: Pixels of a side. The glyphs have 5 × 7, so each can stand at 48 places: a linear model does not learn them.
SIDE = 12
CLASSES = 10

SHARDS, SHARD_SAMPLES = 12, 160  # tar files over HTTP
OBJECTS, OBJECT_SAMPLES = 6, 512  # Parquet files in S3
PARTITIONS, PARTITION_SAMPLES = 4, 768  # of a table
#: As many files arrive when all goes well: one tar file more is served by the flaky URL.
FILES = SHARDS + 1 + OBJECTS + PARTITIONS
HELD_OUT = 1000

#: One digit a line, one row of five pixels a number.
_GLYPHS = (
    (0b01110, 0b10001, 0b10011, 0b10101, 0b11001, 0b10001, 0b01110),
    (0b00100, 0b01100, 0b00100, 0b00100, 0b00100, 0b00100, 0b01110),
    (0b01110, 0b10001, 0b00001, 0b00010, 0b00100, 0b01000, 0b11111),
    (0b11111, 0b00010, 0b00100, 0b00010, 0b00001, 0b10001, 0b01110),
    (0b00010, 0b00110, 0b01010, 0b10010, 0b11111, 0b00010, 0b00010),
    (0b11111, 0b10000, 0b11110, 0b00001, 0b00001, 0b10001, 0b01110),
    (0b00110, 0b01000, 0b10000, 0b11110, 0b10001, 0b10001, 0b01110),
    (0b11111, 0b00001, 0b00010, 0b00100, 0b01000, 0b01000, 0b01000),
    (0b01110, 0b10001, 0b10001, 0b01110, 0b10001, 0b10001, 0b01110),
    (0b01110, 0b10001, 0b10001, 0b01111, 0b00001, 0b00010, 0b01100),
)

#: (pictures, labels): uint8 of shape (n, SIDE, SIDE), and int64 of shape (n,).
Samples = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


def samples(count: int, seed: int) -> Samples:
    """``count`` digits, each somewhere in its picture, brighter or darker, under noise."""
    random = np.random.default_rng(seed)
    glyphs = np.array([[[row >> bit & 1 for bit in range(4, -1, -1)] for row in glyph] for glyph in _GLYPHS])
    labels = random.integers(0, CLASSES, count)
    pictures = np.zeros((count, SIDE, SIDE))
    places = random.integers(0, (SIDE - 7 + 1, SIDE - 5 + 1), (count, 2))
    ink = random.uniform(0.5, 1.0, count)
    for picture, label, (top, left), dark in zip(pictures, labels, places, ink, strict=True):
        picture[top : top + 7, left : left + 5] = glyphs[label] * dark
    pictures += random.normal(0, 0.15, pictures.shape)
    return (pictures.clip(0, 1) * 255).astype(np.uint8), labels


def held_out() -> Samples:
    """Those that no source has."""
    return samples(HELD_OUT, seed=0)


def shard(number: int) -> bytes:
    """A tar file in the layout of WebDataset: ``KEY.npy`` and ``KEY.cls`` for each sample."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for n, (picture, label) in enumerate(zip(*samples(SHARD_SAMPLES, seed=1000 + number), strict=True)):
            array = io.BytesIO()
            np.save(array, picture)
            for extension, body in (("npy", array.getvalue()), ("cls", str(label).encode())):
                member = tarfile.TarInfo(f"{number:03}-{n:04}.{extension}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))
    return file.getvalue()


def parquet(number: int) -> bytes:
    """A Parquet file with the columns ``image`` (SIDE × SIDE bytes) and ``label``."""
    import pyarrow
    from pyarrow.parquet import write_table

    pictures, labels = samples(OBJECT_SAMPLES, seed=2000 + number)
    table = pyarrow.table({"image": [picture.tobytes() for picture in pictures], "label": labels})
    file = io.BytesIO()
    write_table(table, file)
    return file.getvalue()


def database(path: Path) -> None:
    """An SQLite file with the table ``digits``: ``id``, ``image`` (SIDE × SIDE bytes) and ``label``."""

    def rows() -> Iterator[tuple[int, bytes, int]]:
        pictures, labels = samples(PARTITIONS * PARTITION_SAMPLES, seed=3000)
        for n, (picture, label) in enumerate(zip(pictures, labels, strict=True)):
            yield n, picture.tobytes(), int(label)

    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE digits (id INTEGER PRIMARY KEY, image BLOB NOT NULL, label INTEGER NOT NULL)")
        connection.executemany("INSERT INTO digits VALUES (?, ?, ?)", rows())
