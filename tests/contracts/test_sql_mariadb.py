"""SqlFetcher against a real MariaDB: types, keys under a collation of its own, order, and what goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import duckdb
import pandas
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import errors
from ingest.sections import Limits
from ingest.store.scratch import Scratch
from tests.contracts.sqls import fetch, fetched, plan, profile, read
from tests.servers.mariadb import MariaServer, mariadb_server
from workers.fetchers.base import Context
from workers.fetchers.sql import SqlFetcher, parts
from workers.fetchers.sql.databases import mysql as mysql_module
from workers.fetchers.sql.databases.errors import Refused

#: One more database on the way that PostgreSQL and SQLite go in `make test`.
pytestmark = pytest.mark.long

ROWS = 5000
#: Declared type → Arrow type in the file, and (SQL value, what is read back) pairs. NULL is added to each.
CASES: dict[str, tuple[str, list[tuple[str, Any]]]] = {
    "TINYINT": ("int8", [("-128", -128), ("127", 127)]),
    "TINYINT UNSIGNED": ("uint8", [("255", 255)]),
    "BOOLEAN": ("int8", [("true", 1), ("false", 0)]),
    "SMALLINT": ("int16", [("-32768", -32768)]),
    "MEDIUMINT UNSIGNED": ("uint32", [("16777215", 16777215)]),
    "INT": ("int32", [("-2147483648", -(2**31))]),
    "INT ZEROFILL": ("uint32", [("7", 7)]),
    "BIGINT": ("int64", [("-9223372036854775808", -(2**63))]),
    "BIGINT UNSIGNED": ("uint64", [("18446744073709551615", 2**64 - 1)]),
    "DECIMAL(10,2)": ("decimal128(10, 2)", [("-99999999.99", Decimal("-99999999.99"))]),
    "DECIMAL(38,0) UNSIGNED": ("decimal128(38, 0)", [("9" * 38, Decimal("9" * 38))]),
    "DECIMAL(65,30)": ("string", [("9" * 35 + "." + "1" * 30, "9" * 35 + "." + "1" * 30)]),
    "FLOAT": ("float", [("16777215", 16777215.0), ("0.1", 0.10000000149011612)]),
    "DOUBLE": ("double", [("0.1", 0.1), ("1.7976931348623157e308", 1.7976931348623157e308), ("1/3e0", 1 / 3)]),
    "DATE": ("date32[day]", [("'1000-01-01'", date(1000, 1, 1)), ("'9999-12-31'", date(9999, 12, 31))]),
    "DATETIME": ("timestamp[us]", [("'2020-01-02 03:04:05'", datetime(2020, 1, 2, 3, 4, 5))]),
    "DATETIME(6)": ("timestamp[us]", [("'9999-12-31 23:59:59.999999'", datetime(9999, 12, 31, 23, 59, 59, 999999))]),
    "TIMESTAMP(6) NULL": (
        "timestamp[us, tz=UTC]",
        [("'2020-01-02 03:04:05.123456'", datetime(2020, 1, 2, 1, 4, 5, 123456, tzinfo=UTC))],
    ),
    "TIME": ("string", [("'838:59:59'", "838:59:59"), ("'-12:00:00'", "-12:00:00")]),
    "TIME(6)": ("string", [("'00:00:00.000001'", "00:00:00.000001")]),
    "YEAR": ("int16", [("1999", 1999), ("0", 0)]),
    "BIT(1)": ("uint64", [("b'1'", 1)]),
    "BIT(64)": ("uint64", [("18446744073709551615", 2**64 - 1)]),
    "CHAR(5)": ("string", [("'ab'", "ab"), ("''", "")]),
    "VARCHAR(9)": ("string", [("'é\U0001f600'", "é\U0001f600"), ("'a\\0b'", "a\0b"), ("'it''s \\\\'", "it's \\")]),
    "VARCHAR(9) CHARACTER SET latin1": ("string", [("'é'", "é")]),
    "LONGTEXT": ("string", [("repeat('0123456789', 300000)", "0123456789" * 300_000)]),
    "BINARY(4)": ("binary", [("'ab'", b"ab\0\0")]),
    "VARBINARY(9)": ("binary", [("x'00ff'", b"\x00\xff"), ("''", b"")]),
    "LONGBLOB": ("binary", [("x'ff00'", b"\xff\x00")]),
    "ENUM('z','a')": ("string", [("'a'", "a")]),
    "SET('x','y')": ("string", [("'x,y'", "x,y"), ("''", "")]),
    "JSON": ("string", [("'{\"a\": 1.10}'", '{"a": 1.10}')]),
    "UUID": ("string", [("'123E4567-e89b-12d3-a456-426655440000'", "123e4567-e89b-12d3-a456-426655440000")]),
    "INET6": ("string", [("'::1'", "::1")]),
}  # fmt: skip
WORDS = "concat(elt(1 + n % 6, 'a', 'A', 'É', 'e', '\\\\', ''''), floor(pow(r, 3) * 999))"
#: Column → an SQL expression of n and the random r in [0, 1).
KEYS = {
    "num": ("BIGINT", "1e9 * pow(r, 6)"),
    "uns": ("BIGINT UNSIGNED", "18446744073709551615 - floor(1e9 * r)"),
    "dcm": ("DECIMAL(30,6)", "1e20 * pow(r, 6)"),
    "wid": ("DECIMAL(60,20)", "1e30 * pow(r, 6)"),
    "flo": ("FLOAT", "16000000 + n"),
    "dou": ("DOUBLE", "pow(r, 6)"),
    "day": ("DATE", "'2020-01-01' - INTERVAL floor(pow(r, 3) * 99999) DAY"),
    "tim": ("DATETIME(6)", "'2020-01-01' - INTERVAL pow(r, 6) * 1e9 SECOND"),
    "stp": ("TIMESTAMP(6) NULL", "'2020-01-01' - INTERVAL pow(r, 6) * 1e9 SECOND"),
    "clk": ("TIME(6)", "sec_to_time(pow(r, 3) * 3e6 - 1e6)"),
    "txt": ("VARCHAR(20) COLLATE utf8mb4_general_ci", WORDS),
    "low": ("VARCHAR(20) COLLATE utf8mb4_bin", WORDS),
    "byt": ("VARBINARY(20)", "unhex(md5(n))"),
    "uid": ("UUID", "regexp_replace(md5(n), '^(.{8})(.{4}).(.{3}).(.{3})', '\\\\1-\\\\2-4\\\\3-8\\\\4-')"),
    "nul": ("INT", "if(n % 3, floor(1e6 * r), NULL)"),
}  # fmt: skip


@pytest.fixture(scope="module")
def maria() -> Iterator[MariaServer]:
    with mariadb_server() as server:
        server.execute(f"CREATE TABLE every (id INT, {', '.join(f'c{n} {kind}' for n, kind in enumerate(CASES))})")
        for row in range(1 + max(len(values) for _, values in CASES.values())):
            values = [cell[row][0] if row < len(cell) else "NULL" for _, cell in CASES.values()]
            server.execute("SET time_zone = '+02:00'", f"INSERT INTO every VALUES ({row}, {', '.join(values)})")
        columns = ", ".join(f"{name} {kind}" for name, (kind, _) in KEYS.items())
        server.execute(
            f"CREATE TABLE samples (id INT PRIMARY KEY, {columns})",
            f"INSERT INTO samples SELECT n, {', '.join(sql for _, sql in KEYS.values())} "
            f"FROM (SELECT seq AS n, abs(sin(seq)) AS r FROM seq_1_to_{ROWS}) AS s",
            "CREATE TABLE two (a INT, b INT, PRIMARY KEY (a, b))",
            "CREATE TABLE chosen (e ENUM('z', 'b', 'a') PRIMARY KEY)",
            "CREATE USER reader@localhost IDENTIFIED BY 'right-one'",
            "GRANT SELECT ON ware.samples TO reader@localhost",
            "CREATE USER poor@localhost",
            "CREATE FUNCTION wipe() RETURNS INT BEGIN DELETE FROM samples; RETURN 1; END",
            "CREATE FUNCTION fails(code INT) RETURNS INT BEGIN "
            "SIGNAL SQLSTATE 'HY000' SET MYSQL_ERRNO = code, MESSAGE_TEXT = 'as it says'; RETURN 1; END",
        )
        yield server


@pytest.fixture
def context(maria: MariaServer) -> Context:
    return profile(maria.url)


@pytest.fixture(scope="module")
def parquet(maria: MariaServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("every")
    context = profile(maria.url)
    (spec,) = plan(context, table="every", order_by=("id",))
    with fetched(context, spec, folder) as (file,):
        return file.path.rename(folder / "every.parquet")


def by_pyarrow(path: Path, column: str) -> list[Any]:
    return list(pq.read_table(path, columns=[column])[column].to_pylist())


def by_duckdb(path: Path, column: str) -> list[Any]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        return [row[0] for row in connection.execute(f"SELECT {column} FROM '{path}' ORDER BY id").fetchall()]


def by_pandas(path: Path, column: str) -> list[Any]:
    frame = pandas.read_parquet(path, columns=[column], dtype_backend="pyarrow")
    plain = [value.to_pydatetime() if isinstance(value, pandas.Timestamp) else value for value in frame[column]]
    return [None if value is pandas.NA or value is pandas.NaT else value for value in plain]


@pytest.mark.parametrize("reader", [by_pyarrow, by_duckdb, by_pandas])
@pytest.mark.parametrize("kind", CASES)
def test_it_reads_back_equal(kind: str, reader: Any, parquet: Path) -> None:
    column = f"c{list(CASES).index(kind)}"
    assert str(pq.read_schema(parquet).field(column).type) == CASES[kind][0]
    wanted = [value for _, value in CASES[kind][1]]
    found = reader(parquet, column)
    assert found[: len(wanted)] == wanted and set(found[len(wanted) :]) == {None}
    assert [type(value) for value in found[: len(wanted)]] == [type(value) for value in wanted]


def test_a_query_s_types_are_told_by_the_server(context: Context, tmp_path: Path) -> None:
    query = (
        "SELECT 1 AS a, 1.50 AS b, 1e0 AS c, 'x' AS d, x'00' AS e, count(*) AS f, sum(dcm) * 0 AS g, now(6) AS h,"
        " avg(num) * 0 AS i, max(uns) AS j, '100% :x %s' AS k FROM samples"
    )
    (table,) = read(context, tmp_path, query=query)
    kinds = [str(field.type).partition("(")[0] for field in table.schema]
    assert kinds == [
        "int32", "decimal128", "double", "string", "binary", "int64", "string", "timestamp[us]", "decimal128", "uint64",
        "string",
    ]  # fmt: skip
    assert table["b"].to_pylist() == [Decimal("1.50")] and table["k"].to_pylist() == ["100% :x %s"]
    assert set(str(table["g"][0])) <= {"0", "."}


@pytest.mark.parametrize(
    ("kind", "value"), [("DATE", "0000-00-00"), ("DATE", "2020-00-15"), ("DATETIME(6)", "0000-00-00 00:00:00")]
)
def test_a_date_of_zeros_is_an_error_that_names_the_column(
    kind: str, value: str, maria: MariaServer, tmp_path: Path
) -> None:
    maria.execute("DROP TABLE IF EXISTS zeros", f"CREATE TABLE zeros (id INT, at {kind})", "SET sql_mode = ''",
                  f"INSERT INTO zeros VALUES (1, '2020-01-01'), (2, '{value}')")  # fmt: skip
    with pytest.raises(errors.BadResponse, match=r"column 'at' holds what.*cast it to text"):
        read(profile(maria.url), tmp_path, table="zeros")
    (table,) = read(profile(maria.url), tmp_path, query="SELECT CAST(at AS CHAR) AS at FROM zeros WHERE id = 2")
    assert table["at"].to_pylist()[0].startswith(value)


def test_a_geometry_is_an_error_that_names_the_column(maria: MariaServer, tmp_path: Path) -> None:
    maria.execute("CREATE OR REPLACE TABLE places (id INT, spot POINT)", "INSERT INTO places VALUES (1, POINT(1, 2))")
    with pytest.raises(errors.BadResponse, match=r"column 'spot' is a geometry: ask for ST_AsWKB"):
        read(profile(maria.url), tmp_path, table="places")
    (table,) = read(profile(maria.url), tmp_path, query="SELECT ST_AsText(spot) AS spot FROM places")
    assert table["spot"].to_pylist() == ["POINT(1 2)"]


# -- partitions ----------------------------------------------------------------------------------------------------


def ids(tables: list[Any]) -> list[list[int]]:
    return [table["id"].to_pylist() for table in tables]


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("key", KEYS)
def test_skewed_keys_are_cut_well(
    key: str, sampled: bool, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if sampled:
        monkeypatch.setattr(mysql_module, "_SAMPLE_ROWS", 2000)
    asked = {"table": "samples", "partition_on": key, "partitions": 5, "columns": ("id",)}
    specs = plan(context, **asked)
    assert [spec.request for spec in specs] == [spec.request for spec in plan(context, **asked)]
    found = ids([fetch(context, spec, tmp_path) for spec in specs])
    assert sorted(i for some in found for i in some) == list(range(1, ROWS + 1)) and len(found) == 5
    nulls = ROWS // 3 if key == "nul" else 0
    assert max(map(len, found[1:])) < 1.5 * ROWS / 5 and len(found[0]) < 1.5 * ROWS / 5 + nulls


@pytest.mark.parametrize("key", KEYS)
def test_partitions_ascend_in_the_database_s_own_order(key: str, context: Context, tmp_path: Path) -> None:
    query = f"SELECT rank() OVER (ORDER BY {key}) AS place, {key} FROM samples"
    tables = read(context, tmp_path, query=query, partition_on=key, partitions=5, columns=("place",))
    places = [table["place"].to_pylist() for table in tables]
    assert all(max(one) < min(other) for one, other in pairwise(places))


@pytest.mark.parametrize("name", ["n", "k"])
def test_a_key_may_have_any_name(name: str, context: Context, tmp_path: Path) -> None:
    query = f"SELECT id AS {name} FROM samples"
    tables = read(context, tmp_path, query=query, partition_on=name, partitions=4)
    assert sorted(n for table in tables for n in table[name].to_pylist()) == list(range(1, ROWS + 1))
    assert {table.num_rows for table in tables} == {ROWS // 4}


def test_a_table_is_cut_by_its_primary_key(context: Context, tmp_path: Path) -> None:
    tables = read(context, tmp_path, table="samples", partitions=4, columns=("id",), order_by=("id",))
    assert [i for some in ids(tables) for i in some] == list(range(1, ROWS + 1)) and len(tables) == 4
    for name in ("two", "chosen", "every"):
        assert len(plan(context, table=name, partitions=4)) == 1


def test_an_enumeration_is_no_key(context: Context) -> None:
    with pytest.raises(errors.BadResponse, match="column 'e' is sorted by one order"):
        plan(context, table="chosen", partition_on="e", partitions=2)


def test_rows_beyond_the_planned_range_are_not_lost(maria: MariaServer, tmp_path: Path) -> None:
    maria.execute("CREATE OR REPLACE TABLE growing (id INT)", "INSERT INTO growing SELECT seq FROM seq_1_to_10")
    context = profile(maria.url)
    specs = plan(context, table="growing", partition_on="id", partitions=3)
    maria.execute("INSERT INTO growing VALUES (-100), (100), (NULL)")
    found = [i for spec in specs for i in fetch(context, spec, tmp_path)["id"].to_pylist()]
    assert sorted(found, key=lambda v: (v is None, v)) == [-100, *range(1, 11), 100, None]


def test_rows_come_in_order(context: Context, tmp_path: Path) -> None:
    (wanted,) = read(context, tmp_path, query="SELECT id, txt FROM samples", order_by=("txt DESC", "id"))
    (place,) = read(context, tmp_path, query="SELECT id, row_number() OVER (ORDER BY txt DESC, id) AS n FROM samples")
    assert wanted["id"].to_pylist() == place.sort_by("n")["id"].to_pylist()


def test_any_text_is_a_bound(maria: MariaServer) -> None:
    database = mysql_module.MysqlDatabase(_url(maria), Limits())
    try:
        for mode in ("", "NO_BACKSLASH_ESCAPES,ANSI_QUOTES"):
            database._rows(f"SET SESSION sql_mode = '{mode}'")

            @given(st.text(st.characters(exclude_categories=["Cs"]), max_size=20))
            def check(text: str) -> None:
                assert database.ask(f"SELECT {database.literal(['str', text])}")[0] == text

            check()
    finally:
        database.close()


@pytest.mark.parametrize(
    "key", ["num", "uns", "dcm", "wid", "dou", "day", "tim", "stp", "clk", "txt", "low", "byt", "uid"]
)
def test_the_greatest_key_is_told_without_loss(key: str, maria: MariaServer) -> None:
    """As an increment begins after it: no row is above, and it is there itself."""
    database = mysql_module.MysqlDatabase(_url(maria), Limits())
    try:
        (greatest,) = database.ask(f"SELECT {database.greatest(key)} FROM samples")
        literal = database.literal(json.loads(json.dumps(parts.to_bound(greatest))))
        above, same = f"sum({key} > {literal})", f"sum({key} = {literal})"
        assert database.ask(f"SELECT {above} * 1, {same} > 0 FROM samples") == [0, 1]
        with pytest.raises(Refused, match="FLOAT"):
            database.ask(f"SELECT {database.greatest('flo')} FROM samples")
    finally:
        database.close()


def _url(maria: MariaServer) -> Any:
    from sqlalchemy.engine import make_url

    return make_url(maria.url)


# -- what goes wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "error", "says"),
    [
        ({"table": "missing"}, errors.NotFound, "ware.missing' doesn't exist"),
        ({"table": "samples", "columns": ("nope",)}, errors.NotFound, "Unknown column 'nope'"),
        ({"table": "samples", "partition_on": "nope", "partitions": 2}, errors.NotFound, "Unknown column 'nope'"),
        ({"table": "samples", "order_by": ("nope",)}, errors.NotFound, "Unknown column"),
        ({"query": "SELEC 1"}, errors.BadResponse, "SQL syntax"),
        ({"query": "SELECT 1 AS a, 2 AS a"}, errors.BadResponse, "Duplicate column name 'a'"),
        ({"query": "SELECT 18446744073709551615 + 1 AS v FROM samples"}, errors.BadResponse, "out of range"),
        ({"query": "SELECT 1; DELETE FROM samples"}, errors.BadResponse, "SQL syntax"),
        ({"query": "SELECT 1) q; DELETE FROM samples; --"}, errors.BadResponse, "SQL syntax"),
        ({"query": "DELETE FROM samples RETURNING id"}, errors.BadResponse, "SQL syntax"),
        ({"query": "WITH d AS (DELETE FROM samples RETURNING id) SELECT * FROM d"}, errors.BadResponse, "SQL syntax"),
        ({"query": "SELECT wipe() AS w"}, errors.BadResponse, "READ ONLY transaction"),
        ({"query": "SELECT fails(1213) AS v"}, errors.OriginUnavailable, "as it says"),  # deadlock
        ({"query": "SELECT fails(1205) AS v"}, errors.OriginUnavailable, "as it says"),  # lock wait
        ({"query": "SELECT fails(1021) AS v"}, errors.OriginUnavailable, "as it says"),  # disk full
        ({"query": "SELECT fails(1040) AS v"}, errors.OriginUnavailable, "as it says"),  # too many connections
        ({"query": "SELECT fails(1053) AS v"}, errors.OriginUnavailable, "as it says"),  # shutting down
        ({"query": "SELECT fails(1412) AS v"}, errors.OriginUnavailable, "as it says"),  # altered under the snapshot
    ],
)  # fmt: skip
def test_what_the_database_says_is_passed_on(
    asked: dict[str, Any], error: type[Exception], says: str, context: Context, maria: MariaServer, tmp_path: Path
) -> None:
    with pytest.raises(errors.FetchError, match=says) as caught:
        read(context, tmp_path, **asked)
    assert type(caught.value) is error
    assert maria.execute("SELECT count(*) FROM samples") == [(ROWS,)]


def test_passwords(maria: MariaServer, tmp_path: Path) -> None:
    asked = {"table": "samples", "columns": ("id",)}
    url = maria.url.replace("root@", "reader@")
    assert sum(map(len, ids(read(profile(url, password="right-one"), tmp_path, **asked)))) == ROWS
    with pytest.raises(errors.AccessDenied, match=r"Access denied.*\[connections.warehouse\]") as caught:
        read(profile(url, password="wrong-one"), tmp_path, **asked)
    assert "wrong-one" not in str(caught.value)
    with pytest.raises(errors.AccessDenied, match="denied"):
        read(profile(maria.url, user="poor"), tmp_path, **asked)
    with pytest.raises(errors.NotFound, match="Unknown database"):
        read(profile(maria.url.replace("/ware?", "/nope?")), tmp_path, **asked)


@pytest.mark.parametrize(
    "url", ["mysql://u:hush-hush@127.0.0.1:1/x", "mariadb+pymysql://u:hush-hush@nowhere.invalid/x"]
)
def test_nobody_there(url: str, tmp_path: Path) -> None:
    with pytest.raises(errors.ConnectionLost) as caught:
        read(profile(url), tmp_path, table="t")
    assert "hush-hush" not in str(caught.value)


def test_a_slow_statement_ends_in_time(maria: MariaServer, tmp_path: Path) -> None:
    limits = Limits(connect_s=0.1, stall_s=0.2, soft_s=1)
    query = "SELECT sum(a.seq + b.seq) AS v FROM seq_1_to_1000000 AS a, seq_1_to_1000000 AS b"
    with pytest.raises(errors.FetchTimeout):
        read(profile(maria.url, limits=limits), tmp_path, query=query)


def test_a_column_that_changes_after_the_planning_is_an_error(maria: MariaServer, tmp_path: Path) -> None:
    context = profile(maria.url)
    maria.execute("CREATE OR REPLACE TABLE altered AS SELECT seq AS id, seq AS v FROM seq_1_to_100")
    specs = plan(context, table="altered", partition_on="id", partitions=2)
    maria.execute("ALTER TABLE altered MODIFY v VARCHAR(20)")
    with pytest.raises(
        errors.BadResponse, match=r"column 'v' was .*int64 when the partitions were planned, and is string"
    ):
        fetch(context, specs[0], tmp_path)


def test_a_connection_that_is_cut_in_the_middle_of_the_rows(maria: MariaServer, tmp_path: Path) -> None:
    context = profile(maria.url)
    (spec,) = plan(
        context, query="SELECT seq AS id, repeat(md5(seq), 100) AS v FROM seq_1_to_200000", row_group_rows=100
    )
    cut = threading.Event()

    def kill(_: int) -> None:
        if not cut.is_set():
            cut.set()
            for number, info in maria.execute("SELECT id, info FROM information_schema.processlist"):
                if info and "seq_1_to_200000" in info and "processlist" not in info:
                    maria.execute(f"KILL CONNECTION {number}")

    scratch = Scratch(tmp_path, "key", spec.uri, keep=False, on_bytes=kill)
    with pytest.raises(errors.TransientFetchError) as caught:
        SqlFetcher().fetch(spec, scratch, None, context)
    assert isinstance(caught.value, errors.ConnectionLost | errors.OriginUnavailable) and cut.is_set()
    scratch.close(discard=True)


def test_an_empty_result_has_its_schema(context: Context, tmp_path: Path) -> None:
    (table,) = read(context, tmp_path, table="samples", where="false", partition_on="id", partitions=3)
    assert table.num_rows == 0 and str(table.schema.field("dcm").type) == "decimal128(30, 6)"
