"""SqlFetcher against a real PostgreSQL and SQLite, and its way through SQLAlchemy against both."""

from __future__ import annotations

import gc
import hashlib
import json
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import errors
from ingest.model import FileSpec
from ingest.sections import Connection, Limits
from ingest.settings import Settings
from ingest.sources import Source, Sql
from ingest.store.scratch import Scratch
from tests.servers.postgres import PostgresServer, postgres_server
from workers.fetchers.base import Context, Interrupted
from workers.fetchers.sql import SqlFetcher, databases

ROWS = 1000
SAMPLES = """
    CREATE TABLE samples AS SELECT i AS id, 'caption ' || i AS caption, (i * 1.37)::numeric(12,2) AS price,
        i * 0.5::float8 AS score, timestamptz '2020-01-01 00:00:00+00' + i * interval '1 hour' AS at,
        date '2020-01-01' + i AS day, decode(md5(i::text), 'hex') AS thumb, md5(i::text)::uuid AS uid
    FROM generate_series(1, 1000) AS i"""


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        server.execute(
            SAMPLES,
            'CREATE SCHEMA "odd schema"',
            'CREATE TABLE "odd schema"."Order" ("group" int, "a ""b" text)',
            "INSERT INTO \"odd schema\".\"Order\" VALUES (1, 'it''s'), (2, E'back\\\\slash: :x %s %')",
            "CREATE ROLE reader LOGIN PASSWORD 'right-one'",
            "CREATE ROLE poor LOGIN",
            "GRANT SELECT ON samples TO reader",
        )
        server.want_password("reader")
        yield server


@pytest.fixture
def context(postgres: PostgresServer) -> Context:
    return profile(postgres.url)


def profile(url: str, *, limits: Limits | None = None, **more: str) -> Context:
    return Context(Settings(limits=limits or Limits()), Connection("warehouse", {"url": url, **more}))


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Callable[..., Scratch]]:
    """Makes scratch files, and closes them."""
    made: list[Scratch] = []

    def make(**options: Any) -> Scratch:
        made.append(Scratch(tmp_path, f"scratch-{len(made)}", "sql://warehouse/x", keep=False, **options))
        return made[-1]

    yield make
    for file in made:
        file.close(discard=True)


@pytest.fixture
def read(scratch: Callable[..., Scratch]) -> Any:
    """Plans and fetches, as the queue would: what is planned goes through JSON."""

    def go(context: Context, sql: Sql) -> list[pa.Table]:
        tables = []
        for spec in SqlFetcher().expand(sql, context):
            spec = FileSpec.from_json(json.loads(json.dumps(spec.to_json())))
            file = scratch()
            fetched = SqlFetcher().fetch(spec, file, None, context)
            tables.append(pq.read_table(file.path))
            assert fetched.samples == tables[-1].num_rows and fetched.version is None
            assert file.size == file.path.stat().st_size
            assert file.digest() == f"sha256:{hashlib.sha256(file.path.read_bytes()).hexdigest()}"
        return tables

    return go


def ids(tables: list[pa.Table], name: str = "id") -> list[Any]:
    return [value for table in tables for value in table[name].to_pylist()]


# -- PostgreSQL ----------------------------------------------------------------------------------------------------


def test_a_table_arrives_with_its_types(read: Any, context: Context) -> None:
    (table,) = read(context, Sql("warehouse", table="samples"))
    assert {name: str(table.schema.field(name).type) for name in table.column_names} == {
        "id": "int32", "caption": "string", "price": "decimal128(12, 2)", "score": "double",
        "at": "timestamp[us, tz=UTC]", "day": "date32[day]", "thumb": "binary", "uid": "string",
    }  # fmt: skip
    row = table.sort_by("id").slice(999).to_pylist()[0]
    assert row["price"] == Decimal("1370.00") and row["score"] == 500.0 and row["caption"] == "caption 1000"
    assert row["at"] == datetime(2020, 1, 1, tzinfo=UTC) + timedelta(hours=1000)
    assert UUID(row["uid"]).bytes == row["thumb"]


