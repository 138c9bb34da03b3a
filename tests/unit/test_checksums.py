"""Lists of digests: what a line says, which line is the file's, where the list of one file lies."""

from __future__ import annotations

import hashlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.client.submission import check, cut
from ingest.errors import BadResponse, BadSource, FetchError, NotFound
from ingest.sources import Source, parse_digest
from workers.checksums import Line, algorithm_of, beside_of, digest_of, parse

MD5, SHA1, SHA256, SHA512 = (hashlib.new(name, b"x").hexdigest() for name in ("md5", "sha1", "sha256", "sha512"))
OTHER = hashlib.sha256(b"y").hexdigest()
SUMS = "https://h/data/SHA256SUMS"


@pytest.mark.parametrize(
    ("line", "name", "algorithm", "value"),
    [
        (f"{SHA256}  a.tar", "a.tar", "sha256", SHA256), (f"{SHA256} *a.tar", "a.tar", "sha256", SHA256),
        (f"{SHA256.upper()}  a b.tar\r", "a b.tar", "sha256", SHA256), (f"{MD5}\ta.tar", "a.tar", "md5", MD5),
        (f"\\{SHA256}  a\\nb\\\\c.tar", "a\nb\\c.tar", "sha256", SHA256),
        (f"SHA256 (a (1).tar) = {SHA256}", "a (1).tar", "sha256", SHA256),
        (f"SHA2-256(a.tar)= {SHA256}", "a.tar", "sha256", SHA256), (f"MD5(a.tar)= {MD5}", "a.tar", "md5", MD5),
        (f"SHA512 (a.tar) = {SHA512}", "a.tar", "sha512", SHA512),
        (f"BLAKE2b (a.tar) = {SHA512}", "a.tar", "blake2b", SHA512), (SHA256, None, "sha256", SHA256),
        (f"sha256:{SHA256}", None, "sha256", SHA256), (f"sha1:{SHA1}  a.tar", "a.tar", "sha1", SHA1),
    ],
)  # fmt: skip
def test_a_line(line: str, name: str | None, algorithm: str, value: str) -> None:
    assert list(parse(f"# a heading\n{line}\n")) == [Line(name, algorithm, value)]


@pytest.mark.parametrize(
    "line", ["", "-----BEGIN PGP SIGNED MESSAGE-----", "Hash: SHA256", "12345  a.tar", f"{SHA256[:40]}x  a", "<html>"]
)
def test_what_is_no_line_is_left_out(line: str) -> None:
    assert list(parse(f"{line}\n{SHA256}  a.tar\n{line}\n")) == [Line("a.tar", "sha256", SHA256)]


@pytest.mark.parametrize(
    ("uri", "algorithm"),
    [
        ("https://h/SHA256SUMS", "sha256"), ("https://h/sha512sum.txt?x=1", "sha512"), ("s3://b/MD5SUMS", "md5"),
        ("https://h/a.tar.sha1", "sha1"), ("https://h/a.tar.b2", "blake2b"), ("https://h/B3SUMS", "blake3"),
        ("https://h/SHA-256SUMS", "sha256"), ("https://h/checksums.txt", None), ("https://h/a.sha256/x", None),
    ],
)  # fmt: skip
def test_what_a_lists_name_says(uri: str, algorithm: str | None) -> None:
    assert algorithm_of(uri) == algorithm


def test_the_name_says_which_of_two_that_are_as_long() -> None:
    assert digest_of("https://h/a", "https://h/B2SUMS", f"{SHA512}  a") == f"blake2b:{SHA512}"
    assert digest_of("https://h/a", "https://h/SUMS", f"{SHA512}  a") == f"sha512:{SHA512}"
    assert digest_of("https://h/a", "https://h/a.md5", SHA256) == f"sha256:{SHA256}", "the length rules a wrong name"


@pytest.mark.parametrize(
    ("uri", "beside"),
    [
        ("https://h/a.tar", "https://h/a.tar.sha256"), ("https://h/a.tar?v=1&w#f", "https://h/a.tar.sha256?v=1&w"),
        ("s3://b/k", "s3://b/k.sha256"), ("s3://b/k?versionId=v", "s3://b/k.sha256"),
        ("file:///d/a%20b", "file:///d/a%20b.sha256"),
    ],
)  # fmt: skip
def test_beside(uri: str, beside: str) -> None:
    assert beside_of(uri) == beside


