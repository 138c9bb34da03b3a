"""Who an HTTP fetcher speaks to: other hosts by a redirect, TLS, names, addresses, proxies. See ``rig``."""

from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import pytest

from ingest import errors
from ingest.sections import Connection, Egress, Http
from tests.contracts.rig import DATA, QUICK, Rig, row
from tests.servers import http as server
from tests.servers.http import Origin, answered
from tests.servers.http.proxy import Proxy
from tests.servers.http.tls import self_signed
from tests.servers.node import running_service


@row("a chain of 20 redirects", errors.BadResponse)
def test_a_chain_of_redirects(origin: Origin, tmp_path: Path) -> None:
    for n in range(20):
        origin.on(f"/{n}", server.redirect(f"/{n + 1}"))
    Rig(tmp_path).fails(errors.BadResponse, origin.url("/0"), "more than 10 redirects")
    assert origin.count() == 11
    origin.put("/20", DATA)
    Rig(tmp_path / "patient", http=Http(redirects=20)).gets(DATA, origin.url("/0"))


@row("a redirect to another host, with credentials")
def test_credentials_do_not_go_to_another_host(origin: Origin, tmp_path: Path) -> None:
    with Origin() as other:
        url = origin.on("/a", server.redirect(other.put("/a", DATA)))
        profile = Connection("corp", {"match": origin.url("/"), "bearer": "s3cret", "headers": {"X-Api-Key": "k3y"}})
        Rig(tmp_path, connections={"corp": profile}).gets(DATA, url, connection="corp")
        assert origin.log[0].headers["Authorization"] == "Bearer s3cret"
        assert not {"Authorization", "X-Api-Key", "Cookie"} & set(other.log[0].headers)


def test_credentials_go_to_the_host_that_is_really_asked(origin: Origin, tmp_path: Path) -> None:
    """Readers of URLs differ: to some of them what is before the backslash is a user's name."""
    with Origin() as other:
        behind = f"@127.0.0.1:{origin.port}/x"
        url = origin.on("/a", server.redirect(f"http://localhost:{other.port}\\{behind}"))
        profile = Connection("corp", {"match": origin.url("/"), "bearer": "s3cret", "headers": {"X-Api-Key": "k3y"}})
        rig = Rig(tmp_path, connections={"corp": profile})
        rig.fails(errors.NotFound, url, "404", connection="corp")
        assert origin.log[0].headers["Authorization"] == "Bearer s3cret"
        assert not {"Authorization", "X-Api-Key"} & set(other.log[0].headers)


def test_a_profile_of_a_host_is_for_no_other_whatever_is_before_the_at(origin: Origin, tmp_path: Path) -> None:
    """A client would have refused the password; whoever writes to the queue himself has no such client."""
    with Origin() as other:
        other.put("/a", DATA)
        url = f"http://127.0.0.1:x@localhost:{other.port}/a"
        profile = Connection("corp", {"match": "http://127.0.0.1", "bearer": "s3cret"})
        rig = Rig(tmp_path, connections={"corp": profile})
        rig.fails(errors.EgressDenied, url, "is for URIs under http://127.0.0.1 only", connection="corp")
        rig.gets(DATA, url)
        assert "Authorization" not in other.log[0].headers
        rig.fetch(origin.put("/b", DATA))
        assert origin.log[0].headers["Authorization"] == "Bearer s3cret", "any port of that host"


@pytest.mark.parametrize("url", ["http://h:99999/a", "http://h:abc/a", "http://[::1", "http://[::1]x/a", "http://*/a"])
def test_what_is_no_url_is_said_on_the_node_too(url: str, tmp_path: Path) -> None:
    Rig(tmp_path).fails(errors.BadResponse, url, "not a URL")


def tls(root: Path, **certificate: Any) -> tuple[Origin, str]:
    context, ca = self_signed(root, **certificate)
    return Origin(tls=context), ca


@row("TLS: a certificate that nobody signed", errors.BadResponse)
def test_a_certificate_that_nobody_signed(tmp_path: Path) -> None:
    served, _ = tls(tmp_path)
    with served as origin:
        Rig(tmp_path).fails(errors.BadResponse, origin.put("/a", DATA), "certificate is not trusted .*self-signed")
        assert origin.count() == 0


