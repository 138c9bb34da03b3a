"""One job for all ranks of a training run: a rank on each store submits it, the others join it by its key.

No barrier: who joins asks the ledger until the job is there, or its deadline is over.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from ingest.client.client import Client
from ingest.client.follow import Deadline, patiently
from ingest.client.job import Job
from ingest.client.request import fingerprint
from ingest.client.submission import positive
from ingest.errors import NotSubmitted, UsageError
from ingest.settings import Launch, launch
from ingest.sources import AnySource, as_sources
from ingest.store import Store

_ASK_S = 0.1  # between two questions; one rank of a node submits at once, and it is there


def distributed_job(
    sources: str | AnySource | Sequence[str | AnySource],
    *,
    client: Client | None = None,
    key: str | None = None,
    timeout: float = 600.0,
    **options: Any,
) -> Job:
    """The job of these sources, the same on every rank whose process shares a store; each file is fetched once for it.

    Local rank 0 submits (``options`` are those of :meth:`Client.submit`), the others wait up to ``timeout`` seconds for
    it to have done so. On several nodes with stores of their own each node has a job of its own, of the same sources
    and so of the same order. ``key`` names this run: by default what torchrun says of it, so that a restart of the run
    finds its job again. Outside of a distributed run it is :meth:`Client.submit`.

    Raises what ``submit`` raises, :class:`NotSubmitted` when local rank 0 has not submitted in time,
    :class:`LedgerUnavailable` when Redis is away for a minute, and :class:`UsageError` where nothing says which run
    this is.
    """
    positive("timeout", timeout)
    client = client or Client()
    here = launch()
    name = _key(client, sources, key, here)
    if here.local_rank == 0:
        return client.submit(sources, key=name, **options)
    deadline = Deadline(timeout)
    while True:
        found = patiently(lambda: client.ledger.job_of(name), deadline)
        if found is not None:
            return client.job(found)
        if deadline.over:
            raise NotSubmitted(name, timeout, f"rank {here.rank} of {here.world}")
        time.sleep(_ASK_S)


def _key(client: Client, sources: Any, key: str | None, here: Launch) -> str:
    run = key or here.run
    if not run:
        if here.world > 1:
            raise UsageError(
                "nothing says which run this is (TORCHELASTIC_RUN_ID, MASTER_ADDR and MASTER_PORT): give key="
            )
        run = uuid.uuid4().hex
    store = Store.attach(client.settings.store)
    return f"{run}/{fingerprint(as_sources(sources), {})}/{store.id if store else client.settings.node}"
