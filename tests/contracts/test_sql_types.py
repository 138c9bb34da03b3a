"""Every PostgreSQL type that docs/sources.md names, in a Parquet file that pyarrow, DuckDB and pandas read back as it
was."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from ingest import errors
from tests.contracts.sqls import fetched, plan, profile, read
from tests.servers.postgres import PostgresServer, postgres_server
from workers.fetchers.base import Context

LONG = "0123456789" * 200_000
NAN, INF = float("nan"), float("inf")

#: Type → its Arrow type in the file, and (SQL value, what is read back) pairs. NULL is added to each.
CASES: dict[str, tuple[str, list[tuple[str, Any]]]] = {
    "smallint": ("int16", [("-32768", -32768), ("32767", 32767)]),
    "integer": ("int32", [("-2147483648", -(2**31)), ("2147483647", 2**31 - 1)]),
    "bigint": ("int64", [("-9223372036854775808", -(2**63)), ("9223372036854775807", 2**63 - 1)]),
    "oid": ("int64", [("0", 0), ("4294967295", 2**32 - 1)]),
    "boolean": ("bool", [("true", True), ("false", False)]),
    "real": ("float", [("1.5", 1.5), ("'NaN'", NAN), ("'Infinity'", INF), ("'-Infinity'", -INF), ("'-0'", -0.0)]),
    "double precision": (
        "double",
        [("0.1", 0.1), ("5e-324", 5e-324), ("1.7976931348623157e308", 1.7976931348623157e308), ("'NaN'", NAN),
         ("'Infinity'", INF), ("'-Infinity'", -INF), ("'-0'", -0.0)],
    ),
    "numeric(10,2)": ("decimal128(10, 2)", [("99999999.99", Decimal("99999999.99")), ("-0.01", Decimal("-0.01"))]),
    "numeric(38,10)": ("decimal128(38, 10)", [("'" + "9" * 28 + ".0000000001'", Decimal("9" * 28 + ".0000000001"))]),
    "numeric(3,-2)": ("decimal128(5, 0)", [("12345", Decimal(12300))]),
    "numeric(2,5)": ("decimal128(5, 5)", [("0.00012", Decimal("0.00012"))]),
    "numeric(39,1)": ("string", [("'" + "9" * 38 + ".9'", "9" * 38 + ".9")]),
    "numeric(100,0)": ("string", [("'1" + "0" * 99 + "'", "1" + "0" * 99)]),
    "numeric": (
        "string",
        [("1.100", "1.100"), ("'NaN'", "NaN"), ("'-Infinity'", "-Infinity"), ("'1e-30'", f"0.{'0' * 29}1")],
    ),
    "money": ("string", [("'-1234.50'", "-$1,234.50")]),
    "text": (
        "string",
        [("''", ""), ("'é\U0001f600'", "é\U0001f600"), ("E'a\\tb\\n'", "a\tb\n"),
         (f"repeat('0123456789', {len(LONG) // 10})", LONG)],
    ),
    "varchar(5)": ("string", [("'abc'", "abc"), ("''", "")]),
    "char(5)": ("string", [("'ab'", "ab   ")]),
    '"char"': ("string", [("'x'", "x")]),
    "name": ("string", [("'x'", "x")]),
    "bytea": ("binary", [("'\\x00ff'", b"\x00\xff"), ("''", b"")]),
    "date": (
        "date32[day]",
        [("'2020-02-29'", date(2020, 2, 29)), ("'0001-01-01'", date(1, 1, 1)), ("'9999-12-31'", date(9999, 12, 31))],
    ),
    "time": ("time64[us]", [("'00:00'", time(0)), ("'23:59:59.999999'", time(23, 59, 59, 999999))]),
    "timestamp": (
        "timestamp[us]",
        [("'2020-01-02 03:04:05.123456'", datetime(2020, 1, 2, 3, 4, 5, 123456)),
         ("'1677-01-01'", datetime(1677, 1, 1)),
         ("'9999-12-31 23:59:59.999999'", datetime(9999, 12, 31, 23, 59, 59, 999999))],
    ),
    "timestamptz": (
        "timestamp[us, tz=UTC]",
        [("'2020-01-02 03:00:00+05:30'", datetime(2020, 1, 1, 21, 30, tzinfo=UTC)),
         ("'1677-01-01 00:00:00.000001Z'", datetime(1677, 1, 1, 0, 0, 0, 1, tzinfo=UTC))],
    ),
    "timetz": ("string", [("'10:00:00.5+02'", "10:00:00.5+02")]),
    "interval": (
        "string",
        [("'1 year 2 months -3 days 04:05:06.789012'", "1 year 2 mons -3 days +04:05:06.789012"),
         ("'178000000 years'", "178000000 years"), ("'infinity'", "infinity")],
    ),
    "uuid": ("string", [("'123E4567-e89b-12d3-a456-426655440000'", "123e4567-e89b-12d3-a456-426655440000")]),
    "json": ("string", [("'{\"a\": 1.10}'", '{"a": 1.10}')]),
    "jsonb": ("string", [("'{\"b\":1.10, \"a\": \"é\"}'", '{"a": "é", "b": 1.10}')]),
    "xml": ("string", []),  # what the tests' server is built without; only NULL
    "mood": ("string", [("'glad'", "glad")]),
    "positive": ("int32", [("1", 1)]),
    "pair": ("string", [("ROW(1, 'x,y')", '(1,"x,y")')]),
    "int4range": ("string", [("'[1,5)'", "[1,5)"), ("'empty'", "empty")]),
    "nummultirange": ("string", [("'{[1.5,2],(3,)}'", "{[1.5,2],(3,)}")]),
    "inet": ("string", [("'10.0.0.1'", "10.0.0.1/32"), ("'::1/64'", "::1/64")]),
    "cidr": ("string", [("'10.0.0.0/8'", "10.0.0.0/8")]),
    "macaddr": ("string", [("'08:00:2b:01:02:03'", "08:00:2b:01:02:03")]),
    "macaddr8": ("string", [("'08:00:2b:01:02:03:04:05'", "08:00:2b:01:02:03:04:05")]),
    "bit(3)": ("string", [("B'101'", "101")]),
    "varbit": ("string", [("B''", ""), ("B'0110'", "0110")]),
    "tsvector": ("string", [("'b a'", "'a' 'b'")]),
    "tsquery": ("string", [("'a & b'", "'a' & 'b'")]),
    "point": ("string", [("'(1.5,-2)'", "(1.5,-2)")]),
    "polygon": ("string", [("'((0,0),(1,1))'", "((0,0),(1,1))")]),
    "pg_lsn": ("string", [("'16/B374D848'", "16/B374D848")]),
    "xid8": ("string", [("'5'", "5")]),
    "regclass": ("string", [("'pg_class'", "pg_class")]),
    "vector(3)": ("list<element: float>", [("'[1,2.5,-3]'", [1.0, 2.5, -3.0])]),
    "integer[]": ("list<element: int32>", [("'{1,NULL,3}'", [1, None, 3]), ("'{}'", []), ("'[0:1]={7,8}'", [7, 8])]),
    "text[]": ("list<element: string>", [("'{a,\"b,c\",NULL,\"NULL\",\"\"}'", ["a", "b,c", None, "NULL", ""])]),
    "boolean[]": ("list<element: bool>", [("'{t,f}'", [True, False])]),
    "real[]": ("list<element: float>", [("'{1.5,NULL}'", [1.5, None])]),
    "timestamptz[]": (
        "list<element: timestamp[us, tz=UTC]>",
        [("'{2020-01-01 00:00+00}'", [datetime(2020, 1, 1, tzinfo=UTC)])],
    ),
    "bytea[]": ("list<element: binary>", [("'{\"\\\\x00\"}'", [b"\x00"])]),
    "numeric[]": ("list<element: string>", [("'{1.10,NaN,NULL}'", ["1.10", "NaN", None])]),
    "uuid[]": (
        "list<element: string>",
        [("'{123e4567-e89b-12d3-a456-426655440000}'", ["123e4567-e89b-12d3-a456-426655440000"])],
    ),
    "jsonb[]": ("list<element: string>", [("ARRAY['{\"a\": 1}'::jsonb]", ['{"a": 1}'])]),
    "oid[]": ("list<element: int64>", [("'{4294967295}'", [4294967295])]),
    "money[]": ("list<element: string>", [("'{1.5}'", ["$1.50"])]),
    "interval[]": ("list<element: string>", [("'{1 day}'", ["1 day"])]),
    "inet[]": ("list<element: string>", [("'{::1}'", ["::1/128"])]),
    "mood[]": ("list<element: string>", [("'{glad,NULL}'", ["glad", None])]),
    "positive[]": ("list<element: int32>", [("'{1,2}'", [1, 2])]),
    "tiny[]": ("list<element: int32>", [("'{1,2}'", [1, 2]), ("'{}'", [])]),
    "fee[]": ("list<element: string>", [("'{1.5}'", ["$1.50"])]),
    "pair[]": ("list<element: string>", [("ARRAY[ROW(1,'x')::pair]", ["(1,x)"])]),
    "integer[][]": (
        "list<element: list<element: int32>>",
        [("'{{1,2,3},{4,NULL,6}}'", [[1, 2, 3], [4, None, 6]]), ("'{}'", []), ("'{{7}}'", [[7]])],
    ),
    "text[][][]": (
        "list<element: list<element: list<element: string>>>",
        [("'{{{a},{b}},{{c},{NULL}}}'", [[["a"], ["b"]], [["c"], [None]]])],
    ),
}  # fmt: skip
DOCS = Path(__file__).parents[2] / "docs" / "sources.md"


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        server.execute(
            "CREATE TYPE mood AS ENUM ('sad', 'glad')",
            "CREATE DOMAIN positive AS int CHECK (VALUE > 0)",
            "CREATE DOMAIN tiny AS positive CHECK (VALUE < 9)",
            "CREATE DOMAIN fee AS money",
            "CREATE TYPE pair AS (a int, b text)",
            "CREATE EXTENSION vector",
            f"CREATE TABLE every (id int, {', '.join(f'c{n} {kind}' for n, kind in enumerate(CASES))})",
        )
        most = max(len(values) for _, values in CASES.values())
        for row in range(most + 1):
            values = [cell[row][0] if row < len(cell) else "NULL" for _, cell in CASES.values()]
            server.execute(f"INSERT INTO every VALUES ({row}, {', '.join(values)})")
        yield server


@pytest.fixture
def context(postgres: PostgresServer) -> Context:
    return profile(postgres.url)


@pytest.fixture(scope="module")
def parquet(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The table of every type, as one Parquet file, its rows by id."""
    folder = tmp_path_factory.mktemp("every")
    context = profile(postgres.url)
    (spec,) = plan(context, table="every", order_by=("id",))
    with fetched(context, spec, folder) as (file,):
        return file.path.rename(folder / "every.parquet")