@pytest.mark.parametrize(
    ("expression", "value", "kind"),
    [
        ("0.1::numeric(5,1) + 0.2::numeric(5,1)", "0.3", "string"),
        ("0.10::numeric(5,2)", Decimal("0.10"), "decimal128(5, 2)"),
        ("1e40::numeric(45,2)", f"1{'0' * 40}.00", "string"),
        ("12345::numeric(3,-2)", Decimal(12300), "decimal128(5, 0)"),
        ("0.00012::numeric(2,5)", Decimal("0.00012"), "decimal128(5, 5)"),
        ("(10::numeric ^ 90)::numeric(100,0)", "1" + "0" * 90, "string"),
        ("9223372036854775807", 9223372036854775807, "int64"),
        ("'{\"a\": 1.10}'::json", '{"a": 1.10}', "string"),
        ("interval '1 day 2 hours'", "1 day 02:00:00", "string"),
        ("'$1.50'::money", "$1.50", "string"),
        ("inet '10.0.0.1'", "10.0.0.1/32", "string"),
        ("int4range(1, 5)", "[1,5)", "string"),
        ("4000000000::oid", 4000000000, "int64"),
        ("ARRAY[1, NULL, 3]", [1, None, 3], "list<element: int32>"),
        ("ARRAY[1.10, 2.2]", ["1.10", "2.2"], "list<element: string>"),
        (
            "ARRAY[uuid '00000000-0000-0000-0000-000000000001']",
            ["00000000-0000-0000-0000-000000000001"],
            "list<element: string>",
        ),
        ("timestamp '2020-01-02 03:04:05.123456'", datetime(2020, 1, 2, 3, 4, 5, 123456), "timestamp[us]"),
        ("timestamptz '2020-01-02 03:00:00+05:30'", datetime(2020, 1, 1, 21, 30, tzinfo=UTC), "timestamp[us, tz=UTC]"),
        ("NULL::text", None, "string"),
        ("'caf\u00e9 \U0001f600'", "caf\u00e9 \U0001f600", "string"),
    ],
)
def test_values_are_exact(expression: str, value: object, kind: str, read: Any, context: Context) -> None:
    (table,) = read(context, Sql("warehouse", query=f"SELECT {expression} AS v"))
    assert table["v"].to_pylist() == [value] and str(table.schema.field("v").type) == kind


def test_what_a_decimal_cannot_hold_is_said(read: Any, context: Context) -> None:
    with pytest.raises(errors.BadResponse, match=r"'v'.*cast it to text"):
        read(context, Sql("warehouse", query="SELECT 'NaN'::numeric(5,2) AS v"))


def test_odd_names_are_quoted_and_text_is_text(read: Any, context: Context) -> None:
    (table,) = read(
        context, Sql("warehouse", table="odd schema.Order", columns=('a "b',), where='"group" = 2 -- a comment')
    )
    assert table.to_pylist() == [{'a "b': "back\\slash: :x %s %"}]


def test_columns_where_and_row_groups(scratch: Callable[..., Scratch], context: Context) -> None:
    sql = Sql(
        "warehouse", query="SELECT * FROM samples; ", columns=("id", "score"), where="id <= 250", row_group_rows=100
    )
    (spec,) = SqlFetcher().expand(sql, context)
    file = scratch()
    SqlFetcher().fetch(spec, file, None, context)
    meta = pq.read_metadata(file.path)
    assert [meta.row_group(n).num_rows for n in range(meta.num_row_groups)] == [100, 100, 50]
    assert meta.row_group(0).column(0).compression == "ZSTD"


def test_an_empty_result_has_its_schema(read: Any, context: Context) -> None:
    (table,) = read(context, Sql("warehouse", table="samples", where="false", partition_on="id", partitions=4))
    assert table.num_rows == 0 and str(table.schema.field("price").type) == "decimal128(12, 2)"


