"""A node's directory of verified files: look up, make, publish. What it costs and whether it is whole is in ``audit``.

Publishing is: unique scratch file on the same filesystem, verify, fsync, rename. No lock guards it; doing it twice is
harmless.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ingest import names
from ingest.errors import DigestMismatch, NodeUnfit, StoreError, TooLarge, Truncated
from ingest.model import FileSpec, source_key
from ingest.sections import StoreLimits
from ingest.sources import parse_digest
from ingest.store.disk import free_bytes, in_words, is_disk
from ingest.store.layout import (
    Piece,
    Stored,
    folder_of,
    inside,
    read_record,
    source_dir,
    sync_filesystem,
    sync_path,
    version_dir,
    write_atomic,
)
from ingest.store.room import Room
from ingest.store.scratch import Scratch

#: Of a published file: how many samples it has, where that can be said.
Counter = Callable[[Path], int | None]

#: Of so many files, each one's own fsync takes longer than one of the whole filesystem.
_SYNC_AT_ONCE = 64


class Store:
    """Opened by ``Store.open`` (a data node, makes what is missing) or ``Store.attach`` (a reader, makes nothing)."""

    def __init__(self, root: Path, identity: str, limits: StoreLimits) -> None:
        self.root, self.id, self.limits = root, identity, limits

    @classmethod
    def open(cls, limits: StoreLimits) -> Store:
        """Make the root where it is missing. Raises :class:`StoreError` where it cannot be written."""
        root = limits.root
        try:
            _make(root, str(uuid.uuid4()))
            probe = root / "scratch" / f"probe-{uuid.uuid4()}"
            probe.touch()
            probe.unlink()
            return cls(root, _identity(root / "STORE_ID"), limits)
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

    def make_again(self) -> None:
        """What was removed of its folders, with the id that it had. Raises OSError."""
        _make(self.root, self.id)

    def check(self) -> None:
        """Raises :class:`StoreError` where the store is not there (any more): a mount that is gone, another store."""
        try:
            self._check_id()
        except OSError as error:
            raise StoreError(str(self.root), f"is not there: {error.strerror}; is it mounted?") from error

    def _check_id(self) -> None:
        if (found := _identity(self.root / "STORE_ID")) != self.id:
            raise StoreError(str(self.root), f"is another store by now: {found}, and was {self.id}")

    @staticmethod
    def key(spec: FileSpec, steps: Sequence[Any] = ()) -> str:
        """The identity of a source here, and of what ``steps`` make of it."""
        asked: Any = dict(spec.request) if spec.request else spec.pin
        return source_key(spec.uri, spec.connection, [asked, *steps] if steps else asked)

    def lookup(self, key: str, digest: str | None = None) -> Stored | None:
        """The version of a source that was validated last (with that digest, if one is given), whole by its size;
        else None."""
        directory = source_dir(self.root, key)
        try:
            records = [read_record(f"{directory}/{name}") for name in os.listdir(directory) if name.endswith(".json")]
        except FileNotFoundError:
            return None
        for record in sorted(filter(None, records), key=lambda r: -r.validated):
            if (digest is None or record.has_digest(digest)) and self._is_whole(record):
                return record
        return None

    def _is_whole(self, record: Stored) -> bool:
        try:
            return all(os.stat(inside(self.root, piece.path)).st_size == piece.size for piece in record.outputs)
        except (OSError, StoreError):
            return False

    def confirm(self, key: str, record: Stored) -> None:
        """The origin said that this version is still what it has."""
        with suppress(OSError):  # a record that cannot be touched is only asked about once more
            os.utime(source_dir(self.root, key) / f"{version_dir(record.version)}.json")

    def touch(self, path: str) -> bool:
        """A file of this store (by its path relative to the root) is used: it stays for ``quiet_s`` at the least. False
        if it was evicted; one that cannot be touched by this user is none that he could evict."""
        try:
            os.utime(folder_of(self.root, path))
        except FileNotFoundError:
            return False
        except OSError:
            return True
        return True

    def free_bytes(self) -> int:
        return free_bytes(self.root)

    @contextmanager
    def scratch(
        self,
        key: str,
        spec: FileSpec,
        *,
        on_bytes: Callable[[int], None],
        max_bytes: int,
        keep: bool = True,
        room: Room | None = None,
    ) -> Iterator[Scratch]:
        """A scratch file for one attempt at a source; with ``keep``, a partial one is taken up where this node left it.

        Errors of the disk become :class:`NodeUnfit`. The caller holds the flight of ``key``: nobody else is at it.
        """
        algorithms = frozenset({parse_digest(spec.digest)[0]} if spec.digest else ())
        scratch = None
        try:
            if room is not None:
                room.begin(spec.size)
            self._check_place(spec)
            self._check_room(spec)
            limit = min(max_bytes, self.limits.max_file_bytes)
            scratch = Scratch(
                self.root / "scratch",
                key,
                spec.uri,
                algorithms=algorithms,
                mirrors=spec.mirrors,
                max_bytes=limit,
                on_bytes=on_bytes,
                # What a database is asked is read anew; the pages of an API are taken up at the last whole one.
                keep=keep and (spec.request is None or spec.uri.startswith("api://")),
                fsync=self.limits.fsync,
                room=room,
            )
            yield scratch
        except OSError as error:
            if not is_disk(error, self.root):
                raise
            raise self.unfit(spec.uri, error) from error
        except (DigestMismatch, TooLarge):
            # What was gathered is not a part of the file that was asked for: never take it up again.
            if scratch is not None:
                with suppress(OSError):
                    scratch.discard()
            raise
        finally:
            if scratch is not None:
                scratch.close(discard=False)

    def unfit(self, uri: str, error: OSError) -> NodeUnfit:
        """What an error of this store's disk is to a source."""
        return NodeUnfit(uri, f"the store at {self.root} failed: {in_words(error)}")

    def _check_place(self, spec: FileSpec) -> None:
        """Where a mount is gone, folders would be made all the same; where another store is now, they would be its."""
        try:
            self._check_id()
        except StoreError as error:
            raise NodeUnfit(spec.uri, f"the store at {error.path} {error.reason}") from error

    def _check_room(self, spec: FileSpec) -> None:
        free = self.free_bytes()
        need = (spec.size or 0) + self.limits.min_free_bytes
        if free < need:
            raise NodeUnfit(
                spec.uri,
                f"the store at {self.root} has {free >> 20} MiB free and needs {need >> 20} MiB; make room there",
            )

    def verify(self, spec: FileSpec, scratch: Scratch) -> tuple[str, ...]:
        """Whether these are the bytes that were asked for. Returns the digests that they are known by beside sha256.

        Raises :class:`DigestMismatch` or :class:`Truncated`; then nothing of them is kept.
        """
        if spec.size is not None and scratch.size != spec.size:
            scratch.discard()
            raise Truncated(spec.uri, f"expected {spec.size} bytes, got {scratch.size}; nothing was published")
        scratch.verify()
        if spec.digest is None:
            return ()
        algorithm, value = parse_digest(spec.digest)
        found = scratch.digest(algorithm)
        if found != f"{algorithm}:{value}":
            raise DigestMismatch(spec.uri, f"{algorithm}:{value}", found, scratch.size)
        return (found,) if algorithm != "sha256" else ()

    def publish(
        self,
        key: str,
        spec: FileSpec,
        scratch: Scratch,
        *,
        version: str | None = None,
        validator: str | None = None,
        name: str | None = None,
        samples: Counter | int | None = None,
        converted: bool = False,
        mirrors: tuple[str, ...] = (),
    ) -> Stored:
        """Verify, then rename into place: the scratch and its pieces, or only the pieces where it was ``converted`` to
        them. Raises as :meth:`verify`.

        Published twice, the first one stays: it is the same version. Other bytes under a version that is there already
        become a version of their own, named by their digest: a path never changes what it holds.
        """
        digests = self.verify(spec, scratch)
        self._check_place(spec)
        name = name or scratch.name or (spec.name or "").rpartition("/")[2] or names.base_name(spec.uri)
        files = [] if converted else [(scratch, name)]
        files += [(piece, piece.name or name) for piece in scratch.pieces]
        many = converted or len(files) > 1
        made = [Piece("", each.size, each.digest()) for each, _ in files]
        size = sum(piece.size for piece in made) if many and not converted else scratch.size
        digest = _digest_of(made) if many and not converted else scratch.digest()
        record = Stored(
            uri=spec.uri, path="", size=size, digest=digest, version=version or digest,
            connection=spec.connection, validator=validator, digests=digests, mirrors=mirrors,
        )  # fmt: skip
        directory = source_dir(self.root, key)
        earlier = read_record(directory / f"{version_dir(record.version)}.json")
        if earlier is not None and (earlier.digest != digest or not _same_bytes(earlier.outputs, made)):
            # Steps may make other bytes of the same ones: an archive holds times, a library is newer.
            record = dataclasses.replace(record, version=digest if earlier.digest != digest else _digest_of(made))
            earlier = read_record(directory / f"{version_dir(record.version)}.json")
        if earlier is not None and _same_bytes(earlier.outputs, made) and self._is_whole(earlier):
            made = earlier.outputs
            known = tuple(dict.fromkeys((*earlier.digests, *digests)))
            record = dataclasses.replace(record, digests=known, mirrors=mirrors if earlier.mirrors else ())
        else:
            # What several files hold is in their folder's name: two nodes whose steps differ never share one.
            folder = version_dir(f"{record.version} {_digest_of(made)}" if many else record.version)
            made = self._move(files, directory / folder, samples)
        if many:
            record = dataclasses.replace(record, pieces=tuple(dataclasses.asdict(piece) for piece in made))
        else:
            record = dataclasses.replace(record, path=made[0].path, samples=made[0].samples)
        self._write_record(directory, record)
        scratch.discard()
        return dataclasses.replace(record, validated=time.time())

    def _move(self, files: Sequence[tuple[Scratch, str]], folder: Path, samples: Counter | int | None) -> list[Piece]:
        """Files in the making to their final names, all of them durable before any record speaks of them."""
        folder.mkdir(parents=True, exist_ok=True)
        made, taken, folders, relative = [], set(), {folder}, folder.relative_to(self.root)
        at_once = len(files) > _SYNC_AT_ONCE
        for number, (scratch, name) in enumerate(files):
            parts = names.safe_parts(name) or ["file"]
            if "/".join(parts) in taken:
                parts[-1] = f"{number:05}-{parts[-1]}"
            taken.add("/".join(parts))
            final = folder.joinpath(*parts)
            if len(parts) > 1:
                final.parent.mkdir(parents=True, exist_ok=True)
                folders.update(folder.joinpath(*parts[:depth]) for depth in range(1, len(parts)))
            if self.limits.fsync and not at_once:
                scratch.sync()
            os.replace(scratch.path, final)
            scratch.moved()
            count = scratch.samples
            if count is None:
                count = samples(final) if callable(samples) else samples
            made.append(Piece(os.path.join(relative, *parts), scratch.size, scratch.digest(), count, scratch.covers))
        if self.limits.fsync and not (at_once and sync_filesystem(folder)):
            for each in (*(self.root / piece.path for piece in made if at_once), *folders):
                sync_path(each)
        return made

    def _write_record(self, directory: Path, record: Stored) -> None:
        data = json.dumps(record.to_json(), ensure_ascii=False).encode("utf-8", "surrogatepass")
        self._write(directory / f"{version_dir(record.version)}.json", data)

    def _write(self, path: Path, data: bytes) -> None:
        write_atomic(path, data, scratch=self.root / "scratch", fsync=self.limits.fsync)

    def manifest_path(self, job: str, shard: str) -> Path:
        return self.root / "manifests" / names.safe_name(job, "job") / f"{shard}.json"

    def write_manifest(self, job: str, shard: str, data: bytes) -> Path:
        """The lasting record of a shard, beside the data. Returns its path."""
        path = self.manifest_path(job, shard)
        path.parent.mkdir(exist_ok=True)  # and no parents: what lies under a mount that is gone is no store
        self._write(path, data)
        return path

    def path_of(self, relative: str) -> Path:
        """The absolute path of a file of this store. Raises :class:`StoreError` for one that would lead outside."""
        return inside(self.root, relative)


