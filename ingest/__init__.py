"""Download requests as messages: a training job asks for data by URI, a cluster of Celery workers brings it to local
disk.

client = ingest.Client()
paths = client.fetch("https://host/a-{000..127}.tar", timeout=600)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ingest.client import Client, Job, LocalFile, distributed_job
from ingest.errors import (
    BadSource,
    ConfigError,
    DataError,
    FetchError,
    IngestError,
    JobFailed,
    LedgerUnavailable,
    NoDataNode,
    NotLocalError,
    PermanentFetchError,
    ResumeError,
    StoreError,
    TransientFetchError,
    UnknownConnection,
    UnknownJob,
    UsageError,
    WaitTimeout,
)
from ingest.model import Failure, JobStatus
from ingest.sources import Api, Manifest, Pack, Source, Sql

if TYPE_CHECKING:
    from ingest.app import download as download
    from ingest.dataset.mixture import mix as mix
    from ingest.dataset.stream import Stream as stream

__all__ = [
    "Api",
    "BadSource",
    "Client",
    "ConfigError",
    "DataError",
    "Failure",
    "FetchError",
    "IngestError",
    "Job",
    "JobFailed",
    "JobStatus",
    "LedgerUnavailable",
    "LocalFile",
    "Manifest",
    "NoDataNode",
    "NotLocalError",
    "Pack",
    "PermanentFetchError",
    "ResumeError",
    "Source",
    "Sql",
    "StoreError",
    "TransientFetchError",
    "UnknownConnection",
    "UnknownJob",
    "UsageError",
    "WaitTimeout",
    "distributed_job",
    "download",
    "mix",
    "stream",
]


def __getattr__(name: str) -> Any:
    """``ingest.download`` brings Celery with it (0.2 s), which a client that only reads a job does not need; nor does
    it need ``ingest.stream(job)`` and ``ingest.mix``."""
    if name == "download":
        from ingest.app import download

        return download
    if name == "stream":
        from ingest.dataset.stream import Stream

        return Stream
    if name == "mix":
        from ingest.dataset.mixture import mix

        return mix
    raise AttributeError(f"module 'ingest' has no attribute {name!r}")