# -- partitions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["id", "price", "score", "at", "day", "caption", "uid"])
def test_partitions_are_disjoint_and_whole(key: str, read: Any, context: Context) -> None:
    tables = read(context, Sql("warehouse", table="samples", partition_on=key, partitions=7, columns=("id",)))
    assert sorted(ids(tables)) == list(range(1, ROWS + 1))
    assert len(tables) == 7 and max(t.num_rows for t in tables) <= 150


def test_partitions_are_named_in_order(context: Context) -> None:
    specs = list(SqlFetcher().expand(Sql("warehouse", table="samples", partition_on="id", partitions=3), context))
    assert [spec.uri for spec in specs] == [f"sql://warehouse/samples?partition={n}/3" for n in range(3)]
    assert [spec.name for spec in specs] == [f"samples-0000{n}-of-00003.parquet" for n in range(3)]
    assert [spec.part for spec in specs] == [0, 1, 2] and {spec.connection for spec in specs} == {"warehouse"}
    (lone,) = SqlFetcher().expand(Sql("warehouse", table="samples"), context)
    assert (lone.uri, lone.name) == ("sql://warehouse/samples", "samples.parquet")


@pytest.mark.parametrize(
    ("values", "files"),
    [
        ("(NULL::int)", 1), ("(1)", 1), ("(1), (1), (NULL)", 1), ("(1), (2), (NULL)", 2),
        ("(-5), (NULL), (100), (NULL)", 2),
        ("('a'), ('a'), (NULL)", 1), ("('a'), ('b''b'), (NULL), ('')", 3), ("(1.5), ('NaN'::float8)", 2),
        ("('infinity'::timestamptz), ('2020-01-01')", 2), ("(true), (false)", 2),
        ("(9223372036854775807), (-9223372036854775808)", 2),
    ],
)  # fmt: skip
def test_few_or_odd_keys_lose_no_row(values: str, files: int, read: Any, context: Context) -> None:
    query = f"SELECT k, row_number() OVER () AS id FROM (VALUES {values}) AS v(k)"
    tables = read(context, Sql("warehouse", query=query, partition_on="k", partitions=4, columns=("id",)))
    assert sorted(ids(tables)) == list(range(1, values.count("(") - values.count("OVER") + 1))
    assert len(tables) == files


def test_rows_outside_the_planned_range_are_not_lost(scratch: Callable[..., Scratch], postgres: PostgresServer) -> None:
    postgres.execute("CREATE TABLE growing AS SELECT i AS id FROM generate_series(1, 10) AS i")
    context = profile(postgres.url)
    specs = list(SqlFetcher().expand(Sql("warehouse", table="growing", partition_on="id", partitions=3), context))
    postgres.execute("INSERT INTO growing VALUES (-100), (100), (NULL)")
    found = []
    for spec in specs:
        file = scratch()
        SqlFetcher().fetch(spec, file, None, context)
        found += pq.read_table(file.path)["id"].to_pylist()
    assert sorted(found, key=lambda v: (v is None, v)) == [-100, *range(1, 11), 100, None]


# -- SQLite --------------------------------------------------------------------------------------------------------


@pytest.fixture
def sqlite(tmp_path: Path) -> Path:
    path = tmp_path / "odd name #?%20.db"
    with sqlite3.connect(path) as db:
        db.execute(
            "CREATE TABLE t (id INTEGER PRIMARY KEY, n INT, late REAL, price DECIMAL(10,2), s TEXT, b BLOB, mixed,"
            " day DATE, unset DOUBLE, loose DECIMAL(4,1), big NUMERIC)"
        )
        days = [str(date(2020, 1, 1) + timedelta(i)) for i in range(20_000)]
        rows: list[tuple[object, ...]] = [
            (i, i, None, round(i * 1.1, 2), f"text {i}", bytes([i % 256]), i, day, None, 1.25, 2**60 + i)
            for i, day in enumerate(days)
        ]
        rows[-1] = (19_999, None, 1.5, 7, "last", None, "a word", "2021-01-01", None, 1, 0.5)
        db.executemany(f"INSERT INTO t VALUES ({','.join('?' * 11)})", rows)
    db.close()
    return path


