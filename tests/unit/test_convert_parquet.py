"""``parquet``: every value is the one that was written, or the step says which column and row is to blame."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest import errors
from tests.unit.converting import Bench, tar_of
from workers.fetchers.base import Interrupted


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "scratch")


@pytest.fixture
def table(bench: Bench) -> Callable[..., pa.Table]:
    def made(text: str | bytes, name: str = "t.csv", **told: Any) -> pa.Table:
        data = text.encode() if isinstance(text, str) else text
        found = bench.made(name, data, {"step": "parquet", **told})
        assert list(found) == [name.rpartition(".")[0] + ".parquet"]
        return pq.read_table(io.BytesIO(*found.values()))

    return made


Table = Callable[..., pa.Table]


class TestCsv:
    @pytest.mark.parametrize(
        ("values", "kind", "becomes"),
        [
            (["1", "-2", "0"], pa.int64(), [1, -2, 0]),
            (["9223372036854775807", "-9223372036854775808"], pa.int64(), [2**63 - 1, -(2**63)]),
            (["9223372036854775808", "1"], pa.decimal128(19, 0), [Decimal(2**63), Decimal(1)]),
            (["9" * 38], pa.decimal128(38, 0), [Decimal("9" * 38)]),
            (["-" + "9" * 39], pa.decimal256(39, 0), [Decimal("-" + "9" * 39)]),
            (["9" * 76, "1"], pa.decimal256(76, 0), [Decimal("9" * 76), Decimal(1)]),
            (["9" * 77, "1"], pa.string(), ["9" * 77, "1"]),
            (["007", "1"], pa.string(), ["007", "1"]),
            (["+1", "1"], pa.string(), ["+1", "1"]),
            (["1", "x"], pa.string(), ["1", "x"]),
            (["0x10"], pa.string(), ["0x10"]),
            (["1.5", "2"], pa.float64(), [1.5, 2.0]),
            (["0.1", "1e300", "-2E-5"], pa.float64(), [0.1, 1e300, -2e-5]),
            (["1e999", "1"], pa.string(), ["1e999", "1"]),
            (["0.1000000000000000055", "1"], pa.decimal128(20, 19), [Decimal("0.1000000000000000055"), Decimal(1)]),
            (["9007199254740993", "0.5"], pa.decimal128(17, 1), [Decimal("9007199254740993"), Decimal("0.5")]),
            (["12345678901234567890.5", "1e3"], pa.string(), ["12345678901234567890.5", "1e3"]),
            (["3.141592653589793"], pa.float64(), [math.pi]),
            (["true", "False", "TRUE"], pa.bool_(), [True, False, True]),
            (["true", "1"], pa.string(), ["true", "1"]),
            (["NaN", "1"], pa.string(), ["NaN", "1"]),
            (["NA", "null"], pa.string(), ["NA", "null"]),
            (["2024-01-02", "2024-01-03"], pa.string(), ["2024-01-02", "2024-01-03"]),
            ([" 1", "2"], pa.string(), [" 1", "2"]),
            (["1", "", "3"], pa.int64(), [1, None, 3]),
            (["", ""], pa.string(), [None, None]),
            (['""', "", "a"], pa.string(), ["", None, "a"]),
            (['"1"', "2"], pa.int64(), [1, 2]),
            (['"a,b"', '"say ""hi"""', '"two\nlines"'], pa.string(), ["a,b", 'say "hi"', "two\nlines"]),
        ],
        ids=str,
    )  # fmt: skip
    def test_what_a_column_is(self, table: Table, values: list[str], kind: pa.DataType, becomes: list[Any]) -> None:
        found = table("n,v\n" + "".join(f"{n},{value}\n" for n, value in enumerate(values)))
        assert found.schema.field("v").type == kind
        assert found.column("v").to_pylist() == becomes and found.column("n").to_pylist() == list(range(len(values)))

    def test_a_column_is_what_all_of_it_is(self, table: Table) -> None:
        rows = 400_000
        text = "id,late\n" + "".join(f"{n},{n}\n" for n in range(rows)) + "x,007\n"
        found = table(text)
        assert found.schema.types == [pa.string(), pa.string()] and found.num_rows == rows + 1
        assert found.column("late")[-1].as_py() == "007" and found.column("id")[7].as_py() == "7"

    def test_forms_of_the_same_table(self, table: Table) -> None:
        wanted = {"a": [1, 2], "b": ["x", "y"]}
        for text, told in (
            ("a,b\n1,x\n2,y", {}),
            ("a,b\r\n1,x\r\n2,y\r\n", {}),
            ("\ufeffa,b\n1,x\n2,y\n", {}),
            ("a,b\n1,x\n\n2,y\n\n", {}),
            ("a;b\n1;x\n2;y\n", {"delimiter": ";"}),
            ("1,x\n2,y\n", {"header": False, "columns": ["a", "b"]}),
            ("b,c,a\nx,0,1\ny,0,2\n", {"columns": ["a", "b"]}),
        ):
            assert table(text, **told).to_pydict() == wanted
        assert table("a\tb\n1\tx\n2\ty\n", "t.tsv").to_pydict() == wanted
        assert table("a\tb\n1\tx\n2\ty\n", "t.csv", format="tsv").to_pydict() == wanted
        assert table("1,x\n", header=False).column_names == ["f0", "f1"]

    def test_one_column_and_its_empty_lines(self, table: Table) -> None:
        assert table("a\n1\n\n3\n").to_pydict() == {"a": [1, None, 3]}

    def test_no_rows(self, table: Table) -> None:
        for text in ("a,b", "a,b\n"):
            found = table(text)
            assert found.num_rows == 0 and found.schema.types == [pa.string(), pa.string()]

    def test_types_that_the_user_names(self, table: Table) -> None:
        text = "i,f,s,b,d,t,z,m\n007,nan,1,true,2024-02-29,2024-01-02T03:04:05.123456,2024-01-02T03:04:05+02:00,1.50\n"
        text += ",,,,,,,\n"
        types = {
            "i": "int64", "f": "float64", "s": "string", "b": "bool", "d": "date", "t": "timestamp",
            "z": "timestamptz", "m": "decimal(10,3)",
        }  # fmt: skip
        found = table(text, types=types)
        row, nothing = found.to_pylist()
        assert row["i"] == 7 and math.isnan(row["f"]) and row["s"] == "1" and row["b"] is True
        assert str(row["d"]) == "2024-02-29" and str(row["t"]) == "2024-01-02 03:04:05.123456"
        assert str(row["z"]) == "2024-01-02 01:04:05+00:00" and row["m"] == Decimal("1.500")
        assert set(nothing.values()) == {None}

    def test_nulls(self, table: Table) -> None:
        assert table("a,b\nNA,\n1,x\n", nulls=["NA"]).to_pydict() == {"a": [None, 1], "b": ["", "x"]}

    @pytest.mark.parametrize(
        ("kind", "bad"),
        [
            ("int64", "x"), ("int64", "0x10"), ("int64", "9223372036854775808"), ("float64", "1,5"), ("bool", "yes"),
            ("date", "2023-02-29"), ("timestamp", "2024-01-01T00:00:00.1234567"), ("timestamptz", "2024-01-01T00:00"),
            ("timestamp", "2024-01-01T00:00:00Z"), ("decimal(4,1)", "1.25"), ("decimal(4,1)", "12345"),
        ],
    )  # fmt: skip
    def test_a_value_of_another_type_is_named(self, bench: Bench, kind: str, bad: str) -> None:
        good = {"date": "2024-01-01", "bool": "true", "timestamp": "2024-01-01", "timestamptz": "2024-01-01T00:00Z"}
        lines = [good.get(kind, "1")] * 5000
        lines[4321] = f'"{bad}"'
        text = "n,v\n" + "".join(f"0,{value}\n" for value in lines)
        words = bench.fails(errors.BadResponse, "t.csv", text.encode(), {"step": "parquet", "types": {"v": kind}})
        assert "column 'v'" in words and "row 4322" in words and bad[:20] in words

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("", "there are no columns"),
            ("\n", "there are no columns"),
            ("a,a\n1,2\n", "two columns have the name 'a'"),
            ("a,b\n1,2\n3\n", "row 2 (line 3) has 1 columns, the first 2"),
            ("a,b\n1,2\n3,4,5\n", "row 2 (line 3) has 3 columns"),
            ('a,b\n1,2\n3,"4\n5,6\n', "row 2 (line 4) is not CSV: unexpected end"),
            ('a,b\n1,"2"x\n', "row 1 (line 2) is not CSV"),
            (b"a,b\n1,\xff\n", "not UTF-8"),
            ("a,b\n1,2\n".encode("utf-16"), "not UTF-8"),
            ("a\n" + "x" * (9 << 20) + "\n", "more than"),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_what_is_no_table(self, bench: Bench, text: str | bytes, words: str) -> None:
        data = text.encode() if isinstance(text, str) else text
        assert words in bench.fails(errors.BadResponse, "t.csv", data, "parquet")

    def test_columns_that_are_not_there(self, bench: Bench) -> None:
        for told in ({"columns": ["z"]}, {"types": {"z": "int64"}}):
            words = bench.fails(errors.BadResponse, "t.csv", b"a,b\n1,2\n", {"step": "parquet", **told})
            assert "no column 'z'; there are 'a', 'b'" in words
        told = {"step": "parquet", "header": False, "columns": ["a"]}
        assert "it has 2 columns" in bench.fails(errors.BadResponse, "t.csv", b"1,2\n", told)

    # What is written by one library and read by us is what was written.
    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.integers(1, 4).flatmap(
            lambda width: st.lists(
                st.lists(
                    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=6)
                    | st.integers().map(str) | st.floats().map(repr) | st.decimals(places=3, allow_nan=False).map(str),
                    min_size=width, max_size=width,
                ),
                min_size=1, max_size=8,
            )
        )
    )  # fmt: skip
    def test_any_text_comes_back(self, table: Table, rows: list[list[str]]) -> None:
        out = io.StringIO()
        writer = csv.writer(out, quoting=csv.QUOTE_ALL)
        writer.writerow([f"c{n}" for n in range(len(rows[0]))])
        writer.writerows(rows)
        found = table(out.getvalue())
        for n, column in enumerate(found.columns):
            for value, text in zip(column.to_pylist(), (row[n] for row in rows), strict=True):
                if isinstance(value, str):
                    assert value == text
                elif isinstance(value, bool):
                    assert str(value).lower() == text.lower()
                else:
                    assert Decimal(repr(value) if isinstance(value, float) else value) == Decimal(text)


