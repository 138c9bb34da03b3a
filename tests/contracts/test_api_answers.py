"""ApiFetcher against a real API: what is in an answer, rate limits, profiles, and tables."""

from __future__ import annotations

import base64
import gzip
import json
import socket
import threading
import time
import tracemalloc
import zlib
from decimal import Decimal
from typing import Any

import pyarrow.parquet as pq
import pytest

from ingest import errors
from ingest.model import FileSpec
from ingest.sources import Api
from tests.contracts.test_api import LINK, RECORDS, ApiCase, lines
from tests.servers.api import ApiServer, Call, Reply, at, by_link, reply
from workers.fetchers.base import Interrupted


class TestAnswers(ApiCase):
    """What is in an answer, and what is none."""

    def test_records_are_as_the_server_wrote_them(self) -> None:
        text = (
            '\ufeff{"items" : [ {"big": 123456789012345678901234567890, "price":1.10, "e": 1E+2, "z": -0.0,\n'
            ' "text": "a  \\u00e9\\ud83d\\"\\\\ b", "ü": [ 1 , 2 ] } ,\r\n\t"a, b" , 0.1e-400 , null ] }'
        )
        data, _ = self.fetch(self.answering(reply(text.encode()), records="items"))
        assert data.decode() == (
            '{"big":123456789012345678901234567890,"price":1.10,"e":1E+2,"z":-0.0,'
            '"text":"a  \\u00e9\\ud83d\\"\\\\ b","ü":[1,2]}\n"a, b"\n0.1e-400\nnull\n'
        )

    @pytest.mark.parametrize("kind", ["application/x-ndjson", "application/jsonl; charset=utf-8", "text/plain"])
    def test_json_lines(self, kind: str) -> None:
        text = b'{"a": 1}\n\n {"a":\t2} \r\n{"a":3}'
        assert self.fetch(self.answering(reply(text, content_type=kind)))[0] == b'{"a":1}\n{"a":2}\n{"a":3}\n'

    @pytest.mark.parametrize(
        ("body", "way", "says"),
        [
            (b'{"items": {"a": 1}}', "items", "'items' is an object, where a list"),
            (b'{"items": "x"}', "items", "is text, where a list"),
            (b'{"data": {"rows": []}}', "data.items", "data is an object without 'items'"),
            (b'{"data": [1]}', "data.items", "data is a list without 'items'"),
            (b"[1]", "items", "the answer is a list without 'items'"),
            (b"5", "", "the answer is a number"),
            (b"null", "", "the answer is null"),
            (b"[1 2]", "", "Expecting ',' delimiter at character 3"),
            (b"[1] x", "", "Extra data at character 4"),
            (b'{"a" 1}', "a", "Expecting ':' delimiter"),
            (b"[NaN]", "", "has NaN in it"),
            (b"[-Infinity]", "", "has -Infinity in it"),
            (b'[{"a": 1, "b": 2, "a": 3}]', "", "the key 'a' is twice"),
            (b'{"i": [], "i": [1]}', "i", "the key 'i' is twice"),
            (b"[" * 50_000, "", "nested too deeply"),
            (b"[1,'a']", "", "is not JSON"),
            (b'["a\nb"]', "", "is not JSON: Invalid control character"),
            (b"<!doctype html><title>Log in</title>", "", "an HTML or XML page"),
            (b"\n<html>", "items", "an HTML or XML page"),
            (b'["\xe9"]', "", "is not UTF-8 (byte 2)"),
            ('["x"]'.encode("utf-16"), "", "is not UTF-8 (byte 0)"),
        ],
    )
    def test_what_is_no_answer(self, body: bytes, way: str, says: str) -> None:
        error = self.fails(self.answering(reply(body), records=way), errors.BadResponse)
        assert says in error.reason and error.reason.startswith("page 1: ")

    def test_a_list_that_a_server_leaves_out_when_it_is_empty(self) -> None:
        assert self.records(self.answering(reply({"data": {"n": 0}}), records="data.items?")) == []
        assert self.records(self.answering(reply({"data": {"items": [1]}}), records="data.items?")) == [1]
        for other in ({}, {"data": []}, {"data": {"items": 5}}):
            self.fails(self.answering(reply(other), records="data.items?"), errors.BadResponse)

    @pytest.mark.parametrize("body", [b"", b"[", b'[{"a": 1}', b'["a', b'{"a": tru', b"[1,", b'{"a"'])
    def test_json_that_ends_in_the_middle_is_truncated(self, body: bytes) -> None:
        self.fails(self.answering(reply(body)), errors.Truncated)
        self.fails(self.answering(reply(body, length=-1)), errors.Truncated)

    def test_a_charset_that_is_said_counts_where_it_is_not_utf_8(self) -> None:
        for body, charset in (
            ("é".encode(), "iso-8859-1"),
            ("é".encode("latin-1"), "iso-8859-1"),
            ("é".encode("utf-16"), "utf-16"),
        ):
            text = body if charset != "utf-16" else b""
            whole = b'["' + text + b'"]' if text else '["é"]'.encode("utf-16")
            spec = self.answering(reply(whole, content_type=f"application/json; charset={charset}"))
            assert self.fetch(spec)[0] == '"é"\n'.encode()

    @pytest.mark.parametrize("charset", ["nonsense", "base64", "hex", "rot13", "idna", "utf-8"])
    def test_a_charset_that_is_none(self, charset: str) -> None:
        spec = self.answering(reply(b'["\xe9"]', content_type=f"application/json; charset={charset}"))
        self.fails(spec, errors.BadResponse)

    def test_encoded_answers(self) -> None:
        text = json.dumps(RECORDS).encode()
        raw = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        for coding, body in (("gzip", gzip.compress(text)), ("deflate", zlib.compress(text)),
                             ("deflate", raw.compress(text) + raw.flush())):  # fmt: skip
            assert self.records(self.answering(reply(body, content_encoding=coding))) == RECORDS
            assert self.api.log[-1].headers["Accept-Encoding"] == "identity"
        self.fails(self.answering(reply(gzip.compress(text)[:-9], content_encoding="gzip")), errors.Truncated)
        self.fails(self.answering(reply(text, content_encoding="gzip")), errors.BadResponse)
        self.fails(self.answering(reply(gzip.compress(text) + b"x", content_encoding="gzip")), errors.BadResponse)
        self.fails(self.answering(reply(text, content_encoding="br")), errors.BadResponse)

    def test_a_page_has_a_limit_before_and_after_unpacking(self) -> None:
        text = json.dumps(["x" * 2000]).encode()
        small = self.context(page_bytes=1000)
        for body, headers in ((text, {}), (gzip.compress(text), {"content_encoding": "gzip"})):
            error = self.fails(self.answering(reply(body, **headers)), errors.TooLarge, small)
            assert "page_bytes under [connections.crm]" in error.reason
        self.fails(self.answering(reply(text, length=-1)), errors.TooLarge, small)
        assert self.records(self.answering(reply(text)), self.context(page_bytes=len(text))) == ["x" * 2000]

    def test_a_page_that_unpacks_to_far_more_is_not_unpacked(self) -> None:
        spec = self.answering(reply(gzip.compress(b" " * (64 << 20)), content_encoding="gzip"))
        tracemalloc.start()
        try:
            self.fails(spec, errors.TooLarge, self.context(page_bytes=1 << 20))
            assert tracemalloc.get_traced_memory()[1] < 16 << 20
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, errors.BadResponse), (401, errors.AccessDenied), (403, errors.AccessDenied), (404, errors.NotFound),
            (405, errors.BadResponse), (410, errors.NotFound), (422, errors.BadResponse), (302, errors.BadResponse),
            (408, errors.OriginUnavailable), (500, errors.OriginUnavailable), (202, errors.OriginUnavailable),
            (429, errors.Throttled), (503, errors.Throttled), (304, errors.BadResponse), (451, errors.BadResponse),
        ],
    )  # fmt: skip
    def test_statuses(self, status: int, error: type[errors.FetchError]) -> None:
        assert type(self.fails(self.answering(reply({"x": 1}, status)), error)) is error

    def test_what_the_server_says_of_a_request_is_passed_on_without_secrets(self) -> None:
        said = {"error": "limit must be below 100; token tok-s3cret-7 is fine" + "x" * 500}
        error = self.fails(self.answering(reply(said, 422)), errors.BadResponse, self.context(bearer="tok-s3cret-7"))
        assert "limit must be below 100" in error.reason
        assert "s3cret" not in error.reason and len(error.reason) < 300
        assert "<" not in self.fails(self.answering(reply(b"<html>no", 400)), errors.BadResponse).reason

    def test_a_server_that_quotes_what_it_was_sent_gives_no_secret_away(self) -> None:
        def quoting(call: Call) -> Reply:
            headers = dict(call.headers)
            return Reply({"sent": [headers["Authorization"], headers["X-Auth"].split()[1], call.path]}, 400)

        profile = {"user": "bob", "password": "pa ss", "headers": {"X-Auth": "Token t0k3n"}, "params": {"key": "a b&c"}}
        error = self.fails(self.answering(quoting), errors.BadResponse, self.context(**profile))
        pair = base64.b64encode(b"bob:pa ss").decode()
        assert "sent" in error.reason
        assert not [each for each in ("pa ss", "t0k3n", "a b&c", "a%20b%26c", "a+b%26c", pair) if each in error.reason]

    def test_a_range_that_nobody_asked_for_is_no_page(self) -> None:
        spec = self.answering(reply([1], 206, content_range="bytes 0-2/9"))
        self.fails(spec, errors.BadResponse)
        assert self.records(self.answering(reply([1], 206, content_range="0-0/1"))) == [1]

    def test_a_silent_server_is_a_timeout(self) -> None:
        never = threading.Event()
        self.fails(self.answering(lambda call: Reply([1], hold=never)), errors.FetchTimeout)

    def test_nobody_there(self) -> None:
        spec = self.answering(reply([1]))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.fails(spec, errors.ConnectionLost, self.context(url=f"http://127.0.0.1:{port}/"))


