"""Files under their own names in a directory of the user's: never outside it, and nothing of his is touched."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from ingest.errors import StoreError
from ingest.store import link_into


class TestLinkInto:
    def test_the_same_file_under_its_own_name(self, tmp_path: Path) -> None:
        path = tmp_path / "source"
        path.write_bytes(b"bytes")
        for _ in range(2):
            made = link_into(path, tmp_path / "out", "sub/a.tar", "tag")
            assert made == tmp_path / "out/sub/a.tar" and made.read_bytes() == b"bytes"
        assert os.listdir(made.parent) == ["a.tar"] and made.stat().st_ino == path.stat().st_ino

    def test_what_has_the_name_is_left_alone(self, tmp_path: Path) -> None:
        source, out = tmp_path / "source", tmp_path / "out"
        source.write_bytes(b"ours")
        out.mkdir()
        (out / "a.tar.gz").write_bytes(b"theirs")
        assert link_into(source, out, "a.tar.gz", "tag") == out / "a-tag.tar.gz"
        assert (out / "a.tar.gz").read_bytes() == b"theirs" and (out / "a-tag.tar.gz").read_bytes() == b"ours"
        source.unlink()
        source.write_bytes(b"newer")  # a later version of the same source
        assert link_into(source, out, "a.tar.gz", "tag").read_bytes() == b"newer"
        assert sorted(os.listdir(out)) == ["a-tag.tar.gz", "a.tar.gz"]

    @pytest.mark.parametrize("kind", ["directory", "dangling", "link"])
    def test_also_when_it_is_no_file(self, tmp_path: Path, kind: str) -> None:
        source, out = tmp_path / "source", tmp_path / "out"
        source.write_bytes(b"ours")
        (tmp_path / "theirs").write_bytes(b"their")
        out.mkdir()
        if kind == "directory":
            (out / "a").mkdir()
        else:
            (out / "a").symlink_to(tmp_path / ("theirs" if kind == "link" else "nowhere"))
        assert link_into(source, out, "a", "tag") == out / "a-tag"
        assert (tmp_path / "theirs").read_bytes() == b"their" and not (tmp_path / "nowhere").exists()
        assert sorted(os.listdir(out)) == ["a", "a-tag"]

    @pytest.mark.parametrize(
        "name", ["../x", "/etc/x", "a/../../x", "..", "", "/", "a\0b", "x" * 300, "ü" * 200 + ".tar"]
    )
    def test_never_outside(self, tmp_path: Path, name: str) -> None:
        source, out = tmp_path / "source", tmp_path / "in" / "out"
        source.write_bytes(b"ours")
        made = link_into(source, out, name, "tag")
        assert made.is_relative_to(out) and ".." not in made.parts and made.read_bytes() == b"ours"
        assert os.listdir(tmp_path / "in") == ["out"]

    def test_a_link_that_leads_out_is_refused_before_anything_is_made(self, tmp_path: Path) -> None:
        source, out = tmp_path / "source", tmp_path / "out"
        source.write_bytes(b"ours")
        out.mkdir()
        (tmp_path / "outside").mkdir()
        (out / "sub").symlink_to(tmp_path / "outside")
        with pytest.raises(StoreError, match="leads out"):
            link_into(source, out, "sub/deeper/a", "tag")
        assert os.listdir(tmp_path / "outside") == []

    def test_a_directory_that_cannot_be_one(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        with pytest.raises(StoreError, match="into"):
            link_into(tmp_path / "file", tmp_path / "file" / "out", "a", "tag")

    def test_onto_another_filesystem_it_is_a_copy(self, tmp_path: Path) -> None:
        other = Path("/dev/shm")
        if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("wants /dev/shm to be a filesystem of its own")
        source, out = tmp_path / "source", other / f"ingest-test-{os.getpid()}"
        source.write_bytes(b"ours")
        try:
            made = link_into(source, out, "a", "tag")
            assert made.read_bytes() == b"ours" and os.listdir(out) == ["a"]
        finally:
            for path in out.iterdir():
                path.unlink()
            out.rmdir()

    def test_many_at_once_make_one(self, tmp_path: Path) -> None:
        source, out = tmp_path / "source", tmp_path / "out"
        source.write_bytes(b"ours" * 1000)
        made: list[Path] = []
        threads = [threading.Thread(target=lambda: made.append(link_into(source, out, "a", "tag"))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert made == [out / "a"] * 8 and os.listdir(out) == ["a"]
