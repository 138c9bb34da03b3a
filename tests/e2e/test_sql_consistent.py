"""A table that is written to all the time, read in partitions by several processes: one moment, or an error; and what
is left of it when a process dies on the way. Increments of a table, from job to job."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import date
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi as adbc
import pyarrow.parquet as pq
import pytest

import ingest
from tests.servers.node import Service, Worker, running_service, until
from tests.servers.postgres import PostgresServer, postgres_server
from workers.fetchers.sql.databases.libpq import DRIVER

ROWS, PARTITIONS, EACH = 8000, 8, 1000
#: Ids between two rows with a mark: each partition has one.
SPAN = ROWS // PARTITIONS
GATE = 42
#: A reader of the upper half waits at the gate as long as the test keeps it closed; the planner does not read ``gate``.
ACCOUNTS = (
    "CREATE TABLE accounts (id int PRIMARY KEY, balance int, mark int)",
    f"""CREATE FUNCTION gate(id int) RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN
        IF id = {ROWS} / 2 + 1 OR id = {ROWS} THEN PERFORM pg_advisory_xact_lock_shared({GATE}); END IF;
        RETURN 0; END $$""",
    "CREATE VIEW gated AS SELECT id, balance, mark, gate(id) AS gate FROM accounts",
    "CREATE ROLE reader LOGIN",
    "GRANT SELECT ON accounts, gated TO reader",
    "REVOKE EXECUTE ON FUNCTION pg_export_snapshot() FROM PUBLIC",
    "CREATE ROLE crowded LOGIN",
    "GRANT SELECT ON accounts TO crowded",
    "GRANT EXECUTE ON FUNCTION pg_export_snapshot() TO crowded",
)
FILLED = f"INSERT INTO accounts SELECT i, {EACH}, 0 FROM generate_series(1, {ROWS}) AS i"
#: Two processes of each node fetch, a third one plans.
FEW = {"INGEST_CONCURRENCY": "3"}
GATED = ingest.Sql("pg", table="gated", partition_on="id", partitions=PARTITIONS)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        server.execute(*ACCOUNTS, FILLED)
        yield server


@pytest.fixture(scope="module")
def service(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("service")
    # A reader asks at each step whether it is to stop: else what is left of a partition may come before it asks.
    heeding = "[limits]\nprogress_s = 0\n"
    with running_service(root, config=heeding + config(postgres, root), workers=2, **FEW) as started:
        yield started


@pytest.fixture
def own_service(postgres: PostgresServer, tmp_path: Path) -> Iterator[Service]:
    quick = "[limits]\nrenew_s = 0.5\nlease_s = 3\n"
    with running_service(tmp_path, config=quick + config(postgres, tmp_path), workers=2, **FEW) as started:
        yield started


def config(postgres: PostgresServer, root: Path) -> str:
    urls = {name: f"sqlite:///{root}/{name}.sqlite" for name in ("delete", "wal")}
    urls["mysql"] = "mysql+pymysql://nobody@127.0.0.1:1/none"
    urls |= {"pg": postgres.url} | {r: postgres.url.replace("postgres:@", f"{r}@") for r in ("reader", "crowded")}
    return "[retry]\nbase_s = 0.1\n" + "".join(
        f"[connections.{name}]\nurl = {json.dumps(url)}\n" for name, url in urls.items()
    )


@pytest.fixture
def writer(postgres: PostgresServer) -> Iterator[Callable[[], int]]:
    """Writes all the time; gives how many transactions there were. Each leaves sum and number of the rows as they are,
    moves a row from one end to the other, and sets one and the same mark in every partition."""
    stop = threading.Event()
    done = 0

    def write() -> None:
        nonlocal done
        with adbc.connect(postgres.url, DRIVER) as connection, connection.cursor() as cursor:
            while not stop.is_set():
                turn = done + 1
                moved = 100 + turn * 7 % 800 + turn % PARTITIONS * SPAN
                for statement in (
                    f"UPDATE accounts SET mark = {turn} WHERE id % {SPAN} = 1 AND id <= {ROWS}",
                    f"UPDATE accounts SET balance = balance - 7 WHERE id BETWEEN {2 + turn % 30} AND {40 + turn % 30}",
                    f"UPDATE accounts SET balance = balance + 7 WHERE id - {ROWS - SPAN} "
                    f"BETWEEN {2 + turn % 30} AND {40 + turn % 30}",
                    f"WITH gone AS (DELETE FROM accounts WHERE id = {moved} AND {turn} % 8 = 0 RETURNING *) "
                    f"INSERT INTO accounts SELECT {2 * ROWS + turn}, balance, mark FROM gone",
                ):
                    cursor.execute(statement)
                connection.commit()
                done = turn
                stop.wait(0.02)  # others are to have some of the machine

    thread = threading.Thread(target=write)
    thread.start()
    try:
        until(lambda: done > 3, "the writer writes")
        yield lambda: done
    finally:
        stop.set()
        thread.join(30)
        postgres.execute("TRUNCATE accounts", FILLED)


@contextmanager
def closed_gate(postgres: PostgresServer) -> Iterator[Callable[[], None]]:
    """No reader passes until what this gives is called."""
    with adbc.connect(postgres.url, DRIVER, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(f"SELECT pg_advisory_lock({GATE})::text")
        cursor.fetchall()
        yield lambda: cursor.execute("SELECT pg_advisory_unlock_all()::text")


def ask(postgres: PostgresServer, query: str) -> Any:
    with adbc.connect(postgres.url, DRIVER, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(query)
        return cursor.fetchall()[0][0]


def ours(postgres: PostgresServer, more: str = "true") -> int:
    query = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = 'ingest' AND {more}"
    return int(ask(postgres, query))


def waiting(postgres: PostgresServer) -> int:
    """Readers at the gate."""
    return ours(postgres, "wait_event = 'advisory'")


def half_way(postgres: PostgresServer, job: ingest.Job) -> None:
    """Two partitions wait at the gate, the others are read."""

    def is_so() -> bool:
        return waiting(postgres) >= 2 and job.status().files_done == PARTITIONS - 2

    until(is_so, f"two wait, the others are read: {job.status()}", 60)


def nothing_is_left(postgres: PostgresServer) -> None:
    until(lambda: ours(postgres) == 0, "no transaction, lock or connection of ours is left", 30)


def moment(files: list[ingest.LocalFile]) -> int:
    """The moment that the files are of: the mark of all partitions. Fails if they are of several."""
    tables = [pq.read_table(f.path) for f in files]
    rows = [row for table in tables for row in table.select(["id", "balance", "mark"]).to_pylist()]
    assert [f.index for f in files] == [(0, n) for n in range(PARTITIONS)]
    assert (len(rows), sum(row["balance"] for row in rows)) == (ROWS, ROWS * EACH)
    assert len({row["id"] for row in rows}) == ROWS
    marks = {row["mark"] for row in rows if row["id"] % SPAN == 1 and row["id"] <= ROWS}
    (mark,) = marks
    return int(mark)


def events(service: Service, name: str) -> list[dict[str, Any]]:
    """Log lines of that event, of all nodes."""
    lines = [line for worker in service.workers for line in worker.log.read_text().splitlines() if f'"{name}"' in line]
    return [found for found in map(json.loads, lines) if found["event"] == name]


def held(service: Service, job: ingest.Job) -> list[int]:
    """The generations of a job's snapshot that there were."""
    return [line["attempt"] for line in events(service, "snapshot.held") if line["job"] == job.id]