class TestRates(ApiCase):
    @pytest.mark.parametrize("status", [429, 503])
    def test_a_short_wait_is_waited_for_here(self, status: int) -> None:
        spec = self.answering(at(2, reply({}, status, retry_after="1"), by_link(RECORDS, 10)), paginate=LINK)
        began = time.monotonic()
        assert self.records(spec) == RECORDS
        assert time.monotonic() - began >= 1 and len(self.api.log) == 4

    def test_a_long_wait_is_the_ledgers_and_the_pages_stay(self) -> None:
        spec = self.answering(at(3, reply({}, 429, retry_after="90"), by_link(RECORDS, 10)), paginate=LINK)
        scratch = self.scratch(keep=True)
        with pytest.raises(errors.Throttled) as caught:
            self.fetcher.fetch(spec, scratch, None, self.context())
        assert caught.value.retry_after_s == 90
        scratch.close(discard=False)
        again = self.scratch(keep=True)
        assert self.fetcher.fetch(spec, again, None, self.context()) is not None
        assert again.path.read_bytes() == lines(RECORDS) and len(self.api.log) == 4

    def test_a_server_that_always_says_wait_a_moment(self) -> None:
        self.fails(self.answering(reply({}, 429, retry_after="0"), paginate=LINK), errors.Throttled)
        assert 1 < len(self.api.log) <= 6

    @pytest.mark.parametrize(
        "headers",
        [
            {"x_ratelimit_remaining": "0", "x_ratelimit_reset": "90"},
            {"ratelimit_remaining": "0", "ratelimit_reset": "90"},
            {"ratelimit": '"default";r=0;t=90'},
            {"ratelimit": "limit=10, remaining=0, reset=90"},
        ],
    )
    def test_a_limit_that_is_used_up_is_not_run_into(self, headers: dict[str, str]) -> None:
        spec = self.answering(reply([1], link="</v1/y>; rel=next", **headers), paginate=LINK)
        error = self.fails(spec, errors.Throttled)
        assert isinstance(error, errors.Throttled) and error.retry_after_s == 90 and len(self.api.log) == 1
        self.records(self.answering(reply([1], **headers), paginate=LINK))  # the last page: nobody need wait

    def test_a_limit_of_which_something_is_left(self) -> None:
        self.api.on("/v1/y", reply([2]))
        for headers in ({"x_ratelimit_remaining": "5", "x_ratelimit_reset": "90"}, {"x_ratelimit_reset": "90"},
                        {"ratelimit": '"default";r=5;t=90'}):  # fmt: skip
            assert self.records(self.answering(reply([1], link="</v1/y>; rel=next", **headers), paginate=LINK)) == [
                1,
                2,
            ]

    def test_a_wait_can_be_interrupted(self) -> None:
        spec = self.answering(reply({}, 429, retry_after="2"), paginate=LINK)

        def stop(count: int) -> None:
            if self.api.log:
                raise Interrupted("cancelled")

        with pytest.raises(Interrupted):
            self.fetcher.fetch(spec, self.scratch(on_bytes=stop), None, self.context())
        assert len(self.api.log) == 1

    def test_requests_per_second(self) -> None:
        spec = self.answering(by_link(RECORDS, 5), paginate=LINK)
        began = time.monotonic()
        assert self.records(spec, self.context(requests_per_s=10)) == RECORDS
        assert time.monotonic() - began >= 0.4
        for wrong in (0, -1, "5", True):
            self.fails(spec, errors.BadResponse, self.context(requests_per_s=wrong))


