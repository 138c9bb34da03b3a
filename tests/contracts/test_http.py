"""HttpFetcher against a real HTTP server: the contract, and what is HTTP's own."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from ingest import errors
from ingest.model import FileSpec
from ingest.sections import Connection, Http, Limits
from ingest.settings import Settings
from ingest.sources import Source
from tests.contracts.contract import SOME_MB, CutContract, FetcherCase
from tests.servers import http as server
from tests.servers.http import Origin
from workers.fetchers.base import Context, Interrupted, Known
from workers.fetchers.http import HttpFetcher

QUICK = Limits(connect_s=0.5, stall_s=1.5)


class HttpCase(FetcherCase):
    """An origin for each test, and how the contract's files get there."""

    @pytest.fixture(autouse=True)
    def _served(self) -> Iterator[None]:
        self.fetcher = HttpFetcher()
        with Origin() as self.origin:
            yield

    def spec(self, url: str, **fields: Any) -> FileSpec:
        return FileSpec(0, 0, url, **fields)

    def put(self, name: str, data: bytes) -> FileSpec:
        self.origin.put(f"/{name}", data)
        return self.spec(self.origin.url("/" + quote(name)))

    def missing(self) -> FileSpec:
        return self.spec(self.origin.url("/nowhere"))

    def truncated(self, name: str, data: bytes, at: int) -> FileSpec:
        return self.spec(self.origin.on(f"/{name}", server.truncated(data, at)))

    def endless(self) -> FileSpec:
        return self.spec(self.origin.on("/endless", server.endless()))

    def answering(self, behaviour: server.Behaviour, **fields: Any) -> FileSpec:
        return self.spec(self.origin.on("/x", behaviour), **fields)


def configured(profile: dict[str, Any] | None = None, **sections: Any) -> Context:
    return Context(Settings(**sections), Connection("profile", profile) if profile else None)


class TestContract(HttpCase, CutContract):
    pass


