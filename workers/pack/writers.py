"""Packed files being written into a scratch: WebDataset tars, and Parquet. What is said of a sample is in
``samples``."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable
from typing import Any, Protocol

from ingest.errors import MissingExtra
from ingest.store import Scratch
from workers.pack.samples import Entry

_BLOCK = tarfile.BLOCKSIZE
#: A row group of a packed Parquet file is closed at this size: what a reader holds in memory.
_ROW_GROUP_BYTES = 16 << 20
#: A sample of a packed Parquet file is in memory as a whole, a few times; so it is for whoever reads it.
_MOST_BYTES = 128 << 20


class Writer(Protocol):
    """``add`` samples in order, then ``finish``."""

    def add(self, entry: Entry, content: Iterable[bytes]) -> None: ...
    def finish(self) -> None: ...


class TarWriter:
    """``KEY.EXTENSION`` and ``KEY.json`` for each sample, consecutive, as WebDataset reads them. The same samples give
    the same bytes: no times, no owners."""

    suffix = "tar"
    most_bytes: int | None = None

    def __init__(self, scratch: Scratch) -> None:
        self._scratch = scratch

    def add(self, entry: Entry, content: Iterable[bytes]) -> None:
        # A sample that is JSON itself keeps that name out of the way of ours.
        extension = "content.json" if entry.extension == "json" else entry.extension
        self._member(f"{entry.key}.{extension}", entry.sample.size, content)
        facts = json.dumps(entry.facts, ensure_ascii=False).encode("utf-8", "backslashreplace")
        self._member(f"{entry.key}.json", len(facts), (facts,))

    def _member(self, name: str, size: int, content: Iterable[bytes]) -> None:
        info = tarfile.TarInfo(name)
        info.size = size
        self._scratch.write(info.tobuf(tarfile.PAX_FORMAT, errors="backslashreplace"))
        for block in content:
            self._scratch.write(block)
        if size % _BLOCK:
            self._scratch.write(bytes(_BLOCK - size % _BLOCK))

    def finish(self) -> None:
        self._scratch.write(bytes(2 * _BLOCK))


class ParquetWriter:
    """A row for each sample: ``key``, ``uri``, ``extension``, ``size``, ``digest``, ``metadata`` (JSON text) and
    ``content``."""

    suffix = "parquet"
    most_bytes: int | None = _MOST_BYTES

    def __init__(self, scratch: Scratch) -> None:
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise MissingExtra(scratch.uri, "ingest[sql]") from error
        from workers.parquet import Sink

        text = pa.string()
        fields = [("key", text), ("uri", text), ("extension", text), ("size", pa.int64()), ("digest", text)]
        self._schema = pa.schema([*fields, ("metadata", text), ("content", pa.binary())])
        self._sink = Sink(scratch)
        self._writer = pq.ParquetWriter(pa.PythonFile(self._sink, mode="w"), self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, entry: Entry, content: Iterable[bytes]) -> None:
        facts = entry.facts
        metadata = json.dumps(facts["metadata"], ensure_ascii=False) if "metadata" in facts else None
        row = {name: facts[name] for name in ("key", "uri", "size", "digest")}
        self._rows.append(row | {"extension": entry.extension, "metadata": metadata, "content": b"".join(content)})
        self._bytes += entry.sample.size
        if self._bytes >= _ROW_GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        self._rows, self._bytes = [], 0

    def finish(self) -> None:
        self._flush()
        self._writer.close()
        self._sink.leave()


WRITERS: dict[str, type[TarWriter] | type[ParquetWriter]] = {"tar": TarWriter, "parquet": ParquetWriter}