def holders(worker: Worker) -> list[int]:
    """Processes that hold snapshots of a node: children of its agent."""
    threads = [task for agent in worker.agents() for task in Path(f"/proc/{agent}/task").iterdir()]
    return [int(pid) for thread in threads for pid in (thread / "children").read_text().split()]


def holder(service: Service, job: ingest.Job) -> tuple[Worker, int]:
    """The node that holds a job's snapshot, and the process in which it does."""
    *_, last = [line for line in events(service, "snapshot.held") if line["job"] == job.id]
    worker = service.workers[int(last["node"].removeprefix("n")) - 1]
    (pid,) = holders(worker)
    return worker, pid


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


def test_eight_partitions_are_of_one_moment(
    service: Service, postgres: PostgresServer, writer: Callable[[], int]
) -> None:
    with closed_gate(postgres) as open_gate:
        job = service.client().submit(GATED)
        half_way(postgres, job)
        before = writer()
        until(lambda: writer() > before + 20, "there are other moments now")
        open_gate()
        files = job.files(timeout=60)
    assert job.status().state == "done" and 0 < moment(files) <= before
    assert len({line["pid"] for line in events(service, "shard.done") if line["job"] == job.id}) > 1
    nothing_is_left(postgres)


@pytest.mark.long
def test_without_a_snapshot_they_are_of_several(
    service: Service, postgres: PostgresServer, writer: Callable[[], int]
) -> None:
    """The user's choice; and the proof that the test above could fail."""
    with closed_gate(postgres) as open_gate:
        job = service.client().submit(
            ingest.Sql("pg", table="gated", partition_on="id", partitions=PARTITIONS, consistent=False)
        )
        half_way(postgres, job)
        before = writer()
        until(lambda: writer() > before + 20, "there are other moments now")
        open_gate()
        files = job.files(timeout=60)
    assert held(service, job) == []
    with pytest.raises((AssertionError, ValueError)):
        moment(files)