class TestProfile(ApiCase):
    def test_credentials_are_sent_and_the_querys_are_in_no_journal(self) -> None:
        def answer(call: Call) -> Reply:
            assert call.query["key"] == "s3cret" and call.headers["Authorization"] == "Bearer tok"
            end = call.query.get("p") == "2"
            return Reply(
                [call.query.get("p", "1")], headers={} if end else {"Link": "</v1/x?key=s3cret&p=2>; rel=next"}
            )

        scratch = self.scratch(keep=True)
        spec = self.answering(answer, paginate=LINK)
        context = self.context(bearer="tok", params={"key": "s3cret"})
        marks: list[str] = []

        def look(count: int) -> None:
            marks.extend(path.read_text() for path in (self.tmp / "scratch").glob("*.json"))

        scratch = self.scratch(keep=True, on_bytes=look)
        assert self.fetcher.fetch(spec, scratch, None, context) is not None
        assert scratch.path.read_bytes() == b'"1"\n"2"\n'
        assert marks and "p=2" in marks[-1] and "s3cret" not in "".join(marks)

    @pytest.mark.parametrize(
        ("values", "error", "says"),
        [
            ({"url": None}, errors.BadResponse, "needs url"),
            ({"url": "postgresql://db/x"}, errors.BadResponse, "needs url"),
            ({"url": "http://user:pw@h/"}, errors.BadResponse, "needs url"),
            ({"url": "http://h/?a=1"}, errors.BadResponse, "needs url"),
            ({"url": "http://h:99999/"}, errors.BadResponse, "needs url"),
            ({"match": "http://other.invalid/"}, errors.EgressDenied, "is not under its match"),
            ({"page_bytes": 0}, errors.BadResponse, "page_bytes"),
            ({"params": "x"}, errors.BadResponse, "params must be"),
        ],
    )
    def test_a_profile_that_is_none_of_an_api(self, values: dict[str, Any], error: type[Any], says: str) -> None:
        context = self.context(**values)
        assert says in self.fails(self.answering(reply([1])), error, context).reason
        with pytest.raises(error):
            list(self.fetcher.expand(Api("crm", "x"), context))
        assert not self.api.log

    def test_a_match_above_the_url_is_one(self) -> None:
        for match in (self.api.url("/"), self.api.url("/v1"), self.api.url("/v1/")):
            assert self.records(self.answering(reply([1])), self.context(match=match)) == [1]

    @pytest.mark.parametrize(
        "request_",
        [None, {}, {"connection": "crm", "path": "../admin"}, {"connection": "crm", "path": "a/%2e%2e/%2e%2e/admin"},
         {"connection": "crm", "path": "//evil.invalid/x"}, {"connection": "crm", "method": "DELETE"}],
    )  # fmt: skip
    def test_a_forged_request_is_refused_on_the_node(self, request_: dict[str, Any] | None) -> None:
        self.fails(FileSpec(0, 0, "api://crm/x", connection="crm", request=request_), errors.PermanentFetchError)
        assert not self.api.log

    def test_a_redirect_elsewhere_loses_the_credentials_and_a_post_is_not_sent_on(self) -> None:
        with ApiServer("127.0.0.2") as other:
            other.on("/x", lambda call: Reply(["Authorization" in call.headers]))
            moved = reply(b"", 302, location=other.url("/x"))
            assert self.records(self.answering(moved), self.context(bearer="tok")) == [False]
            spec = self.answering(moved, method="POST", body={"a": 1})
            self.fails(spec, errors.BadResponse, self.context(bearer="tok"))
            assert len(other.log) == 1
            self.api.on("/v1/y", lambda call: Reply([call.body]))
            near = self.answering(reply(b"", 307, location="/v1/y"), method="POST", body={"a": 1})
            assert self.records(near) == [{"a": 1}]

    def test_names(self) -> None:
        assert [self.spec(path).name for path in ("a/orders", "a/or%2Fders/", "", "v1/x:y")] == [
            "orders.jsonl", "ders.jsonl", "crm.jsonl", "x_y.jsonl",
        ]  # fmt: skip
        assert self.spec("a", format="parquet").name == "a.parquet"


