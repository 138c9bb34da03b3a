"""The store on a real disk: what is published is whole and stays, what is not leaves nothing; nothing leads out of
it."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import re
import resource
import shutil
import threading
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ingest.errors import ConnectionLost, DigestMismatch, NodeUnfit, StoreError, TooLarge, Truncated
from ingest.model import FileSpec
from ingest.sections import StoreLimits
from ingest.store import Store, Stored, audit
from ingest.store.audit import records, sweep_scratch, usage, verify
from ingest.store.layout import Piece, inside, source_dir, version_dir, write_atomic

URI = "https://host/dir/a.tar"


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(StoreLimits(tmp_path / "store", min_free_bytes=0))


def spec(uri: str = URI, **more: object) -> FileSpec:
    return dataclasses.replace(FileSpec(0, 0, uri), **more)  # type: ignore[arg-type]


def put(
    store: Store, data: bytes, wanted: FileSpec | None = None, *, version: str | None = None, name: str | None = None
) -> Stored:
    wanted = wanted or spec()
    key = store.key(wanted)
    with store.scratch(key, wanted, on_bytes=lambda n: None, max_bytes=1 << 40) as scratch:
        scratch.write(data)
        return store.publish(key, wanted, scratch, version=version, name=name)


def left(store: Store) -> list[str]:
    return sorted(p.name for p in (store.root / "scratch").iterdir())


class TestOpening:
    def test_the_same_id_each_time_and_for_all_who_start_at_once(self, tmp_path: Path) -> None:
        limits = StoreLimits(tmp_path / "new" / "store")
        assert Store.attach(limits) is None
        ids: list[str] = []
        threads = [threading.Thread(target=lambda: ids.append(Store.open(limits).id)) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        attached = Store.attach(limits)
        assert attached is not None and ids == [attached.id] * 8
        assert sorted(os.listdir(limits.root)) == ["STORE_ID", "data", "manifests", "scratch"]
        assert os.listdir(limits.root / "scratch") == []

    @pytest.mark.parametrize("where", ["a-file", "a-file/below", "store-with-a-file-for-scratch"])
    def test_a_root_that_cannot_be_one(self, tmp_path: Path, where: str) -> None:
        (tmp_path / "a-file").write_text("x")
        (tmp_path / "store-with-a-file-for-scratch").mkdir()
        (tmp_path / "store-with-a-file-for-scratch/scratch").write_text("x")
        with pytest.raises(StoreError) as raised:
            Store.open(StoreLimits(tmp_path / where))
        assert str(tmp_path / where) in str(raised.value) and "INGEST_STORE" in str(raised.value)

    def test_a_root_that_nobody_may_write(self) -> None:
        with pytest.raises(StoreError, match="INGEST_STORE"):
            Store.open(StoreLimits(Path("/proc/ingest-store")))

    @pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"1234"])
    def test_a_damaged_id_is_nobodys(self, store: Store, content: bytes) -> None:
        """Two stores whose ids were both empty would take each other's paths for their own."""
        (store.root / "STORE_ID").write_bytes(content)
        with pytest.raises(StoreError, match="STORE_ID"):
            Store.open(store.limits)
        assert Store.attach(store.limits) is None


