"""HttpFetcher on its way to a file: redirects, profiles, TLS and where it may not go."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest import errors
from ingest.sections import Egress, Http
from tests.contracts.contract import SOME_MB
from tests.contracts.test_http import QUICK, HttpCase, configured
from tests.servers import http as server
from tests.servers.http import Origin


class TestRedirects(HttpCase):
    def test_followed(self) -> None:
        self.put("end", b"x")
        self.origin.on("/mid", server.redirect("/end", 308))
        assert self.fetch(self.answering(server.redirect("mid", 301)))[0] == b"x"
        assert len({asked.client for asked in self.origin.log}) == 1

    @pytest.mark.parametrize(
        "location", ["file:///etc/passwd", "ftp://h/a", "javascript:0", "http://", "//[bad/", "/no-utf-8-\xff"]
    )
    def test_only_to_http(self, location: str) -> None:
        self.fails(self.answering(server.redirect(location)), errors.BadResponse)

    def test_without_location(self) -> None:
        self.fails(self.answering(server.status(302)), errors.BadResponse)

    def test_circle(self) -> None:
        self.origin.on("/y", server.redirect("/x"))
        assert "circle" in self.fails(self.answering(server.redirect("/y")), errors.BadResponse).reason
        assert self.origin.count() <= 4

    def test_too_many(self) -> None:
        for n in range(20):
            self.origin.on(f"/{n}", server.redirect(f"/{n + 1}"))
        error = self.fails(self.spec(self.origin.url("/0")), errors.BadResponse, configured(http=Http(redirects=3)))
        assert "3" in error.reason
        assert self.origin.count() == 4

    def test_endless_body_of_a_redirect_is_not_read(self) -> None:
        self.put("end", b"x")

        def answer(to: server.Handler) -> None:
            to.head(302, {"Location": "/end", "Transfer-Encoding": "chunked"})
            while not to.server.origin.closing.is_set():
                to.send_chunk(b"\0" * 65536)

        assert self.fetch(self.answering(answer))[0] == b"x"

    def test_slow_body_of_a_redirect_is_not_waited_for(self) -> None:
        """It may take as long as the server likes, and is above what counts as a stall."""
        self.put("end", b"x")

        def answer(to: server.Handler) -> None:
            to.head(302, {"Location": "/end", "Content-Length": "60000"})
            for _ in range(30):
                to.send(b"y" * 100)
                if not to.wait(1.0):
                    return
            ended.append(True)
            to.cut()

        ended: list[bool] = []
        assert self.fetch(self.answering(answer), context=configured(http=Http(stall_bytes=10)))[0] == b"x"
        assert not ended and len({asked.client for asked in self.origin.log}) == 2

    def test_cookie_of_a_redirect_is_for_its_own_origin_only(self) -> None:
        with Origin() as other:
            other.put("/end", b"x")
            self.origin.on("/mid", server.redirect(other.url("/end")))
            self.fetch(self.answering(server.redirect("/mid", set_cookie="session=s3cret; Path=/")))
            assert self.origin.log[1].headers["Cookie"] == "session=s3cret"
            assert "Cookie" not in other.log[0].headers
        self.fetch(self.put("later", b"x"))
        assert "Cookie" not in self.origin.log[-1].headers

    def test_credentials_stay_at_home(self) -> None:
        profile = {"bearer": "s3cret", "headers": {"X-Api-Key": "k3y", "Cookie": "c=1"}}
        with Origin() as other:
            other.on("/out", server.redirect(self.origin.url("/end")))
            self.put("end", b"x")
            self.origin.on("/mid", server.redirect(other.url("/out")))
            self.fetch(self.answering(server.redirect("/mid")), context=configured(profile))
            first, second, last = self.origin.log
            for asked in (first, second):
                assert asked.headers["Authorization"] == "Bearer s3cret"
                assert asked.headers["X-Api-Key"] == "k3y"
            for asked in (*other.log, last):
                assert not {"Authorization", "X-Api-Key", "Cookie"} & set(asked.headers)

    def test_password_in_a_redirect_is_not_sent(self) -> None:
        self.put("end", b"x")
        self.fetch(self.answering(server.redirect(f"http://me:pw@127.0.0.1:{self.origin.port}/end")))
        assert "Authorization" not in self.origin.log[1].headers


class TestProfile(HttpCase):
    def test_basic(self) -> None:
        self.fetch(self.put("a", b"x"), context=configured({"user": "mé", "password": "p:w"}))
        sent = self.origin.log[0].headers["Authorization"].removeprefix("Basic ")
        assert base64.b64decode(sent).decode() == "mé:p:w"

    def test_profile_is_named_where_it_is_refused(self) -> None:
        error = self.fails(self.answering(server.status(403)), errors.AccessDenied, configured({"bearer": "s3cret"}))
        assert "[connections.profile]" in error.reason
        assert "s3cret" not in str(error)

    def test_unusable_header_is_not_shown(self) -> None:
        error = self.fails(self.put("a", b"x"), errors.BadResponse, configured({"bearer": "s3cret\nX: y"}))
        assert "s3cret" not in str(error)

    def test_certificate_file_that_is_not_there(self) -> None:
        self.fails(self.put("a", b"x"), errors.AccessDenied, configured({"cert": ["/nowhere/c.pem", "/nowhere/k.pem"]}))


class TestTls(HttpCase):
    @pytest.fixture
    def tls(self, tmp_path: Path) -> Iterator[tuple[Origin, str]]:
        context, ca = server.self_signed(str(tmp_path))
        with Origin(tls=context) as origin:
            yield origin, ca

    def test_untrusted_certificate(self, tls: tuple[Origin, str]) -> None:
        origin, _ = tls
        error = self.fails(self.spec(origin.put("/a", b"x")), errors.BadResponse)
        assert "certificate" in error.reason
        assert origin.count() == 0

    def test_private_ca(self, tls: tuple[Origin, str]) -> None:
        origin, ca = tls
        assert self.fetch(self.spec(origin.put("/a", SOME_MB)), context=configured({"verify": ca}))[0] == SOME_MB

    def test_truncated(self, tls: tuple[Origin, str]) -> None:
        origin, ca = tls
        spec = self.spec(origin.on("/a", server.truncated(SOME_MB, 5000)))
        assert isinstance(self.fails(spec, errors.TransientFetchError, configured({"verify": ca})), errors.Truncated)

    def test_stall(self, tls: tuple[Origin, str]) -> None:
        origin, ca = tls
        spec = self.spec(origin.on("/a", server.drip(SOME_MB, every_s=30, piece=2 << 20)))
        self.fails(spec, errors.FetchTimeout, configured({"verify": ca}, limits=QUICK))

    def test_http_where_tls_is_meant(self) -> None:
        self.put("a", b"x")
        self.fails(self.spec(self.origin.url("/a").replace("http:", "https:")), errors.BadResponse)


class TestEgress(HttpCase):
    def test_private_address_given_by_the_user_works(self) -> None:
        assert self.fetch(self.put("a", b"x"))[0] == b"x"

    def test_every_spelling_of_a_private_address_is_seen_through(self) -> None:
        strict = configured(egress=Egress(strict=True))
        self.put("a", b"x")
        for host in ("127.0.0.1", "localhost", "2130706433", "0177.0.0.1", "0x7f.1", "[::ffff:127.0.0.1]", "127.1"):
            error = self.fails(self.spec(f"http://{host}:{self.origin.port}/a"), errors.EgressDenied, strict)
            assert "allow" in error.reason
        assert self.origin.count() == 0

    @pytest.mark.parametrize("allow", ["localhost", "LOCAL*", "127.0.0.0/8", "127.0.0.1"])
    def test_strict_allows_what_is_named(self, allow: str) -> None:
        self.put("a", b"x")
        context = configured(egress=Egress(allow=(allow,), strict=True))
        assert self.fetch(self.spec(f"http://localhost:{self.origin.port}/a"), context=context)[0] == b"x"

    @pytest.mark.parametrize(
        "host",
        ["169.254.169.254", "2852039166", "[fe80::1]", "[::ffff:169.254.169.254]", "[fd00:ec2::254]"],
    )
    def test_metadata_never(self, host: str) -> None:
        context = configured(egress=Egress(allow=("*", "0.0.0.0/0", "::/0")))
        error = self.fails(self.spec(f"http://{host}/latest/meta-data"), errors.EgressDenied, context)
        assert "metadata" in error.reason

    def test_redirect_to_metadata(self) -> None:
        self.fails(self.answering(server.redirect("http://169.254.169.254/latest")), errors.EgressDenied)

    def test_redirect_between_private_addresses(self) -> None:
        with Origin() as other:
            assert self.fetch(self.answering(server.redirect(other.put("/a", b"x"))))[0] == b"x"

    @pytest.fixture
    def public(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Origin]:
        """An origin that is public as far as can be seen: a name that only a proxy knows the address of."""
        with Origin() as proxy:
            monkeypatch.setenv("http_proxy", proxy.url())
            monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")
            yield proxy

    def test_proxy_is_not_judged(self, public: Origin) -> None:
        public.put("/a", b"x")
        spec = self.spec("http://public.example/a")
        assert self.fetch(spec, context=configured(egress=Egress(strict=True)))[0] == b"x"

    def test_redirect_from_public_to_private(self, public: Origin) -> None:
        public.on("/a", server.redirect(f"http://localhost:{self.origin.port}/secret"))
        self.put("secret", b"x")
        self.fetch(self.spec(self.origin.url("/secret")))
        spec = self.spec("http://public.example/a")
        error = self.fails(spec, errors.EgressDenied)
        assert "127.0.0.1" in error.reason
        assert 'allow = ["localhost"]' in error.reason
        assert self.origin.count("/secret") == 1
        assert self.fetch(spec, context=configured(egress=Egress(allow=("localhost",))))[0] == b"x"

    def test_kept_connection_is_judged_again(self, public: Origin) -> None:
        secret = self.put("secret", b"x")
        self.fetch(secret)
        public.on("/a", server.redirect(secret.uri))
        self.fails(self.spec("http://public.example/a"), errors.EgressDenied)
        assert self.origin.count() == 1

    def test_metadata_by_a_proxy(self, public: Origin) -> None:
        self.fails(self.spec("http://169.254.169.254/latest"), errors.EgressDenied)
        assert public.count() == 0
