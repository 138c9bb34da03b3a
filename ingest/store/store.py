"""A node's directory of verified files: look up, make, publish. What it costs and whether it is whole is in ``audit``.

Publishing is: unique scratch file on the same filesystem, verify, fsync, rename. No lock guards it; doing it twice is
harmless.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ingest import names
from ingest.errors import DigestMismatch, NodeUnfit, StoreError, TooLarge, Truncated
from ingest.model import FileSpec, source_key
from ingest.settings import StoreLimits
from ingest.sources import parse_digest
from ingest.store.layout import Stored, inside, read_record, source_dir, sync_dir, version_dir, write_atomic
from ingest.store.scratch import Scratch

#: Errors of the disk that say nothing about the source: the shard goes back, and another node may have it.
_DISK = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EIO,
    errno.EACCES,
    errno.EPERM,
    errno.ESTALE,
    errno.EMFILE,
    errno.ENFILE,
}


class Store:
    """Opened by ``Store.open`` (a data node, makes what is missing) or ``Store.attach`` (a reader, makes nothing)."""

    def __init__(self, root: Path, identity: str, limits: StoreLimits) -> None:
        self.root, self.id, self.limits = root, identity, limits

    @classmethod
    def open(cls, limits: StoreLimits) -> Store:
        """Make the root where it is missing. Raises :class:`StoreError` where it cannot be written."""
        root = limits.root
        try:
            for part in ("data", "manifests", "scratch"):
                (root / part).mkdir(parents=True, exist_ok=True)
            path = root / "STORE_ID"
            if not path.exists():
                # A link of a whole file: the first of two starters wins, and nobody ever reads half an id.
                fresh = root / "scratch" / f"id-{uuid.uuid4()}"
                fresh.write_text(str(uuid.uuid4()))
                with suppress(FileExistsError):
                    os.link(fresh, path)
                fresh.unlink()
            probe = root / "scratch" / f"probe-{uuid.uuid4()}"
            probe.touch()
            probe.unlink()
            return cls(root, _identity(path), limits)
        except OSError as error:
            raise StoreError(
                str(root), f"cannot be used as a store: {error.strerror}; set INGEST_STORE to a writable directory"
            ) from error

    @classmethod
    def attach(cls, limits: StoreLimits) -> Store | None:
        """The store at that root, if there is one."""
        try:
            return cls(limits.root, _identity(limits.root / "STORE_ID"), limits)
        except (OSError, StoreError):
            return None

    @staticmethod
    def key(spec: FileSpec) -> str:
        return source_key(spec.uri, spec.connection, dict(spec.request) if spec.request else None)

    def lookup(self, key: str, digest: str | None = None) -> Stored | None:
        """The version of a source that was validated last (with that digest, if one is given), whole by its size;
        else None."""
        directory = source_dir(self.root, key)
        try:
            records = [read_record(directory / name) for name in os.listdir(directory) if name.endswith(".json")]
        except FileNotFoundError:
            return None
        for record in sorted(filter(None, records), key=lambda r: -r.validated):
            if (digest is None or record.has_digest(digest)) and self._is_whole(record):
                return record
        return None

    def _is_whole(self, record: Stored) -> bool:
        try:
            return inside(self.root, record.path).stat().st_size == record.size
        except (OSError, StoreError):
            return False

    def confirm(self, key: str, record: Stored) -> None:
        """The origin said that this version is still what it has."""
        with suppress(OSError):  # a record that cannot be touched is only asked about once more
            os.utime(source_dir(self.root, key) / f"{version_dir(record.version)}.json")

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free

    @contextmanager
    def scratch(
        self, key: str, spec: FileSpec, *, on_bytes: Callable[[int], None], max_bytes: int
    ) -> Iterator[Scratch]:
        """A scratch file for one attempt at a source; a partial one is taken up where this node left it.

        Errors of the disk become :class:`NodeUnfit`. The caller holds the flight of ``key``: nobody else is at it.
        """
        algorithms = frozenset({parse_digest(spec.digest)[0]} if spec.digest else ())
        scratch = None
        try:
            self._check_room(spec)
            limit = min(max_bytes, self.limits.max_file_bytes)
            scratch = Scratch(
                self.root / "scratch",
                key,
                spec.uri,
                algorithms=algorithms,
                max_bytes=limit,
                on_bytes=on_bytes,
                keep=spec.request is None,
            )
            yield scratch
        except OSError as error:
            if error.errno not in _DISK:
                raise
            raise NodeUnfit(spec.uri, f"the store at {self.root} failed: {error.strerror}") from error
        except (DigestMismatch, TooLarge):
            # What was gathered is not a part of the file that was asked for: never take it up again.
            if scratch is not None:
                scratch.discard()
            raise
        finally:
            if scratch is not None:
                scratch.close(discard=False)

    def _check_room(self, spec: FileSpec) -> None:
        free = self.free_bytes()
        need = (spec.size or 0) + self.limits.min_free_bytes
        if free < need:
            raise NodeUnfit(
                spec.uri,
                f"the store at {self.root} has {free >> 20} MiB free and needs {need >> 20} MiB; make room there",
            )

    def publish(
        self,
        key: str,
        spec: FileSpec,
        scratch: Scratch,
        *,
        version: str | None = None,
        validator: str | None = None,
        name: str | None = None,
        samples: Callable[[Path, str], int | None] | int | None = None,
    ) -> Stored:
        """Verify size and digest, then rename into place. Raises :class:`DigestMismatch` or :class:`Truncated`; then
        nothing is published. Published twice, the first one stays: it is the same version. Other bytes under a
        version that is there already become a version of their own, named by their digest: a path never changes what
        it holds."""
        digest = scratch.digest()
        extra: tuple[str, ...] = ()
        if spec.size is not None and scratch.size != spec.size:
            scratch.discard()
            raise Truncated(spec.uri, f"expected {spec.size} bytes, got {scratch.size}; nothing was published")
        if spec.digest is not None:
            algorithm, value = parse_digest(spec.digest)
            found = scratch.digest(algorithm)
            if found != f"{algorithm}:{value}":
                raise DigestMismatch(spec.uri, f"{algorithm}:{value}", found, scratch.size)
            extra = (found,) if algorithm != "sha256" else ()
        version = version or digest
        directory = source_dir(self.root, key)
        earlier = read_record(directory / f"{version_dir(version)}.json")
        if earlier is not None and earlier.digest != digest:
            version = digest
            earlier = read_record(directory / f"{version_dir(version)}.json")
        folder = directory / version_dir(version)
        name = names.safe_name(name or (spec.name or "").rpartition("/")[2] or names.base_name(spec.uri), "file")
        final = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        if self.limits.fsync:
            scratch.sync()
        if earlier is not None and earlier.digest == digest and self._is_whole(earlier):
            final = self.root / earlier.path
            extra = tuple(dict.fromkeys((*earlier.digests, *extra)))
        else:
            os.replace(scratch.path, final)
        if self.limits.fsync:
            sync_dir(folder)
        if callable(samples):
            samples = samples(final, name)
        record = Stored(
            uri=spec.uri, path=str(final.relative_to(self.root)), size=scratch.size, digest=digest, version=version,
            connection=spec.connection, validator=validator, samples=samples, digests=extra,
        )  # fmt: skip
        self._write_record(directory, record)
        scratch.discard()
        return Stored.from_json({**record.to_json(), "validated": time.time()})

    def _write_record(self, directory: Path, record: Stored) -> None:
        data = json.dumps(record.to_json(), ensure_ascii=False).encode("utf-8", "surrogatepass")
        write_atomic(directory / f"{version_dir(record.version)}.json", data, fsync=self.limits.fsync)

    def manifest_path(self, job: str, shard: str) -> Path:
        return self.root / "manifests" / names.safe_name(job, "job") / f"{shard}.json"

    def write_manifest(self, job: str, shard: str, data: bytes) -> Path:
        """The lasting record of a shard, beside the data. Returns its path."""
        path = self.manifest_path(job, shard)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data, fsync=self.limits.fsync)
        return path

    def path_of(self, relative: str) -> Path:
        """The absolute path of a file of this store. Raises :class:`StoreError` for one that would lead outside."""
        return inside(self.root, relative)


def _identity(path: Path) -> str:
    """The id in a STORE_ID file. One that is no UUID could be equal to another store's: that is refused."""
    try:
        return str(uuid.UUID(path.read_text().strip()))
    except ValueError:
        raise StoreError(str(path), "is damaged: it holds no UUID; remove it, and the store gets a new one") from None


