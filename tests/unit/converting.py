"""Files in scratch and steps over them, without a service: what the tests of ``convert=`` share. No test in here."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ingest import errors
from ingest.model import FileSpec
from ingest.steps import as_steps
from ingest.store import Scratch
from workers.convert import convert

URI = "https://host/file"


class Bench:
    """``made`` runs steps over one file and gives (name, bytes) of what they make."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.peak = 0

    @contextmanager
    def scratch(
        self, data: bytes | Path, on_bytes: Callable[[int], None] = lambda n: None, max_bytes: int = 1 << 40
    ) -> Iterator[Scratch]:
        self.root.mkdir(exist_ok=True)
        made = Scratch(self.root, "key", URI, keep=False, fsync=False, max_bytes=max_bytes)
        try:
            if isinstance(data, Path):
                beside = self.root / "beside"
                beside.hardlink_to(data)
                made.replace(beside)
            else:
                made.write(data)
            made._on_bytes = on_bytes
            yield made
        finally:
            made.close(discard=True)
            assert list(self.root.iterdir()) == [], "nothing is left in scratch"

    def made(
        self, name: str, data: bytes | Path, *steps: Any, on_bytes: Callable[[int], None] = lambda n: None,
        max_bytes: int = 1 << 40,
    ) -> dict[str, bytes]:  # fmt: skip
        with self.scratch(data, on_bytes, max_bytes) as scratch:
            convert(FileSpec(0, 0, URI), scratch, name, as_steps(list(steps)))
            found = {str(piece.name): piece.path.read_bytes() for piece in scratch.pieces}
            assert list(found) == [piece.name for piece in scratch.pieces]
            assert all(piece.size == len(found[str(piece.name)]) for piece in scratch.pieces)
            there = {path.name for path in self.root.iterdir()}
            assert there == {scratch.path.name, *(piece.path.name for piece in scratch.pieces)}, "nothing in between"
            return found

    def fails(self, kind: type[errors.FetchError], name: str, data: bytes | Path, *steps: Any) -> str:
        with pytest.raises(kind) as caught:
            self.made(name, data, *steps)
        assert type(caught.value) is kind and caught.value.uri == URI
        return str(caught.value)


def tar_of(
    members: Iterable[tuple[str, bytes | tarfile.TarInfo]], mode: str = "w", format: int = tarfile.PAX_FORMAT
) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=format) as tar:  # type: ignore[call-overload]
        for name, body in members:
            info = body if isinstance(body, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.name = name
            data = b"" if isinstance(body, tarfile.TarInfo) else body
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def special(kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo("x")
    info.type, info.linkname = kind, target
    return info


def zip_of(members: Iterable[tuple[str | zipfile.ZipInfo, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, body in members:
            archive.writestr(name, body, method)
    return out.getvalue()
