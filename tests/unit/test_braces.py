from __future__ import annotations

from itertools import islice

import pytest

from ingest.braces import count_braces, expand_braces, is_pattern
from ingest.errors import BadSource


@pytest.mark.parametrize(
    ("uri", "expanded"),
    [
        ("http://h/a", ["http://h/a"]),
        ("x{8..11}y", ["x8y", "x9y", "x10y", "x11y"]),
        ("{008..011}", ["008", "009", "010", "011"]),
        ("{08..011}", ["008", "009", "010", "011"]),
        ("{0..10..5}", ["0", "5", "10"]),
        ("{0..9..4}", ["0", "4", "8"]),
        ("{7..7}", ["7"]),
        ("{-1..1}", ["-1", "0", "1"]),
        ("{-01..01}", ["-01", "000", "001"]),
        ("{a..e..2}{X..Y}", ["aX", "aY", "cX", "cY", "eX", "eY"]),
        ("{a,b,c}", ["a", "b", "c"]),
        ("a{,.idx}", ["a", "a.idx"]),
        ("{a,1..3}", ["a", "1..3"]),
        ("{a,b}-{0..1}", ["a-0", "a-1", "b-0", "b-1"]),
        (r"\{a,b\}{1..2}", ["{a,b}1", "{a,b}2"]),
        ("a}b", ["a}b"]),
        ("s3://b/{train,val}/*.tar", ["s3://b/train/*.tar", "s3://b/val/*.tar"]),
    ],
)
def test_expand(uri: str, expanded: list[str]) -> None:
    assert list(expand_braces(uri)) == expanded
    assert count_braces(uri) == len(expanded)


@pytest.mark.parametrize(
    "uri",
    ["a{3..1}", "a{c..a}", "a{1..2", "a{", "a{}", "a{,}", "a{x}", "a{a..3}", "a{a..C}", "a{1..9..0}", "a{1..9..-2}",
     "a{1..2..3..4}", "a{1.5..2}", "{a,{b,c}}", "{0..100000000}", "{0..9999}{0..9999}{0..1}",
     "a{0..99999999999999999999999}", "{٠..٣}"],
)  # fmt: skip
def test_what_cannot_be_right(uri: str) -> None:
    for function in (expand_braces, count_braces):
        with pytest.raises(BadSource) as caught:
            function(uri)
        assert caught.value.uri == uri
        assert caught.value.reason


def test_many_cost_nothing_until_they_are_taken() -> None:
    uri = "http://h/{00000000..99999999}.tar"
    assert count_braces(uri) == 10**8
    assert list(islice(expand_braces(uri), 2)) == ["http://h/00000000.tar", "http://h/00000001.tar"]


@pytest.mark.parametrize(
    ("uri", "pattern"),
    [
        ("http://h/a?b=*&c=[1]/", False), ("http://[::1]/a", False), ("http://h/*.tar", True),
        ("https://h/a/", True),
        ("http://h/a[0-9]", True), ("http://h", False), ("http://h/", True), ("http://h/a#/", False),
        ("s3://b/a", False), ("s3://b/a?", True), ("s3://b/a*", True), ("s3://b/[ab]", True), ("s3://b/p/", True),
        ("s3://b/", True), ("s3://b", False), ("file:///d/a#b", False), ("file:///d/**/x", True),
        ("gs://b/a b", False),
    ],
)  # fmt: skip
def test_is_pattern(uri: str, pattern: bool) -> None:
    assert is_pattern(uri) is pattern
