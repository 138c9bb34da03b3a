"""How a table is cut: bounds, pages, order within a partition, and files within it. Against PostgreSQL and SQLite."""

from __future__ import annotations

import dataclasses
import random
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import errors
from ingest.model import FileSpec
from ingest.store.scratch import Scratch
from tests.contracts.sqls import fetch, fetched, plan, profile, read
from tests.servers.postgres import PostgresServer, postgres_server
from workers import parquet
from workers.fetchers.base import Context
from workers.fetchers.sql import SqlFetcher, parts
from workers.fetchers.sql.databases import opened
from workers.fetchers.sql.databases import postgres as postgres_module
from workers.fetchers.sql.databases import sqlite as sqlite_module
from workers.fetchers.sql.databases.errors import Refused

ROWS = 20_000
WORDS = "CASE i % 4 WHEN 0 THEN upper(chr(97 + i % 26)) WHEN 1 THEN 'é' ELSE chr(97 + i % 26) END || (r ^ 9 * 999)::int"
#: Column → an SQL expression of i and the random r in [0, 1): each is skewed, has NULLs, or an order of its own.
KEYS = {
    "num": "(1e9 * r ^ 6)::bigint",
    "dec": "(1e6 * r ^ 9)::numeric(20, 6)",
    "big": "(10::numeric ^ 60 * r ^ 9)",
    "flo": "CASE WHEN i % 10 = 0 THEN 'NaN' WHEN i % 11 = 0 THEN 'infinity' WHEN i % 13 = 0 THEN '-infinity' "
    "ELSE r ^ 9 END::float8",
    "day": "CASE WHEN i % 10 = 0 THEN 'infinity' ELSE date '2020-01-01' - (r ^ 3 * 99999)::int END",
    "tim": "timestamp '2020-01-01' - r ^ 9 * interval '99 years'",
    "tmz": "CASE WHEN i % 20 = 0 THEN '-infinity' ELSE timestamptz '2020-01-01' - r ^ 9 * interval '99 years' END",
    "uid": "(lpad(to_hex((r ^ 9 * 65535)::int), 8, '0') || substr(md5(i::text), 9))::uuid",
    "txt": WORDS,
    "cha": WORDS,
    "byt": "decode(md5(i::text), 'hex')",
    "nul": "CASE WHEN i % 3 > 0 THEN (r * 1e6)::int END",
    "enu": "CASE WHEN i % 3 = 0 THEN 'z' WHEN i % 7 = 0 THEN 'b' ELSE 'a' END::letters",
    "boo": "i % 3 = 0",
    "ip": "inet '10.0.0.0' + (r ^ 3 * 1e6)::bigint",
    "rng": "int4range((r * 999)::int, NULL)",
}  # fmt: skip
#: Those of a type of its own way of being cut; the others are long variants.
EACH = [
    pytest.param(key, marks=() if key in {"num", "flo", "tmz", "uid", "txt", "nul", "enu"} else pytest.mark.long)
    for key in KEYS
]
#: As many values as there are, and not more partitions.
FEW = {"enu": 3, "boo": 2}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        server.execute(
            "CREATE TYPE letters AS ENUM ('z', 'b', 'a')",
            f"CREATE TABLE keys AS SELECT i AS id, {', '.join(f'{sql} AS {name}' for name, sql in KEYS.items())} "
            f"FROM generate_series(1, {ROWS}) AS i, LATERAL (SELECT abs(sin(i)) AS r) AS s",
            'ALTER TABLE keys ALTER COLUMN cha TYPE char(9) COLLATE "C"',
            "CREATE TABLE owned (id int PRIMARY KEY, v text) PARTITION BY RANGE (id)",
            "CREATE TABLE owned_a PARTITION OF owned FOR VALUES FROM (0) TO (500)",
            "CREATE TABLE owned_b PARTITION OF owned FOR VALUES FROM (500) TO (2000)",
            "INSERT INTO owned SELECT i, 'v' || i FROM generate_series(0, 999) AS i",
            "CREATE VIEW seen AS SELECT * FROM keys",
            "CREATE TABLE mother (id int)",
            "CREATE TABLE child () INHERITS (mother)",
            "INSERT INTO mother SELECT generate_series(1, 100)",
            "INSERT INTO child SELECT generate_series(101, 200)",
        )
        yield server


