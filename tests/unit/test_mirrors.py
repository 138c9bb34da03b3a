"""Several URIs of the same bytes: the next one when one fails, what is kept between them, and what an error says."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest import errors
from ingest.model import FileRecord, FileSpec, JobOptions
from ingest.sections import Connection, Limits, StoreLimits
from ingest.settings import Settings
from ingest.store import Store
from tests.servers import http as server
from tests.servers.http import Origin
from tests.servers.http.ranged import Ranged, content, digest_of
from workers.mirrors import combined
from workers.node import Node
from workers.transfer import Transfer

MB = 1 << 20
SIZE = 4 * MB
DATA = content(0, SIZE)
DIGEST = digest_of(SIZE)


class Quiet:
    """A control that never interrupts."""

    def advance(self, size_bytes: int) -> None: ...

    def resumed(self, size_bytes: int) -> None: ...


class Rig:
    def __init__(self, root: Path, origin: Origin, **profiles: dict[str, Any]) -> None:
        self.origin, self.root = origin, root
        limits = StoreLimits(root=root / "store", fresh_s=0, fsync=False, min_free_bytes=0)
        connections = {name: Connection(name, values) for name, values in profiles.items()}
        settings = Settings(store=limits, connections=connections, limits=Limits(connect_s=0.5, stall_s=1.5))
        self.store = Store.open(limits)
        self.transfer = Transfer(Node(settings, self.store, "w"), JobOptions(), Quiet())  # type: ignore[arg-type]

    def serve(self, *behaviours: server.Behaviour) -> list[str]:
        return [self.origin.on(f"/{name}.bin", behaviour) for name, behaviour in zip("abc", behaviours, strict=False)]

    def spec(self, urls: list[str], **fields: Any) -> FileSpec:
        return self.transfer.resolve(FileSpec(0, 0, urls[0], mirrors=tuple(urls[1:]), **fields))

    def fetch(self, *behaviours: server.Behaviour, **fields: Any) -> FileRecord:
        (record,) = self.transfer.fetch(self.spec(self.serve(*behaviours), **fields))
        return record

    def bytes_of(self, record: FileRecord) -> bytes:
        return self.store.path_of(record.path).read_bytes()

    def left(self) -> list[Path]:
        return [*(self.store.root / "scratch").iterdir()]


@pytest.fixture
def rig(tmp_path: Path, origin: Origin) -> Iterator[Rig]:
    yield Rig(tmp_path, origin)
    assert [thread.name for thread in threading.enumerate() if thread.name == "http-range"] == []


good = server.file(DATA)


@pytest.mark.parametrize(
    "bad",
    [
        server.status(404), server.status(403), server.status(503), server.redirect("file:///etc/passwd"),
        server.truncated(DATA, 1000), server.raw(b"nonsense"), server.reset(DATA, 1000),
    ],
    ids=["404", "403", "503", "redirect", "cut", "nonsense", "reset"],
)  # fmt: skip
def test_the_next_one_has_it(rig: Rig, bad: server.Behaviour) -> None:
    record = rig.fetch(bad, good)
    assert rig.bytes_of(record) == DATA and record.uri == rig.origin.url("/a.bin") and rig.left() == []
    assert record.digest == DIGEST and record.version == DIGEST, (
        "what a mirror says of versions is not the source's word"
    )
    assert rig.origin.count("/a.bin") == rig.origin.count("/b.bin") == 1


def test_the_first_that_has_it_is_the_last_that_is_asked(rig: Rig) -> None:
    rig.fetch(good, good)
    assert rig.origin.count("/b.bin") == 0


def test_wrong_bytes_are_a_failure_like_any(rig: Rig) -> None:
    record = rig.fetch(server.file(DATA[::-1]), server.file(DATA[:-1]), good, digest=DIGEST)
    assert rig.bytes_of(record) == DATA


def test_what_came_is_gone_on_with_where_the_tag_is_the_same(rig: Rig) -> None:
    cut = server.truncated(DATA, 3 * MB, etag='"v1"', accept_ranges="bytes")
    record = rig.fetch(cut, server.file(DATA, etag='"v1"'))
    assert rig.bytes_of(record) == DATA
    assert rig.origin.asked("/b.bin")[0].headers["Range"] == f"bytes={3 * MB}-"


@pytest.mark.parametrize(("digest", "kept"), [(DIGEST, True), (None, False)])
def test_another_tag_is_the_same_file_only_where_a_digest_tells(rig: Rig, digest: str | None, kept: bool) -> None:
    cut = server.truncated(DATA, 3 * MB, etag='"v1"', accept_ranges="bytes")
    mirror = Ranged(SIZE, etag='"other"')
    record = rig.fetch(cut, mirror, digest=digest)
    assert rig.bytes_of(record) == DATA
    assert mirror.answers[1:] == ([(206, 3 * MB, SIZE)] if kept else [])


def test_a_mixture_that_is_not_the_file_is_never_published_and_no_fault_of_the_last(rig: Rig) -> None:
    other = bytearray(DATA)
    other[10] ^= 1
    cut = server.truncated(bytes(other), 3 * MB, etag='"v1"', accept_ranges="bytes")
    mirror = Ranged(SIZE, etag='"other"')
    record = rig.fetch(cut, mirror, digest=DIGEST)
    assert rig.bytes_of(record) == DATA and rig.left() == []
    assert [each[0] for each in mirror.answers] == [200, 206, 200]


def test_each_one_and_its_reason_is_named(rig: Rig) -> None:
    with pytest.raises(errors.Throttled) as caught:
        rig.fetch(server.status(404), server.status(429, retry_after="7"), server.status(403))
    error = caught.value
    assert error.uri == rig.origin.url("/a.bin") and error.retry_after_s == 7
    for name, code in (("a", 404), ("b", 429), ("c", 403)):
        assert f"{rig.origin.url(f'/{name}.bin')}: the server answered {code}" in error.reason


def test_all_of_them_for_good_is_for_good(rig: Rig) -> None:
    with pytest.raises(errors.NotFound, match="403"):
        rig.fetch(server.status(404), server.status(403))


def test_other_schemes_and_their_own_profiles(tmp_path: Path, origin: Origin) -> None:
    data = tmp_path / "data.bin"
    data.write_bytes(DATA)
    rig = Rig(tmp_path, origin, corp={"match": origin.url("/c.bin"), "bearer": "t0ken"})
    a, b, c = rig.serve(server.status(404), server.status(404), server.status(403))
    (record,) = rig.transfer.fetch(rig.spec([a, "gopher://nowhere/x", b, c, f"file://{data}"]))
    assert rig.bytes_of(record) == DATA
    assert origin.asked("/c.bin")[0].headers["Authorization"] == "Bearer t0ken"
    assert "Authorization" not in origin.asked("/b.bin")[0].headers


def test_what_came_from_a_mirror_is_for_those_who_name_it(tmp_path: Path, origin: Origin) -> None:
    """Else whoever names his own server as the mirror of another's file would decide what all others get."""
    rig = Rig(tmp_path, origin)
    rig.transfer.fresh_s = 600.0
    a, b = rig.serve(server.status(503), good)
    spec = rig.spec([a, b])
    rig.transfer.fetch(spec)
    (again,) = rig.transfer.fetch(spec)
    assert again.reused and rig.transfer.reuse(rig.spec([a], digest=DIGEST))
    with pytest.raises(errors.TransientFetchError):
        rig.transfer.fetch(rig.spec([a]))
    rig.serve(server.file(DATA, etag=None))
    (record,) = rig.transfer.fetch(rig.spec([a]))
    assert not record.reused and rig.transfer.reuse(rig.spec([a])), "the source has said so itself by now"


