"""One file's way: resolve its profile, use what the store has, else fetch into scratch, verify, publish, link."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from billiard.exceptions import SoftTimeLimitExceeded

from ingest.dataset.formats import count_samples, index_of
from ingest.errors import EgressDenied, FetchError, NodeUnfit, PermanentFetchError, StoreError, TransientFetchError
from ingest.model import FileRecord, FileSpec, JobOptions
from ingest.names import base_name
from ingest.sections import Connection, is_under
from ingest.store import Piece, Scratch, Store, Stored
from ingest.store.layout import name_of
from workers.checksums import Checksums
from workers.control import Control
from workers.convert import convert, resolve
from workers.descriptors import raise_own_fault
from workers.destinations import Into
from workers.fetchers import fetcher_for
from workers.fetchers.base import Context, Fetched, Fetcher, Interrupted, Known
from workers.mirrors import bring_from_any
from workers.node import Node
from workers.origins import NotAsked, Origins
from workers.retry import is_progress
from workers.snapshots.pins import is_pinned
from workers.space import Space


class Transfer:
    """For one claim: the node that works, the job's options, and the control that may stop it. Used by several
    threads."""

    def __init__(
        self,
        node: Node,
        options: JobOptions,
        control: Control,
        origins: Origins | None = None,
        space: Space | None = None,
    ) -> None:
        self.node, self._options, self._control, self._origins = node, options, control, origins
        self.space = space
        fresh = options.fresh_s
        self.fresh_s = node.settings.store.fresh_s if fresh is None else fresh
        self._into = Into(
            options.into, node.settings, lambda uri: self.context(uri, None)[1], lambda: control.advance(0)
        )
        self._checksums = Checksums(node.store, self.context, control.advance)

    def resolve(self, spec: FileSpec) -> FileSpec:
        """The spec with its profile named: the one asked for, or the one whose ``match`` fits. Raises
        :class:`FetchError`."""
        name = self.context(spec.uri, spec.connection)[0]
        return spec if name == spec.connection else dataclasses.replace(spec, connection=name)

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

    def key(self, spec: FileSpec) -> str:
        return Store.key(spec, self._options.convert)

    def flight(self, spec: FileSpec) -> str:
        """What is in the air when it is fetched: the source, for this store. Another store needs a copy of its own."""
        return f"{self.node.store.id}/{self.key(spec)}"

    def reuse(self, spec: FileSpec) -> list[FileRecord] | None:
        """The source's files, where :meth:`find` finds them and they need not be uploaded: that is for :meth:`fetch`,
        which may fail and be tried again."""
        stored = None if self._into.uploads else self.find(spec)
        return self._records(spec, stored, reused=True) if stored else None

    def find(self, spec: FileSpec) -> Stored | None:
        """What the store has of a source, where using it needs no request: its digest was given, or it was validated
        within ``fresh_s``."""
        if spec.checksums and not spec.digest:
            return None  # the list may say another one by now, see ``listed``
        stored = self._lookup(spec, spec.digest)
        return stored if stored and self._is_fresh(spec, stored) else None

    def _is_fresh(self, spec: FileSpec, stored: Stored) -> bool:
        """Whether it can be used without a request; then it stays for a while."""
        if not self._fits(spec, stored):
            return False
        if not (spec.digest or spec.version or spec.pin) and time.time() - stored.validated > self.fresh_s:
            return False
        return self.node.store.touch(stored.outputs[0].path)

    def _lookup(self, spec: FileSpec, digest: str | None = None) -> Stored | None:
        try:
            return self.node.store.lookup(self.key(spec), digest)
        except OSError as error:
            raise self.node.store.unfit(spec.uri, error) from error

    def _fits(self, spec: FileSpec, stored: Stored) -> bool:
        """Whether what is stored is what was asked for, by version, size and limit. What came from a mirror is for
        those who name that mirror, or the digest: whoever names none trusts the source alone."""
        if spec.digest is None and set(stored.mirrors) - set(spec.mirrors):
            return False
        limit = self._options.max_bytes
        size = spec.size is None or spec.size == stored.size
        return size and (limit is None or stored.size <= limit) and spec.version in (None, stored.version)

    def listed(self, spec: FileSpec) -> FileSpec:
        """The spec with the digest that its list of checksums says, where it has such a list. Raises
        :class:`FetchError`."""
        try:
            return self._checksums.resolve(spec)
        except FetchError as error:
            raise_own_fault(error)
            raise

    def fetch(self, spec: FileSpec) -> list[FileRecord]:
        """Fetch, verify, publish. The flight is held, so what another unit has just landed is used instead. Mostly one
        file; several where the fetcher made several.

        Raises :class:`FetchError`, or :class:`Interrupted`.
        """
        resolve(spec.uri, self._options.convert)  # before anything is fetched for steps that are not here
        spec = self.listed(spec)
        store = self.node.store
        key = self.key(spec)
        look = self.fresh_s > 0 or spec.checksums or self._into.uploads
        stored = self._lookup(spec, spec.digest) if look or not spec.digest else None
        if look and stored is not None and self._is_fresh(spec, stored):
            return self._records(spec, stored, reused=True)
        if spec.digest:
            stored = None  # what it has to be is known: nothing of the store's is to be confirmed
        elif stored is not None and not self._fits(dataclasses.replace(spec, version=None), stored):
            stored = None  # not what is asked for: the origin has something else by now, or says why not
        elif stored is not None and not store.touch(stored.outputs[0].path):
            stored = None  # evicted just now
        known = Known(stored.version, stored.size, stored.validator) if stored else None
        with self.scratch(key, spec) as scratch:
            fetched = self.bring(spec, scratch, known)
            if fetched is None:
                assert stored is not None
                store.confirm(key, stored)
                return self._records(spec, stored, reused=True)
            published = self._publish(key, spec, scratch, fetched)
        return self._records(spec, published, reused=False)

    @contextmanager
    def scratch(self, key: str, spec: FileSpec, *, keep: bool = True) -> Iterator[Scratch]:
        """A file in the making, with this job's limits. What the disk or a library raises becomes a FetchError."""
        limit = self._options.max_bytes or self.node.settings.store.max_file_bytes
        try:
            with self.node.store.scratch(
                key,
                spec,
                on_bytes=self._control.advance,
                max_bytes=limit,
                keep=keep,
                room=self.space.of(spec.uri) if self.space else None,
            ) as scratch:
                if scratch.held:
                    self._control.resumed(scratch.held)
                yield scratch
        except (FetchError, Interrupted):
            raise
        except OSError as error:
            raise TransientFetchError(spec.uri, f"{type(error).__name__}: {error}") from error

    def bring(self, spec: FileSpec, scratch: Scratch, known: Known | None) -> Fetched | None:
        """The source's bytes into the scratch, from a mirror if need be; None when ``known`` is still what the origin
        has. Raises a FetchError that knows whether the attempt got further, see :func:`~workers.retry.is_progress`."""
        try:
            return bring_from_any(self._bring, self.node.store.verify, spec, scratch, known)
        except NotAsked:
            raise
        except TransientFetchError as error:
            journal = scratch.journal
            if journal is not None and journal.facts is not None:  # marked by the fetcher: a page is a page
                error.progressed = scratch.advanced > 0
            else:
                error.progressed = is_progress(scratch.advanced, journal.length if journal else None)
            raise

    def _bring(self, spec: FileSpec, scratch: Scratch, known: Known | None) -> Fetched | None:
        _, context = self.context(spec.uri, spec.connection)
        if self._origins is None:
            return self._ask(spec, scratch, known, context)
        self._origins.check(spec)
        before = scratch.advanced
        try:
            fetched = self._ask(spec, scratch, known, context)
        except NodeUnfit:
            raise  # which says nothing of the origin
        except FetchError as error:
            self._origins.learned(spec, error if scratch.advanced == before else None)
            raise
        self._origins.learned(spec, None)
        return fetched

    def _ask(self, spec: FileSpec, scratch: Scratch, known: Known | None, context: Context) -> Fetched | None:
        try:
            return self.fetcher(spec.uri).fetch(spec, scratch, known, context)
        except SoftTimeLimitExceeded:
            raise Interrupted("slice", wasted=scratch.journal is None) from None
        except Interrupted as stop:
            raise Interrupted(stop.why, wasted=scratch.journal is None) from None
        except FetchError as error:
            raise_own_fault(error)
            raise

    def _publish(self, key: str, spec: FileSpec, scratch: Scratch, fetched: Fetched) -> Stored:
        steps = self._options.convert
        if steps:
            self.node.store.verify(spec, scratch)
            name = fetched.name or scratch.name or spec.name or base_name(spec.uri)
            begun = time.monotonic()
            try:
                convert(spec, scratch, name, steps)
            except PermanentFetchError:
                scratch.discard()  # it comes to the same with what is there
                raise
            except (SoftTimeLimitExceeded, Interrupted) as stop:
                if isinstance(stop, Interrupted) and stop.why != "slice":
                    raise
                # What fits into half a slice fits into the next one, if the original stays until then.
                short = time.monotonic() - begun < self.node.settings.limits.soft_s / 2
                wasted = scratch.journal is None or not short
                raise Interrupted("slice", wasted=wasted, reason="converting it") from None
        return self.node.store.publish(
            key,
            spec,
            scratch,
            version=fetched.version or (scratch.digest() if steps else None),
            validator=fetched.validator,
            name=fetched.name,
            samples=fetched.samples if fetched.samples is not None else _count,
            converted=bool(steps),
            mirrors=fetched.mirrors,
        )

    def _records(self, spec: FileSpec, stored: Stored, *, reused: bool) -> list[FileRecord]:
        made = []
        for number, piece in enumerate(stored.outputs):
            made.append(self.record(self._named(spec, stored, piece), stored, piece, number, reused=reused))
        return made

    def _named(self, spec: FileSpec, stored: Stored, piece: Piece) -> FileSpec:
        """With the name that it has under ``into=``: of a source that became several files, each keeps the one that it
        was given."""
        if self._options.into is None or (spec.name and stored.path):
            return spec
        name = name_of(piece.path)
        if spec.name:
            name = "/".join((*spec.name.split("/")[:-1], name))
        return dataclasses.replace(spec, name=name)

    def record(self, spec: FileSpec, stored: Stored, piece: Piece, number: int, *, reused: bool) -> FileRecord:
        """What is said of a published file, which ``into=`` makes appear under ``spec.name``."""
        node = self.node
        return FileRecord(
            source=spec.source,
            part=spec.part,
            uri=spec.uri,
            path=piece.path,
            size=piece.size,
            digest=piece.digest,
            store=node.store.id,
            node=node.settings.node,
            version=stored.version,
            root=str(node.store.root),
            samples=piece.samples,
            into=self._deliver(spec, piece),
            reused=reused,
            piece=number,
        )

    def _deliver(self, spec: FileSpec, piece: Piece) -> str | None:
        if self._options.into is None:
            return None
        if is_pinned(spec):
            self._control.confirm()  # a directory shows no file of a moment that is past by now
        try:
            path = self.node.store.path_of(piece.path)
        except StoreError as error:
            raise PermanentFetchError(spec.uri, str(error)) from error
        return self._into.put(spec.uri, path, piece, spec.name or path.name, self.key(spec)[:8])


def _check_match(uri: str, connection: Connection) -> None:
    """A profile's credentials go where its ``match`` says and nowhere else: whoever names it chooses the URI. S3 and
    SQL profiles speak to their own endpoint, whatever the URI."""
    if uri.startswith("api://"):
        return  # asked under the connection's own URL; its match is looked at there
    if connection.match is None:
        if uri.partition("://")[0].lower() in {"http", "https"}:
            raise EgressDenied(
                uri, f'connection {connection.name!r} names no URIs to be used for: add match = "https://…/"'
            )
    elif not is_under(uri, connection.match):
        raise EgressDenied(uri, f"connection {connection.name!r} is for URIs under {connection.match} only")


def _count(path: Path) -> int | None:
    return count_samples(path, index_of(path))