class TestJsonLines:
    def lines(self, *records: Any) -> str:
        return "".join(json.dumps(record) + "\n" for record in records)

    def test_values(self, table: Table) -> None:
        records = [
            {"i": 1, "f": 1.5, "s": "ü", "b": True, "n": None, "l": [1, 2], "o": {"x": 1}, "big": 2**63, "mix": 1},
            {"i": 2, "f": 2, "s": None, "b": False, "l": [], "o": {"y": "z"}, "big": 1, "mix": 0.5, "new": "x"},
        ]
        found = table(self.lines(*records), "t.jsonl")
        assert found.schema.field("i").type == pa.int64() and found.schema.field("f").type == pa.float64()
        assert found.schema.field("big").type == pa.decimal128(19, 0)
        rows = found.to_pylist()
        assert rows[0]["big"] == Decimal(2**63) and rows[0]["o"] == {"x": 1, "y": None} and rows[0]["l"] == [1, 2]
        assert rows[1]["mix"] == 0.5 and rows[1]["new"] == "x" and rows[0]["new"] is None and rows[0]["s"] == "ü"

    @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "i": st.none() | st.integers(-(2**63), 2**63 - 1),
                    "f": st.none() | st.floats(allow_nan=False, allow_infinity=False),
                    "s": st.none() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
                    "b": st.none() | st.booleans(),
                    "l": st.none() | st.lists(st.integers(-9, 9), max_size=3),
                    "o": st.none() | st.fixed_dictionaries({"x": st.booleans(), "y": st.text("ab", max_size=2)}),
                },
            ),
            min_size=1,
            max_size=8,
        ).filter(lambda records: any(records))
    )
    def test_any_record_comes_back(self, table: Table, records: list[dict[str, Any]]) -> None:
        found = table(self.lines(*records), "t.jsonl").to_pylist()
        fields = {name for record in records for name in record}
        assert [set(record) for record in found] == [fields] * len(records)
        for record, given_ in zip(found, records, strict=True):
            assert {name: value for name, value in record.items() if value is not None} == {
                name: value for name, value in given_.items() if value is not None
            }

    def test_mixed_types_are_named_or_text(self, bench: Bench, table: Table) -> None:
        text = self.lines({"v": 1, "w": 0}, {"v": "a", "w": 0}, {"v": {"k": [1.50, None]}, "w": 0}, {"w": 1})
        words = bench.fails(errors.BadResponse, "t.jsonl", text.encode(), "parquet")
        assert "field 'v' is a number in record 1 and text in record 2" in words and "types=" in words
        found = table(text.replace("1.5", "1.50"), "t.jsonl", types={"v": "string"})
        assert found.column("v").to_pylist() == ["1", "a", '{"k":[1.50,null]}', None]

    def test_columns_and_types(self, table: Table) -> None:
        text = self.lines({"a": "1", "b": "2024-01-02", "c": 0}, {"b": None, "a": 2})
        found = table(text, "t.ndjson", columns=["b", "a"], types={"a": "int64", "b": "date"})
        assert found.column_names == ["b", "a"] and found.column("a").to_pylist() == [1, 2]
        assert str(found.column("b")[0]) == "2024-01-02"

    def test_many_rows_in_groups(self, bench: Bench) -> None:
        text = "".join(f'{{"n": {n}}}\n' for n in range(25_000))
        (data,) = bench.made("t.jsonl", text.encode(), "parquet:row_group_rows=10000").values()
        file = pq.ParquetFile(io.BytesIO(data))
        assert [file.metadata.row_group(n).num_rows for n in range(3)] == [10_000, 10_000, 5_000]
        assert file.metadata.row_group(0).column(0).compression == "ZSTD"
        assert file.read().column("n").to_pylist() == list(range(25_000))

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ('{"a": 1}\nnope\n', "line 2 is not JSON"),
            ('{"a": 1}\n[1]\n', "line 2 is a list"),
            ('{"a": NaN}\n', "NaN is no number"),
            ('{"a": 1, "a": 2}\n', "twice"),
            ('{"a": 1}\n{"a": 1', "line 2 is not JSON"),
            (b'{"a": "\xff"}\n', "line 1 is not UTF-8"),
            ("", "no records"),
            ("\n\n", "no records"),
            ('{"a": "\\ud800"}\n', "half a character"),
            ('{"a": ' + "[" * 100_000, "line 1"),
            ('{"a": ' + "9" * 100 + "}\n", "more than 76 digits"),
            ('{"a": "' + "x" * (9 << 20) + '"}', "longer than"),
        ],
        ids=lambda value: str(value)[:30],
    )
    def test_what_is_no_table(self, bench: Bench, text: str | bytes, words: str) -> None:
        data = text.encode() if isinstance(text, str) else text
        assert words in bench.fails(errors.BadResponse, "t.jsonl", data, "parquet")


