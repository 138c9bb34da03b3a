from __future__ import annotations

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.names import MAX_NAME_BYTES, base_name, safe_name


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a.tar", "a.tar"), ("Wärme 漢字 😀.tar", "Wärme 漢字 😀.tar"), ("a/b\\c", "a_b_c"),
        ("../../etc/passwd", "etc_passwd"),
        ("..", "d"), (".", "d"), ("", "d"), ("  ", "d"), ("/", "d"), ("a\0b\nc", "a_b_c"),
        ("a\u202egpj.exe", "a_gpj.exe"),
        (".hidden", ".hidden"), ("a..b", "a..b"), (" a ", "a"), ("\udcff.bin", "_.bin"), (". ./x", ". ._x"),
    ],
)  # fmt: skip
def test_safe_name(text: str, name: str) -> None:
    assert safe_name(text, "d") == name


@pytest.mark.parametrize("extension", [".tar", ".tar.gz", ".parquet", ".jsonl.zst"])
def test_a_cut_keeps_the_extension(extension: str) -> None:
    name = safe_name("漢" * 300 + extension, "d")
    assert name.endswith("漢" + extension)
    assert MAX_NAME_BYTES - 3 < len(name.encode()) <= MAX_NAME_BYTES


def test_a_cut_without_an_extension() -> None:
    assert safe_name("a" * 150 + "." + "b" * 150, "d") == "a" * 150 + "." + "b" * 49


@given(st.text(st.characters(exclude_categories=()), max_size=400))
def test_any_text_becomes_a_name(text: str) -> None:
    name = safe_name(text, "d")
    assert name not in {"", ".", ".."}
    assert len(name.encode()) <= MAX_NAME_BYTES
    assert not set("/\\") & set(name)
    assert not any(unicodedata.category(c) == "Cc" for c in name)
    assert os.path.basename(name) == name
    assert safe_name(name, "d") == name


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("https://h/a/b.tar?sig=1/2#x", "b.tar"), ("https://h/a%20b%2Fc.tar", "a b_c.tar"),
        ("https://h/dir/", "dir"),
        ("https://h", "file"), ("https://h/", "file"), ("https://h?x=/a.tar", "file"), ("https://h/%2e%2e", "file"),
        ("https://h/w%C3%A4rme", "wärme"), ("s3://b/k/a b.tar", "a b.tar"), ("s3://b/k/a%20b?c#d", "a%20b?c#d"),
        ("s3://b/k/a.tar?versionId=9", "a.tar"), ("s3://b", "file"), ("file:///d/a%23b.txt", "a#b.txt"),
        ("file:///d/a#b?c", "a#b?c"), ("sql://warehouse/samples", "samples"), ("gs://b/x/y.parquet", "y.parquet"),
    ],
)  # fmt: skip
def test_base_name(uri: str, name: str) -> None:
    assert base_name(uri) == name