def test_sqlite_types_hold_for_the_whole_table(sqlite: Path, read: Any) -> None:
    tables = read(
        profile(f"sqlite:///{quote(str(sqlite))}"), Sql("warehouse", table="t", partition_on="id", partitions=3)
    )
    assert len(tables) == 3 and {str(t.schema) for t in tables} == {str(tables[0].schema)}
    assert {name: str(tables[0].schema.field(name).type) for name in tables[0].column_names} == {
        "id": "int64", "n": "int64", "late": "double", "price": "decimal128(10, 2)", "s": "string", "b": "binary",
        "mixed": "string", "day": "string", "unset": "double", "loose": "double", "big": "string",
    }  # fmt: skip
    assert ids(tables) == list(range(20_000))
    assert tables[0].to_pylist()[3] == {
        "id": 3, "n": 3, "late": None, "price": Decimal("3.30"), "s": "text 3", "b": b"\x03", "mixed": "3",
        "day": "2020-01-04",        "unset": None, "loose": 1.25, "big": str(2**60 + 3),
    }  # fmt: skip
    last = tables[-1].to_pylist()[-1]
    assert (last["late"], last["mixed"], last["price"], last["n"]) == (1.5, "a word", Decimal("7.00"), None)


@pytest.mark.parametrize("key", ["id", "s", "mixed", "day", "price", "late"])
def test_sqlite_partitions_are_disjoint_and_whole(key: str, sqlite: Path, read: Any) -> None:
    tables = read(
        profile(f"sqlite:///{quote(str(sqlite))}"), Sql("warehouse", table="t", partition_on=key, partitions=4)
    )
    assert sorted(ids(tables)) == list(range(20_000))
    assert len(tables) == (1 if key == "late" else 4)


def test_sqlite_empty_results_keep_the_declared_types(sqlite: Path, read: Any) -> None:
    (table,) = read(
        profile(f"sqlite:///{quote(str(sqlite))}"),
        Sql("warehouse", query="SELECT id, s, b, price, late FROM t WHERE id < 0;"),
    )
    assert [str(field.type) for field in table.schema] == ["int64", "string", "binary", "decimal128(10, 2)", "double"]
    assert table.num_rows == 0


def test_sqlite_is_opened_read_only(sqlite: Path, read: Any) -> None:
    before = sqlite.read_bytes()
    with pytest.raises(errors.PermanentFetchError):
        read(profile(f"sqlite:///{quote(str(sqlite))}"), Sql("warehouse", query="DELETE FROM t RETURNING id"))
    assert sqlite.read_bytes() == before


@pytest.mark.parametrize(
    ("sql", "error", "says"),
    [
        (Sql("warehouse", table="missing"), errors.NotFound, "no such table: missing"),
        (Sql("warehouse", query="SELECT nope FROM t"), errors.NotFound, "no such column: nope"),
        (Sql("warehouse", query="SELEC 1"), errors.BadResponse, "syntax error"),
        (Sql("warehouse", table="t", order_by=("nope",)), errors.NotFound, "no such column: t.nope"),
    ],
)
def test_sqlite_errors(sql: Sql, error: type[Exception], says: str, sqlite: Path, read: Any) -> None:
    with pytest.raises(error, match=says):
        read(profile(f"sqlite:///{quote(str(sqlite))}"), sql)


def test_sqlite_file_that_is_not_there(tmp_path: Path, read: Any) -> None:
    with pytest.raises(errors.NotFound, match="unable to open"):
        read(profile(f"sqlite:///{tmp_path}/none.db"), Sql("warehouse", table="t"))
    assert not (tmp_path / "none.db").exists()


# -- by SQLAlchemy -------------------------------------------------------------------------------------------------


