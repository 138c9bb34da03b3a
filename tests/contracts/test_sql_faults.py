"""What goes wrong with a database, as docs/sources.md tells it: PostgreSQL and SQLite. MariaDB has its own file."""

from __future__ import annotations

import dataclasses
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pyarrow.parquet as pq
import pytest

from ingest import errors
from ingest.sections import Limits
from ingest.store.scratch import Scratch
from tests.contracts.sqls import fetch, fetched, plan, profile, read
from tests.servers.postgres import PostgresServer, postgres_server
from workers.fetchers.base import Context
from workers.fetchers.sql import SqlFetcher
from workers.fetchers.sql.databases import opened

#: Rows that are far more than a socket's buffers hold: the server is still at it when the first come.
WIDE = "SELECT i AS id, repeat(md5(i::text), 100) AS v FROM generate_series(1, 200000) AS i"


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        server.execute(
            "CREATE TABLE t AS SELECT i AS id, 'v' || i AS v FROM generate_series(1, 1000) AS i",
            "CREATE ROLE poor LOGIN",
            "CREATE TYPE mood AS ENUM ('sad', 'glad')",
            "CREATE FUNCTION fails(state text, i int) RETURNS int LANGUAGE plpgsql AS "
            "$$ BEGIN IF i = 1 THEN RAISE EXCEPTION 'as it says' USING ERRCODE = state; END IF; RETURN 1; END $$",
        )
        yield server


@pytest.fixture
def context(postgres: PostgresServer) -> Context:
    return profile(postgres.url)


@pytest.mark.parametrize(
    ("state", "error"),
    [
        ("40P01", errors.OriginUnavailable),  # deadlock
        ("40001", errors.OriginUnavailable),  # serialization failure; a standby's conflict with recovery
        ("53100", errors.OriginUnavailable),  # disk full
        ("53200", errors.OriginUnavailable),  # out of memory
        ("53300", errors.OriginUnavailable),  # too many connections
        ("53400", errors.OriginUnavailable),  # temp_file_limit
        ("55P03", errors.OriginUnavailable),  # lock not available
        ("57P01", errors.OriginUnavailable),  # shutdown
        ("57P03", errors.OriginUnavailable),  # starting up
        ("58030", errors.OriginUnavailable),  # the server's I/O
        ("57014", errors.FetchTimeout),
        ("08006", errors.ConnectionLost),
        ("42501", errors.AccessDenied),
        ("42P01", errors.NotFound),
        ("22003", errors.BadResponse),  # out of range
        ("22012", errors.BadResponse),  # division by zero
        ("XX001", errors.BadResponse),  # data corrupted
    ],
)
@pytest.mark.parametrize("at", [1, 150_000])
def test_a_state_is_one_error_at_once_and_in_the_middle_of_the_rows(
    state: str, error: type[errors.FetchError], at: int, context: Context, tmp_path: Path
) -> None:
    rows = "1, 1" if at == 1 else f"{at} / 2 + 1, {at}"
    query = f"SELECT i, fails('{state}', {at} / i) AS v FROM generate_series({rows}) AS i"
    with pytest.raises(error, match="as it says") as caught:
        read(context, tmp_path, query=query)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"table": "none"}, errors.NotFound, 'relation "none" does not exist'),
        ({"table": "no.t"}, errors.NotFound, 'relation "no.t" does not exist|schema "no" does not exist'),
        ({"table": "t", "columns": ("nope",)}, errors.NotFound, 'column "nope" does not exist'),
        ({"table": "t", "order_by": ("nope",)}, errors.NotFound, "column t.nope does not exist"),
        ({"table": "none", "partitions": 4}, errors.NotFound, 'relation "none" does not exist'),
        ({"query": "SELEC 1"}, errors.BadResponse, "syntax error"),
        ({"query": "SELECT 1; DROP TABLE t"}, errors.BadResponse, "syntax error"),
        ({"query": "SELECT 1) q; DROP TABLE t; --"}, errors.BadResponse, "multiple commands|syntax error"),
        ({"query": "SELECT 2147483647 + i AS v FROM generate_series(0, 1) AS i"}, errors.BadResponse, "out of range"),
        ({"query": "SELECT 1 AS a, 2 AS a"}, errors.BadResponse, "two columns are named 'a'"),
        ({"query": "SELECT"}, errors.BadResponse, "it has no columns"),
    ],
)
def test_what_the_database_says_is_passed_on(
    asked: dict[str, Any], error: type[errors.FetchError], says: str, context: Context, tmp_path: Path
) -> None:
    with pytest.raises(errors.FetchError, match=says) as caught:
        read(context, tmp_path, **asked)
    assert type(caught.value) is error and "SELECT" not in str(caught.value)


