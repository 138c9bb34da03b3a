"""Uploads to a real S3 server and to a real FTP server: whole or not there, never over somebody else's, never twice."""

from __future__ import annotations

import hashlib
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest import errors
from ingest.sections import Connection
from ingest.settings import Settings
from ingest.store import Piece
from tests.servers.ftp import Ftp
from tests.servers.s3 import S3Server, s3_server
from workers.destinations import Into
from workers.destinations import s3 as place
from workers.fetchers.base import Context, Interrupted

SOME = hashlib.shake_128(b"some").digest(100_000)


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


class Sender:
    """``send`` puts bytes under a name, as a job with ``into=`` does."""

    def __init__(self, tmp: Path, into: str, values: dict[str, Any]) -> None:
        self.tmp, self.into, self.values = tmp, into, values
        self.settings = Settings()
        self.check: Callable[[], None] = lambda: None

    def send(self, data: bytes, name: str = "a.bin", tag: str = "tag") -> str:
        path = self.tmp / hashlib.sha256(data).hexdigest()
        path.write_bytes(data)
        return self.send_file(path, len(data), hashlib.sha256(data).hexdigest(), name, tag)

    def send_file(self, path: Path, size: int, sha256: str, name: str, tag: str = "tag") -> str:
        context = Context(self.settings, Connection("there", self.values))
        into = Into(self.into, self.settings, lambda uri: context, lambda: self.check())
        return into.put("x://source", path, Piece("p", size, f"sha256:{sha256}"), name, tag)

    def fails(self, kind: type[errors.FetchError], data: bytes = SOME) -> str:
        with pytest.raises(kind) as caught:
            self.send(data)
        assert caught.value.uri == "x://source" and f"into {self.into}" in caught.value.reason
        return caught.value.reason