class TestParquet(ApiCase):
    def table(self, *rows: str) -> Any:
        spec = self.answering(reply(f"[{','.join(rows)}]".encode()), format="parquet")
        scratch = self.scratch()
        fetched = self.fetcher.fetch(spec, scratch, None, self.context())
        assert fetched is not None and fetched.samples == len(rows)
        return pq.read_table(scratch.path)

    @pytest.mark.parametrize(
        ("values", "kind", "back"),
        [
            (["1", "null", "-2"], "int64", [1, None, -2]),
            (["9223372036854775807"], "int64", [9223372036854775807]),
            (["9223372036854775808", "1"], "decimal128(19, 0)", [Decimal(9223372036854775808), Decimal(1)]),
            (["1.5", "2", "1e3"], "double", [1.5, 2.0, 1000.0]),
            (["0.1", "9007199254740993"], "decimal128(17, 1)", [Decimal("0.1"), Decimal("9007199254740993.0")]),
            (["0.12345678901234567890"], "decimal128(21, 20)", [Decimal("0.12345678901234567890")]),
            (["1e20", "0.12345678901234567890123"], "decimal256(44, 23)",
             [Decimal("1e20"), Decimal("0.12345678901234567890123")]),
            (['"2020-01-01 00:00:00"', '"é"'], "string", ["2020-01-01 00:00:00", "é"]),
            (["true", "null"], "bool", [True, None]),
            (["null"], "null", [None]),
            (["[1, null]", "[]", "null"], "list<element: int64>", [[1, None], [], None]),
            (['{"x": 1}', '{"y": "a"}', "null"], "struct<x: int64, y: string>",
             [{"x": 1, "y": None}, {"x": None, "y": "a"}, None]),
            (["{}", "null"], "map<string, string ('v')>", [[], None]),
        ],
    )  # fmt: skip
    def test_types_are_exact(self, values: list[str], kind: str, back: list[Any]) -> None:
        table = self.table(*(f'{{"v": {value}}}' for value in values))
        assert table["v"].to_pylist() == back and str(table.schema.field("v").type) == kind

    def test_a_field_that_comes_late_and_one_that_goes(self) -> None:
        assert self.table('{"a": 1}', "{}", '{"b": 2}').to_pylist() == [
            {"a": 1, "b": None}, {"a": None, "b": None}, {"a": None, "b": 2},
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("rows", "says"),
        [
            (['{"a": 1}', '{"a": "x"}'], "field 'a' is a number in record 1 and text in record 2"),
            (['{"a": {"b": [1, "x"]}}'], "field 'a.b.[]' is a number in record 1"),
            (['{"a": [1]}', '{"a": {}}'], "field 'a' is a list in record 1 and an object in record 2"),
            (["1"], "record 1 is a number"),
            (["{}"], "the records have no fields"),
            (['{"a": 1e400}'], "field 'a' needs more than 76 digits as of record 1"),
            (['{"a": 1e300}', '{"a": 9007199254740993}'], "needs more than 76 digits as of record 2"),
            (['{"a": 1e99999999999999999999}'], "needs more than 76 digits"),
            (['{"a": "\\ud800"}'], "field 'a' has half a character in record 1"),
            (["{" + ",".join(f'"k{n}": 1' for n in range(10_001)) + "}"], "data for keys"),
        ],
    )
    def test_what_has_no_place_in_a_table_is_said(self, rows: list[str], says: str) -> None:
        spec = self.answering(reply(f"[{','.join(rows)}]".encode()), format="parquet")
        assert says in self.fails(spec, errors.BadResponse).reason
        assert not list((self.tmp / "scratch").glob("*.table"))

    def test_pages_become_row_groups(self) -> None:
        rows = [{"id": n, "price": n / 7} for n in range(70_000)]
        spec = self.answering(by_link(rows, 10_000), paginate=LINK, format="parquet")
        scratch = self.scratch()
        self.fetcher.fetch(spec, scratch, None, self.context())
        assert pq.read_table(scratch.path).to_pylist() == rows
        meta = pq.read_metadata(scratch.path)
        assert meta.num_row_groups == 2 and meta.row_group(0).column(0).compression == "ZSTD"