def interrupted(context: Context, folder: Path, then: Callable[[], None], query: str = WIDE) -> errors.FetchError:
    """What the fetch says when that happened as soon as the first rows had come."""
    (spec,) = plan(context, query=query, row_group_rows=100)
    once = iter([then])
    scratch = Scratch(folder, "key", spec.uri, keep=False, on_bytes=lambda _: next(once, lambda: None)())
    try:
        with pytest.raises(errors.FetchError) as caught:
            SqlFetcher().fetch(spec, scratch, None, context)
        assert next(once, None) is None
        return caught.value
    finally:
        scratch.close(discard=True)


def backends(postgres: PostgresServer) -> list[int]:
    """The processes of the server that read the rows for us."""
    with psycopg.connect(postgres.url) as connection:
        rows = connection.execute("SELECT pid FROM pg_stat_activity WHERE query LIKE 'COPY%repeat%'").fetchall()
    return [row[0] for row in rows]


@pytest.mark.parametrize("call", ["pg_terminate_backend", "pg_cancel_backend"])
def test_a_connection_that_the_server_ends_in_the_middle_of_the_rows(
    call: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    def end() -> None:
        for pid in backends(postgres):
            postgres.execute(f"SELECT {call}({pid})")

    error = interrupted(profile(postgres.url), tmp_path, end)
    assert isinstance(error, errors.TransientFetchError)


def test_a_server_that_shuts_down_in_the_middle_of_the_rows(tmp_path: Path) -> None:
    with postgres_server() as own:
        process = int((own.data / "postmaster.pid").read_text().split()[0])
        error = interrupted(profile(own.url), tmp_path, lambda: os.kill(process, signal.SIGINT))
        assert isinstance(error, errors.OriginUnavailable | errors.ConnectionLost)
        with pytest.raises(errors.TransientFetchError):
            read(profile(own.url), tmp_path, query="SELECT 1 AS v")


def test_a_disk_that_is_full(postgres: PostgresServer, tmp_path: Path) -> None:
    """What a query may use of it, which a test can make small."""
    postgres.execute("CREATE ROLE small LOGIN", "ALTER ROLE small SET temp_file_limit = '64kB'")
    context = profile(postgres.url, user="small")
    with pytest.raises(errors.OriginUnavailable, match="temporary file size exceeds"):
        read(context, tmp_path, query="SELECT i, md5(i::text) AS v FROM generate_series(1, 200000) AS i ORDER BY v")


def test_a_statement_that_takes_too_long_in_the_middle_of_the_rows(postgres: PostgresServer, tmp_path: Path) -> None:
    context = profile(postgres.url, limits=Limits(connect_s=0.5, stall_s=1, soft_s=3))
    value = "CASE WHEN i = 20000 THEN pg_sleep(60)::text ELSE repeat('x', 200) END"
    query = f"SELECT i, {value} AS v FROM generate_series(1, 20000) AS i"
    with pytest.raises(errors.FetchTimeout, match=r"statement timeout.*the limit is 3 s; ask for more partitions"):
        read(context, tmp_path, query=query)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("ALTER TABLE altered ALTER v TYPE text", "column 'v' was int4 when the partitions were planned, and is text"),
        ("ALTER TABLE altered ALTER v TYPE mood USING 'sad'", "column 'v' was int4 when .*, and is mood"),
        ("ALTER TABLE altered ALTER w TYPE numeric(9,3)", r"column 'w' was numeric \d+ when .*, and is numeric \d+"),
        ("ALTER TABLE altered DROP v", "column 'v' was int4 when the partitions were planned, and is not there"),
        ("ALTER TABLE altered ADD x int", "column 'x' was not there when the partitions were planned, and is int4"),
    ],
)
def test_a_column_that_changes_after_the_planning(
    change: str, says: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    context = profile(postgres.url)
    postgres.execute(
        "DROP TABLE IF EXISTS altered",
        "CREATE TABLE altered AS SELECT i AS id, i AS v, i::numeric(9,2) AS w FROM generate_series(1, 9) AS i",
    )
    specs = plan(context, table="altered", partition_on="id", partitions=3, consistent=False)
    postgres.execute(change)
    with pytest.raises(errors.BadResponse, match=says):
        fetch(context, specs[1], tmp_path)


def test_a_table_that_is_gone_after_the_planning(postgres: PostgresServer, tmp_path: Path) -> None:
    context = profile(postgres.url)
    postgres.execute("CREATE TABLE leaving AS SELECT i AS id FROM generate_series(1, 9) AS i")
    specs = plan(context, table="leaving", partitions=2, partition_on="id")
    postgres.execute("DROP TABLE leaving")
    with pytest.raises(errors.NotFound, match="leaving"):
        fetch(context, specs[0], tmp_path)


def test_the_widest_table_there_can_be(postgres: PostgresServer, tmp_path: Path) -> None:
    names = [f"column {n} of many" for n in range(1599)]
    columns = ", ".join(f'"{name}" {"int[]" if n % 3 else "numeric(9,2)"}' for n, name in enumerate(names))
    postgres.execute(f"CREATE TABLE wide (id int, {columns})", "INSERT INTO wide (id) VALUES (1), (2), (3)")
    tables = read(profile(postgres.url), tmp_path, table="wide", partition_on="id", partitions=3)
    assert [table["id"].to_pylist() for table in tables] == [[1], [2], [3]]
    assert tables[0].column_names == ["id", *names]


@pytest.mark.parametrize(
    "name",
    [
        "select",
        'a "b"',
        "it's",
        "100%",
        "naïve 漢字 \U0001f600\n--",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in ("Order", "a.b", ":x", " ", "a\nb", "x" * 63, "--", "$1", "{}")
        ),
    ],
)
def test_odd_names(name: str, postgres: PostgresServer, tmp_path: Path) -> None:
    quoted = '"' + name.replace('"', '""') + '"'
    postgres.execute(f"CREATE TABLE {quoted} AS SELECT i AS {quoted}, ARRAY[[i]] AS m FROM generate_series(1, 30) AS i")
    try:
        tables = read(profile(postgres.url), tmp_path, table=quoted, partition_on=name, partitions=3, order_by=(name,))
        assert [v for table in tables for v in table[name].to_pylist()] == list(range(1, 31)) and len(tables) == 3
        (table,) = read(profile(postgres.url), tmp_path, table=quoted, columns=(name,), where=f"{quoted} < 3")
        assert table.column_names == [name]
    finally:
        postgres.execute(f"DROP TABLE {quoted}")