class TestS3:
    @pytest.fixture
    def sender(self, s3: S3Server, tmp_path: Path) -> Sender:
        bucket = f"b{abs(hash(tmp_path))}"
        s3.put(bucket, {})
        return Sender(tmp_path, f"s3://{bucket}/out/", s3.profile())

    @pytest.fixture
    def objects(self, s3: S3Server, sender: Sender) -> Callable[[], dict[str, bytes]]:
        bucket = sender.into.split("/")[2]

        def found() -> dict[str, bytes]:
            listed = s3.client.list_objects_v2(Bucket=bucket).get("Contents", [])
            return {o["Key"]: s3.client.get_object(Bucket=bucket, Key=o["Key"])["Body"].read() for o in listed}

        return found

    def pending(self, s3: S3Server, sender: Sender) -> list[Any]:
        return list(s3.client.list_multipart_uploads(Bucket=sender.into.split("/")[2]).get("Uploads", []))

    @pytest.mark.parametrize("data", [b"", b"x", SOME], ids=["empty", "one", "some"])
    def test_it_is_there(self, sender: Sender, objects: Callable[[], dict[str, bytes]], data: bytes) -> None:
        assert sender.send(data, "d/ü #?%.bin") == sender.into + "d/ü #?%.bin"
        assert objects() == {"out/d/ü #?%.bin": data}

    def test_twice_is_once(self, s3: S3Server, sender: Sender) -> None:
        first = sender.send(SOME)
        bucket, key = sender.into.split("/")[2], "out/a.bin"
        before = s3.client.head_object(Bucket=bucket, Key=key)
        assert sender.send(SOME) == first
        assert s3.client.head_object(Bucket=bucket, Key=key)["LastModified"] == before["LastModified"]
        s3.client.put_object(Bucket=bucket, Key="out/b.bin", Body=SOME)  # put there by somebody else
        assert sender.send(SOME, "b.bin") == sender.into + "b.bin"

    def test_what_is_not_ours_stays(
        self, s3: S3Server, sender: Sender, objects: Callable[[], dict[str, bytes]]
    ) -> None:
        bucket = sender.into.split("/")[2]
        s3.client.put_object(Bucket=bucket, Key="out/a.tar.gz", Body=SOME[::-1])
        for data in (SOME, b"newer", b"newer"):
            assert sender.send(data, "a.tar.gz") == sender.into + "a-tag.tar.gz"
            assert objects() == {"out/a.tar.gz": SOME[::-1], "out/a-tag.tar.gz": data}

    def test_somebody_else_is_first(
        self, s3: S3Server, sender: Sender, objects: Callable[[], dict[str, bytes]]
    ) -> None:
        bucket = sender.into.split("/")[2]

        def race() -> None:
            sender.check = lambda: None
            s3.client.put_object(Bucket=bucket, Key="out/a.bin", Body=b"theirs")

        sender.check = race  # after it was seen that nothing is there
        assert sender.send(SOME) == sender.into + "a-tag.bin"
        assert objects() == {"out/a.bin": b"theirs", "out/a-tag.bin": SOME}

    def test_large_ones_go_in_parts(
        self, s3: S3Server, sender: Sender, objects: Callable[[], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(place, "PART_BYTES", 5 << 20)
        data = SOME * 130  # 13 MB: two parts and a bit
        assert sender.send(data) == sender.into + "a.bin" and objects() == {"out/a.bin": data}
        head = s3.client.head_object(Bucket=sender.into.split("/")[2], Key="out/a.bin")
        assert head["ETag"].endswith('-3"') and self.pending(s3, sender) == []
        modified = head["LastModified"]
        assert sender.send(data) == sender.into + "a.bin"
        head = s3.client.head_object(Bucket=sender.into.split("/")[2], Key="out/a.bin")
        assert head["LastModified"] == modified
        s3.client.put_object(Bucket=sender.into.split("/")[2], Key="out/a.bin", Body=data[::-1])
        assert sender.send(data) == sender.into + "a-tag.bin"

    @pytest.mark.parametrize("at", [3, 20, 40])
    def test_interrupted(self, s3: S3Server, sender: Sender, objects: Any, at: int, monkeypatch: Any) -> None:
        monkeypatch.setattr(place, "PART_BYTES", 5 << 20)
        count = iter(range(1 << 30))
        stopped = threading.Event()

        def check() -> None:
            if stopped.is_set() or next(count) >= at:
                stopped.set()
                raise Interrupted("cancelled")

        sender.check = check
        with pytest.raises(Interrupted, match="cancelled"):
            sender.send(SOME * 130)
        assert objects() == {} and self.pending(s3, sender) == [], "nothing, and nothing that would cost"

    def test_a_slice_that_is_too_short_says_so(self, sender: Sender) -> None:
        import dataclasses

        limits = dataclasses.replace(sender.settings.limits, connect_s=1e-7, stall_s=1e-6, soft_s=1e-5)
        sender.settings = dataclasses.replace(sender.settings, limits=limits)
        sender.values = {**sender.values}

        def check() -> None:
            raise Interrupted("slice")

        sender.check = check
        with pytest.raises(Interrupted) as caught:
            Into(
                sender.into, sender.settings, lambda uri: Context(Settings(), Connection("t", sender.values)), check
            ).put("x://", self._file(sender), Piece("p", 1, "sha256:" + hashlib.sha256(b"x").hexdigest()), "a", "t")
        assert caught.value.wasted and "uploading it into" in caught.value.reason

    def _file(self, sender: Sender) -> Path:
        path = sender.tmp / "x"
        path.write_bytes(b"x")
        return path

    def test_a_file_that_is_another_by_now(self, sender: Sender, objects: Callable[[], dict[str, bytes]]) -> None:
        path = sender.tmp / "changed"
        path.write_bytes(SOME)
        with pytest.raises(errors.PermanentFetchError, match="shorter"):
            sender.send_file(path, len(SOME) + 1, hashlib.sha256(SOME).hexdigest(), "a.bin")
        assert objects() == {}

    def test_refusals(self, s3: S3Server, sender: Sender) -> None:
        sender.values["read_only"] = True
        assert "'there' is read_only" in sender.fails(errors.AccessDenied)
        del sender.values["read_only"]
        sender.into = "s3://no-such-bucket-here/"
        assert "no such bucket" in sender.fails(errors.NotFound)
        sender.values["endpoint"] = "http://127.0.0.1:9"
        sender.fails(errors.ConnectionLost)

    def test_memory_is_flat(self, sender: Sender, tmp_path: Path) -> None:
        path = tmp_path / "sparse"
        with open(path, "wb") as file:
            file.truncate(300 << 20)
        reads: list[int] = []
        from workers.destinations.base import Local, Slice

        local = Local(path, 300 << 20, "sha256:" + "0" * 64, lambda: reads.append(1))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        place.etag_of(local)
        with Slice(local, 1 << 20, 299 << 20) as body:
            while body.read(1 << 20):
                pass
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10
        assert len(reads) > 500, "it may be interrupted at every megabyte"

    def test_sizes_of_parts(self) -> None:
        for size in (place.PART_BYTES + 1, 1 << 40, 5 << 40):
            part = place.part_bytes(size)
            assert -(-size // part) <= 10_000 and place.PART_BYTES <= part <= 5 << 30


class TestFilesystems:
    @pytest.fixture
    def ftp(self) -> Iterator[Ftp]:
        with Ftp() as server:
            yield server

    @pytest.fixture
    def sender(self, ftp: Ftp, tmp_path: Path) -> Sender:
        return Sender(tmp_path, ftp.url("/out/"), {})

    def test_it_is_there_once(self, ftp: Ftp, sender: Sender) -> None:
        for _ in range(2):
            assert sender.send(SOME, "d/a.bin") == sender.into + "d/a.bin"
            assert ftp.files == {"/out/d/a.bin": SOME}

    def test_what_is_not_ours_stays(self, ftp: Ftp, sender: Sender) -> None:
        ftp.put("/out/a.bin", SOME[::-1])
        for data in (SOME, b"newer"):
            assert sender.send(data) == sender.into + "a-tag.bin"
            assert ftp.files == {"/out/a.bin": SOME[::-1], "/out/a-tag.bin": data}

    def test_interrupted(self, ftp: Ftp, sender: Sender) -> None:
        count = iter(range(1 << 30))

        def check() -> None:
            if next(count) == 5:
                raise Interrupted("cancelled")

        sender.check = check
        with pytest.raises(Interrupted):
            sender.send(SOME * 100)
        assert ftp.files == {}, "no half file under any name"

    def test_refusals(self, ftp: Ftp, sender: Sender) -> None:
        ftp.password = "other"
        sender.fails(errors.AccessDenied)
        sender.into = "memory://x/"
        sender.fails(errors.Unsupported)

    def test_s3_by_fsspec_too(self, s3: S3Server, tmp_path: Path) -> None:
        s3.put("by-fsspec", {})
        options = {"key": s3.key, "secret": s3.secret, "client_kwargs": {"endpoint_url": s3.endpoint}}
        sender = Sender(tmp_path, "s3a://by-fsspec/out/", {"options": options})
        for _ in range(2):
            assert sender.send(SOME, "d/a b.bin") == "s3a://by-fsspec/out/d/a b.bin"
            assert s3.client.get_object(Bucket="by-fsspec", Key="out/d/a b.bin")["Body"].read() == SOME
        assert sender.send(b"other", "d/a b.bin") == "s3a://by-fsspec/out/d/a b-tag.bin"
        keys = [o["Key"] for o in s3.client.list_objects_v2(Bucket="by-fsspec")["Contents"]]
        assert keys == ["out/d/a b-tag.bin", "out/d/a b.bin"], "nothing else is left"
