"""What the SQL tests share: a profile, a plan that went through JSON as on the queue, and the files of partitions."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.model import FileSpec
from ingest.sections import Connection, Limits
from ingest.settings import Settings
from ingest.sources import Sql
from ingest.store.scratch import Scratch
from workers.fetchers.base import Context
from workers.fetchers.sql import SqlFetcher


def profile(url: str, *, limits: Limits | None = None, **more: str) -> Context:
    return Context(Settings(limits=limits or Limits()), Connection("warehouse", {"url": url, **more}))


def plan(context: Context, **asked: Any) -> list[FileSpec]:
    specs = SqlFetcher().expand(Sql("warehouse", **asked), context)
    return [FileSpec.from_json(json.loads(json.dumps(spec.to_json()))) for spec in specs]


@contextmanager
def fetched(
    context: Context, spec: FileSpec, folder: Path, on_bytes: Callable[[int], None] = lambda n: None
) -> Iterator[list[Scratch]]:
    """The files of one partition, for as long as the block lasts; what is said of them is true."""
    root = Scratch(folder, uuid4().hex, spec.uri, keep=False, on_bytes=on_bytes)
    try:
        found = SqlFetcher().fetch(spec, root, None, context)
        assert found.samples == root.samples and found.version is None
        for file in [root, *root.pieces]:
            data = file.path.read_bytes()
            assert file.size == len(data) and file.digest() == f"sha256:{hashlib.sha256(data).hexdigest()}"
            assert file.samples == pq.read_metadata(file.path).num_rows
        yield [root, *root.pieces]
    finally:
        root.close(discard=True)


def fetch(context: Context, spec: FileSpec, folder: Path) -> pa.Table:
    """All rows of one partition."""
    with fetched(context, spec, folder) as files:
        return pa.concat_tables([pq.read_table(file.path) for file in files])


def read(context: Context, folder: Path, **asked: Any) -> list[pa.Table]:
    """The rows of each partition."""
    return [fetch(context, spec, folder) for spec in plan(context, **asked)]