class TestFiles:
    def test_what_is_no_table_in_an_archive(self, bench: Bench) -> None:
        packed = tar_of([("a.csv", b"a\n1\n"), ("README.md", b"hello")])
        assert "none of the suffixes" in bench.fails(errors.BadResponse, "x.tar", packed, "unpack", "parquet")
        found = bench.made("x.tar", packed, "unpack", "parquet:others=keep")
        assert list(found) == ["x/a.parquet", "x/README.md"] and found["x/README.md"] == b"hello"

    def test_packed_ones_name_the_cure(self, bench: Bench) -> None:
        assert "convert=['decompress', 'parquet']" in bench.fails(
            errors.BadResponse, "a.csv", b"\x1f\x8b\x08" + bytes(20), "parquet"
        )

    def test_the_same_table_gives_the_same_bytes(self, bench: Bench) -> None:
        text = "".join(f"{random.Random(n).random()},{n}\n" for n in range(1000)).encode()
        made = [bench.made("t.csv", b"a,b\n" + text, "parquet") for _ in range(2)]
        assert made[0] == made[1]

    @pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
    def test_interruption_is_looked_for_in_every_pass(self, bench: Bench, name: str) -> None:
        line = b'{"a": 1}\n' if name == "t.jsonl" else b"a\n"
        seen: list[int] = []
        bench.made(name, line * 30_000, "parquet", on_bytes=seen.append)
        assert seen.count(0) > 10
        for stop_at in (1, len(seen) // 3, len(seen) - 1):
            count = iter(range(1 << 30))

            def stop(size: int, at: int = stop_at, count: Any = count) -> None:
                if next(count) == at:
                    raise Interrupted("slice")

            with pytest.raises(Interrupted):
                bench.made(name, line * 30_000, "parquet", on_bytes=stop)
