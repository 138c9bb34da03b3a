"""One verified file, as its reader sees it. The reader trusts nothing: the path must lie in its own store and have
the right size."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ingest.errors import NotLocalError, StoreError
from ingest.model import FileRecord
from ingest.store import Store, audit


@dataclass(frozen=True, slots=True)
class LocalFile:
    """``size`` in bytes, ``digest`` as ``"sha256:<hex>"`` of the bytes on disk, ``source`` the URI, ``node`` where
    it was fetched, ``samples`` where the format says how many, ``index`` its place in the job as (source, part)."""

    source: str
    size: int
    digest: str
    node: str
    samples: int | None
    index: tuple[int, int]
    version: str
    reused: bool
    _relative: str = field(repr=False)
    _into: str | None = field(repr=False)
    _store_id: str = field(repr=False)
    _store: Store | None = field(repr=False, compare=False)

    @classmethod
    def of(cls, record: FileRecord, store: Store | None) -> LocalFile:
        return cls(
            source=record.uri,
            size=record.size,
            digest=record.digest,
            node=record.node,
            samples=record.samples,
            index=record.index,
            version=record.version,
            reused=record.reused,
            _relative=record.path,
            _into=record.into,
            _store_id=record.store,
            _store=store,
        )

    @property
    def is_local(self) -> bool:
        """Whether the store that holds it is the one here, by the store's id (host names lie in containers)."""
        return self._store is not None and self._store.id == self._store_id

    @property
    def name(self) -> str:
        """The file's own name, which says its format."""
        return PurePosixPath(self._relative).name

    @property
    def path(self) -> Path:
        """The absolute path of the file in the store. Do not change the file: other jobs read the same one.

        Raises :class:`NotLocalError` when it is in another node's store, :class:`StoreError` when what is there is
        not it.
        """
        _, path = self._used()
        try:
            size = path.stat().st_size
        except OSError as error:
            raise StoreError(
                str(path), f"{self.source} was published there and is gone ({error.strerror}); submit it again"
            ) from None
        if size != self.size:
            raise StoreError(
                str(path),
                f"has {size} bytes and {self.source} has {self.size}; `ingest store verify --remove` takes it out",
            )
        return path

    def _used(self) -> tuple[Store, Path]:
        """The store here and where the file lies in it, which stays for ``quiet_s`` from now. Raises
        :class:`NotLocalError`, and :class:`StoreError` for a path that leads out of it."""
        if self._store is None or self._store.id != self._store_id:
            raise NotLocalError(self.source, self.node)
        path = self._store.path_of(self._relative)
        self._store.touch(self._relative)
        return self._store, path

    def verified(self) -> Path:
        """:attr:`path`, when its bytes have been compared with its digest: once on each machine. Raises as that, and
        :class:`StoreError` for one that is damaged; it is then in the store no more, and can be fetched again."""
        path = self.path
        if self._store is not None:
            audit.check(self._store, self._relative, self.size, self.digest)
        return path

    def is_gone(self) -> bool:
        """Whether it was in the store here and is not, or not whole: evicted, deleted, cut short. What is there stays
        for ``quiet_s`` from now.

        Raises :class:`NotLocalError` as :attr:`path`, and :class:`StoreError` where the store itself is not there, so
        that a mount that is missing is not taken for files that are.
        """
        store, path = self._used()
        try:
            return path.stat().st_size != self.size
        except (FileNotFoundError, NotADirectoryError):
            store.check()
            return True
        except OSError as error:
            raise StoreError(str(path), f"cannot be read: {error.strerror}") from error

    @property
    def into(self) -> Path | str | None:
        """Where ``into=`` made it appear: a local path, or the URI of what was uploaded, as text; None without
        ``into=``. A path raises as :attr:`path`."""
        if self._into is None:
            return None
        if "://" in self._into:
            return self._into
        path = Path(self._into)
        try:
            size = path.stat().st_size
        except OSError as error:
            if not self.is_local:
                raise NotLocalError(self.source, self.node) from None
            raise StoreError(self._into, f"{self.source} was put there and is gone ({error.strerror})") from None
        if size != self.size:
            raise StoreError(self._into, f"has {size} bytes and {self.source} has {self.size}; it was changed since")
        return path

    def to_json(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "path": str(self.path) if self.is_local else None,
            "into": self._into,
            "size": self.size,
            "digest": self.digest,
            "node": self.node,
            "samples": self.samples,
            "version": self.version,
            "reused": self.reused,
        }