def link_into(path: Path, directory: Path, name: str, tag: str) -> Path:
    """Make ``path`` appear as ``directory / name``: hard link, else a copy. Never outside ``directory``.

    ``name`` may have folders in it; every part is made safe. A different file that already has the name is left alone:
    ours gets ``tag`` in its name. Raises :class:`StoreError` where it cannot be written.
    """
    parts = [names.safe_name(part, "file") for part in name.split("/") if part not in ("", ".", "..")] or ["file"]
    try:
        folder = directory.joinpath(*parts[:-1])
        # Before anything is made: a link in there could lead anywhere.
        if not (os.path.realpath(folder) + os.sep).startswith(os.path.join(os.path.realpath(directory), "")):
            raise StoreError(str(folder), f"leads out of {directory}")
        folder.mkdir(parents=True, exist_ok=True)
        stem, dot, suffix = parts[-1].partition(".")
        plain, tagged = folder / parts[-1], folder / f"{stem}-{tag}{dot}{suffix}"
        for target in (plain, tagged):
            if target.is_file() and _same(path, target):
                return target
        temporary = folder / f".{uuid.uuid4().hex[:16]}"
        try:
            try:
                os.link(path, temporary)
            except OSError:
                shutil.copyfile(
                    path, temporary
                )  # another filesystem; uses reflink or sendfile where the kernel offers it
            # Somebody else may have brought the same file there at this moment.
            if _take_name(temporary, plain) or (plain.is_file() and _same(path, plain)):
                return plain
            # By its tag this name is ours: what is there is an earlier version of the same source.
            os.replace(temporary, tagged)
            return tagged
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(str(directory), f"into: cannot be written: {error.strerror}") from error


def _take_name(temporary: Path, target: Path) -> bool:
    """Rename unless the name is taken, also by somebody who takes it at this moment."""
    try:
        os.link(temporary, target)
        return True
    except FileExistsError:
        return False
    except OSError:  # a filesystem without hard links: an empty file holds the name for a moment
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        os.replace(temporary, target)
        return True


def _same(a: Path, b: Path) -> bool:
    if os.path.samefile(a, b):
        return True
    if a.stat().st_size != b.stat().st_size:
        return False
    with open(a, "rb") as left, open(b, "rb") as right:
        while block := left.read(1 << 20):
            if block != right.read(1 << 20):
                return False
    return True