class TestPublishing:
    def test_where_it_lies(self, store: Store) -> None:
        found = put(store, b"bytes", version='"etag"')
        key = store.key(spec())
        assert found.path == f"data/{key[:2]}/{key}/{version_dir(chr(34) + 'etag' + chr(34))}/a.tar"
        assert (store.root / found.path).read_bytes() == b"bytes"
        assert (found.size, found.digest, found.version, found.uri) == (5, sha(b"bytes"), '"etag"', URI)
        assert store.lookup(key) == dataclasses.replace(found, validated=store.lookup(key).validated)  # type: ignore[union-attr]
        assert abs(found.validated - time.time()) < 5
        assert left(store) == []

    def test_twice_is_harmless(self, store: Store) -> None:
        first = put(store, b"bytes", version="v")
        inode = (store.root / first.path).stat().st_ino
        again = put(store, b"bytes", version="v", name="of-another-name.tar")
        assert again.path == first.path and (store.root / again.path).stat().st_ino == inode
        assert len([*records(store)]) == 1 and left(store) == []

    def test_versions_lie_side_by_side_and_the_last_confirmed_is_found(self, store: Store) -> None:
        old, new = put(store, b"old", version="1"), put(store, b"newer", version="2")
        assert (store.root / old.path).read_bytes() == b"old" and (store.root / new.path).read_bytes() == b"newer"
        key = store.key(spec())
        os.utime(_record(store, new), (1, 1))
        found = store.lookup(key)
        assert found is not None and found.version == "1"
        store.confirm(key, new)
        found = store.lookup(key)
        assert found is not None and found.version == "2" and abs(found.validated - time.time()) < 5
        by_digest = store.lookup(key, old.digest)
        assert by_digest is not None and by_digest.version == "1" and store.lookup(key, sha(b"x")) is None

    def test_other_bytes_under_the_same_version_do_not_take_the_place_of_the_first(self, store: Store) -> None:
        """An origin whose ETag lies; same size, so that only the digest tells."""
        first, second = put(store, b"AAAA", version="etag"), put(store, b"BBBB", version="etag")
        assert first.path != second.path
        for found, data in ((first, b"AAAA"), (second, b"BBBB")):
            assert (store.root / found.path).read_bytes() == data and found.digest == sha(data)
        assert [*verify(store, remove=False)] == []

    def test_a_file_without_a_record_is_not_trusted(self, store: Store) -> None:
        """A machine that lost its power between the file and its record may have lost bytes of the file, too."""
        first = put(store, b"AAAA", version="v")
        (store.root / first.path).write_bytes(b"\0\0\0\0")
        _record(store, first).unlink()
        again = put(store, b"AAAA", version="v")
        assert (store.root / again.path).read_bytes() == b"AAAA"

    def test_a_wrong_digest_publishes_nothing_and_leaves_nothing(self, store: Store) -> None:
        wanted = spec(digest=sha(b"other"))
        with pytest.raises(DigestMismatch) as raised:
            put(store, b"bytes", wanted)
        assert raised.value.args == (URI, sha(b"other"), sha(b"bytes"), 5)
        assert left(store) == [] and store.lookup(store.key(wanted)) is None and [*records(store)] == []

    @pytest.mark.parametrize(("size", "error"), [(4, Truncated), (6, Truncated), (5, None)])
    def test_a_size_that_was_announced(self, store: Store, size: int, error: type[Exception] | None) -> None:
        if error is None:
            assert put(store, b"bytes", spec(size=size)).size == 5
            return
        with pytest.raises(error):
            put(store, b"bytes", spec(size=size))
        assert left(store) == [] and [*records(store)] == []

    @pytest.mark.parametrize("algorithm", ["md5", "sha1", "sha512", "blake2b", "blake3", "crc32c"])
    def test_another_algorithm_is_checked_and_remembered(self, store: Store, algorithm: str) -> None:
        value = {"crc32c": "4f6e5bb6"}.get(algorithm)
        if algorithm == "blake3":
            import blake3

            value = blake3.blake3(b"bytes").hexdigest()
        elif value is None:
            value = hashlib.new(algorithm, b"bytes").hexdigest()
        else:
            import google_crc32c

            value = google_crc32c.Checksum(b"bytes").hexdigest().decode()
        found = put(store, b"bytes", spec(digest=f"{algorithm.upper()}:{value.upper()}"))
        assert found.digest == sha(b"bytes") and found.has_digest(f"{algorithm}:{value}")
        put(store, b"bytes")  # once more, and nobody asks for that digest now: it is still known
        known = store.lookup(store.key(spec()), f"{algorithm}:{value}")
        assert known is not None and known.path == found.path
        with pytest.raises(DigestMismatch):
            put(store, b"Bytes", spec(digest=f"{algorithm}:{value}"))

    @pytest.mark.parametrize(
        ("uri", "name", "expected"),
        [
            ("https://h/%D1%84/%E6%95%B0.tar", None, "数.tar"),
            ("s3://b/" + "ä" * 300 + ".tar.gz", None, None),
            ("https://h/" + "x" * 400, None, "x" * 200),
            ("https://h/..%2f..%2fetc", None, "_etc"),
            ("file:///tmp/\udcff.bin", None, "_.bin"),
            ("s3://bucket/train/part-1.parquet", "sub/part-1.parquet", "part-1.parquet"),
            ("sql://lake/table", "table/0001-of-0002.parquet", "0001-of-0002.parquet"),
            ("https://h/", None, "file"),
        ],
    )
    def test_it_keeps_its_readable_name(self, store: Store, uri: str, name: str | None, expected: str | None) -> None:
        found = put(store, b"x", spec(uri, name=name))
        path = store.path_of(found.path)
        assert path.read_bytes() == b"x" and len(path.name.encode()) <= 200
        assert (
            path.suffixes[-2:] == [".tar", ".gz"] if expected is None else path.name == expected or expected == "_etc"
        )
        looked = store.lookup(store.key(spec(uri)))
        assert looked is not None and looked.uri == uri

    def test_no_room_is_the_nodes_fault(self, tmp_path: Path) -> None:
        small = Store.open(StoreLimits(tmp_path / "small", min_free_bytes=1 << 60))
        with pytest.raises(NodeUnfit, match="MiB free"):
            put(small, b"x")
        with pytest.raises(NodeUnfit, match="MiB free"):
            put(Store.open(StoreLimits(tmp_path / "s", min_free_bytes=0)), b"x", spec(size=1 << 60))
        assert left(small) == []

    def test_a_disk_that_fails_is_the_nodes_fault_and_another_error_is_not(self, store: Store) -> None:
        for code, expected in ((errno.ENOSPC, NodeUnfit), (errno.EIO, NodeUnfit), (errno.ECONNRESET, OSError)):
            with pytest.raises(expected) as raised, store.scratch("k", spec(), on_bytes=lambda n: None, max_bytes=9):
                raise OSError(code, os.strerror(code))
            assert isinstance(raised.value, NodeUnfit) == (expected is NodeUnfit)
        assert left(store) == []


