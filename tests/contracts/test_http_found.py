"""Digests that are not given: stated in an answer's headers, or in a list of checksums. Verified, or the file fails."""

from __future__ import annotations

import base64
import hashlib
import logging
import sys
from pathlib import Path
from typing import Any

import pytest

import ingest
from ingest import errors
from ingest.model import FileSpec
from ingest.sections import Connection, Http
from ingest.store.scratch import Scratch
from tests.contracts.rig import DATA, Rig
from tests.servers import http as server
from tests.servers.http import Origin
from tests.servers.node import running_service
from tests.unit.test_checksums import MD5
from workers.checksums import MAX_BYTES
from workers.fetchers.http.found import stated

WRONG = DATA[::-1]


def b64(algorithm: str, data: bytes) -> str:
    if algorithm == "crc32c":
        google_crc32c = pytest.importorskip("google_crc32c")
        return base64.b64encode(google_crc32c.value(data).to_bytes(4, "big")).decode()
    return base64.b64encode(hashlib.new(algorithm, data).digest()).decode()


#: A header that states a digest of some bytes → the algorithm.
HEADERS: list[tuple[str, str, str]] = [
    ("repr_digest", "sha-256=:{}:", "sha256"),
    ("repr_digest", "unixsum=:AAAA:, sha-512=:{}:;q=1", "sha512"),
    ("content_digest", "sha-512=:{}:", "sha512"),
    ("digest", "SHA-256={}", "sha256"),
    ("digest", "unixsum=30637,sha-512={}", "sha512"),
    ("digest", "MD5={}", "md5"),
    ("content_md5", "{}", "md5"),
    ("x_goog_hash", "md5={}", "md5"),
    ("x_goog_hash", "crc32c={}", "crc32c"),
    ("x_amz_checksum_sha256", "{}", "sha256"),
    ("x_amz_checksum_sha1", "{}", "sha1"),
    ("x_amz_checksum_crc32c", "{}", "crc32c"),
]


@pytest.mark.parametrize(("header", "form", "algorithm"), HEADERS)
def test_what_an_answer_states_is_verified(
    header: str, form: str, algorithm: str, origin: Origin, tmp_path: Path
) -> None:
    rig = Rig(tmp_path)
    wrong = origin.put("/wrong", DATA, **{header: form.format(b64(algorithm, WRONG))})
    error = rig.fails(errors.DigestMismatch, wrong, "nothing was published")
    assert error.expected.startswith(f"{algorithm}:") and "stated by the origin" in error.reason
    assert rig.left("scratch") == []
    rig.gets(DATA, origin.put("/right", DATA, **{header: form.format(b64(algorithm, DATA))}))


@pytest.mark.parametrize(
    "headers",
    [
        {"repr_digest": "sha-256=:AAAA:"}, {"repr_digest": "sha-256=AAAA"}, {"repr_digest": "sha-256=:%%%:"},
        {"digest": "sha-256"}, {"digest": "sha-256=="}, {"content_md5": "nonsense"}, {"x_goog_hash": "crc32c=AA"},
        {"repr_digest": "sha-999=:AAAA:"}, {"x_amz_checksum_sha256": b64("sha256", WRONG) + "-3"},
        {"x_amz_checksum_sha256": b64("sha256", WRONG), "x_amz_checksum_type": "COMPOSITE"},
        # Google's storage unpacks what is stored as gzip: its digest is then not of what is sent.
        {"x_goog_hash": f"md5={b64('md5', WRONG)}", "x_goog_stored_content_encoding": "gzip"},
        # Whatever encodes on the fly leaves headers that were made before.
        {"content_md5": b64("md5", WRONG), "content_encoding": "gzip"},
    ],
)  # fmt: skip
def test_what_cannot_be_read_or_is_of_something_else_is_passed_over(
    headers: dict[str, str], origin: Origin, tmp_path: Path
) -> None:
    Rig(tmp_path).gets(DATA, origin.put("/a", DATA, **headers))


