"""``Client``: submit, fetch, attach. It writes to the ledger and rings; it never talks to a worker."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from ingest.client import cursors
from ingest.client.follow import GRACE_S, Deadline
from ingest.client.into import destination, inside
from ingest.client.job import Job
from ingest.client.lease import Leases
from ingest.client.local import Survey, survey
from ingest.client.plan import Plan, plan_of
from ingest.client.request import Request, fingerprint
from ingest.client.submission import check, check_bounds, check_pack, positive
from ingest.errors import JobFailed, NoDataNode, UnknownConnection, UsageError, WaitTimeout
from ingest.ledger import JobLedger, WorkerInfo, fit
from ingest.ledger.connect import left_s, until
from ingest.model import JobOptions
from ingest.settings import NODE_NAME, Settings, check_redis_url, current
from ingest.sources import AnySource, Manifest, Pack, Sql, as_sources
from ingest.steps import as_steps
from ingest.store import Store

#: A step is a name, or ``{"step": name, …}``.
Convert = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None


class Client:
    """The service, as training code sees it. Making one connects to nothing; it may be kept for the life of the
    process.

    ``redis_url`` replaces broker, results and ledger at once; without it the environment and ``ingest.toml`` decide.
    Files that were asked for stay in the store while this process lives, until ``close()``; with ``lease=False`` only
    for ``[store] hold_s`` after the job's end.
    """

    def __init__(self, redis_url: str | None = None, *, settings: Settings | None = None, lease: bool = True) -> None:
        settings = settings or current()
        if redis_url is not None:
            check_redis_url(redis_url, "redis_url")
            settings = dataclasses.replace(
                settings, redis_url=redis_url, broker_url=redis_url, result_url=redis_url, ledger_url=redis_url
            )
        self.settings = settings
        self.ledger = JobLedger(settings)
        self._leases = Leases(settings) if lease else None
        self._dry_run = False

    def submit(
        self,
        sources: str | AnySource | Sequence[str | AnySource],
        *,
        name: str = "",
        key: str | None = None,
        into: str | os.PathLike[str] | None = None,
        placement: str | None = None,
        fresh_s: float | None = None,
        attempts: int | None = None,
        deadline_s: float | None = None,
        shard_files: int | None = None,
        max_bytes: int | None = None,
        convert: Convert = None,
        pack: Pack | str | None = None,
        require_node: bool = True,
    ) -> Job:
        """Ask for sources; returns at once with the job. Its handle keeps ``sources`` (the object, not a copy): should
        Redis lose the job, a wait on that handle puts it back.

        ``key``: the same key gives the same job again, also after a crash half-way through submitting. ``into``: a
        directory on the data node where the files appear under their own names as well, or a URI that they are
        uploaded to (``s3://bucket/prefix/``, or what else fsspec writes). ``placement``: ``here``
        (this machine's store), ``any``, ``spread`` (a shard on the node it belongs to) or a node's name; default
        ``here`` where a live node shares this process's store, else ``any``. ``fresh_s``: how old a validated copy
        may be (0 asks the origin, default 600). ``attempts`` and ``deadline_s`` bound the retries of each file;
        ``max_bytes`` bounds each file. ``pack`` (a :class:`Pack`, or ``"tar"`` or ``"parquet"``) makes few files of
        many small ones. ``convert`` names steps that every file goes through on the data node, such as
        ``["unpack"]`` or ``[{"step": "parquet", "columns": ["id"]}]`` (see docs/sources.md).

        Raises :class:`UsageError`, :class:`BadSource` or :class:`UnknownConnection` for what cannot be right,
        :class:`NoDataNode` if nobody alive could do it (``require_node=False`` queues it), :class:`LedgerUnavailable`.
        """
        wanted = as_sources(sources)
        for source in wanted:
            check(source)
        check_bounds(fresh_s, attempts=attempts, deadline_s=deadline_s, shard_files=shard_files, max_bytes=max_bytes)
        steps = as_steps(convert)
        packing = check_pack(wanted, pack, shard_files, steps)
        surveys = _surveys(wanted, digest=key is not None)
        workers = self._workers(require_node)
        self._check_connections(wanted, workers)
        options = JobOptions(
            name=name,
            placement=self._place(placement, workers, require_node),
            into=destination(into),
            fresh_s=fresh_s,
            attempts=attempts,
            deadline_s=deadline_s,
            shard_files=packing.samples if packing else shard_files,
            pack=dataclasses.asdict(packing) if packing else None,
            max_bytes=max_bytes,
            convert=steps,
            request=fingerprint(wanted, surveys) if key is not None else "",
            slots=sum(worker.slots for worker in workers),
            dry_run=self._dry_run,
        )
        request = Request(self.settings, self.ledger, sources, surveys, options, key, fit(workers))
        request.submit(wanted)
        return self._job(request.job, request)

    @overload
    def fetch(
        self,
        sources: str | AnySource | Sequence[str | AnySource],
        *,
        timeout: float | None = None,
        into: os.PathLike[str] | None = None,
        placement: str | None = None,
        fresh_s: float | None = None,
        convert: Convert = None,
    ) -> list[Path]: ...

    @overload
    def fetch(
        self,
        sources: str | AnySource | Sequence[str | AnySource],
        *,
        timeout: float | None = None,
        into: str,
        placement: str | None = None,
        fresh_s: float | None = None,
        convert: Convert = None,
    ) -> list[Any]: ...

    def fetch(
        self,
        sources: str | AnySource | Sequence[str | AnySource],
        *,
        timeout: float | None = None,
        into: str | os.PathLike[str] | None = None,
        placement: str | None = None,
        fresh_s: float | None = None,
        convert: Convert = None,
    ) -> list[Any]:
        """Submit and wait: the local paths, in source order (those under ``into``, when given; with a URI for ``into``,
        the URIs of what was uploaded, as text).

        Raises :class:`JobFailed` with what arrived and what did not, :class:`WaitTimeout` after ``timeout`` seconds
        (the job goes on), and what :meth:`submit` raises.
        """
        positive("timeout", timeout)
        end = math.inf if timeout is None else time.monotonic() + timeout
        with until(end + GRACE_S):  # also a ledger that is there at the beginning only
            job = self.submit(sources, into=into, placement=placement, fresh_s=fresh_s, convert=convert)
            left = None if timeout is None else max(0.001, end - time.monotonic())
            try:
                state, files = job.outcome(timeout=left)
            except WaitTimeout as late:
                raise WaitTimeout(late.job, timeout or late.seconds, late.waiting_for) from None
            # A packed shard may be done without every one of its samples.
            if state != "done" and (failures := job.failures()):
                raise JobFailed(files, failures)
        if into is None:
            return [file.path for file in files]
        where = destination(into)
        assert where is not None
        return [inside(file.into, where) if file.into is not None else file.path for file in files]

    def plan(
        self, sources: str | AnySource | Sequence[str | AnySource], *, timeout: float | None = None, **options: Any
    ) -> Plan:
        """What submitting would mean: files, bytes, shards, what is here already, and the requests that it would cost.
        The data nodes list and look, and fetch nothing but manifests. ``options`` are those of :meth:`submit`.

        Raises what :meth:`submit` raises, and :class:`WaitTimeout`; the counting then ends by itself.
        """
        positive("timeout", timeout)
        asking = copy.copy(self)
        asking._dry_run = True
        return plan_of(asking.submit(sources, **options), self.ledger, timeout)

    def job(self, job: str) -> Job:
        """Attach to a job, from any process. Raises :class:`UnknownJob`."""
        self.ledger.meta(job)
        return self._job(job)

    def jobs(self, limit: int = 20) -> list[Job]:
        """The latest jobs, newest first."""
        return [self._job(job) for job in self.ledger.recent(limit)]

    def cursor(self, sql: Sql) -> str | int | float | None:
        """After which value of ``incremental_on`` the next job begins that asks this; None before the first."""
        return cursors.value_of(self.ledger.cursor(cursors.key_of(sql)))

    def set_cursor(self, sql: Sql, value: Any) -> None:
        """Let the next job begin after that value; None: with everything. ``since=`` does so for one job."""
        self.ledger.set_cursor(cursors.key_of(sql), cursors.text_of(dataclasses.replace(sql, since=value)))

    def workers(self) -> list[WorkerInfo]:
        """The live workers, as their last heartbeats describe them."""
        return self.ledger.workers()

    def close(self) -> None:
        """Let go of the connection, and of the files that were asked for: they may be evicted."""
        if self._leases is not None:
            self._leases.close()
        self.ledger.close()

    def _job(self, job: str, request: Request | None = None) -> Job:
        return Job(job, self.settings, self.ledger, Store.attach(self.settings.store), request, self._leases)

    def _workers(self, require_node: bool) -> list[WorkerInfo]:
        """The live workers; waits a moment for the first, as a service that was just started needs one."""
        patience = Deadline(min(self.settings.limits.node_grace_s, left_s()))
        while not (workers := self.ledger.workers()) and require_node:
            if patience.over:
                raise NoDataNode(f"any queue at {self.ledger.url}")
            time.sleep(0.1)
        return workers

    def _check_connections(self, sources: list[str | AnySource], workers: list[WorkerInfo]) -> None:
        known = {name for worker in workers for name in worker.connections}
        for name in {source.connection for source in sources if not isinstance(source, str) and source.connection}:
            if workers and name not in known:
                raise UnknownConnection(name, sorted(known))

    def _place(self, placement: str | None, workers: list[WorkerInfo], require_node: bool) -> str:
        store = Store.attach(self.settings.store)
        here = fit([w for w in workers if store is not None and w.store == store.id])
        if placement is None:
            return f"node:{','.join(here)}" if here else "any"
        if placement == "spread" and not fit(workers):
            raise NoDataNode("placement 'spread'")
        if placement in {"any", "spread"}:
            return placement
        if placement == "here":
            if not here:
                raise NoDataNode(f"placement 'here': no live node has the store {self.settings.store.root}")
            return f"node:{','.join(here)}"
        node = placement.removeprefix("node:")
        if not NODE_NAME.fullmatch(node):
            raise UsageError(f"placement={placement!r} must be here, any, spread or the name of a node")
        if require_node and node not in {w.node for w in workers}:
            raise NoDataNode(f"placement {node!r} (alive: {', '.join(sorted({w.node for w in workers})) or 'none'})")
        return f"node:{node}"


def _surveys(sources: list[str | AnySource], *, digest: bool) -> dict[int, Survey]:
    """Of the manifests that are files here, by place."""
    local = ((n, source) for n, source in enumerate(sources) if isinstance(source, Manifest) and source.is_local)
    return {n: survey(source, digest=digest) for n, source in local}