def _record(store: Store, stored: Stored) -> Path:
    return source_dir(store.root, store.key(spec(stored.uri))) / f"{version_dir(stored.version)}.json"


class TestLookup:
    @pytest.mark.parametrize(
        "damage",
        [
            b"",
            b"{",
            b"5",
            b"[]",
            b"null",
            b"\xff",
            b'{"uri": "u"}',
            b'{"uri":"u","path":5,"size":5,"digest":"d","version":"v"}',
            b'{"uri":"u","path":"p","size":"5","digest":"d","version":"v"}',
        ],
    )
    def test_a_damaged_record_is_not_there(self, store: Store, damage: bytes) -> None:
        found = put(store, b"bytes")
        _record(store, found).write_bytes(damage)
        assert store.lookup(store.key(spec())) is None and [*records(store)] == []
        assert put(store, b"bytes").digest == sha(b"bytes")

    @pytest.mark.parametrize("depth", [1, 2, 3])
    def test_what_lies_where_a_folder_belongs_is_named(self, store: Store, depth: int) -> None:
        """``data/KK``, ``data/KK/KEY`` and ``data/KK/KEY/VERSION`` that somebody made as files."""
        found = put(store, b"bytes")
        foreign = store.root.joinpath(*Path(found.path).parts[: depth + 1])
        shutil.rmtree(foreign)
        foreign.write_text("not ours")
        if depth < 3:
            with pytest.raises(NotADirectoryError):
                store.lookup(store.key(spec()))
        with pytest.raises(NodeUnfit, match=re.escape(f"{foreign} is in the way; remove it")):
            put(store, b"bytes")
        assert foreign.read_text() == "not ours" and left(store) == []
        foreign.unlink()
        assert put(store, b"bytes").digest == sha(b"bytes")

    def test_a_file_of_another_size_is_not_it(self, store: Store) -> None:
        found = put(store, b"bytes")
        (store.root / found.path).write_bytes(b"byte")
        assert store.lookup(store.key(spec())) is None
        (store.root / found.path).unlink()
        assert store.lookup(store.key(spec())) is None
        assert (store.root / put(store, b"bytes").path).read_bytes() == b"bytes"

    def test_a_record_that_leads_out_is_not_followed(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "outside").write_bytes(b"12345")
        found = put(store, b"bytes")
        for path in ("../outside", str(tmp_path / "outside")):
            data = json.loads(_record(store, found).read_text()) | {"path": path}
            _record(store, found).write_text(json.dumps(data))
            assert store.lookup(store.key(spec())) is None

    def test_an_unknown_source(self, store: Store) -> None:
        assert store.lookup("0" * 40) is None