def test_a_digest_that_was_given_decides_alone(origin: Origin, tmp_path: Path) -> None:
    url = origin.put("/a", DATA, repr_digest=f"sha-256=:{b64('sha256', WRONG)}:")
    Rig(tmp_path).gets(DATA, url, digest="sha256:" + hashlib.sha256(DATA).hexdigest())


def test_the_best_of_several_is_taken() -> None:
    everything = {
        "Content-MD5": b64("md5", DATA),
        "Repr-Digest": f"sha-512=:{b64('sha512', DATA)}:, sha-256=:{b64('sha256', DATA)}:",
        "x-goog-hash": f"crc32c=AAAAAA==,md5={b64('md5', DATA)}",
    }
    assert [each.partition(":")[0] for each in stated(200, everything)] == ["sha256", "sha512", "crc32c", "md5"]
    assert [each.partition(":")[0] for each in stated(206, everything)] == ["sha256", "sha512", "crc32c", "md5"]
    del everything["x-goog-hash"], everything["Repr-Digest"]
    assert stated(206, everything) == [], "what is of a part says nothing of the whole"
    assert stated(206, {"Content-Digest": f"sha-256=:{b64('sha256', DATA)}:"}) == []


@pytest.fixture
def no_crc32c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google_crc32c", None)  # as on a node without the extra


@pytest.mark.usefixtures("no_crc32c")
def test_without_the_library_the_next_best_is_taken_or_none(origin: Origin, tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.fails(
        errors.DigestMismatch, origin.put("/a", DATA, x_goog_hash=f"crc32c=AAAAAA==,md5={b64('md5', WRONG)}"), "md5:"
    )
    rig.gets(DATA, origin.put("/b", DATA, x_goog_hash="crc32c=AAAAAA=="))


@pytest.mark.parametrize("right", [True, False])
def test_a_resumed_file_is_verified_from_its_first_byte(right: bool, origin: Origin, tmp_path: Path) -> None:
    tag = {"etag": '"v1"', "accept_ranges": "bytes"}
    whole = server.file(DATA, etag='"v1"', repr_digest=f"sha-512=:{b64('sha512', DATA if right else WRONG)}:")
    url = origin.on("/a", server.sequence(server.truncated(DATA, 200_000, **tag), whole))
    rig = Rig(tmp_path)
    if right:
        rig.gets(DATA, url, attempts=2)
    else:
        rig.fails(errors.DigestMismatch, url, "sha512:", attempts=2)
        assert rig.left("scratch") == [], "what was gathered is of no use"
    assert origin.log[-1].headers["Range"] == "bytes=200000-"


@pytest.mark.parametrize("right", [True, False])
def test_what_the_first_answer_stated_counts_when_another_attempt_brings_the_rest(
    right: bool, origin: Origin, tmp_path: Path
) -> None:
    tag = {"etag": '"v1"', "accept_ranges": "bytes"}
    first = server.truncated(DATA, 200_000, repr_digest=f"sha-512=:{b64('sha512', DATA)}:", **tag)
    rest = server.file(DATA if right else WRONG, etag='"v1"')
    url = origin.on("/a", server.sequence(first, rest))
    if right:
        Rig(tmp_path).gets(DATA, url, attempts=2)
    else:
        Rig(tmp_path).fails(errors.DigestMismatch, url, "sha512:.*stated by the origin", attempts=2)
    assert origin.log[-1].headers["Range"] == "bytes=200000-"


def test_a_digest_that_is_learnt_late_is_of_all_bytes(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path, "key", "x://")
    scratch.write(DATA[:1000])
    scratch.expect("sha512:" + hashlib.sha512(DATA).hexdigest())
    scratch.write(DATA[1000:])
    scratch.verify()
    scratch.expect("md5:" + MD5)
    with pytest.raises(errors.DigestMismatch):
        scratch.verify()
    scratch.restart()
    scratch.verify()
    scratch.close(discard=True)


# -- types and encodings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "taken"),
    [
        ("/a.tar", False), ("/a.tar.gz", False), ("/a.PARQUET", False), ("/a.csv", False), ("/a.html", True),
        ("/a", True), ("/tar", True), ("/a.tar/", True), ("/a.php", True),
    ],
)  # fmt: skip
def test_an_html_page_is_no_data(path: str, taken: bool, origin: Origin, tmp_path: Path) -> None:
    url = origin.put(path, DATA, content_type="Text/HTML;charset=utf-8")
    rig = Rig(tmp_path)
    if taken:
        rig.gets(DATA, url)
    else:
        rig.fails(errors.BadResponse, url, "an HTML page")
        Rig(tmp_path / "trusting", http=Http(refuse_html=False)).gets(DATA, url)