def expected(kind: str, rows: int) -> list[Any]:
    values = [value for _, value in CASES[kind][1]]
    return values + [None] * (rows - len(values))


def same(found: list[Any], wanted: list[Any]) -> bool:
    return len(found) == len(wanted) and all(map(equal, found, wanted))


def equal(found: Any, wanted: Any) -> bool:
    if isinstance(wanted, list):
        return found is not None and same(list(found), wanted)
    if isinstance(wanted, float):
        nan = math.isnan(wanted)
        return math.isnan(found) if nan else found == wanted and math.copysign(1, found) == math.copysign(1, wanted)
    return type(found) is type(wanted) and bool(found == wanted)


def by_pyarrow(path: Path, column: str) -> list[Any]:
    return list(pq.read_table(path, columns=[column])[column].to_pylist())


def by_duckdb(path: Path, column: str) -> list[Any]:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        rows = connection.execute(
            f"SELECT {column} FROM read_parquet('{path}', file_row_number = true) ORDER BY file_row_number"
        ).fetchall()
    return [row[0] for row in rows]


def by_pandas(path: Path, column: str) -> list[Any]:
    frame = pandas.read_parquet(path, columns=[column], dtype_backend="pyarrow")
    return [_plain(value) for value in frame[column]]


def _plain(value: Any) -> Any:
    if isinstance(value, pandas.Timestamp):
        return value.to_pydatetime()
    return None if value is pandas.NA or value is pandas.NaT else value