class TestInside:
    @pytest.mark.parametrize("path", ["", ".", "/etc/passwd", "..", "../x", "data/../../x", "data/..", "//x"])
    def test_what_would_leave(self, store: Store, path: str) -> None:
        with pytest.raises(StoreError):
            inside(store.root, path)

    def test_links(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "outside").mkdir()
        (tmp_path / "store-of-others").mkdir()
        (store.root / "data" / "link").symlink_to(tmp_path / "outside")
        (store.root / "data" / "sibling").symlink_to(tmp_path / "store-of-others")
        (store.root / "data" / "self").symlink_to(store.root)
        for path in ("data/link", "data/link/x", "data/sibling/x", "data/self"):
            with pytest.raises(StoreError):
                inside(store.root, path)
        assert inside(store.root, "data/x") == store.root / "data/x"

    def test_a_root_that_is_itself_a_link(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "alias").symlink_to(store.root)
        assert inside(tmp_path / "alias", "data/x") == tmp_path / "alias" / "data/x"

    @given(st.lists(st.sampled_from(["..", ".", "a", "data", "", "/", "link"]), max_size=6).map("/".join))
    @settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_nothing_else_does(self, store: Store, path: str) -> None:
        try:
            found = inside(store.root, path)
        except StoreError:
            return
        assert os.path.realpath(found).startswith(f"{os.path.realpath(store.root)}/")


class TestManifests:
    def test_written_and_replaced(self, store: Store) -> None:
        for data in (b"{}", b'{"v":1}'):
            path = store.write_manifest("j/../x", "0", data)
            assert path.read_bytes() == data and path.is_relative_to(store.root / "manifests")
            assert os.listdir(path.parent) == ["0.json"]

    def test_a_write_that_fails_leaves_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "target").mkdir()
        with pytest.raises(IsADirectoryError):
            write_atomic(tmp_path / "target", b"x", scratch=tmp_path, fsync=False)
        assert os.listdir(tmp_path) == ["target"]


