"""Any filesystem of fsspec as a destination. A file is written under a name of its own and then renamed, so that no
half of one is ever seen under the name that was asked for."""

from __future__ import annotations

import base64
import hashlib
import posixpath
import uuid
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ingest.errors import UploadFailed
from workers.destinations.base import Local, Taken
from workers.fetchers.base import Context
from workers.fetchers.fs.fetcher import edge, filesystem, info_of, size_of

_BLOCK_BYTES = 8 << 20
#: Where services say an MD5 of the content, in Base64.
_MD5_FIELDS = ("md5Hash", "content_md5", "contentMd5", "Content-MD5")


class Folder:
    """A folder, prefix or container of whatever the URI's scheme stands for."""

    def __init__(self, into: str, context: Context) -> None:
        self._into, self._context = into, context
        with edge(into, context):
            self._fs, path = filesystem(into, context)
        self._top = path.rstrip("/")

    def uri(self, name: str) -> str:
        return self._into + name

    def holds(self, name: str, file: Local) -> bool | None:
        path = self._path(name)
        with edge(self._into, self._context):
            found = self._look(path)
            if found is None:
                return None
            if found.get("type") == "directory" or size_of(found) not in (None, file.size):
                return False
            if (stated := _md5_of(found)) is not None:
                return stated == file.md5
            return self._digest_of(path, file) == file.sha256  # it says nothing of itself: it is read

    def put(self, name: str, file: Local, *, fresh: bool) -> None:
        path = self._path(name)
        folder, _, last = path.rpartition("/")
        beside = f"{folder}/.{last[:100]}.{uuid.uuid4().hex[:12]}.part"
        with edge(self._into, self._context):
            with suppress(FileExistsError, NotImplementedError):
                self._fs.makedirs(folder, exist_ok=True)
            try:
                self._send(beside, file)
                there = self._look(path) is not None
                if there and not fresh:
                    self._fs.rm_file(path)
                taken = there and fresh
                if not taken:
                    self._fs.mv(beside, path)
            finally:
                with suppress(Exception):  # mostly it is not there any more
                    self._fs.rm_file(beside)
            found = self._look(path)
        if taken:
            raise Taken
        stated = _md5_of(found) if found else None
        if found is None or size_of(found) not in (None, file.size) or stated not in (None, file.md5):
            raise UploadFailed(self._into, f"{self.uri(name)} is not there as it was sent ({file.size} bytes)")

    def _send(self, path: str, file: Local) -> None:
        opened = self._fs.open(path, "wb", block_size=_BLOCK_BYTES)
        try:
            for block in file.blocks():
                opened.write(block)
        except BaseException:
            # To close it would be to say that this is all.
            with suppress(Exception):
                opened.discard()
            opened.closed = True
            raise
        opened.close()

    def _look(self, path: str) -> Mapping[str, Any] | None:
        try:
            return info_of(self._fs, path)
        except FileNotFoundError:
            return None

    def _digest_of(self, path: str, file: Local) -> str:
        digest = hashlib.sha256()
        with self._fs.open(path, "rb", block_size=_BLOCK_BYTES, cache_type="readahead") as opened:
            while block := opened.read(1 << 20):
                file.check()
                digest.update(block)
        return digest.hexdigest()

    def _path(self, name: str) -> str:
        return posixpath.join(self._top, name)


def _md5_of(found: Mapping[str, Any]) -> str | None:
    for field in _MD5_FIELDS:
        value = found.get(field) or found.get("content_settings", {}).get(field)
        if value:
            return bytes(value).hex() if isinstance(value, bytes | bytearray) else base64.b64decode(value).hex()
    return None