@pytest.mark.parametrize("reader", [by_pyarrow, by_duckdb, by_pandas])
@pytest.mark.parametrize("kind", CASES)
def test_it_reads_back_equal(kind: str, reader: Any, parquet: Path) -> None:
    schema = pq.read_schema(parquet)
    column = f"c{list(CASES).index(kind)}"
    assert str(schema.field(column).type) == CASES[kind][0]
    rows = pq.read_metadata(parquet).num_rows
    found = reader(parquet, column)
    assert same(found, expected(kind, rows)), found


def test_every_type_that_the_docs_name_is_here() -> None:
    """By its name without what is in brackets."""
    section = DOCS.read_text().partition("### Types of PostgreSQL")[2].partition("\n#")[0]
    rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    named = {re.sub(r"\(.*?\)", "", name) for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert len(named) > 30
    assert named <= {*CASES, *(re.sub(r"\(.*?\)", "", kind) for kind in CASES)}


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("timestamp 'infinity'", "infinity"),
        ("timestamp '-infinity'", "infinity"),
        ("timestamptz 'infinity'", "infinity"),
        ("timestamp '294276-12-31 23:59:59.999999'", "year 294246"),
        ("date 'infinity'", "infinity"),
        ("date '-infinity'", "infinity"),
        ("ARRAY[date '2020-01-01', date 'infinity']", "infinity"),
        ("time '24:00'", "time64"),
    ],
)
@pytest.mark.parametrize("rows", [1, 3000])
def test_what_arrow_has_not_is_an_error_that_names_the_column(
    value: str, says: str, rows: int, context: Context, tmp_path: Path
) -> None:
    query = f'SELECT CASE WHEN i = {rows} THEN {value} END AS "the value" FROM generate_series(1, {rows}) AS i'
    with pytest.raises(errors.BadResponse, match=f"column 'the value' holds.*{says}.*cast it to text"):
        read(context, tmp_path, query=query)