@pytest.fixture
def context(postgres: PostgresServer) -> Context:
    return profile(postgres.url)


class Standard:
    """A dialect for a look at statements."""

    quote = staticmethod(parts.quoted)

    def literal(self, bound: parts.Bound) -> str:
        return parts.text_literal(bound[1])


def ids(tables: list[Any]) -> list[list[int]]:
    return [table["id"].to_pylist() for table in tables]


def whole(found: list[list[int]], rows: int = ROWS, first: int = 1) -> bool:
    return sorted(i for some in found for i in some) == list(range(first, rows + first))


# -- bounds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", EACH)
def test_skewed_keys_are_cut_well(key: str, context: Context, tmp_path: Path) -> None:
    found = ids(read(context, tmp_path, table="keys", partition_on=key, partitions=8, columns=("id",)))
    assert whole(found) and len(found) == FEW.get(key, 8)
    nulls = ROWS // 3 if key == "nul" else 0
    if key not in FEW:
        assert max(map(len, found[1:])) < 1.5 * ROWS / 8 and len(found[0]) < 1.5 * ROWS / 8 + nulls


@pytest.mark.parametrize("key", EACH)
def test_partitions_ascend_in_the_database_s_own_order(key: str, context: Context, tmp_path: Path) -> None:
    """The last row of each, as the database sorts it, is not after the first of the next."""
    ordered = "SELECT id, row_number() OVER (ORDER BY {0} NULLS FIRST) AS place, {0} FROM keys"
    query = ordered.format(f'"{key}"')
    tables = read(context, tmp_path, query=query, partition_on=key, partitions=5, columns=("place",))
    places = [sorted(table["place"].to_pylist()) for table in tables]
    assert all(one[-1] < other[0] for one, other in pairwise(places))