def test_kill_9_of_the_holder_reads_all_again(
    service: Service, postgres: PostgresServer, writer: Callable[[], int], tmp_path: Path
) -> None:
    with closed_gate(postgres) as open_gate:
        job = service.client().submit(GATED, into=tmp_path / "table")
        half_way(postgres, job)
        _, pid = holder(service, job)
        before = writer()
        os.kill(pid, signal.SIGKILL)
        until(lambda: job.status().files_done == 0, "all goes back")
        open_gate()
        files = job.files(timeout=60)
    assert moment(files) > before, "nothing is left of the first generation"
    assert set((tmp_path / "table").iterdir()) == {f.into for f in files}, "and nothing beside them"
    assert sorted(f.index for f in job.as_completed(timeout=5)) == [f.index for f in files]
    assert held(service, job) == [1, 2] and job.status().state == "done"
    nothing_is_left(postgres)


def test_kill_9_of_a_reader_leaves_no_lock_and_keeps_the_snapshot(
    service: Service, postgres: PostgresServer, writer: Callable[[], int]
) -> None:
    with closed_gate(postgres) as open_gate:
        job = service.client().submit(GATED)
        half_way(postgres, job)
        before = writer()
        ledger = service.client().ledger
        readers = [v for w in ledger.workers() for v in ledger.redis.hvals(ledger.key("held", w.id))]
        for value in readers:
            os.kill(int(value.partition(b":")[0]), signal.SIGKILL)
        asked = ask(postgres, "SELECT now()::text")
        until(lambda: ours(postgres, f"wait_event = 'advisory' AND xact_start < '{asked}'") == 0, "they are gone", 20)
        open_gate()
        files = job.files(timeout=60)
    assert moment(files) <= before, "the same snapshot as before"
    nothing_is_left(postgres)


@pytest.mark.parametrize("what", ["machine", pytest.param("worker", marks=pytest.mark.long)])
def test_the_node_that_planned_goes_and_another_carries_on(
    own_service: Service, postgres: PostgresServer, writer: Callable[[], int], what: str
) -> None:
    with closed_gate(postgres) as open_gate:
        job = own_service.client().submit(GATED)
        half_way(postgres, job)
        worker, _ = holder(own_service, job)
        before = writer()
        for pid in worker.agents() if what == "machine" else []:
            os.kill(pid, signal.SIGKILL)
        worker.kill()
        until(lambda: job.status().files_done == 0, "all goes back")
        open_gate()
        files = job.files(timeout=60)
    assert moment(files) > before and job.status().state == "done"
    nothing_is_left(postgres)


def test_a_snapshot_that_cannot_be_had_is_an_error_unless_told_otherwise(service: Service) -> None:
    client = service.client()
    job = client.submit(ingest.Sql("reader", table="accounts", partition_on="id", partitions=4))
    assert job.wait(timeout=30).state == "failed"
    (failure,) = job.failures()
    assert failure.error == "NoSnapshot" and failure.source == "sql://reader/accounts"
    assert "permission denied for function pg_export_snapshot" in failure.reason
    assert "consistent=False" in failure.reason
    loose = ingest.Sql("reader", table="accounts", partition_on="id", partitions=4, consistent=False)
    assert len(client.fetch(loose, timeout=30)) == 4
    assert len(client.fetch(ingest.Sql("reader", table="accounts"), timeout=30)) == 1, "one statement needs none"