class TestAudit:
    def test_usage(self, store: Store) -> None:
        put(store, b"12345"), put(store, b"123", spec("s3://b/k"))
        (store.root / "scratch" / "x.part").write_bytes(b"1234567")
        found = usage(store)
        assert (found.files, found.bytes, found.scratch_bytes) == (2, 8, 7) and found.free_bytes > 0

    def test_verify_finds_each_damage_and_takes_it_out(self, store: Store) -> None:
        good = put(store, b"good", spec("s3://b/good"))
        damage = {
            "s3://b/short": lambda path: path.write_bytes(b"12"),
            "s3://b/flipped": lambda path: path.write_bytes(b"1334"),
            "s3://b/missing": lambda path: path.unlink(),
        }
        for uri, harm in damage.items():
            harm(store.root / put(store, b"1234", spec(uri)).path)
        found = {d.uri: d.reason for d in verify(store, remove=False)}
        assert set(found) == set(damage)
        assert (
            "2 bytes, not 4" in found["s3://b/short"]
            and "digest" in found["s3://b/flipped"]
            and "missing" in found["s3://b/missing"]
        )
        assert {d.uri for d in verify(store, remove=True)} == set(damage)
        assert [*verify(store, remove=True)] == [] and [r.uri for _, r in records(store)] == ["s3://b/good"]
        assert (store.root / good.path).exists() and store.lookup(store.key(spec("s3://b/flipped"))) is None
        again = put(store, b"1234", spec("s3://b/flipped"))
        assert (store.root / again.path).read_bytes() == b"1234"

    def test_verify_deletes_nothing_outside(self, store: Store, tmp_path: Path) -> None:
        (tmp_path / "outside").write_bytes(b"mine")
        found = put(store, b"bytes")
        data = json.loads(_record(store, found).read_text()) | {"path": "../outside"}
        _record(store, found).write_text(json.dumps(data))
        (damage,) = verify(store, remove=True)
        assert "cannot be read" in damage.reason and (tmp_path / "outside").read_bytes() == b"mine"

    def test_sweeping_by_age(self, store: Store) -> None:
        limit = time.time() - store.limits.scratch_ttl_s
        for name, age in (("old.part", -60), ("old.json", -60), ("new.part", 60)):
            path = store.root / "scratch" / name
            path.write_text("x")
            os.utime(path, (limit + age, limit + age))
        assert sweep_scratch(store) == 2 and left(store) == ["new.part"]


def test_an_interrupted_attempt_keeps_what_it_had_only_with_a_journal(store: Store) -> None:
    for journal in (True, False):
        with (  # noqa: PT012
            pytest.raises(ConnectionLost),
            store.scratch(f"k{journal}", spec(), on_bytes=lambda n: None, max_bytes=99) as scratch,
        ):
            if journal:
                scratch.note("etag", 10)
            scratch.write(b"12345")
            raise ConnectionLost(URI, "reset")
    assert [name.partition(".")[0] for name in left(store)] == ["kTrue", "kTrue"]


def test_a_file_over_the_limit_leaves_nothing(store: Store) -> None:
    with pytest.raises(TooLarge), store.scratch("k", spec(), on_bytes=lambda n: None, max_bytes=4) as scratch:  # noqa: PT012
        scratch.note("etag", 10)
        scratch.write(b"1234")
        scratch.write(b"5")
    assert left(store) == []


class TestChecking:
    """What a reader with ``verify=True`` asks."""

    def test_what_cannot_be_read_is_not_taken_for_damaged(self, store: Store) -> None:
        stored = put(store, b"good")
        path = store.path_of(stored.path)
        before, held = resource.getrlimit(resource.RLIMIT_NOFILE), os.open(os.devnull, os.O_RDONLY)
        resource.setrlimit(resource.RLIMIT_NOFILE, (held + 1, before[1]))
        try:
            with pytest.raises(StoreError, match="cannot be read"):
                audit.check(store, stored.path, stored.size, stored.digest)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            os.close(held)
        assert path.read_bytes() == b"good" and store.lookup(store.key(spec())) is not None

    def test_a_file_that_another_has_fetched_again_stays(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two ranks found the damage, and this one was slower."""
        stored = put(store, b"good")
        path, compare = store.path_of(stored.path), audit._compare
        path.chmod(0o644)
        path.write_bytes(b"baad")

        def slowly(of: Store, piece: Piece) -> str | None:
            found = compare(of, piece)
            path.with_suffix(".new").write_bytes(b"good")
            path.with_suffix(".new").replace(path)
            return found

        monkeypatch.setattr(audit, "_compare", slowly)
        with pytest.raises(StoreError, match="was replaced meanwhile"):
            audit.check(store, stored.path, stored.size, stored.digest)
        assert path.read_bytes() == b"good" and store.lookup(store.key(spec())) is not None
        monkeypatch.undo()
        audit.check(store, stored.path, stored.size, stored.digest)