@pytest.mark.parametrize(
    "text",
    [
        f"{OTHER}  b.tar\n{SHA256}  train/a.tar\n", f"{OTHER}  test/a.tar\n{SHA256}  ./train/a.tar\n",
        f"{OTHER}  other/train/a.tar\n{SHA256}  train/a.tar\n", f"{SHA256}  /build/train/a.tar\n{OTHER}  b.tar",
        f"{SHA256}  a.tar\n", f"SHA256 (train/a.tar) = {SHA256}\nSHA512 (train/a.tar) = {SHA512}\n",
        f"{SHA256}  a.tar\n{SHA256}  a.tar\n", SHA256,
    ],
)  # fmt: skip
def test_the_line_of_a_file(text: str) -> None:
    assert digest_of("https://h/data/train/a.tar", SUMS, text) == f"sha256:{SHA256}"
    assert digest_of("https://mirror/x/data/train/a.tar?sig=1", SUMS, text) == f"sha256:{SHA256}"


def test_names_are_compared_decoded() -> None:
    assert digest_of("https://h/data/a%20%C3%BC.tar", SUMS, f"{SHA256}  a ü.tar") == f"sha256:{SHA256}"
    assert digest_of("s3://b/data/a%20.tar", "s3://b/data/SHA256SUMS", f"{SHA256}  a%20.tar") == f"sha256:{SHA256}"


def test_a_list_that_does_not_name_the_file_says_so() -> None:
    with pytest.raises(NotFound, match=r"SHA256SUMS, names 2 files, and not this one"):
        digest_of("https://h/data/a.tar", SUMS, f"{SHA256}  b.tar\n{OTHER}  c.tar\n")
    with pytest.raises(NotFound, match="names 0 files"):
        digest_of("https://h/data/a.tar", SUMS, "<html>log in</html>")


def test_a_list_that_says_two_things_is_not_believed() -> None:
    with pytest.raises(BadResponse, match="several digests"):
        digest_of("https://h/data/a.tar", SUMS, f"{SHA256}  x/a.tar\n{OTHER}  y/a.tar\n")
    with pytest.raises(BadResponse, match="several digests"):
        digest_of("https://h/data/a.tar", SUMS, f"{SHA256}\n{OTHER}\n")


def test_a_list_of_one_file_may_call_it_otherwise() -> None:
    text = f"{SHA256}  release-1.2.tar\n"
    assert digest_of("https://h/latest.tar", "https://h/latest.tar.sha256", text, alone=True) == f"sha256:{SHA256}"


@given(st.text(max_size=300), st.booleans())
def test_no_text_makes_it_stumble(text: str, alone: bool) -> None:
    with suppress(FetchError):
        parse_digest(digest_of("https://h/a.tar", SUMS, text, alone=alone))


@given(st.text(st.characters(exclude_categories=("Cc", "Cs", "Zl", "Zp")), min_size=1).filter(lambda n: n == n.strip()))
def test_any_name_is_found_again(name: str) -> None:
    text = f"{OTHER}  {name}x\n{SHA256}  {name}\n"
    assert Line(name, "sha256", SHA256) in list(parse(text))


@pytest.mark.parametrize("checksums", ["besides", "SHA256SUMS", "/data/SHA256SUMS", "https://u:p@h/SUMS", 7])
def test_what_is_no_list_is_refused_at_submit(checksums: str) -> None:
    with pytest.raises(BadSource):
        check(Source("https://h/a.tar", checksums=checksums))


def test_a_digest_and_a_list_are_one_too_many() -> None:
    with pytest.raises(BadSource, match="not both"):
        check(Source("https://h/a.tar", digest=f"sha256:{SHA256}", checksums="beside"))


def test_every_file_of_a_range_has_its_list() -> None:
    source = Source("https://h/{a,b}.tar", checksums="beside")
    check(source)
    (unit,) = cut([source], wanted=10)
    assert [file["checksums"] for file in unit.files] == ["beside", "beside"]