def test_databases_without_snapshots_for_several_refuse(service: Service) -> None:
    job = service.client().submit(ingest.Sql("mysql", table="t", partition_on="id", partitions=4))
    assert job.wait(timeout=30).state == "failed"
    (failure,) = job.failures()
    assert failure.error == "NoSnapshot" and "consistent=False" in failure.reason and "mysql" in failure.reason


def test_a_database_that_is_full_is_waited_for(service: Service, postgres: PostgresServer) -> None:
    postgres.execute("ALTER ROLE crowded CONNECTION LIMIT 0")
    job = service.client().submit(ingest.Sql("crowded", table="accounts", partition_on="id", partitions=2))
    until(lambda: "too many connections" in job.status().waiting_for, "it says what it waits for")
    postgres.execute("ALTER ROLE crowded CONNECTION LIMIT -1")
    assert len(job.files(timeout=40)) == 2


@pytest.mark.long
def test_moments_that_are_always_lost_end_in_an_error(service: Service, postgres: PostgresServer) -> None:
    """As behind something that hands each connection to another server."""
    with closed_gate(postgres) as open_gate:
        job = service.client().submit(GATED, attempts=2)
        half_way(postgres, job)
        for generation in (1, 2):
            until(lambda n=generation: len(held(service, job)) == n, "there is a snapshot")  # type: ignore[misc]
            os.kill(holder(service, job)[1], signal.SIGKILL)
        open_gate()
        assert job.wait(timeout=40).state == "failed"
    assert {f.error for f in job.failures()} == {"SnapshotLost"} and len(job.failures()) == PARTITIONS
    assert "2 snapshots of it were lost" in job.failures()[0].reason
    assert job.files() == []
    assert moment(job.retry().files(timeout=40)) == 0, "and again, when somebody asks"
    nothing_is_left(postgres)


def test_a_retry_after_the_end_reads_all_again(service: Service, postgres: PostgresServer) -> None:
    """One partition fails, the others are done; what is tried again later would not fit what was read before."""
    postgres.execute("CREATE TABLE once AS SELECT i AS id, 1 AS gen, 1 AS zero FROM generate_series(1, 800) AS i")
    query = "SELECT id, gen, 1 / zero AS one FROM once"
    sql = ingest.Sql("pg", query=query, partition_on="id", partitions=4)
    postgres.execute("UPDATE once SET zero = 0 WHERE id = 700")
    job = service.client().submit(sql)
    assert job.wait(timeout=30).state == "failed"
    (failure,) = job.failures()
    assert "division by zero" in failure.reason and len(job.files()) == 3
    postgres.execute("UPDATE once SET zero = 1, gen = 2")
    files = job.retry().files(timeout=30)
    assert {v for f in files for v in pq.read_table(f.path)["gen"].to_pylist()} == {2} and len(files) == 4
    assert job.status().files_done == 4 and job.status().state == "done"


def test_a_job_that_is_cancelled_lets_its_snapshot_go(service: Service, postgres: PostgresServer) -> None:
    with closed_gate(postgres) as open_gate:
        job = service.client().submit(GATED)
        half_way(postgres, job)
        job.cancel()
        open_gate()
    assert job.wait(timeout=30).state == "cancelled"
    nothing_is_left(postgres)


# -- SQLite --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_file_that_is_written_to_is_noticed(service: Service, mode: str) -> None:
    """Nobody can hold a moment of a file; but its partitions are of one, or nothing is given out."""
    path = service.root / f"{mode}.sqlite"
    stop, done = threading.Event(), threading.Event()
    with closing(sqlite3.connect(path)) as db:
        db.execute(f"PRAGMA journal_mode = {mode}")
        db.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, mark INTEGER)")
        db.executemany("INSERT INTO t VALUES (?, 0)", [(n,) for n in range(4000)])
        db.commit()

    def write() -> None:
        with closing(sqlite3.connect(path, timeout=30)) as db:
            while not stop.wait(0.005):
                db.execute("UPDATE t SET mark = mark + 1 WHERE id % 500 = 7")
                db.commit()
                done.set()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        assert done.wait(10)
        job = service.client().submit(ingest.Sql(mode, table="t", partition_on="id", partitions=8), attempts=3)
        assert job.wait(timeout=60).state == "failed"
    finally:
        stop.set()
        thread.join(30)
    assert {f.error for f in job.failures()} == {"SnapshotLost"} and job.files() == []
    assert "written to" in job.failures()[0].reason
    files = job.retry().files(timeout=30)
    assert len({v for f in files for v in pq.read_table(f.path)["mark"].to_pylist()} - {0}) == 1 and len(files) == 8