@row("TLS: a certificate of another name", errors.BadResponse)
def test_a_certificate_of_another_name(tmp_path: Path) -> None:
    served, ca = tls(tmp_path, host="elsewhere.example")
    with served as origin:
        rig = Rig(tmp_path, connections={"tls": Connection("tls", {"match": origin.url("/"), "verify": ca})})
        rig.fails(
            errors.BadResponse, origin.put("/a", DATA), "certificate is not trusted .*127.0.0.1", connection="tls"
        )
        assert origin.count() == 0


@row("TLS: a certificate that has expired", errors.BadResponse)
def test_a_certificate_that_has_expired(tmp_path: Path) -> None:
    served, ca = tls(tmp_path, ends_in_days=-1)
    with served as origin:
        rig = Rig(tmp_path, connections={"tls": Connection("tls", {"match": origin.url("/"), "verify": ca})})
        rig.fails(errors.BadResponse, origin.put("/a", DATA), "certificate is not trusted .*expired", connection="tls")


@row("TLS: cut off where no length was announced", errors.ConnectionLost)
def test_tls_without_its_end(tmp_path: Path) -> None:
    served, ca = tls(tmp_path)
    with served as origin:
        rig = Rig(tmp_path, connections={"tls": Connection("tls", {"match": origin.url("/"), "verify": ca})})
        url = origin.on("/a", answered("HTTP/1.0 200 OK", DATA))
        rig.fails(errors.ConnectionLost, url, "TLS connection was cut off", connection="tls")


@row("the host's name does not resolve", errors.ConnectionLost)
def test_a_name_that_does_not_resolve(tmp_path: Path) -> None:
    Rig(tmp_path).fails(errors.ConnectionLost, "http://no-such-host.invalid/a", "did not resolve")


@row("the connection is refused", errors.ConnectionLost)
def test_a_connection_that_is_refused(tmp_path: Path) -> None:
    with Origin() as gone:
        url = gone.url("/a")
    Rig(tmp_path).fails(errors.ConnectionLost, url, "refused")


@row("nobody takes the connection", errors.FetchTimeout)
def test_nobody_takes_the_connection(tmp_path: Path) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for each in waiting:  # more than the queue holds: the next one hears nothing
                each.setblocking(False)
                each.connect_ex(full.getsockname())
            url = f"http://127.0.0.1:{full.getsockname()[1]}/a"
            Rig(tmp_path, limits=QUICK).fails(errors.FetchTimeout, url, "no connection within 0.5 s")
        finally:
            for each in waiting:
                each.close()


@row("IPv6")
def test_ipv6(tmp_path: Path) -> None:
    try:
        origin = Origin(host="::1")
    except OSError as error:
        pytest.skip(f"this machine has no IPv6 loopback: {error}")
    with origin:
        assert "//[::1]:" in origin.url()
        Rig(tmp_path).gets(DATA, origin.put("/a", DATA))


# -- patience ----------------------------------------------------------------------------------------------------------


@row("503 for two minutes, then fine")
def test_an_origin_that_is_away_for_two_minutes(origin: Origin, tmp_path: Path) -> None:
    """With every wait a hundredth of what it is by default."""
    over = time.monotonic() + 1.2
    url = origin.on("/a", server.only_after(lambda: time.monotonic() > over, server.status(503), server.file(DATA)))
    with running_service(tmp_path, config="[retry]\nbase_s = 0.005\ncap_s = 0.6\n") as service:
        job = service.client().submit(url)
        over = time.monotonic() + 1.2
        (file,) = job.files(timeout=60)
        assert file.path.read_bytes() == DATA and job.failures() == []
        assert origin.count("/a") <= 12 and service.scratch() == []


# -- proxies, and who is judged ----------------------------------------------------------------------------------------