@pytest.mark.parametrize(
    "value", ["timestamp '4713-01-01 BC'", "timestamp '294246-12-31'", "timestamptz '10000-01-01Z'"]
)
def test_times_that_python_has_not_are_kept(value: str, context: Context, tmp_path: Path) -> None:
    (table,) = read(
        context, tmp_path, query=f"SELECT {value} AS v, (extract(epoch FROM {value}) * 1000000)::bigint AS us"
    )
    assert table["v"].cast(pa.int64()) == table["us"]


def test_dates_that_python_has_not_are_kept(context: Context, tmp_path: Path) -> None:
    days = "date '4713-01-01 BC' - date '1970-01-01', date '5874897-12-31' - date '1970-01-01'"
    query = f"SELECT unnest(ARRAY[date '4713-01-01 BC', date '5874897-12-31']) AS v, unnest(ARRAY[{days}]) AS days"
    (table,) = read(context, tmp_path, query=query)
    assert table["v"].cast(pa.int32()) == table["days"]


@pytest.mark.parametrize(
    ("first", "later"), [("'{1,2}'", "'{{1},{2}}'"), ("'{{1},{2}}'", "'{1}'"), ("'{{1}}'", "'{{{1}}}'")]
)
def test_arrays_of_other_dimensions_than_the_first_are_an_error(
    first: str, later: str, context: Context, tmp_path: Path
) -> None:
    query = f"SELECT CASE WHEN i < 2000 THEN {first} ELSE {later} END::int[] AS m FROM generate_series(1, 2000) AS i"
    with pytest.raises(errors.BadResponse, match=r"column 'm' holds an array.*to_json\(m\)"):
        read(context, tmp_path, query=query)


def test_partitions_of_a_nested_array_have_one_schema(context: Context, tmp_path: Path) -> None:
    query = "SELECT i, CASE WHEN i > 500 THEN ARRAY[[i]] END AS m FROM generate_series(1, 1000) AS i ORDER BY i DESC"
    tables = read(context, tmp_path, query=query, partition_on="i", partitions=4)
    assert {str(table.schema.field("m").type) for table in tables} == {"list<element: list<element: int32>>"}
    assert [v for t in tables for v in t.sort_by("i")["m"].to_pylist()] == [None] * 500 + [
        [[i]] for i in range(501, 1001)
    ]