def test_what_a_mirror_left_is_gone_on_with_by_those_who_name_it(rig: Rig) -> None:
    """Else it would decide what others get of the file, under the tag that the file has everywhere."""
    twisted = server.truncated(b"x" * SIZE, 3 * MB, etag='"v1"', accept_ranges="bytes")
    with pytest.raises(errors.TransientFetchError):
        rig.fetch(server.status(503), twisted)
    own = Ranged(SIZE, etag='"v1"')
    assert rig.bytes_of(rig.fetch(own)) == DATA and own.answers == [(200, 0, SIZE)]


def test_the_source_that_goes_on_with_what_a_mirror_left_does_not_answer_for_it(rig: Rig) -> None:
    cut = server.truncated(DATA, 3 * MB, etag='"v1"', accept_ranges="bytes")
    with pytest.raises(errors.TransientFetchError):
        rig.fetch(server.status(503), cut)
    own = Ranged(SIZE, etag='"v1"')
    urls = rig.serve(own, cut)
    spec = rig.spec(urls)
    (record,) = rig.transfer.fetch(spec)
    assert rig.bytes_of(record) == DATA and own.answers == [(206, 3 * MB, SIZE)]
    assert record.version == record.digest, "an ETag would be the source's own word"
    rig.transfer.fresh_s = 600.0
    assert rig.transfer.reuse(spec) and rig.transfer.reuse(rig.spec(urls[:1], digest=DIGEST))
    assert rig.transfer.reuse(rig.spec(urls[:1])) is None


def test_a_full_disk_is_no_reason_to_ask_a_mirror(rig: Rig) -> None:
    rig.store.limits.__dict__["max_file_bytes"] = 1 << 40

    def full(size: int) -> None:
        raise OSError(28, "No space left on device")

    rig.transfer._control.advance = full  # type: ignore[method-assign]
    with pytest.raises(errors.NodeUnfit):
        rig.fetch(good, good)
    assert rig.origin.count("/b.bin") == 0


def test_an_error_of_several_keeps_what_decides() -> None:
    wrong = [errors.DigestMismatch("u", "sha256:a", found, 5) for found in ("sha256:b", "sha256:c")]
    error = combined("u", [("u", wrong[0]), ("m", wrong[1])])
    assert isinstance(error, errors.DigestMismatch) and "sha256:b, sha256:c" in error.reason
    error = combined("u", [("u", wrong[0]), ("m", errors.FetchTimeout("m", "no data"))])
    assert type(error) is errors.FetchTimeout and "sha256:b" in error.reason
    error = combined("u", [("u", errors.MissingExtra("u", "s3")), ("m", errors.NotFound("m", "404"))])
    assert type(error) is errors.PermanentFetchError and "pip install" in error.reason and "404" in error.reason


def test_the_same_file_of_two_mirrors_is_one_file(rig: Rig) -> None:
    first = rig.fetch(server.status(503), good)
    second = rig.fetch(good, good)
    assert first.digest == second.digest == "sha256:" + hashlib.sha256(DATA).hexdigest()
