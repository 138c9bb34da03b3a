"""FsFetcher against the local disk and a real FTP server: the contract, and what is each one's own."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ingest import errors
from ingest.model import FileSpec
from ingest.sections import Connection, Egress
from ingest.settings import Settings
from ingest.sources import Source
from tests.contracts.contract import SOME_MB, CutContract, FetcherCase, FetcherContract
from tests.servers.ftp import Ftp
from workers.fetchers.base import Context
from workers.fetchers.fs import files
from workers.fetchers.fs.fetcher import FsFetcher, missing_packages


class FileCase(FetcherCase):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.fetcher = FsFetcher()
        self.folder = tmp_path / "a folder"
        self.folder.mkdir()

    def put(self, name: str, data: bytes) -> FileSpec:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".new").write_bytes(data)
        path.with_suffix(".new").replace(path)
        return FileSpec(0, 0, files.uri_of(str(path)))

    def missing(self) -> FileSpec:
        return FileSpec(0, 0, files.uri_of(str(self.folder / "nowhere")))

    def typed(self, path: str) -> FileSpec:
        return FileSpec(0, 0, f"file://{self.folder}/{path}")

    def expand(self, tail: str, context: Context | None = None) -> dict[str | None, FileSpec]:
        found = list(self.fetcher.expand(Source(f"file://{self.folder}/{tail}"), context or self.context()))
        assert [spec.part for spec in found] == list(range(len(found)))
        assert [spec.uri for spec in found] == sorted(spec.uri for spec in found)
        return {spec.name: spec for spec in found}


def rooted(*roots: Path) -> Context:
    return Context(Settings(file_roots=tuple(str(root) for root in roots)))


@contextmanager
def powerless(folder: Path) -> Iterator[None]:
    """Root may read everything; in here it is nobody, to whom only the way to ``folder`` is open."""
    if os.geteuid() != 0:
        yield
        return
    modes = {parent: parent.stat().st_mode for parent in folder.parents}
    modes = {parent: mode for parent, mode in modes.items() if mode & 0o011 != 0o011}
    for parent, mode in modes.items():
        parent.chmod(mode | 0o011)  # the group too: it is still root's
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        for parent, mode in modes.items():
            parent.chmod(mode)


class TestFileContract(FileCase, FetcherContract):
    pass


class TestFile(FileCase):
    @pytest.mark.parametrize("name", ["a b.txt", "a#b?c.txt", "100%.txt", "ü.txt", "50%zz"])
    def test_path_typed_as_it_is(self, name: str) -> None:
        self.put(name, b"x")
        assert self.fetch(self.typed(name))[0] == b"x"

    def test_escapes_are_decoded(self) -> None:
        self.put("a b%20c", b"x")
        assert self.fetch(self.typed("a%20b%2520c"))[0] == b"x"
        assert "%25" in self.fails(self.typed("a b%20c"), errors.NotFound).reason

    def test_name_that_is_no_text(self) -> None:
        path = os.fsencode(self.folder) + b"/\xff\xfe.bin"
        Path(os.fsdecode(path)).write_bytes(b"x")
        (spec,) = self.expand("*.bin").values()
        assert spec.uri.endswith("/%FF%FE.bin")
        assert self.fetch(spec)[0] == b"x"

    def test_localhost_is_nobody_else(self) -> None:
        self.put("a", b"x")
        assert self.fetch(FileSpec(0, 0, f"file://localhost{self.folder}/a"))[0] == b"x"
        self.fails(FileSpec(0, 0, f"file://elsewhere{self.folder}/a"), errors.BadResponse)

    def test_version_changes_with_the_file(self) -> None:
        first = self.fetch(self.put("a", b"x"))[1].version
        assert self.fetch(self.typed("a"))[1].version == first
        assert self.fetch(self.put("a", b"y"))[1].version != first

    def test_other_size_than_expected(self) -> None:
        spec = self.put("a", b"12345")
        self.fails(FileSpec(0, 0, spec.uri, size=4), errors.BadResponse)
        assert self.fetch(FileSpec(0, 0, spec.uri, size=5))[0] == b"12345"

    def test_written_to_while_it_is_read(self) -> None:
        spec = self.put("growing", SOME_MB)

        def grow(count: int) -> None:
            with open(self.folder / "growing", "ab") as file:
                file.write(b"more")

        with pytest.raises(errors.SourceChanged):
            self.fetcher.fetch(spec, self.scratch(on_bytes=grow), None, self.context())

    def test_replaced_while_it_is_read_is_the_old_file_whole(self) -> None:
        spec = self.put("replaced", SOME_MB)
        scratch = self.scratch(on_bytes=lambda count: self.put("replaced", b"new") and None)
        assert self.fetcher.fetch(spec, scratch, None, self.context()) is not None
        assert scratch.path.read_bytes() == SOME_MB

    def test_what_is_no_file(self) -> None:
        os.mkfifo(self.folder / "fifo")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(self.folder / "s"))
            for name in ("fifo", "s", ""):
                self.fails(self.typed(name), errors.BadResponse)
        for path in ("/dev/zero", "/dev/null", "/"):
            self.fails(FileSpec(0, 0, f"file://{path}"), errors.BadResponse)

    def test_unreadable(self) -> None:
        spec = self.put("a", b"x")
        (self.folder / "a").chmod(0)
        scratch = self.scratch()
        with powerless(self.folder), pytest.raises(errors.AccessDenied):
            self.fetcher.fetch(spec, scratch, None, self.context())

    @pytest.mark.parametrize("tail", ["a/b", "x" * 300, "nul%00"])
    def test_impossible_names(self, tail: str) -> None:
        self.put("a", b"x")
        self.fails(self.typed(tail), errors.PermanentFetchError)

    def test_link_to_itself(self) -> None:
        (self.folder / "loop").symlink_to(self.folder / "loop")
        self.fails(self.typed("loop"), errors.BadResponse)


class TestFileRoots(FileCase):
    def test_inside(self) -> None:
        assert self.fetch(self.put("sub/a", b"x"), context=rooted(Path("/nowhere"), self.folder))[0] == b"x"

    def test_outside(self, tmp_path: Path) -> None:
        inside = rooted(self.folder)
        (tmp_path / "secret").write_bytes(b"s")
        (tmp_path / "a folder and more").mkdir()
        (tmp_path / "a folder and more" / "x").write_bytes(b"s")
        (self.folder / "link").symlink_to(tmp_path / "secret")
        for tail in ("../secret", "%2e%2e/secret", "link", "../a folder and more/x"):
            assert "roots" in self.fails(self.typed(tail), errors.EgressDenied, inside).reason

    def test_listing_outside(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(b"s")
        (self.folder / "out").symlink_to(tmp_path)
        for tail in ("../*", "../", "out/"):
            with pytest.raises(errors.EgressDenied):
                self.expand(tail, rooted(self.folder))


class TestFileListing(FileCase):
    @pytest.fixture(autouse=True)
    def _tree(self, _folder: None) -> None:
        for name in ("b.tar", "a.tar", "a.txt", "sub/c.tar", "sub/deep/d.tar", ".hidden.tar", "odd #1?%41.tar"):
            self.put(name, name.encode())

    def test_glob(self) -> None:
        found = self.expand("*.tar")
        assert set(found) == {"a.tar", "b.tar", ".hidden.tar", "odd #1?%41.tar"}
        assert found["a.tar"].size == 5
        for name, spec in found.items():
            data, fetched = self.fetch(spec)
            assert data == str(name).encode()
            assert fetched.version == spec.version

    @pytest.mark.parametrize(
        ("tail", "names"),
        [
            ("?.tar", {"a.tar", "b.tar"}), ("[b-z].tar", {"b.tar"}), ("*/*.tar", {"sub/c.tar"}),
            ("sub/*.tar", {"c.tar"}),
            ("**/d.tar", {"sub/deep/d.tar"}), ("sub/**", {"c.tar", "deep/d.tar"}), ("sub/", {"c.tar", "deep/d.tar"}),
            ("s*/", {"sub/c.tar", "sub/deep/d.tar"}), ("odd%20%231%3F*", {"odd #1?%41.tar"}), ("a.tx[t]", {"a.txt"}),
        ],
    )  # fmt: skip
    def test_patterns(self, tail: str, names: set[str]) -> None:
        assert set(self.expand(tail)) == names

    @pytest.mark.parametrize("tail", ["*.nothing", "nowhere/", "nowhere/*", "%2A.tar", "a.txt/"])
    def test_nothing(self, tail: str) -> None:
        with pytest.raises(errors.NothingMatched):
            self.expand(tail)

    def test_links(self) -> None:
        (self.folder / "sub/again").symlink_to(self.folder)  # a loop
        (self.folder / "sub/file").symlink_to(self.folder / "a.txt")
        (self.folder / "sub/broken").symlink_to("nowhere")
        found = self.expand("sub/")
        assert {"c.tar", "deep/d.tar", "file", "broken", "again/a.txt"} <= set(found)
        assert not any("again/sub/again" in str(name) for name in found)
        self.fails(found["broken"], errors.NotFound)

    def test_folder_that_cannot_be_listed(self) -> None:
        (self.folder / "sub/deep").chmod(0)
        try:
            with powerless(self.folder):
                assert set(self.expand("sub/*.tar")) == {"c.tar"}
                with pytest.raises(errors.AccessDenied):
                    self.expand("sub/")
        finally:
            (self.folder / "sub/deep").chmod(0o755)


class FtpCase(FetcherCase):
    #: fsspec drops what follows a ``?`` in an FTP URI, and knows no way to write it.
    odd_names = tuple(name for name in FetcherCase.odd_names if "?" not in name)

    @pytest.fixture(autouse=True)
    def _served(self) -> Iterator[None]:
        self.fetcher = FsFetcher()
        with Ftp() as self.ftp:
            yield

    def put(self, name: str, data: bytes) -> FileSpec:
        return FileSpec(0, 0, self.ftp.put(f"/data/{name}", data))

    def missing(self) -> FileSpec:
        self.ftp.put("/data/there", b"")
        return FileSpec(0, 0, self.ftp.url("/data/nowhere"))

    def truncated(self, name: str, data: bytes, at: int) -> FileSpec:
        self.ftp.cuts[f"/data/{name}"] = at
        return self.put(name, data)


class TestFtpContract(FtpCase, FetcherContract):
    test_cut_off_is_truncated = CutContract.test_cut_off_is_truncated


class TestFtp(FtpCase):
    def profile(self, **options: Any) -> Context:
        return Context(Settings(), Connection("archive", {"options": options}))

    def expand(self, tail: str) -> dict[str | None, FileSpec]:
        found = list(self.fetcher.expand(Source(self.ftp.url("/data/" + tail), connection="archive"), self.context()))
        assert [spec.part for spec in found] == list(range(len(found)))
        assert all(spec.connection == "archive" for spec in found)
        return {spec.name: spec for spec in found}

    def test_log_in(self) -> None:
        self.ftp.password = "s3cret"
        spec = self.put("a", b"x")
        assert self.fetch(spec, context=self.profile(username="me", password="s3cret"))[0] == b"x"
        error = self.fails(spec, errors.AccessDenied, self.profile(username="me", password="wr0ng"))
        assert "[connections.archive]" in error.reason
        assert "wr0ng" not in str(error)

    def test_listing(self) -> None:
        for name in ("b.tar", "a.tar", "c.txt", "sub/d.tar"):
            self.put(name, name.encode())
        found = self.expand("*.tar")
        assert list(found) == ["a.tar", "b.tar"]
        assert found["a.tar"].size == 5
        data, fetched = self.fetch(found["a.tar"])
        assert (data, fetched.version) == (b"a.tar", found["a.tar"].version)
        assert list(self.expand("")) == ["a.tar", "b.tar", "c.txt", "sub/d.tar"]
        assert list(self.expand("**/d.tar")) == ["sub/d.tar"]

    @pytest.mark.parametrize("tail", ["*.nothing", "nowhere/", "nowhere/*"])
    def test_nothing(self, tail: str) -> None:
        self.put("a.tar", b"x")
        with pytest.raises(errors.NothingMatched):
            self.expand(tail)

    def test_folder_that_cannot_be_listed_is_not_empty(self) -> None:
        self.put("a.tar", b"x")
        self.put("sub/b.tar", b"x")
        self.ftp.closed_folders.add("/data/sub/")
        with pytest.raises(errors.FetchError):
            self.expand("**/*.tar")

    def test_folder_is_no_file(self) -> None:
        self.put("sub/b.tar", b"x")
        self.fails(FileSpec(0, 0, self.ftp.url("/data/sub")), errors.BadResponse)

    def test_changed_while_it_was_read(self) -> None:
        spec = self.put("a", SOME_MB)
        scratch = self.scratch(on_bytes=lambda count: self.put("a", SOME_MB) and None)
        with pytest.raises(errors.SourceChanged):
            self.fetcher.fetch(spec, scratch, None, self.context())

    def test_refused(self) -> None:
        with Ftp() as gone:
            url = gone.url("/data/a")
        self.fails(FileSpec(0, 0, url), errors.ConnectionLost)

    def test_private_address_under_strict(self) -> None:
        spec = self.put("a", b"x")
        self.fails(spec, errors.EgressDenied, Context(Settings(egress=Egress(strict=True))))
        allowed = Context(Settings(egress=Egress(strict=True, allow=("127.0.0.1",))))
        assert self.fetch(spec, context=allowed)[0] == b"x"

    def test_full_disk_here_is_not_the_origins_fault(self) -> None:
        class Full(OSError):
            pass

        def full(count: int) -> None:
            raise Full(28, "No space left on device")

        with pytest.raises(Full):
            self.fetcher.fetch(self.put("a", SOME_MB), self.scratch(on_bytes=full), None, self.context())


class TestSchemes(FileCase):
    @pytest.mark.parametrize("uri", ["memory://a/b", "zip://a::http://h/b.zip", "reference://x/y", "dir://x/y"])
    def test_not_for_a_data_node(self, uri: str) -> None:
        self.fails(FileSpec(0, 0, uri), errors.Unsupported)

    def test_unknown_scheme(self) -> None:
        assert "nope" in self.fails(FileSpec(0, 0, "nope://a/b"), errors.Unsupported).reason

    def test_missing_library_is_named(self) -> None:
        error = self.fails(FileSpec(0, 0, "wandb://a/b"), errors.MissingExtra)
        assert "pip install 'wandbfs'" in error.reason

    @pytest.mark.parametrize(
        ("scheme", "package"),
        [("gs", "gcsfs"), ("az", "adlfs"), ("sftp", "paramiko"), ("smb", "smbprotocol"),
         ("github", "requests"), ("hdfs", "pyarrow"), ("root", "fsspec-xrootd"), ("oss", "ossfs")],
    )  # fmt: skip
    def test_package_of_a_scheme(self, scheme: str, package: str) -> None:
        assert missing_packages(scheme) == package


class TestSharing(FileCase):
    """A copy that shares its blocks, a hard link where the operator wants it, or a copy: the bytes are the same."""

    def linking(self, link: bool) -> Context:
        return Context(Settings(file_link=link))

    def test_what_is_done_to_the_file_later_does_not_reach_the_store(self) -> None:
        spec = self.put("a", SOME_MB)
        scratch = self.scratch()
        fetched = self.fetcher.fetch(spec, scratch, None, self.linking(False))
        with open(self.folder / "a", "r+b") as file:
            file.write(b"changed in place")
        assert fetched is not None and scratch.path.read_bytes() == SOME_MB
        assert scratch.size == len(SOME_MB) and scratch.path.stat().st_nlink == 1

    def test_a_hard_link_where_the_operator_wants_it(self) -> None:
        spec = self.put("a", SOME_MB)
        scratch = self.scratch(algorithms=frozenset({"md5"}))
        assert self.fetcher.fetch(spec, scratch, None, self.linking(True)) is not None
        shared = scratch.path.stat().st_ino == (self.folder / "a").stat().st_ino
        # Where the filesystem has reflinks, nothing need be one.
        assert shared == (not reflinks(self.folder)) and scratch.path.read_bytes() == SOME_MB
        assert scratch.digest("md5") == "md5:" + hashlib.md5(SOME_MB, usedforsecurity=False).hexdigest()
        scratch.close(discard=True)
        assert (self.folder / "a").read_bytes() == SOME_MB, "the user's name for it stays"

    def test_onto_another_filesystem_it_is_a_copy(self) -> None:
        other = Path("/dev/shm")
        if not other.is_dir() or other.stat().st_dev == self.tmp.stat().st_dev:
            pytest.skip("wants /dev/shm to be a filesystem of its own")
        source = other / f"ingest-test-{os.getpid()}"
        source.write_bytes(SOME_MB)
        try:
            scratch = self.scratch()
            spec = FileSpec(0, 0, files.uri_of(str(source)))
            assert self.fetcher.fetch(spec, scratch, None, self.linking(True)) is not None
            assert scratch.path.read_bytes() == SOME_MB and scratch.path.stat().st_nlink == 1
        finally:
            source.unlink()

    def test_a_file_that_may_not_be_written_to_is_copied(self) -> None:
        spec = self.put("a", SOME_MB)
        (self.folder / "a").chmod(0o444)
        scratch = self.scratch()
        assert self.fetcher.fetch(spec, scratch, None, self.linking(True)) is not None
        assert scratch.path.read_bytes() == SOME_MB
        assert [p.name for p in scratch.path.parent.iterdir()] == [scratch.path.name]

    @pytest.mark.parametrize("link", [True, False])
    def test_more_than_allowed(self, link: bool) -> None:
        spec = self.put("a", SOME_MB)
        with pytest.raises(errors.TooLarge):
            self.fetcher.fetch(spec, self.scratch(max_bytes=len(SOME_MB) - 1), None, self.linking(link))

    def test_it_is_the_version_that_was_listed_or_none(self) -> None:
        self.put("a.tar", b"first")
        (spec,) = self.expand("*.tar").values()
        assert self.fetch(spec)[0] == b"first"
        self.put("a.tar", b"later")
        assert "after it was listed" in self.fails(spec, errors.SourceChanged).reason


def reflinks(folder: Path) -> bool:
    import fcntl

    (folder / "one").write_bytes(b"x")
    with open(folder / "one", "rb") as source, open(folder / "two", "wb") as target:
        try:
            fcntl.ioctl(target.fileno(), files._FICLONE, source.fileno())
        except OSError:
            return False
    return True