def by_proxy(monkeypatch: pytest.MonkeyPatch, proxy: Proxy) -> None:
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("https_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "127.0.0.1,localhost")


def test_a_proxy_passes_requests_on_over_one_connection(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin.put("/a", DATA)
    with Proxy({"data.example": ("127.0.0.1", origin.port)}, login="me:pa55word") as proxy:
        by_proxy(monkeypatch, proxy)
        rig = Rig(tmp_path)
        for _ in range(3):
            rig.fetch("http://data.example/a")
        assert proxy.asked == ["GET http://data.example/a"] * 3 and len(proxy.connections) == 1


def test_tls_goes_through_a_tunnel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served, ca = tls(tmp_path, host="data.example")
    with served as origin, Proxy({"data.example": ("127.0.0.1", origin.port)}) as proxy:
        origin.put("/a", DATA)
        by_proxy(monkeypatch, proxy)
        profile = Connection("tls", {"match": "https://data.example/", "verify": ca, "bearer": "s3cret"})
        rig = Rig(tmp_path, connections={"tls": profile})
        for _ in range(3):
            assert rig.bytes_of(rig.fetch("https://data.example/a", connection="tls")) == DATA
        assert proxy.asked == ["CONNECT data.example:443"], "one tunnel, used again"
        assert "s3cret" not in str(proxy.headers), "what is for the origin is not for the proxy"
        assert origin.log[0].headers["Authorization"] == "Bearer s3cret"
        assert len({asked.client for asked in origin.log}) == 1


@row("the proxy refuses, or cannot be reached", errors.ConnectionLost)
def test_a_proxy_that_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Proxy({}, login="me:pa55word") as proxy:
        monkeypatch.setenv("https_proxy", proxy.url.replace("pa55word", "wr0ng"))
        error = Rig(tmp_path).fails(errors.ConnectionLost, "https://data.example/a", "proxy")
        assert "wr0ng" not in str(error)
    monkeypatch.setenv("https_proxy", proxy.url)
    Rig(tmp_path).fails(errors.ConnectionLost, "https://data.example/a")


@row("a redirect from a public address to loopback or another private one", errors.EgressDenied)
def test_a_redirect_from_public_to_loopback(origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy, a name is public as far as can be seen."""
    origin.put("/secret", DATA)
    with Origin() as public, Proxy({"public.example": ("127.0.0.1", public.port)}) as proxy:
        by_proxy(monkeypatch, proxy)
        for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "0177.0.0.1", "[::ffff:127.0.0.1]"):
            public.on("/a", server.redirect(f"http://{host}:{origin.port}/secret"))
            monkeypatch.setenv("no_proxy", host.strip("[]"))
            Rig(tmp_path).fails(errors.EgressDenied, "http://public.example/a", "public server redirects")
        assert origin.count() == 0
        rig = Rig(tmp_path, egress=Egress(allow=("127.0.0.0/8",)))
        public.on("/a", server.redirect(origin.url("/secret")))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        rig.gets(DATA, "http://public.example/a")


@row("a name that resolves differently the second time", errors.EgressDenied)
def test_a_name_is_looked_up_once_and_judged_by_where_it_led(
    origin: Origin, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever owns a name can answer a check with a public address and the connection with a private one. Nothing is
    judged by a look-up here: the socket says where it leads."""
    asked: list[object] = []
    real = socket.getaddrinfo

    def rebinding(host: Any, *args: Any, **kwargs: Any) -> Any:
        if host != "rebinding.example":
            return real(host, *args, **kwargs)
        asked.append(host)
        return real("127.0.0.1" if len(asked) % 2 else "93.184.215.14", *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    origin.put("/secret", DATA)
    url = f"http://rebinding.example:{origin.port}/secret"
    Rig(tmp_path, egress=Egress(strict=True)).fails(errors.EgressDenied, url, r"rebinding.example \(127.0.0.1\)")
    assert len(asked) == 1 and origin.count() == 0


def test_a_connection_is_used_again_for_the_files_of_a_host(origin: Origin, tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    for n in range(5):
        rig.fetch(origin.put(f"/{n}", DATA))
        with pytest.raises(errors.NotFound):
            rig.fetch(origin.url("/nowhere"))
    assert len({asked.client for asked in origin.log}) == 1


def test_what_comes_after_an_answer_is_nobodys_answer(origin: Origin, tmp_path: Path) -> None:
    """A server that sends too much cannot make the rest of it the answer to the next request."""
    forged = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"

    def answer(to: server.Handler) -> None:
        to.wfile.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\nno" + forged)

    rig = Rig(tmp_path)
    rig.fails(errors.NotFound, origin.on("/a", answer))
    rig.gets(DATA, origin.put("/b", DATA))
    assert len({asked.client for asked in origin.log}) == 2