def _digest_of(made: Sequence[Piece]) -> str:
    """Of several files, in their order."""
    return f"sha256:{hashlib.sha256(' '.join(piece.digest for piece in made).encode()).hexdigest()}"


def _same_bytes(some: Sequence[Piece], others: Sequence[Piece]) -> bool:
    return [piece.digest for piece in some] == [piece.digest for piece in others]


def _make(root: Path, identity: str) -> None:
    """The folders of a store, and its id where it has none."""
    for part in ("data", "manifests", "scratch"):
        (root / part).mkdir(parents=True, exist_ok=True)
    if not (root / "STORE_ID").exists():
        # A link of a whole file: the first of two starters wins, and nobody ever reads half an id.
        fresh = root / "scratch" / f"id-{uuid.uuid4()}"
        fresh.write_text(identity)
        with suppress(FileExistsError):
            os.link(fresh, root / "STORE_ID")
        fresh.unlink()


def _identity(path: Path) -> str:
    """The id in a STORE_ID file. One that is no UUID could be equal to another store's: that is refused."""
    try:
        with open(path, "rb") as file:  # looked at for every file: as text it takes twice as long
            return str(uuid.UUID(file.read().decode().strip()))
    except ValueError:
        raise StoreError(str(path), "is damaged: it holds no UUID; remove it, and the store gets a new one") from None