def test_a_page_instead_of_the_rest_does_not_cost_what_came(origin: Origin, tmp_path: Path) -> None:
    tag = {"etag": '"v1"', "accept_ranges": "bytes"}
    page = server.status(200, b"<html>", content_type="text/html")
    url = origin.on("/a.tar", server.sequence(server.truncated(DATA, 200_000, **tag), page, server.file(DATA, **tag)))
    rig = Rig(tmp_path)
    rig.fails(errors.BadResponse, url, "an HTML page", attempts=2)
    rig.gets(DATA, url)
    assert origin.log[-1].headers["Range"] == "bytes=200000-"


def test_an_encoding_that_was_not_asked_for_is_said(
    origin: Origin, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "ingest"):
        Rig(tmp_path / "a").gets(DATA, origin.put("/plain", DATA, content_encoding="identity"))
        assert caplog.records == []
        url = origin.put("/a", DATA, content_encoding="gzip")
        Rig(tmp_path / "b").gets(DATA, url)
    (said,) = caplog.records
    assert (said.getMessage(), vars(said)["source"], vars(said)["reason"]) == (
        "file.encoded",
        url,
        "Content-Encoding: gzip",
    )


# -- lists of checksums ------------------------------------------------------------------------------------------------


def sums(data: bytes, name: str = "a.tar", algorithm: str = "sha256") -> bytes:
    return f"{hashlib.new(algorithm, data).hexdigest()}  {name}\n".encode()


def test_a_checksum_beside_the_file(origin: Origin, tmp_path: Path) -> None:
    origin.put("/a.tar.sha256", sums(DATA))
    origin.put("/b.tar.sha256", sums(WRONG, "b.tar"))
    rig = Rig(tmp_path)
    error = rig.fails(errors.DigestMismatch, origin.put("/b.tar", DATA), checksums="beside")
    assert error.expected == "sha256:" + hashlib.sha256(WRONG).hexdigest()
    rig.gets(DATA, origin.put("/a.tar", DATA), checksums="beside")
    before = origin.count("/a.tar")
    again = rig.fetch(origin.url("/a.tar"), checksums="beside")
    assert again.reused and origin.count("/a.tar") == before, "the digest is known, and so is the file"


def test_a_file_that_came_without_its_list_is_not_taken_for_one_that_was_verified(
    origin: Origin, tmp_path: Path
) -> None:
    rig = Rig(tmp_path, fresh_s=600)
    url = origin.put("/a.tar", DATA)
    origin.put("/a.tar.sha256", sums(WRONG))
    rig.gets(DATA, url)
    spec = FileSpec(0, 0, url, checksums="beside")
    assert rig.transfer.reuse(FileSpec(0, 0, url)) and rig.transfer.reuse(spec) is None
    with pytest.raises(errors.DigestMismatch):
        rig.fetch(url, checksums="beside")


def test_a_list_of_another_scheme_and_algorithm(origin: Origin, tmp_path: Path) -> None:
    listed = tmp_path / "SHA512SUMS"
    listed.write_bytes(sums(WRONG, "b.tar", "sha512") + sums(DATA, "./train/a.tar", "sha512"))
    Rig(tmp_path).gets(DATA, origin.put("/data/train/a.tar", DATA), checksums=f"file://{listed}")


