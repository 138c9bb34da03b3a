"""``into=`` of one job on this node: a local directory, or a URI. Whether it may be written to is decided here."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

from billiard.exceptions import SoftTimeLimitExceeded

from ingest.errors import (
    AccessDenied,
    EgressDenied,
    FetchError,
    MissingExtra,
    NodeUnfit,
    PermanentFetchError,
    StoreError,
    Throttled,
)
from ingest.names import safe_parts
from ingest.settings import Settings
from ingest.store import Piece, link_into
from ingest.store.disk import DISK, RIGHTS
from workers.destinations.base import Local
from workers.destinations.deliver import deliver
from workers.fetchers.base import Context, Interrupted
from workers.fetchers.fs import files

#: A disk that is full or gone says nothing about the source; a folder that may not be written is its user's choice.
_DISK = DISK - RIGHTS


class Into:
    """``context`` gives the profile that matches a URI; ``check`` raises what interrupts the work."""

    def __init__(
        self, into: str | None, settings: Settings, context: Callable[[str], Context], check: Callable[[], None]
    ) -> None:
        self._into, self._settings = into, settings
        self._context, self._check = context, check

    @property
    def uploads(self) -> bool:
        """Whether it takes its time, and may fail and be tried again."""
        return self._into is not None and "://" in self._into and not self._into.startswith("file://")

    def put(self, uri: str, path: Path, piece: Piece, name: str, tag: str) -> str:
        """Make a published file of source ``uri`` appear under ``name``; gives the path or URI. Raises a FetchError
        about the source, and what interrupts the work."""
        assert self._into is not None
        if not self.uploads:
            return self._link(uri, path, name, tag)
        begun = time.monotonic()
        try:
            context = self._context(self._into)
            if context.connection and context.value("read_only"):
                raise AccessDenied(self._into, f"connection {context.connection.name!r} is read_only")
            parts = tuple(safe_parts(name)) or ("file",)
            return deliver(Local(path, piece.size, piece.digest, self._check), self._into, parts, tag, context)
        except StoreError as error:
            raise PermanentFetchError(uri, str(error)) from error
        except FetchError as error:
            raise _about(uri, error) from error
        except (SoftTimeLimitExceeded, Interrupted) as stop:
            if isinstance(stop, Interrupted) and stop.why != "slice":
                raise
            # What fits into half a slice fits into the next one.
            wasted = time.monotonic() - begun > self._settings.limits.soft_s / 2
            raise Interrupted("slice", wasted=wasted, reason=f"uploading it into {self._into}") from None

    def _link(self, uri: str, path: Path, name: str, tag: str) -> str:
        assert self._into is not None
        directory = files.path_of(self._into) if self._into.startswith("file://") else self._into
        self._check_roots(uri, directory)
        self._check_store(uri, Path(directory, *safe_parts(name)[:-1]))
        try:
            return str(link_into(path, Path(directory), name, tag))
        except StoreError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in _DISK:
                raise NodeUnfit(uri, str(error)) from error
            raise PermanentFetchError(uri, str(error)) from error

    def _check_roots(self, uri: str, into: str) -> None:
        """``[files] roots``, where set, bound what this node's users may write as they bound what they may read."""
        roots = self._settings.file_roots
        real = Path(os.path.realpath(into))
        if roots and not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
            raise EgressDenied(uri, f"into={into} is outside the [files] roots of node {self._settings.node}")

    def _check_store(self, uri: str, folder: Path) -> None:
        """Whoever could put files into the store would decide what others get of a source."""
        if Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(self._settings.store.root)):
            raise EgressDenied(
                uri, f"into={folder} is in the store of node {self._settings.node}: name another directory"
            )


def _about(uri: str, error: FetchError) -> FetchError:
    """An error about the destination as one of the source that was to go there."""
    if isinstance(error, MissingExtra):
        return MissingExtra(uri, error.extra)
    reason = f"into {error.uri}: {error.reason}"
    if isinstance(error, Throttled):
        return Throttled(uri, reason, error.retry_after_s)
    return type(error)(uri, reason)