@pytest.fixture
def any_dialect(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of MySQL, Oracle and the rest, taken by the databases that are here."""
    monkeypatch.setattr(databases, "BACKENDS", {})


@pytest.mark.usefixtures("any_dialect")
@pytest.mark.parametrize("key", ["id", "price", "score", "at", "day", "caption"])
def test_a_table_by_sqlalchemy(key: str, read: Any, postgres: PostgresServer) -> None:
    context = profile(postgres.url.replace("postgresql:", "postgresql+psycopg:"))
    tables = read(context, Sql("warehouse", table="samples", partition_on=key, partitions=3))
    assert len(tables) == 3 and sorted(ids(tables)) == list(range(1, ROWS + 1))
    kinds = {str(field.type) for field in tables[0].schema}
    assert {"decimal128(12, 2)", "timestamp[us, tz=UTC]", "date32[day]", "binary", "double", "int64", "string"} == kinds


@pytest.mark.usefixtures("any_dialect")
def test_a_query_by_sqlalchemy_is_exact_or_an_error(read: Any, sqlite: Path, postgres: PostgresServer) -> None:
    context = profile(postgres.url.replace("postgresql:", "postgresql+psycopg:"))
    query = "SELECT 0.10::numeric AS d, ':x %s %' AS s, NULL AS n, '{\"a\": [1]}'::json AS j, true AS b"
    (table,) = read(context, Sql("warehouse", query=query))
    assert table.to_pylist() == [{"d": Decimal("0.10"), "s": ":x %s %", "n": None, "j": '{"a": [1]}', "b": True}]
    with pytest.raises(errors.BadResponse, match="'mixed'"):
        read(profile(f"sqlite:///{quote(str(sqlite))}"), Sql("warehouse", query="SELECT mixed FROM t"))
    (empty,) = read(profile(f"sqlite:///{quote(str(sqlite))}"), Sql("warehouse", table="t", where="id < 0"))
    assert str(empty.schema.field("price").type) == "decimal128(10, 2)"


# -- errors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sql", "error", "says"),
    [
        (Sql("warehouse", table="missing"), errors.NotFound, 'relation "missing" does not exist'),
        (Sql("warehouse", table="samples", columns=("nope",)), errors.NotFound, 'column "nope" does not exist'),
        (Sql("warehouse", table="samples", partition_on="nope", partitions=2), errors.NotFound, 'column "nope"'),
        (Sql("warehouse", table="samples", where="id ="), errors.BadResponse, "syntax error"),
        (Sql("warehouse", query="SELECT 1 AS a, 2 AS a"), errors.BadResponse, "two columns are named 'a'"),
        (Sql("warehouse", query="SELECT 1 / (500 - id) AS v FROM samples"), errors.BadResponse, "division by zero"),
        (Sql("warehouse", query="SELECT nextval('s')"), errors.PermanentFetchError, "s"),
        (
            Sql("warehouse", query="SELECT set_config('transaction_read_only', 'off', false)"),
            errors.PermanentFetchError,
            "read-write",
        ),
        (Sql("warehouse"), errors.BadResponse, "a table or a query"),
        (Sql("warehouse", table="samples", partitions=0), errors.BadResponse, "at least 1"),
        (Sql("warehouse", table="samples", file_bytes=0), errors.BadResponse, "at least 1"),
    ],
)
def test_what_the_database_says_is_passed_on(
    sql: Sql, error: type[Exception], says: str, read: Any, context: Context
) -> None:
    with pytest.raises(error, match=says) as caught:
        read(context, sql)
    assert "SELECT" not in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "statement", ["DELETE FROM samples RETURNING id", "WITH d AS (DELETE FROM samples RETURNING id) TABLE d"]
)
def test_nothing_can_be_written(statement: str, read: Any, context: Context) -> None:
    with pytest.raises(errors.PermanentFetchError):
        read(context, Sql("warehouse", query=statement))
    assert len(ids(read(context, Sql("warehouse", table="samples")))) == ROWS


def test_a_function_that_writes_is_refused(read: Any, postgres: PostgresServer) -> None:
    postgres.execute("CREATE FUNCTION wipe() RETURNS int LANGUAGE sql AS 'DELETE FROM samples; SELECT 1'")
    with pytest.raises(errors.BadResponse, match="read-only"):
        read(profile(postgres.url), Sql("warehouse", query="SELECT wipe()"))


def test_a_slow_statement_ends_in_time(read: Any, postgres: PostgresServer) -> None:
    limits = Limits(connect_s=0.1, stall_s=0.2, soft_s=0.5)
    begun = time.monotonic()
    with pytest.raises(errors.FetchTimeout, match="statement timeout"):
        read(profile(postgres.url, limits=limits), Sql("warehouse", query="SELECT pg_sleep(30)::text AS v"))
    assert time.monotonic() - begun < 10


def test_passwords(read: Any, postgres: PostgresServer) -> None:
    url = postgres.url.replace("postgres:@", "reader@")
    assert len(ids(read(profile(url, password="right-one"), Sql("warehouse", table="samples")))) == ROWS
    assert (
        len(ids(read(profile(postgres.url, user="reader", password="right-one"), Sql("warehouse", table="samples"))))
        == ROWS
    )
    with pytest.raises(
        errors.AccessDenied, match=r"password authentication failed.*\[connections.warehouse\]"
    ) as caught:
        read(profile(url, password="wrong-one"), Sql("warehouse", table="samples"))
    assert "wrong-one" not in str(caught.value)
    with pytest.raises(errors.AccessDenied):
        read(profile(url), Sql("warehouse", table="samples"))
    with pytest.raises(errors.AccessDenied, match="permission denied"):
        read(profile(postgres.url, user="poor"), Sql("warehouse", table="samples"))


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("postgresql://u:hush-hush@127.0.0.1:1/x", errors.ConnectionLost),
        ("postgresql://u:hush-hush@no-such-host.invalid/x", errors.ConnectionLost),
        ("postgresql://u:hush-hush@/x?host=/no/such/folder", errors.ConnectionLost),
        ("nosuchdb://u:hush-hush@h/x", errors.MissingExtra),
        ("not a url", errors.BadResponse),
        ("sqlite://", errors.BadResponse),
        ("", errors.BadResponse),
    ],
)
def test_nobody_there(url: str, error: type[Exception], read: Any) -> None:
    with pytest.raises(error) as caught:
        read(profile(url), Sql("warehouse", table="t"))
    assert type(caught.value) is error and "hush-hush" not in str(caught.value)


def test_a_database_that_is_not_there_is_said(read: Any, postgres: PostgresServer) -> None:
    with pytest.raises(errors.NotFound, match='database "nope" does not exist'):
        read(profile(postgres.url.replace("/postgres?", "/nope?")), Sql("warehouse", table="t"))


def test_a_server_that_does_not_answer_times_out(read: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://u@127.0.0.1:{silent.getsockname()[1]}/x"
        with pytest.raises(errors.TransientFetchError):
            read(profile(url, limits=Limits(connect_s=2)), Sql("warehouse", table="t"))


def test_it_can_be_interrupted_and_leaves_no_footer(scratch: Callable[..., Scratch], context: Context) -> None:
    def stop(_: int) -> None:
        raise Interrupted("cancelled")

    (spec,) = SqlFetcher().expand(Sql("warehouse", table="samples"), context)
    file = scratch(on_bytes=stop)
    with pytest.raises(Interrupted):
        SqlFetcher().fetch(spec, file, None, context)
    gc.collect()  # pyarrow's writer would write its footer now
    assert file.size == 4  # Parquet's magic, the first write


def test_other_sources_are_refused(context: Context) -> None:
    with pytest.raises(errors.Unsupported):
        list(SqlFetcher().expand(Source("sql://warehouse/t"), context))