def test_a_list_is_fetched_once_for_all_files_of_a_shard(origin: Origin, tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    listed = origin.put("/SHA256SUMS", b"".join(sums(DATA, f"{n}.tar") for n in range(5)))
    for n in range(5):
        rig.fetch(origin.put(f"/{n}.tar", DATA), checksums=listed)
    assert origin.count("/SHA256SUMS") == 1


def test_a_list_that_cannot_be_had_is_asked_for_once_as_well(origin: Origin, tmp_path: Path) -> None:
    """Else each of a thousand files would wait anew for a server that is silent."""
    rig, listed = Rig(tmp_path), origin.on("/SHA256SUMS", server.status(503, retry_after="7"))
    for n in range(3):
        error = rig.fails(errors.Throttled, origin.put(f"/{n}.tar", DATA), "its list of checksums", checksums=listed)
        assert error.retry_after_s == 7
    assert origin.count("/SHA256SUMS") == 1


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (server.status(404), errors.NotFound, "404"), (server.status(403), errors.AccessDenied, "403"),
        (server.file(sums(DATA, "b.tar")), errors.NotFound, "names 1 files, and not this one"),
        (server.file(b""), errors.NotFound, "names 0 files"),
        (server.status(200, b"<html>", content_type="text/html"), errors.NotFound, "names 0 files"),
        (server.file(sums(DATA) + sums(WRONG)), errors.BadResponse, "several digests"),
        (server.file(b"#" * (MAX_BYTES + 1)), errors.BadResponse, "more than"),
        (server.endless(), errors.BadResponse, "more than"), (server.status(503), errors.Throttled, "503"),
        (server.truncated(b"x" * 100, 10), errors.Truncated, "ended before"),
        (server.file(sums(DATA), content_md5=b64("md5", b"")), errors.DigestMismatch, "stated"),
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_had_is_never_passed_over(
    answer: server.Behaviour, error: type[errors.FetchError], says: str, origin: Origin, tmp_path: Path
) -> None:
    rig = Rig(tmp_path)
    rig.fails(error, origin.put("/a.tar", DATA), says, checksums=origin.on("/SUMS", answer))
    assert rig.left("scratch") == [] and origin.count("/a.tar") == 0


def test_a_list_is_asked_for_with_the_files_profile_where_that_may_be_used(origin: Origin, tmp_path: Path) -> None:
    def guarded(data: bytes) -> server.Behaviour:
        return server.unless("Authorization", server.status(403), server.file(data))

    profile: dict[str, Any] = {"match": origin.url("/private/"), "bearer": "s3cret"}
    rig = Rig(tmp_path, connections={"corp": Connection("corp", profile)})
    file = origin.on("/private/a.tar", guarded(DATA))
    origin.on("/private/a.tar.sha256", guarded(sums(DATA)))
    rig.gets(DATA, file, checksums="beside", connection="corp")
    rig.fetch(file, checksums=origin.put("/public/SHA256SUMS", sums(DATA)), connection="corp")
    assert "Authorization" not in origin.asked("/public/SHA256SUMS")[0].headers


def test_lists_go_through_the_queue(origin: Origin, tmp_path: Path) -> None:
    origin.put("/SHA256SUMS", sums(DATA, "a.tar") + sums(WRONG, "b.tar"))
    urls = [origin.put(f"/{name}", DATA) for name in ("a.tar", "b.tar", "c.tar")]
    with running_service(tmp_path, config="[retry]\nbase_s = 0.01\n") as service:
        sources = [ingest.Source(url, checksums=origin.url("/SHA256SUMS")) for url in urls]
        job = service.client().submit(sources)
        (file,) = job.files(timeout=60)
        assert file.path.read_bytes() == DATA and file.source == urls[0]
        assert {(each.source, each.error) for each in job.failures()} == {
            (urls[1], "DigestMismatch"),
            (urls[2], "NotFound"),
        }
        assert service.scratch() == []