# -- increments ----------------------------------------------------------------------------------------------------


def ids(files: list[ingest.LocalFile]) -> list[int]:
    return sorted(v for f in files for v in pq.read_table(f.path)["id"].to_pylist())


@pytest.mark.parametrize("connection", ["pg", "delete"])
@pytest.mark.parametrize("partitions", [1, 3])
def test_the_next_job_has_what_is_new(
    service: Service, postgres: PostgresServer, connection: str, partitions: int
) -> None:
    table = f"log{partitions}"

    def execute(statement: str) -> None:
        if connection == "pg":
            postgres.execute(statement)
        else:
            with closing(sqlite3.connect(service.root / "delete.sqlite")) as db:
                db.execute(statement)
                db.commit()

    execute(f"CREATE TABLE {table} (id INTEGER, at TEXT)")
    execute(f"INSERT INTO {table} VALUES (1, '2026-01-01'), (2, '2026-01-02'), (3, '2026-01-02')")
    client = service.client()
    sql = ingest.Sql(connection, table=table, incremental_on="at", partition_on="id", partitions=partitions)
    assert client.cursor(sql) is None
    assert ids(client.submit(sql).files(timeout=30)) == [1, 2, 3] and client.cursor(sql) == "2026-01-02"
    (empty,) = client.submit(sql).files(timeout=30)
    assert empty.samples == 0 and pq.read_schema(empty.path).names == ["id", "at"]
    execute(f"INSERT INTO {table} VALUES (4, '2026-01-03'), (5, '2026-01-05')")
    assert ids(client.submit(sql).files(timeout=30)) == [4, 5] and client.cursor(sql) == "2026-01-05"
    since = dataclasses.replace(sql, since=date(2026, 1, 2))
    assert ids(client.submit(since).files(timeout=30)) == [4, 5]
    other = dataclasses.replace(sql, where="id > 1")
    assert ids(client.submit(other).files(timeout=30)) == [2, 3, 4, 5], "another condition, another cursor"
    client.set_cursor(sql, None)
    assert ids(client.submit(sql).files(timeout=30)) == [1, 2, 3, 4, 5]
    execute(f"INSERT INTO {table} VALUES (6, NULL)")
    job = client.submit(sql)
    assert job.wait(timeout=30).state == "failed"
    (failure,) = job.failures()
    assert failure.error == "BadResponse" and "NULL in 1 rows" in failure.reason
    assert client.cursor(sql) == "2026-01-05"


@pytest.mark.parametrize(("kind", "value"), [("float8", "NaN"), ("float8", "Infinity"), ("timestamptz", "infinity")])
def test_a_cursor_above_which_nothing_would_ever_be(
    service: Service, postgres: PostgresServer, kind: str, value: str
) -> None:
    postgres.execute(
        "DROP TABLE IF EXISTS ends",
        f"CREATE TABLE ends (id INTEGER, at {kind})",
        f"INSERT INTO ends VALUES (1, '{value}')",
    )
    client = service.client()
    sql = ingest.Sql("pg", table="ends", columns=("id",), incremental_on="at")
    job = client.submit(sql)
    assert job.wait(timeout=30).state == "failed"
    (failure,) = job.failures()
    assert failure.error == "BadResponse" and f"at is {value} in some row" in failure.reason
    assert client.cursor(sql) is None


@pytest.mark.long
def test_the_cursor_stays_until_all_partitions_are_there(service: Service, postgres: PostgresServer) -> None:
    postgres.execute("CREATE TABLE strict AS SELECT i AS id, 1 AS zero FROM generate_series(1, 400) AS i")
    postgres.execute("UPDATE strict SET zero = 0 WHERE id = 350")
    client = service.client()
    query = "SELECT id, 1 / zero AS one FROM strict"
    sql = ingest.Sql("pg", query=query, incremental_on="id", partition_on="id", partitions=4)
    job = client.submit(sql)
    assert job.wait(timeout=30).state == "failed" and client.cursor(sql) is None
    postgres.execute("UPDATE strict SET zero = 1")
    assert len(ids(job.retry().files(timeout=30))) == 400 and client.cursor(sql) == "400"
    client.submit(sql).wait(timeout=30)
    assert client.cursor(sql) == "400", "nothing new leaves it where it is"