class TestRequest(HttpCase):
    def test_asks_for_the_bytes_as_they_are_and_says_who_asks(self) -> None:
        self.fetch(self.put("a", b"x"))
        asked = self.origin.log[0]
        assert asked.headers["Accept-Encoding"] == "identity"
        assert asked.headers["User-Agent"].startswith("ingest/")
        assert "Cookie" not in asked.headers
        assert "Authorization" not in asked.headers

    def test_user_agent_of_the_settings(self) -> None:
        self.fetch(self.put("a", b"x"), context=configured(http=Http(user_agent="lab/1 (me@lab)")))
        assert self.origin.log[0].headers["User-Agent"] == "lab/1 (me@lab)"

    def test_connection_is_kept(self) -> None:
        spec = self.put("a", SOME_MB)
        for _ in range(3):
            self.fetch(spec)
        self.fails(self.missing(), errors.NotFound)
        self.fetch(spec)
        assert len({asked.client for asked in self.origin.log}) == 1

    def test_encoded_body_is_stored_as_sent(self) -> None:
        spec = self.answering(server.file(b"not gzip at all", content_encoding="gzip"))
        assert self.fetch(spec)[0] == b"not gzip at all"

    def test_chunked_body(self) -> None:
        assert self.fetch(self.answering(server.chunked(b"ab", SOME_MB, b"c")))[0] == b"ab" + SOME_MB + b"c"

    def test_chunked_body_cut_off(self) -> None:
        self.fails(self.answering(server.chunked(b"ab", b"cd", finish=False)), errors.Truncated)

    def test_body_until_the_end_of_the_connection(self) -> None:
        assert self.fetch(self.answering(server.raw(b"HTTP/1.0 200 OK\r\n\r\nall of it")))[0] == b"all of it"

    def test_version_validator_and_name(self) -> None:
        disposition = "attachment; filename=\"plain.tar\"; filename*=UTF-8''w%C3%A4rme%2F..%2F.tar"
        _, fetched = self.fetch(self.answering(server.file(b"x", etag='"v1"', content_disposition=disposition)))
        assert (fetched.version, fetched.validator, fetched.name) == ('"v1"', '"v1"', "tar")

    def test_weak_etag_is_no_version_but_a_validator(self) -> None:
        spec = self.answering(server.file(b"x", etag='W/"v1"'))
        _, fetched = self.fetch(spec)
        assert (fetched.version, fetched.validator) == (None, 'W/"v1"')
        scratch = self.scratch()
        assert self.fetcher.fetch(spec, scratch, Known("sha256:…", 1, 'W/"v1"'), self.context()) is None
        assert self.origin.log[-1].headers["If-None-Match"] == 'W/"v1"'

    def test_last_modified_as_validator(self) -> None:
        changed = server.http_date(1_700_000_000)
        spec = self.answering(server.file(b"x", etag=None, last_modified=changed))
        _, fetched = self.fetch(spec)
        assert (fetched.version, fetched.validator) == (None, changed)
        assert self.fetcher.fetch(spec, self.scratch(), Known("sha256:…", 1, changed), self.context()) is None
        assert self.origin.log[-1].headers["If-Modified-Since"] == changed

    def test_known_at_a_server_without_conditional_requests(self) -> None:
        spec = self.answering(server.status(200, SOME_MB, etag='"v1"'))
        scratch = self.scratch()
        assert self.fetcher.fetch(spec, scratch, Known('"v1"', len(SOME_MB), '"v1"'), self.context()) is None
        assert scratch.size == 0

    @pytest.mark.parametrize("interim", [b"103 Early Hints\r\nLink: </a>", b"102 Processing", b"100 Continue"])
    def test_interim_answers_are_passed_over(self, interim: bytes) -> None:
        interim = b"HTTP/1.1 " + interim + b"\r\n\r\n"
        final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
        assert self.fetch(self.answering(server.raw(interim * 3 + final)))[0] == b"ok"

    def test_interim_answers_without_end(self) -> None:
        self.fails(self.answering(server.raw(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1000)), errors.BadResponse)

    def test_no_netrc(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login me password secret\n")
        monkeypatch.setenv("NETRC", str(netrc))
        self.fetch(self.put("a", b"x"))
        assert "Authorization" not in self.origin.log[0].headers

    @pytest.mark.parametrize("uri", ["http://h/a/", "http://h/*.tar", "http://h/"])
    def test_listing_is_unsupported(self, uri: str) -> None:
        with pytest.raises(errors.Unsupported, match="Manifest"):
            self.fetcher.expand(Source(uri), self.context())

    def test_every_thread_has_its_own_connection(self) -> None:
        spec = self.put("a", SOME_MB)
        with ThreadPoolExecutor(4) as pool:
            meet = threading.Barrier(4)

            def fetch(_: int) -> None:
                meet.wait(10)
                for _ in range(3):
                    assert self.fetch(spec)[0] == SOME_MB

            list(pool.map(fetch, range(4)))
        assert len({asked.client for asked in self.origin.log}) == 4


class TestSize(HttpCase):
    def test_announced_otherwise_fails_before_the_download(self) -> None:
        error = self.fails(self.answering(server.pattern(64 << 20), size=5), errors.BadResponse)
        assert "67108864" in error.reason
        assert "5 were expected" in error.reason

    def test_unannounced_and_otherwise(self) -> None:
        self.fails(self.answering(server.chunked(b"abc"), size=5), errors.BadResponse)

    def test_right(self) -> None:
        assert self.fetch(self.answering(server.chunked(b"abc"), size=3))[0] == b"abc"

    @pytest.mark.parametrize("length", ["-3", "3, 4", "three", "0x3", "³"])
    def test_nonsense(self, length: str) -> None:
        answer = f"HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\nabc".encode()
        self.fails(self.answering(server.raw(answer)), errors.BadResponse)


class TestStatus(HttpCase):
    @pytest.mark.parametrize(
        ("code", "kind"),
        [
            (401, errors.AccessDenied), (403, errors.AccessDenied), (404, errors.NotFound),
            (410, errors.NotFound), (400, errors.BadResponse), (405, errors.BadResponse),
            (451, errors.BadResponse), (408, errors.OriginUnavailable), (425, errors.OriginUnavailable),
            (500, errors.OriginUnavailable), (502, errors.OriginUnavailable), (504, errors.OriginUnavailable),
            (599, errors.OriginUnavailable), (429, errors.Throttled), (503, errors.Throttled),
            (202, errors.OriginUnavailable), (204, errors.BadResponse), (206, errors.BadResponse),
            (304, errors.BadResponse), (416, errors.BadResponse), (300, errors.BadResponse),
            (999, errors.BadResponse),
        ],
    )  # fmt: skip
    def test_error(self, code: int, kind: type[errors.FetchError]) -> None:
        error = self.fails(self.answering(server.status(code, b"")), kind)
        assert type(error) is kind
        assert str(code) in error.reason

    @pytest.mark.parametrize("code", [429, 503])
    def test_retry_after(self, code: int) -> None:
        error = self.fails(self.answering(server.status(code, retry_after="7")), errors.Throttled)
        assert isinstance(error, errors.Throttled)
        assert error.retry_after_s == 7

    def test_retry_after_as_a_date(self) -> None:
        soon = server.http_date(time.time() + 100)
        error = self.fails(self.answering(server.status(503, retry_after=soon)), errors.Throttled)
        assert isinstance(error, errors.Throttled)
        assert error.retry_after_s is not None
        assert 90 < error.retry_after_s <= 100

    @pytest.mark.parametrize("text", ["", "soon", "-5", "1e9", "Thu, 01 Jan 1970 00:00:00 GMT", "Thu, 99 Foo 2999"])
    def test_retry_after_past_or_nonsense(self, text: str) -> None:
        error = self.fails(self.answering(server.status(503, retry_after=text)), errors.Throttled)
        assert isinstance(error, errors.Throttled)
        assert error.retry_after_s is None


class TestTrouble(HttpCase):
    def test_refused(self) -> None:
        with Origin() as gone:
            url = gone.url("/a")
        assert "refused" in self.fails(self.spec(url), errors.ConnectionLost).reason

    def test_unknown_host(self) -> None:
        self.fails(self.spec("http://no-such-host.invalid/a"), errors.ConnectionLost)

    def test_reset(self) -> None:
        self.fails(self.answering(server.reset(SOME_MB, 1000)), errors.ConnectionLost)

    def test_closed_without_an_answer(self) -> None:
        self.fails(self.answering(server.raw(b"")), errors.ConnectionLost)

    @pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 abc\r\n\r\n", b"<html>\r\n\r\n"])
    def test_not_http(self, answer: bytes) -> None:
        self.fails(self.answering(server.raw(answer)), errors.BadResponse)

    def test_no_answer_times_out(self) -> None:
        self.fails(self.answering(server.silent()), errors.FetchTimeout, configured(limits=QUICK))

    def test_stall_in_the_body_times_out(self) -> None:
        spec = self.answering(server.drip(SOME_MB, every_s=30, piece=2 << 20))
        self.fails(spec, errors.FetchTimeout, configured(limits=QUICK))

    def test_slow_drip_times_out(self) -> None:
        began = time.monotonic()
        spec = self.answering(server.drip(SOME_MB, every_s=0.1))
        self.fails(spec, errors.FetchTimeout, configured(limits=QUICK))
        assert time.monotonic() - began < 10

    def test_slow_but_steady_arrives(self) -> None:
        spec = self.answering(server.drip(SOME_MB[:12_000], every_s=0.4, piece=2000))
        assert self.fetch(spec, context=configured(limits=QUICK))[0] == SOME_MB[:12_000]

    def test_interrupted_while_waiting_for_an_answer(self) -> None:
        self._interrupted(server.silent())

    def test_interrupted_in_a_stalled_body(self) -> None:
        self._interrupted(server.drip(SOME_MB, every_s=30, piece=2 << 20))

    def test_interrupted_in_a_slow_drip(self) -> None:
        self._interrupted(server.drip(SOME_MB, every_s=0.1))

    def _interrupted(self, behaviour: server.Behaviour) -> None:
        began = time.monotonic()

        def control(count: int) -> None:
            if time.monotonic() - began > 0.2:
                raise Interrupted("slice")

        scratch = self.scratch(on_bytes=control)
        with pytest.raises(Interrupted):
            self.fetcher.fetch(self.answering(behaviour), scratch, None, self.context())
        assert time.monotonic() - began < 5


class TestResume(HttpCase):
    ETAG = '"v1"'

    def resume(self, behaviour: server.Behaviour, at: int = 1_500_000, data: bytes = SOME_MB) -> bytes:
        """Break off after ``at`` bytes of ``data``, then go on against ``behaviour``: what is in the file then."""
        cut = server.truncated(data, at, etag=self.ETAG, accept_ranges="bytes")
        spec = self.answering(server.sequence(cut, behaviour))
        first = self.scratch(keep=True)
        with pytest.raises(errors.Truncated):
            self.fetcher.fetch(spec, first, None, self.context())
        first.close(discard=False)
        scratch = self.scratch(keep=True)
        assert (scratch.size, scratch.journal is not None) == (at, True)
        assert self.fetcher.fetch(spec, scratch, None, self.context()) is not None
        data = scratch.path.read_bytes()
        assert scratch.digest() == "sha256:" + hashlib.sha256(data).hexdigest()
        return data

    def test_goes_on_where_it_broke_off(self) -> None:
        assert self.resume(server.file(SOME_MB, etag=self.ETAG)) == SOME_MB
        asked = self.origin.log[1].headers
        assert (asked["Range"], asked["If-Range"]) == ("bytes=1500000-", self.ETAG)
        assert self.origin.count() == 2

    def test_another_version_is_fetched_whole(self) -> None:
        other = SOME_MB[::-1]
        assert self.resume(server.file(other, etag='"v2"')) == other
        assert self.origin.count() == 2

    def test_server_that_ignores_ranges(self) -> None:
        assert self.resume(server.file(SOME_MB, etag=self.ETAG, ranges=False)) == SOME_MB

    def test_everything_was_there(self) -> None:
        assert self.resume(server.file(SOME_MB, etag=self.ETAG), at=len(SOME_MB) - 1) == SOME_MB

    @pytest.mark.parametrize(
        "content_range",
        ["bytes 0-99/100", "bytes 1500001-2109496/2109497", "bytes 1500000-2109496/*", "bytes 1500000-2109495/2109497",
         "bytes 1500000-2109497/2109498", "items 1-2/3", ""],
    )  # fmt: skip
    def test_odd_ranges_are_not_mixed_in(self, content_range: str) -> None:
        odd = server.status(206, b"X" * 50, etag=self.ETAG, content_range=content_range)
        assert self.resume(server.sequence(odd, server.file(SOME_MB, etag=self.ETAG))) == SOME_MB
        assert "Range" not in self.origin.log[2].headers

    def test_rest_of_another_version_is_not_mixed_in(self) -> None:
        rest = f"bytes 1500000-{len(SOME_MB) - 1}/{len(SOME_MB)}"
        other = server.status(206, b"X" * (len(SOME_MB) - 1_500_000), etag='"v2"', content_range=rest)
        assert self.resume(server.sequence(other, server.file(SOME_MB, etag=self.ETAG))) == SOME_MB

    def test_range_not_satisfiable_starts_again(self) -> None:
        no = server.status(416, content_range="bytes */7")
        assert self.resume(server.sequence(no, server.file(SOME_MB, etag=self.ETAG))) == SOME_MB

    def test_complete_but_unconfirmed(self) -> None:
        spec = self.answering(server.file(SOME_MB, etag=self.ETAG))
        scratch = self.scratch(keep=True)
        scratch.note(self.ETAG, len(SOME_MB))
        scratch.write(SOME_MB)
        fetched = self.fetcher.fetch(spec, scratch, None, self.context())
        assert fetched is not None
        assert fetched.version == self.ETAG
        assert scratch.path.read_bytes() == SOME_MB
        assert self.origin.count() == 1

    @pytest.mark.parametrize(
        "headers", [{"etag": 'W/"v1"', "accept_ranges": "bytes"}, {"etag": '"v1"'}, {"accept_ranges": "bytes"}]
    )
    def test_not_resumable_without_a_strong_etag_and_ranges(self, headers: dict[str, str]) -> None:
        spec = self.answering(server.truncated(SOME_MB, 100, **headers))
        scratch = self.scratch(keep=True)
        with pytest.raises(errors.Truncated):
            self.fetcher.fetch(spec, scratch, None, self.context())
        assert scratch.journal is None
