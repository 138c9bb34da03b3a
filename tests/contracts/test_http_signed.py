"""URLs that are good for a while only: signed by a function that is installed on the data node, and signed anew when
they are over."""

from __future__ import annotations

import itertools
import logging
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from ingest import errors
from ingest.model import FileSpec
from ingest.sections import Connection, Egress, Http, Limits
from ingest.settings import Settings
from ingest.store.scratch import Scratch
from tests.servers import http as server
from tests.servers.http import Origin
from tests.servers.http.ranged import Ranged, content
from workers.fetchers.base import Context
from workers.fetchers.http import HttpFetcher, signing

MB = 1 << 20
SIZE = 6 * MB
SOURCE = "https://bucket.example/large.bin"

MODULE = """
calls = []
def sign(uri, profile):
    calls.append((uri, profile["team"]))
    return profile["place"] + "?signature=s3cret-%d" % len(calls)
def fails(uri, profile):
    raise KeyError("s3cret")
def lost(uri, profile):
    raise ConnectionResetError("s3cret")
def denies(uri, profile):
    from ingest.errors import NotFound
    raise NotFound(uri, "no such file in the catalogue")
def nonsense(uri, profile):
    return "file:///etc/passwd?s3cret"
"""


class Signed:
    """A place that is open to the signatures it has given, each for so many answers."""

    def __init__(self, behind: server.Behaviour, good_for: int, status: int = 403) -> None:
        self.behind, self.good_for, self.status = behind, good_for, status
        self.used: dict[str, int] = {}
        self._lock = threading.Lock()

    def __call__(self, to: server.Handler) -> None:
        signature = to.path.partition("?signature=")[2]
        with self._lock:
            used = self.used[signature] = self.used.get(signature, 0) + 1
        if not signature or used > self.good_for:
            return to.head(self.status, {"Content-Length": "0"})
        return self.behind(to)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A package with entry points, as pip would install it."""
    name = f"signers_{next(_numbers)}"
    site = tmp_path / "site"
    info = site / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (site / f"{name}.py").write_text(MODULE)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    points = "".join(f"{each} = {name}:{each}\n" for each in ("sign", "fails", "lost", "denies", "nonsense"))
    (info / "entry_points.txt").write_text(f"[{signing.GROUP}]\n{points}broken = {name}:nothing\n")
    monkeypatch.syspath_prepend(str(site))
    signing._entry_point.cache_clear()
    import importlib

    yield importlib.import_module(name)
    signing._entry_point.cache_clear()
    sys.modules.pop(name)


_numbers = itertools.count()


class Case:
    def __init__(self, root: Path, origin: Origin) -> None:
        self.root, self.origin = root, origin
        self.fetcher = HttpFetcher()

    def fetch(self, behaviour: server.Behaviour, refresh: str = "sign", **sections: Any) -> bytes:
        values: Mapping[str, Any] = {
            "match": "https://bucket.example/", "refresh": refresh, "bearer": "t0ken", "team": "vision",
            "place": self.origin.on("/place", behaviour),
        }  # fmt: skip
        settings = Settings(limits=Limits(connect_s=1, stall_s=3), **sections)
        scratch = Scratch(self.root, "key", SOURCE, fsync=False)
        try:
            found = self.fetcher.fetch(
                FileSpec(0, 0, SOURCE), scratch, None, Context(settings, Connection("c", values))
            )
            assert found is not None
            return scratch.path.read_bytes()
        finally:
            scratch.close(discard=True)


@pytest.fixture
def case(tmp_path: Path, origin: Origin, installed: Any) -> Case:
    return Case(tmp_path, origin)


HTTP = Http(ranges=3, range_bytes=256 << 10, ranges_from_bytes=MB)


def test_it_is_signed_and_the_profile_speaks_to_the_source_only(case: Case, installed: Any) -> None:
    assert case.fetch(Signed(server.file(b"x"), 1)) == b"x"
    assert installed.calls == [(SOURCE, "vision")]
    assert "Authorization" not in case.origin.log[0].headers


@pytest.mark.parametrize("status", [400, 401, 403])
def test_it_expires_half_way_and_is_signed_again(case: Case, installed: Any, status: int) -> None:
    place = Signed(Ranged(SIZE, rate=4 * MB), 5, status)
    assert case.fetch(place, http=HTTP) == content(0, SIZE)
    assert 3 <= len(installed.calls) <= 8, "once for each time that it expired, not once for each connection"


def test_one_that_never_works_is_not_signed_for_ever(case: Case, installed: Any) -> None:
    with pytest.raises(errors.AccessDenied):
        case.fetch(Signed(server.file(b"x"), 0))
    assert len(installed.calls) == 1


def test_a_redirect_to_a_place_that_expires_is_followed_again(case: Case) -> None:
    """So do many hosts of models and data sets; nothing needs to be installed for it."""
    place = Signed(Ranged(SIZE, rate=4 * MB), 5)
    case.origin.on("/place", place)
    numbers = itertools.count()
    url = case.origin.on("/file", lambda to: server.redirect(f"/place?signature=s{next(numbers)}")(to))
    scratch = Scratch(case.root, "key", url, fsync=False)
    case.fetcher.fetch(FileSpec(0, 0, url), scratch, None, Context(Settings(http=HTTP)))
    assert scratch.path.read_bytes() == content(0, SIZE) and 3 <= next(numbers) <= 9
    scratch.close(discard=True)


@pytest.mark.parametrize(
    ("refresh", "kind", "says"),
    [
        ("fails", errors.AccessDenied, "KeyError"),
        ("lost", errors.OriginUnavailable, "ConnectionResetError"),
        ("denies", errors.NotFound, "catalogue"),
        ("nonsense", errors.AccessDenied, "no http"),
        ("broken", errors.PermanentFetchError, "AttributeError"),
        ("unknown", errors.PermanentFetchError, "ingest.refreshers"),
    ],
)
def test_one_that_cannot_sign(case: Case, refresh: str, kind: type[errors.FetchError], says: str) -> None:
    with pytest.raises(kind, match=says) as caught:
        case.fetch(server.file(b"x"), refresh)
    assert type(caught.value) is kind and caught.value.uri == SOURCE and "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "behaviour",
    [server.status(403), server.status(500), server.redirect("ftp://h/"), server.raw(b"?"), server.truncated(b"ab", 1),
     server.silent()],
    ids=["403", "500", "redirect", "nonsense", "cut", "silent"],
)  # fmt: skip
def test_the_signature_is_in_no_error_and_no_log(
    case: Case, behaviour: server.Behaviour, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO), pytest.raises(errors.FetchError) as caught:
        case.fetch(behaviour)
    assert caught.value.uri == SOURCE
    assert "s3cret" not in str(caught.value) + repr(caught.value.args) + caplog.text


def test_policy_holds_for_what_was_signed(case: Case) -> None:
    with pytest.raises(errors.EgressDenied):
        case.fetch(server.file(b"x"), egress=Egress(strict=True))
    assert case.origin.count() == 0
