"""A file of each format that there is, out of the same rows."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import zstandard

from ingest.dataset import formats
from ingest.dataset.formats import Samples
from tests.unit.dataset.test_mds import shard

Rows = Sequence[Mapping[str, Any]]  #: each an ``id`` and a ``text``


def lines(rows: Rows) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" * (1 + row["id"] % 3) for row in rows)


def tar(path: Path, rows: Rows) -> None:
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for row in rows:
            for extension, body in (("txt", str(row["text"]).encode()), ("cls", b"%d" % row["id"])):
                info = tarfile.TarInfo(f"{row['id']}.{extension}")
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))


def mds(path: Path, rows: Rows) -> None:
    samples = [len(text).to_bytes(4, "little") + text for row in rows if (text := str(row["text"]).encode()) or True]
    path.write_bytes(shard(samples))


def stream(path: Path, rows: Rows) -> None:
    with pa.ipc.new_stream(path, table(rows).schema) as writer:
        writer.write_table(table(rows), max_chunksize=77)


def csv(path: Path, rows: Rows) -> None:
    with gzip.open(path, "wb") if path.suffix == ".gz" else path.open("wb") as file:
        pa.csv.write_csv(table(rows), file)


def table(rows: Rows) -> pa.Table:
    return pa.Table.from_pylist(list(rows))


MAKERS: dict[str, Callable[[Path, Rows], object]] = {
    "a.tar": tar,
    "a.tar.gz": tar,
    "a.parquet": lambda path, rows: pq.write_table(table(rows), path, row_group_size=100),
    "a.jsonl": lambda path, rows: path.write_bytes(lines(rows)),
    "a.jsonl.zst": lambda path, rows: path.write_bytes(zstandard.ZstdCompressor().compress(lines(rows))),
    "a.csv": csv,
    "a.csv.gz": csv,
    "a.arrow": stream,
    "a.feather": lambda path, rows: pa.feather.write_feather(table(rows), path, compression="lz4", chunksize=77),
    "a.mds": mds,
    "a.text": lambda path, rows: path.write_bytes(lines(rows)),
    "a.bin": lambda path, rows: path.write_bytes(lines(rows)),
}


def opened(path: Path) -> Samples:
    kind = formats.by_name("text") if path.suffix == ".text" else formats.detect(path.name)
    return formats.open_samples(kind, path, "src")
