"""One file's way: resolve its profile, use what the store has, else fetch into scratch, verify, publish, link."""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from pathlib import Path

from billiard.exceptions import SoftTimeLimitExceeded

from ingest.dataset.formats import count_samples
from ingest.errors import EgressDenied, FetchError, NodeUnfit, PermanentFetchError, StoreError, TransientFetchError
from ingest.model import FileRecord, FileSpec, JobOptions
from ingest.names import base_name
from ingest.settings import Connection, is_under
from ingest.store import Store, Stored, link_into
from workers.control import Control
from workers.fetchers import fetcher_for
from workers.fetchers.base import Context, Fetcher, Interrupted, Known
from workers.node import Node

#: A full disk says nothing about the source.
FULL = {errno.ENOSPC, errno.EDQUOT}


class Transfer:
    """For one claim: the node that works, the job's options, and the control that may stop it. Used by several
    threads."""

    def __init__(self, node: Node, options: JobOptions, control: Control) -> None:
        self.node, self._options, self._control = node, options, control
        fresh = options.fresh_s
        self._fresh_s = node.settings.store.fresh_s if fresh is None else fresh

    def resolve(self, spec: FileSpec) -> FileSpec:
        """The spec with its profile named: the one asked for, or the one whose ``match`` fits. Raises
        :class:`FetchError`."""
        return dataclasses.replace(spec, connection=self.context(spec.uri, spec.connection)[0])

    def context(self, uri: str, name: str | None) -> tuple[str | None, Context]:
        settings = self.node.settings
        try:
            connection = settings.connection_for(uri, name)
        except KeyError:
            raise PermanentFetchError(
                uri,
                f"connection {name!r} is not configured on node {settings.node}; "
                f"add [connections.{name}] to its ingest.toml",
            ) from None
        if connection is None:
            return None, Context(settings)
        _check_match(uri, connection)
        return connection.name, Context(settings, connection)

    @staticmethod
    def fetcher(uri: str) -> Fetcher:
        return fetcher_for(uri.partition("://")[0].lower())

    @staticmethod
    def key(spec: FileSpec) -> str:
        return Store.key(spec)

    def flight(self, spec: FileSpec) -> str:
        """What is in the air when it is fetched: the source, for this store. Another store needs a copy of its own."""
        return f"{self.node.store.id}/{self.key(spec)}"

    def reuse(self, spec: FileSpec) -> FileRecord | None:
        """The file as it is in the store, where that needs no request: its digest was given, or it was validated
        within ``fresh_s``."""
        stored = self.node.store.lookup(self.key(spec), spec.digest)
        if stored is None or not self._fits(spec, stored):
            return None
        if spec.digest is None and spec.version is None and time.time() - stored.validated > self._fresh_s:
            return None
        return self._record(spec, stored, reused=True)

    def _fits(self, spec: FileSpec, stored: Stored) -> bool:
        """Whether what is stored is what was asked for, by version, size and limit."""
        limit = self._options.max_bytes
        size = spec.size is None or spec.size == stored.size
        return size and (limit is None or stored.size <= limit) and spec.version in (None, stored.version)

    def fetch(self, spec: FileSpec) -> FileRecord:
        """Fetch, verify, publish. The flight is held, so what another unit has just landed is used instead.

        Raises :class:`FetchError`, or :class:`Interrupted`.
        """
        if self._fresh_s > 0 and (record := self.reuse(spec)) is not None:
            return record
        store = self.node.store
        key = self.key(spec)
        stored = None if spec.digest else store.lookup(key)
        if stored is not None and not self._fits(dataclasses.replace(spec, version=None), stored):
            stored = None  # not what is asked for: the origin has something else by now, or says why not
        known = Known(stored.version, stored.size, stored.validator) if stored else None
        _, context = self.context(spec.uri, spec.connection)
        limit = self._options.max_bytes or self.node.settings.store.max_file_bytes
        try:
            with store.scratch(key, spec, on_bytes=self._control.advance, max_bytes=limit) as scratch:
                try:
                    fetched = self.fetcher(spec.uri).fetch(spec, scratch, known, context)
                except SoftTimeLimitExceeded:
                    raise Interrupted("slice", wasted=scratch.journal is None) from None
                except Interrupted as stop:
                    raise Interrupted(stop.why, wasted=scratch.journal is None) from None
                if fetched is None:
                    assert stored is not None
                    store.confirm(key, stored)
                    return self._record(spec, stored, reused=True)
                published = store.publish(
                    key,
                    spec,
                    scratch,
                    version=fetched.version,
                    validator=fetched.validator,
                    name=fetched.name,
                    samples=fetched.samples if fetched.samples is not None else _count,
                )
        except (FetchError, Interrupted):
            raise
        except OSError as error:
            raise TransientFetchError(spec.uri, f"{type(error).__name__}: {error}") from error
        return self._record(spec, published, reused=False)

    def _record(self, spec: FileSpec, stored: Stored, *, reused: bool) -> FileRecord:
        node = self.node
        return FileRecord(
            source=spec.source,
            part=spec.part,
            uri=spec.uri,
            path=stored.path,
            size=stored.size,
            digest=stored.digest,
            store=node.store.id,
            node=node.settings.node,
            version=stored.version,
            root=str(node.store.root),
            samples=stored.samples,
            into=self._link(spec, stored),
            reused=reused,
        )

    def _link(self, spec: FileSpec, stored: Stored) -> str | None:
        if self._options.into is None:
            return None
        self._check_roots(spec, self._options.into)
        try:
            path = self.node.store.path_of(stored.path)
            name = spec.name or Path(stored.path).name or base_name(spec.uri)
            return str(link_into(path, Path(self._options.into), name, self.key(spec)[:8]))
        except StoreError as error:
            if isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL:
                raise NodeUnfit(spec.uri, str(error)) from error
            raise PermanentFetchError(spec.uri, str(error)) from error

    def _check_roots(self, spec: FileSpec, into: str) -> None:
        """``[files] roots``, where set, bound what this node's users may write as they bound what they may read."""
        roots = self.node.settings.file_roots
        real = Path(os.path.realpath(into))
        if roots and not any(real.is_relative_to(os.path.realpath(root)) for root in roots):
            raise EgressDenied(spec.uri, f"into={into} is outside the [files] roots of node {self.node.settings.node}")


def _check_match(uri: str, connection: Connection) -> None:
    """A profile's credentials go where its ``match`` says and nowhere else: whoever names it chooses the URI. S3 and
    SQL profiles speak to their own endpoint, whatever the URI."""
    if connection.match is None:
        if uri.partition("://")[0].lower() in {"http", "https"}:
            raise EgressDenied(
                uri, f'connection {connection.name!r} names no URIs to be used for: add match = "https://…/"'
            )
    elif not is_under(uri, connection.match):
        raise EgressDenied(uri, f"connection {connection.name!r} is for URIs under {connection.match} only")


def _count(path: Path, name: str) -> int | None:
    return count_samples(path)