def test_a_sample_of_a_large_table_cuts_it_well(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if the sample were to be small, and so the table large."""
    postgres.execute(
        "CREATE TABLE large AS SELECT i AS id, (1e9 * abs(sin(i)) ^ 12)::bigint AS key, repeat('x', 100) AS pad "
        "FROM generate_series(1, 60000) AS i"
    )
    monkeypatch.setattr(postgres_module, "_SAMPLE_PAGES", 100)
    monkeypatch.setattr(postgres_module, "_SAMPLE_PAGES_EACH", 20)
    monkeypatch.setattr(postgres_module, "_SAMPLE_ROWS", 5000)
    context = profile(postgres.url)
    for asked in ({"table": "large"}, {"query": "SELECT * FROM large WHERE id > 0"}):
        specs = plan(context, partition_on="key", partitions=4, columns=("id",), **asked)
        assert [spec.request for spec in specs] == [
            spec.request for spec in plan(context, partition_on="key", partitions=4, columns=("id",), **asked)
        ], "another call finds the same"
        found = ids([fetch(context, spec, tmp_path) for spec in specs])
        assert whole(found, 60_000) and len(found) == 4 and max(map(len, found)) < 1.5 * 15_000
        assert min(map(len, found)) != max(map(len, found)), "the bounds are of all keys, not of a sample"


def test_a_filter_that_a_sample_would_miss_is_looked_at_whole(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_module, "_SAMPLE_PAGES", 2)
    monkeypatch.setattr(postgres_module, "_SAMPLE_PAGES_EACH", 1)
    asked = {"table": "keys", "where": "id % 500 = 1", "partition_on": "id", "partitions": 4}
    found = ids(read(profile(postgres.url), tmp_path, columns=("id",), **asked))
    assert [len(some) for some in found] == [10, 10, 10, 10]


@pytest.mark.parametrize(
    ("key", "late", "values"),
    [("num", "bigint", "-5, 2000000000, NULL"), ("flo", "float8", "'-infinity', 'NaN', NULL"),
     ("txt", "text", "'', 'zzz', NULL, '\U0001f600'"), ("day", "date", "'-infinity', '5874897-12-31', NULL")],
)  # fmt: skip
def test_rows_beyond_the_planned_range_are_not_lost(
    key: str, late: str, values: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    context = profile(postgres.url)
    postgres.execute(f'CREATE TABLE growing AS SELECT id, "{key}" FROM keys LIMIT 1000')
    try:
        specs = plan(context, table="growing", partition_on=key, partitions=4, columns=("id",))
        postgres.execute(f"INSERT INTO growing SELECT -1, unnest(ARRAY[{values}]::{late}[])")
        found = [i for spec in specs for i in fetch(context, spec, tmp_path)["id"].to_pylist()]
        assert len(found) == 1000 + values.count(",") + 1 and found.count(-1) == values.count(",") + 1
    finally:
        postgres.execute("DROP TABLE growing")


def test_a_key_that_most_rows_have_leaves_the_others_balanced(context: Context, tmp_path: Path) -> None:
    query = "SELECT i AS id, CASE WHEN i <= 500 THEN 7 ELSE i END AS k FROM generate_series(1, 1000) AS i"
    found = ids(read(context, tmp_path, query=query, partition_on="k", partitions=10))
    assert whole(found, 1000) and [len(some) for some in found] == [500, 100, 100, 100, 100, 100]


def test_a_key_that_has_no_order_is_said(context: Context, tmp_path: Path) -> None:
    with pytest.raises(errors.BadResponse, match="ordering operator for type json"):
        read(context, tmp_path, query="SELECT '{}'::json AS k", partition_on="k", partitions=2)


# -- without a key -------------------------------------------------------------------------------------------------


def test_a_table_without_a_key_is_cut_by_its_pages(context: Context, tmp_path: Path) -> None:
    specs = plan(context, table="keys", partitions=6, columns=("id",))
    assert [spec.name for spec in specs] == [f"keys-0000{n}-of-00006.parquet" for n in range(6)]
    assert all(spec.request and "pages" in spec.request and "key" not in spec.request for spec in specs)
    found = ids([fetch(context, spec, tmp_path) for spec in specs])
    assert whole(found) and max(map(len, found)) < 1.3 * ROWS / 6
    assert [i for some in found for i in some] == list(range(1, ROWS + 1)), "as they lie in the table"


def test_pages_are_read_as_a_range_and_not_the_whole_table(postgres: PostgresServer) -> None:
    (first, second, *_) = plan(profile(postgres.url), table="keys", partitions=4)
    for spec in (first, second):
        with psycopg.connect(postgres.url) as connection:
            assert spec.request is not None
            rows = connection.execute(f"EXPLAIN {parts.select(Standard(), spec.request)}".encode()).fetchall()
        assert rows[0][0].startswith("Tid Range Scan on keys")


def test_rows_added_after_the_pages_were_counted_are_not_lost(postgres: PostgresServer, tmp_path: Path) -> None:
    context = profile(postgres.url)
    postgres.execute("CREATE TABLE heap AS SELECT i AS id, repeat('x', 500) AS pad FROM generate_series(1, 500) AS i")
    specs = plan(context, table="heap", partitions=3, columns=("id",))
    postgres.execute("INSERT INTO heap SELECT i, repeat('y', 500) FROM generate_series(501, 1500) AS i")
    assert whole(ids([fetch(context, spec, tmp_path) for spec in specs]), 1500)


@pytest.mark.parametrize(
    "rewrite",
    ["TRUNCATE rewritten", "VACUUM FULL rewritten", "ALTER TABLE rewritten ADD v float DEFAULT random()"],
)
def test_a_table_rewritten_after_the_planning_is_an_error(
    rewrite: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    context = profile(postgres.url)
    postgres.execute("DROP TABLE IF EXISTS rewritten", "CREATE TABLE rewritten AS SELECT id FROM keys")
    specs = plan(context, table="rewritten", partitions=2)
    postgres.execute(rewrite)
    for spec in specs:
        with pytest.raises(errors.BadResponse, match=r"truncated or rewritten|when the partitions were planned"):
            fetch(context, spec, tmp_path)


def test_a_table_truncated_since_our_snapshot_is_not_an_empty_one(postgres: PostgresServer) -> None:
    context = profile(postgres.url)
    postgres.execute("CREATE TABLE emptied AS SELECT id FROM keys")
    (spec,) = plan(context, table="emptied")
    with opened(spec.uri, context) as database:
        database.ask("SELECT 1")
        postgres.execute("TRUNCATE emptied")
        with pytest.raises(Refused, match="truncated or rewritten"):
            database.stream(spec.request or {})


@contextmanager
def at_one_moment(postgres: PostgresServer, **asked: Any) -> Iterator[tuple[Context, list[FileSpec]]]:
    """Partitions of one snapshot, which is held until the block ends."""
    with psycopg.connect(postgres.url) as holder:
        holder.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        row = holder.execute("SELECT pg_export_snapshot()").fetchone()
        assert row is not None
        moment = f"node/{row[0]}"
        context = dataclasses.replace(profile(postgres.url), moment=moment)
        specs = plan(context, **asked)
        yield context, [dataclasses.replace(s, request={**(s.request or {}), "moment": moment}) for s in specs]


@pytest.mark.parametrize("more", [{}, {"partition_on": "id"}, {"order_by": ("balance",)}])
def test_pages_are_of_one_moment_whatever_is_written(
    more: dict[str, Any], postgres: PostgresServer, tmp_path: Path
) -> None:
    """Every row moves to another page, twice, while the partitions are read."""
    postgres.execute(
        "DROP TABLE IF EXISTS moving",
        "CREATE TABLE moving AS SELECT i AS id, 100 AS balance, repeat('x', 200) AS pad "
        "FROM generate_series(1, 5000) AS i",
    )
    with at_one_moment(postgres, table="moving", partitions=8, **more) as (context, specs):
        found = []
        for number, spec in enumerate(specs):
            postgres.execute(
                f"UPDATE moving SET balance = balance + 1 + {number} % 3",
                f"DELETE FROM moving WHERE id % 9 = {number}",
                f"INSERT INTO moving SELECT {10_000 * (number + 1)} + i, 1, 'y' FROM generate_series(1, 500) AS i",
                "VACUUM moving",
            )
            found.append(fetch(context, spec, tmp_path))
    assert whole(ids(found), 5000) and {v for table in found for v in table["balance"].to_pylist()} == {100}
    assert len(specs) == 8 or more == {"order_by": ("balance",)}, "all have one balance"


@pytest.mark.parametrize("change", ["TRUNCATE shaken", "VACUUM FULL shaken", "ALTER TABLE shaken ALTER id TYPE bigint"])
def test_a_moment_that_a_change_of_the_table_has_ended(change: str, postgres: PostgresServer, tmp_path: Path) -> None:
    postgres.execute("DROP TABLE IF EXISTS shaken", "CREATE TABLE shaken AS SELECT id FROM keys")
    with at_one_moment(postgres, table="shaken", partitions=3) as (context, specs):
        postgres.execute(change)
        with pytest.raises(errors.SnapshotLost, match="submit again"):
            fetch(context, specs[0], tmp_path)


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ({"table": "owned"}, 4),  # by its primary key
        ({"table": "seen"}, 1),
        ({"table": "mother"}, 1),
        ({"table": "keys", "consistent": False}, 1),  # rows may move between two looks
        ({"table": "pg_catalog.pg_class"}, 4),
        ({"table": "nothing"}, 1),
    ],
)
def test_what_is_done_where_there_are_no_pages_to_go_by(
    asked: dict[str, Any], count: int, postgres: PostgresServer
) -> None:
    postgres.execute("CREATE TABLE IF NOT EXISTS nothing (id int)")
    assert len(plan(profile(postgres.url), partitions=4, **asked)) == count


# -- order ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order_by", "sorts"),
    [(("txt", "id"), "txt, id"), (("nul DESC", "id desc"), "nul DESC, id DESC"), (("dec", "id"), "dec, id"),
     (("uid ASC",), "uid")],
)  # fmt: skip
def test_rows_come_in_the_order_that_was_asked_for(
    order_by: tuple[str, ...], sorts: str, context: Context, tmp_path: Path
) -> None:
    (wanted,) = read(context, tmp_path, query=f"SELECT id, row_number() OVER (ORDER BY {sorts}) AS n FROM keys")
    place = dict(zip(wanted["id"].to_pylist(), wanted["n"].to_pylist(), strict=True))
    tables = read(context, tmp_path, table="keys", partition_on="id", partitions=3, order_by=order_by, columns=("id",))
    for some in ids(tables):
        places = [place[i] for i in some]
        assert places == sorted(places)


def test_the_first_of_order_by_is_the_key_where_none_is_named(context: Context, tmp_path: Path) -> None:
    found = ids(read(context, tmp_path, table="keys", partitions=5, order_by=("id",), columns=("id", "txt")))
    assert len(found) == 5 and [i for some in found for i in some] == list(range(1, ROWS + 1))
    assert all("pages" in (s.request or {}) for s in plan(context, table="keys", partitions=5, order_by=("id DESC",)))


def test_order_is_by_the_column_and_not_by_what_it_is_written_as(context: Context, tmp_path: Path) -> None:
    """Numerics are asked for as text: 10 would come before 9."""
    query = "SELECT i::numeric AS n, ARRAY[[i]] AS m FROM generate_series(1, 100) AS i ORDER BY random()"
    (table,) = read(context, tmp_path, query=query, order_by=("n",))
    assert table["n"].to_pylist() == [str(i) for i in range(1, 101)]


def test_only_columns_can_be_sorted_by(context: Context, tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match="does not exist"):
        read(context, tmp_path, table="keys", order_by=("id); DROP TABLE keys; --",))


# -- files ---------------------------------------------------------------------------------------------------------


def test_a_large_partition_becomes_several_files(context: Context, tmp_path: Path) -> None:
    asked = {"table": "keys", "columns": ("id", "uid"), "order_by": ("id",), "partitions": 2}
    asked |= {"row_group_rows": 1000, "file_bytes": 50_000}
    found = []
    for number, spec in enumerate(plan(context, **asked)):
        with fetched(context, spec, tmp_path) as files:
            base = f"keys-0000{number}-of-00002"
            assert len(files) > 2 and spec.name == f"{base}.parquet"
            assert [file.name for file in files[1:]] == [f"{base}.{n:03}.parquet" for n in range(1, len(files))]
            assert all(50_000 <= file.size < 100_000 for file in files[:-1])
            assert sum(file.samples or 0 for file in files) == ROWS // 2
            found += [i for file in files for i in pq.read_table(file.path)["id"].to_pylist()]
    assert found == list(range(1, ROWS + 1))


def test_a_lone_partition_that_is_continued(context: Context, tmp_path: Path) -> None:
    (spec,) = plan(context, table="keys", columns=("id",), file_bytes=1, row_group_rows=ROWS // 2)
    with fetched(context, spec, tmp_path) as files:
        assert spec.name == "keys.parquet" and [file.name for file in files[1:]] == ["keys.001.parquet"]
        assert [file.samples for file in files] == [ROWS // 2, ROWS // 2]


def test_row_groups_end_at_their_bytes_too(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 4 << 20)
    query = "SELECT i AS id, repeat(md5(i::text), 10000) AS wide FROM generate_series(1, 60) AS i"
    (spec,) = plan(context, query=query)
    with fetched(context, spec, tmp_path) as (file,):
        meta = pq.read_metadata(file.path)
        groups = [meta.row_group(n).num_rows for n in range(meta.num_row_groups)]
        assert sum(groups) == 60 and len(groups) > 3 and max(groups) < 25


@pytest.mark.parametrize(
    ("row", "rows", "most_mb"),
    [
        ("repeat(md5(i::text), 320)", 60_000, 300),
        pytest.param("i", 3_000_000, 300, marks=pytest.mark.long),
        pytest.param("repeat(md5(i::text), 1600000)", 4, 700, marks=pytest.mark.long),
    ],
)
def test_memory_is_flat_whatever_the_rows(
    row: str, rows: int, most_mb: int, postgres: PostgresServer, tmp_path: Path
) -> None:
    """600 MB of wide rows, many narrow ones, and values of 50 MB each; by a process of its own."""
    script = (
        "import sys; from pathlib import Path; from tests.contracts.sqls import *\n"
        "context = profile(sys.argv[1]); (spec,) = plan(context, query=sys.argv[2])\n"
        "root = Scratch(Path(sys.argv[3]), 'key', spec.uri, keep=False)\n"
        "print(SqlFetcher().fetch(spec, root, None, context).samples)\n"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))\n"
    )
    query = f"SELECT i AS id, {row} AS v, now() + i * interval '1 s' AS t FROM generate_series(1, {rows}) AS i"
    done = subprocess.run(
        [sys.executable, "-c", script, postgres.url, query, str(tmp_path)], check=True, capture_output=True, text=True
    )
    found, peak_kb = map(int, done.stdout.split())
    assert found == rows and peak_kb < most_mb * 1024


def test_more_files_than_a_result_may_hold(context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "MOST_FILES", 5)
    (spec,) = plan(context, table="keys", columns=("id",), row_group_rows=100, file_bytes=1)
    with pytest.raises(errors.TooLarge, match="more than 5 files of 1 bytes"), fetched(context, spec, tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_pieces_are_gone_when_the_fetch_fails(context: Context, tmp_path: Path) -> None:
    query = "SELECT i AS id, 1 / (400000 - i) AS v FROM generate_series(1, 400000) AS i"
    (spec,) = plan(context, query=query, row_group_rows=10_000, file_bytes=1)
    scratch = Scratch(tmp_path, "key", spec.uri, keep=False)
    with pytest.raises(errors.BadResponse, match="division by zero"):
        SqlFetcher().fetch(spec, scratch, None, context)
    assert len(scratch.pieces) > 5
    scratch.close(discard=True)
    assert list(tmp_path.iterdir()) == []


# -- SQLite --------------------------------------------------------------------------------------------------------


def lite(path: Path, declared: str, values: list[Any]) -> Context:
    with closing(sqlite3.connect(path)) as db, db:
        db.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, k {declared})")
        db.executemany("INSERT INTO t VALUES (?, ?)", enumerate(values, 1))
    return profile(f"sqlite:///{path}")


SOME = random.Random(3)
LITE = {
    "INTEGER": [int(10**9 * SOME.random() ** 12) for _ in range(2000)],
    "REAL": [SOME.random() ** 9 for _ in range(2000)] + [float("inf"), float("-inf")],
    "TEXT": [SOME.choice("aAbBéÉzZ'") * SOME.randrange(9) for _ in range(2000)],
    "TEXT COLLATE NOCASE": [SOME.choice("aAbBzZ") + SOME.choice("aAbBzZ") * SOME.randrange(99) for _ in range(2000)],
    "BLOB": [SOME.randbytes(4) for _ in range(2000)],
    "": [SOME.choice((SOME.randrange(99), SOME.random(), str(SOME.random()), None, b"x%f" % SOME.random()))
         for _ in range(2000)],
    "DECIMAL(9,2)": [round(SOME.random() ** 9 * 10**6, 2) for _ in range(2000)],
}  # fmt: skip


@pytest.mark.parametrize("declared", LITE)
@pytest.mark.parametrize("sampled", [False, True])
def test_sqlite_keys_are_cut_well(
    declared: str, sampled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sampled:
        monkeypatch.setattr(sqlite_module, "_SAMPLE_ROWS", 1000)
    values = LITE[declared]
    found = ids(read(lite(tmp_path / "x.db", declared, values), tmp_path, table="t", partition_on="k", partitions=5))
    assert whole(found, len(values)) and len(found) == 5
    assert max(map(len, found)) < 1.5 * len(values) / 5 + values.count(None)


def test_sqlite_is_cut_by_its_primary_key(tmp_path: Path) -> None:
    context = lite(tmp_path / "x.db", "TEXT", list("abcdefgh"))
    assert ids(read(context, tmp_path, table="t", partitions=4)) == [[1, 2], [3, 4], [5, 6], [7, 8]]
    with closing(sqlite3.connect(tmp_path / "x.db")) as db, db:
        db.execute("CREATE TABLE two (a, b, PRIMARY KEY (a, b))")
    assert len(plan(context, table="two", partitions=4)) == 1


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("name", ["n", "k", "chosen"])
def test_a_key_may_have_any_name(name: str, sampled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if sampled:
        monkeypatch.setattr(sqlite_module, "_SAMPLE_ROWS", 1000)
    with closing(sqlite3.connect(tmp_path / "x.db")) as db, db:
        db.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, {name} TEXT)")
        db.executemany("INSERT INTO t VALUES (?, ?)", [(n, f"key {n:04}") for n in range(1, 2001)])
    context = profile(f"sqlite:///{tmp_path}/x.db")
    found = ids(read(context, tmp_path, table="t", partition_on=name, partitions=4))
    assert whole(found, 2000) and len(found) == 4 and max(map(len, found)) < 750


def test_sqlite_rows_come_in_order(tmp_path: Path) -> None:
    context = lite(tmp_path / "x.db", "DECIMAL(9,2)", LITE["DECIMAL(9,2)"])
    tables = read(context, tmp_path, table="t", partitions=3, order_by=("k", "id DESC"))
    found = [value for table in tables for value in table["k"].to_pylist()]
    assert found == sorted(Decimal(f"{value:.2f}") for value in LITE["DECIMAL(9,2)"]) and len(tables) == 3


def test_sqlite_samples_do_not_meet_a_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "_SAMPLE_ROWS", 1000)
    for period in (10, 64, 100):
        context = lite(tmp_path / f"{period}.db", "INTEGER", [i % period for i in range(10_000)])
        found = ids(read(context, tmp_path, table="t", partition_on="k", partitions=5))
        assert whole(found, 10_000) and max(map(len, found)) <= 3000


# -- pure ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(-5, 5), max_size=50).map(sorted), st.integers(1, 9))
def test_ranks_and_bounds_cut_any_list(keys: list[int], count: int) -> None:
    bounds = parts.inner([["int", str(keys[rank - 1])] for rank in parts.ranks(len(keys), count)])
    cuts = [int(text) for _, text in bounds]
    assert cuts == sorted(set(cuts)) and len(cuts) < max(2, count) and all(cut > keys[0] for cut in cuts)
    shares = parts.split({}, "k", bounds)
    assert shares[0]["lo"] is None and shares[-1]["hi"] is None
    assert all(one["hi"] == other["lo"] for one, other in pairwise(shares))


@given(st.integers(0, 50), st.integers(1, 9))
def test_pages_are_cut_without_gaps(pages: int, count: int) -> None:
    shares = [share["pages"] for share in parts.split_pages({}, pages, count)]
    assert shares[0][0] == 0 and shares[-1][1] is None and len(shares) == max(1, min(pages, count))
    assert all(one[1] == other[0] > one[0] for one, other in pairwise(shares))


@pytest.mark.parametrize(
    ("written", "names"),
    [("t", ["t"]), ("s.t", ["s", "t"]), ('"a.b".c', ["a.b", "c"]), ('"a""b"', ['a"b']), ('a "b', ['a "b']),
     ("a.b.c", ["a", "b", "c"])],
)  # fmt: skip
def test_names_of_tables(written: str, names: list[str]) -> None:
    assert parts.names_of(written) == names


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
def test_any_text_is_a_literal_and_a_name(text: str) -> None:
    with closing(sqlite3.connect(":memory:")) as db:
        cursor = db.execute(f"SELECT {parts.text_literal(text)} AS {parts.quoted(text)}")
        assert cursor.fetchone() == (text,) and cursor.description[0][0] == text


def test_any_text_is_a_literal_for_postgresql(postgres: PostgresServer) -> None:
    with psycopg.connect(postgres.url) as connection:

        @given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20))
        def check(text: str) -> None:
            assert connection.execute(f"SELECT {parts.text_literal(text)}".encode()).fetchone() == (text,)

        check()