def test_no_rows(context: Context, tmp_path: Path) -> None:
    for asked in ({}, {"partitions": 4}, {"partitions": 4, "partition_on": "id"}, {"order_by": ("id",)}):
        tables = read(context, tmp_path, table="t", where="false", **asked)
        assert {table.num_rows for table in tables} == {0}
        assert {str(table.schema.field("id").type) for table in tables} == {"int32"}


def test_a_worker_that_dies_leaves_no_transaction_and_no_lock(postgres: PostgresServer, tmp_path: Path) -> None:
    """Killed in the middle of the rows: the table can be dropped at once."""
    postgres.execute("CREATE TABLE held AS " + WIDE.replace("200000", "50000"))
    script = (
        "import sys; from pathlib import Path; from tests.contracts.sqls import *\n"
        "context = profile(sys.argv[1]); (spec,) = plan(context, table='held', row_group_rows=100)\n"
        "def stop(_):\n    print('reading', flush=True); sys.stdin.read()\n"
        "with fetched(context, spec, Path(sys.argv[2]), stop): pass\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, postgres.url, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as worker:
        assert worker.stdout is not None and worker.stdout.readline() == b"reading\n"
        with psycopg.connect(postgres.url, autocommit=True) as connection:
            held = connection.execute("SELECT count(*) FROM pg_locks WHERE relation = 'held'::regclass").fetchone()
            assert held == (1,), "it does hold the lock of a reader"
            worker.kill()
            worker.wait()
            connection.execute("SET lock_timeout = '60s'")
            connection.execute("DROP TABLE held")


# -- SQLite --------------------------------------------------------------------------------------------------------


@pytest.fixture
def lite(tmp_path: Path) -> Path:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
        db.executemany("INSERT INTO t VALUES (?, ?)", ((i, f"{i:0100}") for i in range(20_000)))
    return path


@pytest.mark.parametrize(
    "query",
    ["DELETE FROM t RETURNING id", "SELECT 1; DELETE FROM t", "SELECT 1); DELETE FROM t; --",
     "WITH d AS (DELETE FROM t RETURNING id) SELECT * FROM d", "SELECT 1); ATTACH '{other}' AS o; --",
     "PRAGMA writable_schema = 1"],
)  # fmt: skip
def test_sqlite_writes_nothing(query: str, lite: Path, tmp_path: Path) -> None:
    before = lite.read_bytes()
    with pytest.raises(errors.BadResponse):
        read(profile(f"sqlite:///{lite}"), tmp_path, query=query.format(other=tmp_path / "other.db"))
    assert lite.read_bytes() == before and not (tmp_path / "other.db").exists()


def test_sqlite_that_somebody_writes_to_is_tried_again(lite: Path, tmp_path: Path) -> None:
    with closing(sqlite3.connect(lite, isolation_level=None)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        with pytest.raises(errors.OriginUnavailable, match="locked"):
            read(profile(f"sqlite:///{lite}", limits=Limits(connect_s=0.2)), tmp_path, table="t")
        writer.execute("ROLLBACK")
    assert len(read(profile(f"sqlite:///{lite}"), tmp_path, table="t")[0]) == 20_000


def test_sqlite_can_be_written_when_a_worker_has_died(lite: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.contracts.sqls import *\n"
        "context = profile(sys.argv[1]); (spec,) = plan(context, table='t', row_group_rows=100)\n"
        "def stop(_):\n    print('reading', flush=True); sys.stdin.read()\n"
        "with fetched(context, spec, Path(sys.argv[2]), stop): pass\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, f"sqlite:///{lite}", str(tmp_path)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as worker:  # fmt: skip
        assert worker.stdout is not None and worker.stdout.readline() == b"reading\n"
        worker.kill()
        worker.wait()
    with closing(sqlite3.connect(lite, timeout=0)) as db, db:
        db.execute("DELETE FROM t")


#: Prints what becomes of a writer.
_WRITE = """
import sqlite3, sys
try:
    with sqlite3.connect(sys.argv[1], timeout=1) as db:
        db.execute("UPDATE t SET v = 'new'")
        db.commit()
        print(db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone() and "written")
except sqlite3.OperationalError as error:
    print(error)
"""


@pytest.mark.parametrize("mode", ["delete", "wal"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another thread"])
def test_sqlite_rows_stay_as_they_are_while_they_are_read(mode: str, beside: bool, lite: Path, tmp_path: Path) -> None:
    """All locks of a process on a file are one, whichever library and thread took them, and so are easily lost."""
    with closing(sqlite3.connect(lite)) as db:
        db.execute(f"PRAGMA journal_mode = {mode}")
    context = profile(f"sqlite:///{lite}")
    (spec,) = plan(context, table="t", row_group_rows=100)
    with opened(spec.uri, context) as database:
        moment = database.moment()
    spec = dataclasses.replace(spec, request={**(spec.request or {}), "moment": moment})
    others: list[threading.Thread] = []
    said: list[str] = []

    def write(_: int) -> None:
        if said:
            return
        if beside:
            others.append(threading.Thread(target=plan, args=(context,), kwargs={"query": "SELECT 1 AS one"}))
            others[0].start()
        command = [sys.executable, "-c", _WRITE, str(lite)]
        said.append(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())

    with fetched(context, spec, tmp_path, write) as (file,):
        assert "new" not in pq.read_table(file.path)["v"].to_pylist()
    for other in others:
        other.join()
    assert said == ["written" if mode == "wal" else "database is locked"]


@pytest.mark.parametrize(
    ("declared", "planned", "later"),
    [("INTEGER", 1, 1.5), ("REAL", 1.5, "abc"), ("REAL", 1.5, b"2"), ("", 1.5, 2**60 + 1), ("", 1, "abc"),
     ("DECIMAL(5,2)", 1.25, 1.234), ("DECIMAL(5,2)", 1.25, "abc")],
)  # fmt: skip
def test_sqlite_values_of_another_type_than_was_planned(
    declared: str, planned: Any, later: Any, tmp_path: Path
) -> None:
    with closing(sqlite3.connect(tmp_path / "x.db")) as db:
        db.execute(f"CREATE TABLE t (v {declared})")
        db.execute("INSERT INTO t VALUES (?)", (planned,))
        db.commit()
        context = profile(f"sqlite:///{tmp_path / 'x.db'}")
        (spec,) = plan(context, table="t")
        db.execute("INSERT INTO t VALUES (?)", (later,))
        db.commit()
        with pytest.raises(errors.BadResponse, match=r"column 'v' holds what .* cannot"):
            fetch(context, spec, tmp_path)


def test_sqlite_ends_a_statement_that_takes_too_long(lite: Path, tmp_path: Path) -> None:
    limits = Limits(connect_s=0.1, stall_s=0.2, soft_s=0.5)
    endless = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) AS x FROM c"
    with pytest.raises(errors.FetchTimeout, match=r"the limit is 0\.5 s"):
        read(profile(f"sqlite:///{lite}", limits=limits), tmp_path, query=endless)


def test_a_damaged_sqlite_file(lite: Path, tmp_path: Path) -> None:
    data = bytearray(lite.read_bytes())
    data[8192:-4096] = bytes(len(data) - 12288)
    lite.write_bytes(data)
    with pytest.raises(errors.BadResponse, match="malformed"):
        read(profile(f"sqlite:///{lite}"), tmp_path, table="t")
    lite.write_bytes(b"no database at all" * 1000)
    with pytest.raises(errors.BadResponse, match="not a database"):
        read(profile(f"sqlite:///{lite}"), tmp_path, table="t")


def test_sqlite_s_odd_text(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, v TEXT)")
        db.executemany("INSERT INTO t VALUES (?, ?)", [(1, "a\0b"), (2, ""), (3, "\U0001f600"), (4, "x" * 3_000_000)])
    (table,) = read(profile(f"sqlite:///{path}"), tmp_path, table="t")
    assert table["v"].to_pylist() == ["a\0b", "", "\U0001f600", "x" * 3_000_000]
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("INSERT INTO t VALUES (5, CAST(x'ff' AS TEXT))")
    with pytest.raises(errors.BadResponse, match=r"column 'v' holds what string cannot"):
        read(profile(f"sqlite:///{path}"), tmp_path, table="t")


def test_two_threads_of_a_worker_read_at_once(postgres: PostgresServer, lite: Path, tmp_path: Path) -> None:
    found: list[int] = []

    def go(url: str) -> None:
        found.extend(table.num_rows for table in read(profile(url), tmp_path, table="t", partitions=2))

    threads = [threading.Thread(target=go, args=(url,)) for url in (postgres.url, f"sqlite:///{lite}") * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found) == 2 * (1000 + 20_000)
