"""ApiFetcher against a real API: the contract, every way from page to page, and the ends and misuses of each."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest import errors
from ingest.apis import Paging
from ingest.client.submission import check
from ingest.model import FileSpec
from ingest.sections import Connection, Limits
from ingest.settings import Settings
from ingest.sources import Api, Source
from tests.contracts.contract import CutContract, FetcherCase
from tests.servers.api import Answer, ApiServer, Call, Reply, after, at, by_cursor, by_link, by_number, reply
from workers.fetchers.api import ApiFetcher
from workers.fetchers.api.pages import Pages, State, next_link
from workers.fetchers.base import Context, Interrupted

QUICK = Limits(connect_s=0.5, stall_s=1.5)
RECORDS = [{"id": n, "name": f"n°{n}"} for n in range(25)]
LINK = {"kind": "link"}
CURSOR = {"kind": "cursor", "param": "cursor", "field": "meta.next"}
OFFSET = {"kind": "offset", "param": "offset", "size_param": "limit", "size": 10}
PAGE = {"kind": "page", "param": "page", "size_param": "per_page", "size": 10}


def lines(records: Any) -> bytes:
    return b"".join(json.dumps(one, separators=(",", ":")).encode() + b"\n" for one in records)


class ApiCase(FetcherCase):
    """An API for each test, and the profile ``crm`` that leads there."""

    @pytest.fixture(autouse=True)
    def _served(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
            monkeypatch.delenv(name.upper(), raising=False)
        self.fetcher = ApiFetcher()
        with ApiServer() as self.api:
            yield

    def context(self, **values: Any) -> Context:
        return Context(Settings(limits=QUICK), Connection("crm", {"url": self.api.url("/v1"), **values}))

    def spec(self, path: str = "x", **asked: Any) -> FileSpec:
        """Planned, and through JSON, as the queue does it."""
        (spec,) = self.fetcher.expand(Api("crm", path, **asked), self.context())
        return FileSpec.from_json(json.loads(json.dumps(spec.to_json())))

    def answering(self, answer: Answer, **asked: Any) -> FileSpec:
        self.api.on("/v1/x", answer)
        return self.spec(**asked)

    def records(self, spec: FileSpec, context: Context | None = None) -> list[Any]:
        data, fetched = self.fetch(spec, context=context)
        found = [json.loads(line) for line in data.splitlines()]
        assert fetched.samples == len(found)
        return found

    # -- for the contract ----------------------------------------------------------------------------------------------

    def rows(self, data: bytes) -> list[Any]:
        return [{"at": at, "hex": data[at : at + 1000].hex()} for at in range(0, len(data), 1000)]

    def expected(self, data: bytes) -> bytes:
        return lines(self.rows(data))

    def put(self, name: str, data: bytes) -> FileSpec:
        tag = f'"{hash(data)}"'

        def answer(call: Call) -> Reply:
            if call.headers.get("If-None-Match") == tag:
                return Reply(b"", 304, {"ETag": tag})
            return Reply(self.rows(data), headers={"ETag": tag})

        self.api.on(f"/v1/{name}", answer)
        return self.spec(quote(name))

    def missing(self) -> FileSpec:
        return self.spec("nowhere")

    def truncated(self, name: str, data: bytes, at: int) -> FileSpec:
        body = json.dumps(self.rows(data)).encode()
        self.api.on(f"/v1/{name}", reply(body[:at], length=len(body)))
        return self.spec(name)

    def endless(self) -> FileSpec:
        def answer(call: Call) -> Reply:
            return Reply({"items": [{"x": "x" * 1000}] * 1000, "next": call.number})

        self.api.on("/v1/endless", answer)
        return self.spec("endless", records="items", paginate={"kind": "cursor", "param": "c", "field": "next"})


class TestContract(ApiCase, CutContract):
    pass


class TestPages(ApiCase):
    @pytest.mark.parametrize("size", [1, 10, 24, 25, 26])
    def test_by_link_header(self, size: int) -> None:
        assert self.records(self.answering(by_link(RECORDS, size), paginate=LINK)) == RECORDS
        assert len(self.api.log) == -(-25 // size)

    def test_by_link_of_another_relation(self) -> None:
        spec = self.answering(by_link(RECORDS, 10, rel="newer"), paginate={"kind": "link", "rel": "newer"})
        assert self.records(spec) == RECORDS

    def test_by_cursor(self) -> None:
        spec = self.answering(by_cursor(RECORDS, 10), params={"q": ["a b", "ü"], "all": True, "no": None},
                              records="data.items", paginate=CURSOR)  # fmt: skip
        assert self.records(spec) == RECORDS
        assert [call.query.get("cursor") for call in self.api.log] == [None, "c10", "c20"]
        assert all(call.query["q"] == "ü" and call.query["all"] == "true" for call in self.api.log)
        assert "no" not in self.api.log[0].query

    def test_by_cursor_that_is_a_url(self) -> None:
        paginate = {"kind": "cursor", "field": "meta.next"}
        spec = self.answering(by_cursor(RECORDS, 10, url=True), records="data.items", paginate=paginate)
        assert self.records(spec) == RECORDS

    def test_by_cursor_in_the_body(self) -> None:
        body = {"query": "q", "page": {"size": 3}}
        paginate = {"kind": "cursor", "param": "page.cursor", "field": "meta.next", "more": "meta.more"}
        spec = self.answering(by_cursor(RECORDS, 10), method="POST", body=body, records="data.items", paginate=paginate)
        assert self.records(spec) == RECORDS
        assert [call.body["page"] for call in self.api.log] == [
            {"size": 3}, {"size": 3, "cursor": "c10"}, {"size": 3, "cursor": "c20"},
        ]  # fmt: skip
        assert {(call.method, call.headers["Content-Type"]) for call in self.api.log} == {("POST", "application/json")}

    def test_by_the_last_record(self) -> None:
        def answer(call: Call) -> Reply:
            start = int(call.query.get("after", "-1")) + 1
            return Reply({"data": RECORDS[start : start + 10], "has_more": start + 10 < 25})

        paginate = {"kind": "cursor", "param": "after", "last": "id", "more": "has_more"}
        assert self.records(self.answering(answer, records="data", paginate=paginate)) == RECORDS
        assert len(self.api.log) == 3
        del paginate["more"]
        assert self.records(self.answering(answer, records="data", paginate=paginate)) == RECORDS
        assert len(self.api.log) == 7, "without more, an empty page is the end"

    @pytest.mark.parametrize(("extra", "requests"), [({}, 4), ({"total": "total"}, 3)])
    def test_by_offset(self, extra: dict[str, Any], requests: int) -> None:
        spec = self.answering(by_number(RECORDS, 10), records="items", paginate={**OFFSET, **extra})
        assert self.records(spec) == RECORDS
        offsets = [call.query["offset"] for call in self.api.log]
        assert offsets == ["0", "10", "20", "25"][:requests] and self.api.log[0].query["limit"] == "10"

    def test_by_offset_of_a_server_that_gives_fewer_than_asked(self) -> None:
        spec = self.answering(by_number(RECORDS, 10, most=7), records="items", paginate=OFFSET)
        assert self.records(spec) == RECORDS

    @pytest.mark.parametrize(("extra", "requests"), [({}, 4), ({"total": "total"}, 3), ({"pages": "pages"}, 3)])
    def test_by_page_number(self, extra: dict[str, Any], requests: int) -> None:
        spec = self.answering(by_number(RECORDS, 10, pages=True), records="items", paginate={**PAGE, **extra})
        assert self.records(spec) == RECORDS
        assert [call.query["page"] for call in self.api.log] == ["1", "2", "3", "4"][:requests]

    def test_by_page_number_in_the_body(self) -> None:
        answer = by_number(RECORDS, 10, pages=True)
        spec = self.answering(answer, method="POST", body={"q": 1}, records="items", paginate={**PAGE, "in": "body"})
        assert self.records(spec) == RECORDS
        assert self.api.log[1].body == {"q": 1, "page": 2, "per_page": 10} and not self.api.log[1].query

    def test_one_request(self) -> None:
        assert self.records(self.answering(reply({"items": RECORDS}), records="items")) == RECORDS
        assert self.records(self.answering(reply({"id": 1}))) == [{"id": 1}]
        assert self.records(self.answering(reply({"@odata.value": [1, None, "x"]}), records=["@odata.value"])) == [
            1, None, "x",
        ]  # fmt: skip

    def test_post_without_pages(self) -> None:
        answer: Answer = lambda call: Reply([call.body, call.method])  # noqa: E731
        assert self.records(self.answering(answer, method="POST", body=["é"])) == [["é"], "POST"]
        assert self.records(self.answering(answer, method="POST")) == [None, "POST"]

    @pytest.mark.parametrize("answer", [reply([]), reply(b"", 204), reply({"items": []}), reply({"items": None})])
    @pytest.mark.parametrize("kind", ["jsonl", "parquet"])
    def test_no_records_are_an_empty_file(self, answer: Answer, kind: str) -> None:
        way = "items" if isinstance(answer(Call("", "", {}, {}, None, 1, "")).data, dict) else ""
        data, fetched = self.fetch(self.answering(answer, records=way, format=kind))
        assert fetched.samples == 0 and (kind == "parquet" or data == b"")

    def test_an_empty_page_with_a_cursor_is_not_the_end(self) -> None:
        pages = {None: ([1], "a"), "a": ([], "b"), "b": ([2], None)}
        answer: Answer = lambda call: Reply(dict(zip(["d", "n"], pages[call.query.get("c")], strict=True)))  # noqa: E731
        paginate = {"kind": "cursor", "param": "c", "field": "n"}
        assert self.records(self.answering(answer, records="d", paginate=paginate)) == [1, 2]

    def test_the_path_and_the_base_meet_in_one_slash(self) -> None:
        self.api.on("/v1/a b/c", reply([1]))
        self.api.on("/v1/", reply([2]))
        self.api.on("/v1", reply([3]))
        for path in ("a b/c".replace(" ", "%20"), "/a%20b/c"):
            for base in ("/v1", "/v1/"):
                assert self.records(self.spec(path), self.context(url=self.api.url(base))) == [1]
        assert self.records(self.spec(""), self.context(url=self.api.url("/v1/"))) == [2]
        assert self.records(self.spec(""), self.context(url=self.api.url("/v1"))) == [3]


class TestWrongTurns(ApiCase):
    """Pages that lead nowhere, in a circle, or away."""

    @pytest.mark.parametrize("length", [1, 2, 3, 7])
    def test_cursors_in_a_circle(self, length: int) -> None:
        answer: Answer = lambda call: Reply({"i": [call.number], "n": f"c{call.number % length}"})  # noqa: E731
        spec = self.answering(answer, records="i", paginate={"kind": "cursor", "param": "c", "field": "n"})
        assert "circle" in self.fails(spec, errors.BadResponse).reason
        assert len(self.api.log) <= 3 * length + 3

    def test_a_link_to_itself(self) -> None:
        answer: Answer = lambda call: Reply([1], headers={"Link": "</v1/x?a=1>; rel=next"})  # noqa: E731
        assert "circle" in self.fails(self.answering(answer, paginate=LINK), errors.BadResponse).reason

    @pytest.mark.parametrize("paginate", [OFFSET, PAGE])
    def test_an_api_that_does_not_know_the_parameter(self, paginate: dict[str, Any]) -> None:
        error = self.fails(self.answering(reply({"items": RECORDS}), records="items", paginate=paginate),
                           errors.BadResponse)  # fmt: skip
        assert "is the same as the one before" in error.reason and len(self.api.log) == 2

    def test_fewer_records_than_the_total(self) -> None:
        answer: Answer = lambda call: Reply({"items": [1] if call.number == 1 else [], "total": 9})  # noqa: E731
        spec = self.answering(answer, records="items", paginate={**OFFSET, "total": "total"})
        assert "after 1 of 9 records" in self.fails(spec, errors.Truncated).reason

    @pytest.mark.parametrize(
        ("target", "error"),
        [
            ("http://127.0.0.2:{port}/v1/x?p=2", errors.EgressDenied),
            ("http://127.0.0.1.evil.invalid/v1/x", errors.EgressDenied),
            ("https://127.0.0.1:{port}/v1/x?p=2", errors.EgressDenied),
            ("http://user@127.0.0.1:{port}/v1/x?p=2", errors.EgressDenied),
            ("//127.0.0.2/v1/x", errors.EgressDenied),
            ("/v2/x", errors.EgressDenied),
            ("/v10/x", errors.EgressDenied),
            ("/v1/../v2/x", errors.EgressDenied),
            ("/v1/%2e%2e/v2/x", errors.EgressDenied),
            ("/v1/%252e%252e/v2/x", errors.EgressDenied),
            ("file:///etc/passwd", errors.EgressDenied),
            ("/v1\\..\\v2", errors.BadResponse),
            ("http://[", errors.BadResponse),
            ("http://127.0.0.1:99999/v1/x", errors.BadResponse),
        ],
    )
    @pytest.mark.parametrize("kind", ["link", "cursor"])
    def test_a_next_page_elsewhere_is_not_asked_for(self, target: str, error: type[Any], kind: str) -> None:
        target = target.format(port=self.api.url().rpartition(":")[2])
        paginate = LINK if kind == "link" else {"kind": "cursor", "field": "next"}
        answer = reply({"items": [1], "next": target}, link=f'<{target}>; rel="next"')
        self.fails(self.answering(answer, records="items", paginate=paginate), error, self.context(bearer="s3cret"))
        assert len(self.api.log) == 1

    def test_a_next_page_under_the_base_in_other_words(self) -> None:
        target = self.api.url("/v1/y?p=2#x")
        self.api.on("/v1/y", reply([2]))
        spec = self.answering(reply([1], link=f'<{target}>; rel="prev next"'), paginate=LINK)
        assert self.records(spec) == [1, 2]

    def test_max_pages(self) -> None:
        spec = self.answering(by_link(RECORDS, 10), paginate={**LINK, "max_pages": 3})
        assert self.records(spec) == RECORDS
        spec = self.answering(by_link(RECORDS, 10), paginate={**LINK, "max_pages": 2})
        assert "max_pages=2" in self.fails(spec, errors.TooLarge).reason

    @pytest.mark.parametrize(
        ("answer", "paginate", "says"),
        [
            ({"i": [1], "n": {}}, {"kind": "cursor", "param": "c", "field": "n"}, "field='n' is an object"),
            ({"i": [1], "n": [1]}, {"kind": "cursor", "param": "c", "field": "n"}, "field='n' is a list"),
            ({"i": [1]}, {"kind": "cursor", "param": "c", "last": "id"}, "last='id' is not in"),
            ({"i": [1]}, {"kind": "link", "more": "m"}, "more='m' is nothing"),
            ({"i": [1], "m": "yes"}, {"kind": "link", "more": "m"}, "more='m' is text"),
            ({"i": [1], "m": True}, {"kind": "link", "more": "m"}, "and not where"),
            ({"i": [1], "t": "many"}, {**OFFSET, "total": "t"}, "total='t' is text"),
            ({"i": [1]}, {**PAGE, "pages": "t"}, "pages='t' is nothing"),
        ],
    )
    def test_what_the_strategy_needs_and_is_not_there(self, answer: Any, paginate: dict[str, Any], says: str) -> None:
        assert (
            says in self.fails(self.answering(reply(answer), records="i", paginate=paginate), errors.BadResponse).reason
        )


class TestResume(ApiCase):
    """The next attempt goes on after the last whole page."""

    def attempt(self, spec: FileSpec, error: type[Exception] | None = None, **options: Any) -> bytes:
        scratch = self.scratch(keep=True, **options)
        try:
            if error is None:
                assert self.fetcher.fetch(spec, scratch, None, self.context()) is not None
                return scratch.path.read_bytes()
            with pytest.raises(error):
                self.fetcher.fetch(spec, scratch, None, self.context())
            return b""
        finally:
            scratch.close(discard=error is None)

    @pytest.mark.parametrize("number", [1, 2, 3])
    @pytest.mark.parametrize("kind", ["link", "cursor", "offset", "page"])
    def test_a_page_that_failed_is_asked_for_again_and_no_other(self, kind: str, number: int) -> None:
        answers: dict[str, tuple[Answer, str, dict[str, Any]]] = {
            "link": (by_link(RECORDS, 10), "", LINK),
            "cursor": (by_cursor(RECORDS, 10), "data.items", CURSOR),
            "offset": (by_number(RECORDS, 10), "items", {**OFFSET, "total": "total"}),
            "page": (by_number(RECORDS, 10, pages=True), "items", {**PAGE, "total": "total"}),
        }
        answer, way, paginate = answers[kind]
        spec = self.answering(at(number, reply(b"[", length=9), answer), records=way, paginate=paginate)
        self.attempt(spec, errors.Truncated)
        assert self.attempt(spec) == lines(RECORDS)
        queries = [str(call.query) for call in self.api.log]
        assert len(queries) == 4 and queries[number - 1] == queries[number]

    def test_half_a_page_is_not_taken_up(self) -> None:
        spec = self.answering(by_link([{"x": "x" * 700_000}] * 9, 3), paginate=LINK)
        seen = 0

        def stop(count: int) -> None:
            nonlocal seen
            seen += count
            if seen > 3_500_000:  # in the middle of the second page, which is written in blocks
                raise Interrupted("stopping")

        self.attempt(spec, Interrupted, on_bytes=stop)
        assert self.attempt(spec) == lines([{"x": "x" * 700_000}] * 9)
        assert [call.query.get("from") for call in self.api.log] == [None, "3", "3", "6"]

    def test_a_place_that_is_too_old_starts_anew(self) -> None:
        stale = after(1, by_cursor(RECORDS, 10), after(2, reply(b"[", length=9), by_cursor(RECORDS[::-1], 10)))
        spec = self.answering(at(3, reply({"error": "cursor expired"}, 400), stale), records="data.items",
                              paginate=CURSOR)  # fmt: skip
        self.attempt(spec, errors.Truncated)
        assert self.attempt(spec) == lines(RECORDS[::-1])

    def test_what_failed_at_first_is_not_begun_again_for_ever(self) -> None:
        spec = self.answering(reply({"error": "no"}, 400), paginate=LINK)
        self.attempt(spec, errors.BadResponse)
        assert len(self.api.log) == 1

    def test_all_pages_are_here_and_only_the_table_is_missing(self) -> None:
        spec = self.answering(by_link(RECORDS, 10), paginate=LINK, format="parquet")

        def stop(count: int) -> None:
            if count == 0:  # while the table is made
                raise Interrupted("stopping")

        self.attempt(spec, Interrupted, on_bytes=stop)
        asked = len(self.api.log)
        assert self.attempt(spec).startswith(b"PAR1") and len(self.api.log) == asked == 3


class TestPlanning(ApiCase):
    def test_another_kind_of_source(self) -> None:
        with pytest.raises(errors.Unsupported):
            list(self.fetcher.expand(Source("https://h/a"), self.context()))

    def test_everything_that_decides_the_records_is_in_the_identity(self) -> None:
        same = Api("crm", "x", params={"a": 1})
        others = [
            Api("crm", "x"),
            Api("crm", "x", params={"a": 2}),
            Api("crm", "x", params={"a": 1}, records="i"),
            Api("crm", "x", params={"a": 1}, paginate=LINK),
            Api("crm", "x", params={"a": 1}, format="parquet"),
        ]
        assert same.uri == Api("crm", "x", params={"a": 1}).uri
        assert len({one.uri for one in [same, *others]}) == 6
        assert same.uri.startswith("api://crm/x#")


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"connection": ""}, "name the connection"),
    ({"path": "https://h/x"}, "names no host"),
    ({"path": "//h/x"}, "names no host"),
    ({"path": "a/../b"}, "'.' or '..'"),
    ({"path": "a/%2e%2E/b"}, "'.' or '..'"),
    ({"path": "a/%252e./b"}, "'.' or '..'"),
    ({"path": "a/..;x=1/b"}, "'.' or '..'"),
    ({"path": "a/%2e%2e%2fb"}, "'.' or '..'"),
    ({"path": "a%25" + "25" * 20 + "2e"}, "again and again"),
    ({"path": "a\\b"}, "percent-encoded"),
    ({"path": "a b"}, "percent-encoded"),
    ({"path": "a\nb"}, "percent-encoded"),
    ({"path": "a%0ab"}, "control character"),
    ({"path": "a?b=1"}, "params="),
    ({"path": "a#b"}, "params="),
    ({"path": 5}, "must be text"),
    ({"method": "DELETE"}, "GET, POST"),
    ({"format": "csv"}, "jsonl, parquet"),
    ({"params": [1]}, "mapping"),
    ({"params": {"a": {}}}, "params= a={}"),
    ({"params": {"a": float("nan")}}, "as JSON"),
    ({"body": {1: 2}}, 'method="POST"'),
    ({"body": {"x": {1, 2}}, "method": "POST"}, "as JSON"),
    ({"records": 5}, "records=5"),
    ({"records": "?"}, "names no key"),
    ({"records": "a..b"}, "keys with dots"),
    ({"paginate": "link"}, "mapping"),
    ({"paginate": {}}, "link, cursor, offset, page"),
    ({"paginate": {"kind": "magic"}}, "link, cursor, offset, page"),
    ({"paginate": {"kind": "link", "param": "x"}}, "has no 'param'"),
    ({"paginate": {"kind": "link", "rel": ""}}, "rel=''"),
    ({"paginate": {"kind": "link", "max_pages": 0}}, "max_pages=0"),
    ({"paginate": {"kind": "cursor", "param": "c"}}, "either field="),
    ({"paginate": {"kind": "cursor", "param": "c", "field": "a", "last": "b"}}, "either field="),
    ({"paginate": {"kind": "cursor", "last": "id"}}, "needs param="),
    ({"paginate": {"kind": "offset"}}, "needs param="),
    ({"paginate": {"kind": "page", "param": "p", "start": -1}}, "start=-1"),
    ({"paginate": {"kind": "page", "param": "p", "size": True, "size_param": "n"}}, "size=True"),
    ({"paginate": {"kind": "page", "param": "p", "size": 5}}, "size_param= together"),
    ({"paginate": {"kind": "page", "param": "p", "in": "body"}}, "in='body' needs"),
    ({"paginate": {"kind": "page", "param": "p", "in": "head"}}, "'params' or 'body'"),
    ({"paginate": {"kind": "page", "param": ["a", "b"]}}, "param=['a', 'b'] must be text"),
]


@pytest.mark.parametrize(("asked", "says"), REFUSED, ids=lambda value: str(value)[:50])
def test_refused_where_the_user_is(asked: dict[str, Any], says: str) -> None:
    with pytest.raises(errors.BadSource) as caught:
        check(Api(**{"connection": "crm", **asked}))
    assert says in str(caught.value)


@given(st.text(max_size=30) | st.from_regex(r"\A(/?(\.|%2e|%252E|a|;|%2f|%5c|:){0,4}){0,4}\Z"))
def test_no_path_leads_out_of_the_base(path: str) -> None:
    try:
        check(Api("crm", path))
    except errors.BadSource:
        return
    url = Pages("api://x", Paging(), "http://h/v1", {"path": path}).request(State()).url
    plain = url
    for _ in range(9):
        plain = unquote(plain)
    assert url.startswith("http://h/v1") and urlsplit(url).netloc == "h" and ".." not in plain.split("/")


@given(st.text(max_size=60) | st.from_regex(r"\A(<[^>]{0,9}>; ?rel=\"?[a-z ]{0,9}\"?,? ?){0,3}\Z"))
def test_any_link_header_is_read(header: str) -> None:
    found = next_link(header, "next")
    assert found is None or f"<{found}>" in header