def test_text_that_is_not_unicode_is_an_error(postgres: PostgresServer, tmp_path: Path) -> None:
    postgres.execute("CREATE DATABASE bytes ENCODING 'SQL_ASCII' TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
    url = postgres.url.replace("/postgres?", "/bytes?")
    with pytest.raises(errors.BadResponse, match=r"column 'v' holds what string cannot.*UTF"):
        read(profile(url), tmp_path, query="SELECT convert_from('\\xff', 'SQL_ASCII') AS v")


def test_a_type_that_is_changed_is_read_as_it_is_now(
    postgres: PostgresServer, context: Context, tmp_path: Path
) -> None:
    """By one process, which has read what had that name before."""
    for change, value, kind, found in (
        ("CREATE TYPE now AS ENUM ('a')", "'a'::now", "string", "a"),
        ("ALTER TYPE now RENAME VALUE 'a' TO 'b'", "'b'::now", "string", "b"),
        ("DROP TYPE now; CREATE DOMAIN now AS int", "ARRAY[1]::now[]", "list<element: int32>", [1]),
        ("DROP DOMAIN now; CREATE DOMAIN now AS float8", "ARRAY[1]::now[]", "list<element: double>", [1.0]),
        ("DROP DOMAIN now; CREATE TYPE now AS (a int)", "ROW(1)::now", "string", "(1)"),
        ("ALTER TYPE now ADD ATTRIBUTE b text", "ARRAY[ROW(1, 'x')::now]", "list<element: string>", ["(1,x)"]),
        ("ALTER TYPE now RENAME ATTRIBUTE b TO c", "to_json(ROW(1, 'x')::now)", "string", '{"a":1,"c":"x"}'),
        ("DROP TYPE now; CREATE TABLE now AS SELECT 2 AS a", "(SELECT now FROM now)", "string", "(2)"),
        ("ALTER TABLE now ADD b int DEFAULT 3", "ARRAY(SELECT now FROM now)", "list<element: string>", ["(2,3)"]),
    ):
        postgres.execute(*change.split("; "))
        (table,) = read(context, tmp_path, query=f"SELECT {value} AS v")
        assert (str(table.schema.field("v").type), table["v"].to_pylist()) == (kind, [found])


def test_a_type_of_the_name_of_another(postgres: PostgresServer, context: Context, tmp_path: Path) -> None:
    """In another schema, also of one that is PostgreSQL's own."""
    postgres.execute(
        "CREATE SCHEMA other",
        "CREATE DOMAIN other.positive AS text",
        "CREATE TYPE other.inet AS (a int)",
        "CREATE FUNCTION reals(other.inet) RETURNS real[] LANGUAGE sql IMMUTABLE AS 'SELECT ARRAY[$1.a]::real[]'",
        "CREATE CAST (other.inet AS real[]) WITH FUNCTION reals",
    )
    query = "SELECT '::1'::inet AS a, ROW(1)::other.inet AS b, '{1}'::positive[] AS c, '{1}'::other.positive[] AS d"
    (table,) = read(context, tmp_path, query=query)
    assert table.to_pylist() == [{"a": "::1/128", "b": [1.0], "c": [1], "d": ["1"]}]


def test_the_catalogue_is_not_read_as_a_whole(postgres: PostgresServer, tmp_path: Path) -> None:
    """By one who may not read it: it can be large, and every partition connects anew."""
    postgres.execute("CREATE DATABASE closed", "CREATE ROLE reader LOGIN")
    closed = dataclasses.replace(postgres, url=postgres.url.replace("/postgres?", "/closed?"))
    closed.execute(
        "CREATE TABLE t AS SELECT i AS id, ARRAY[i] AS v FROM generate_series(1, 9) AS i",
        "GRANT SELECT ON t TO reader",
        "REVOKE SELECT ON pg_attribute, pg_type FROM PUBLIC",
    )
    tables = read(profile(closed.url, user="reader"), tmp_path, table="t", partition_on="id", partitions=3)
    assert [value for table in tables for value in table["v"].to_pylist()] == [[i] for i in range(1, 10)]
