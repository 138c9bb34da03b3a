"""Where cases are measured: sizes, a folder, a web server, and a real service (a Redis and a worker) whose use is
metered. What is measured is in the modules of the cases."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness import Measured
from benchmarks.meter import metered
from benchmarks.servers import Web, web_server
from ingest import Client
from ingest.embedded import EmbeddedService, embedded_service
from ingest.settings import load
from ingest.sources import AnySource

WAIT_S = 300.0


@dataclass(frozen=True)
class Scale:
    """Sizes of everything. ``full`` is what the targets speak of; ``small`` shows where one stands in minutes;
    ``tiny`` shows that it runs at all."""

    rounds: int
    large_mb: int  # one large file
    small_files: int  # of 20 KB
    objects: int  # of 16 MB
    rows: int  # of the table
    most_rows: int  # of the table whose memory must be that of ``rows``
    urls: int  # that are submitted
    here: int  # files that are on disk already
    asked: int  # single small files, one after the other
    samples: int  # of 2 KB
    shards: int  # of 10 MB, behind a latency
    most_files: int  # of which the cost of one must be that of 1,000


SCALES = {
    "full": Scale(5, 1000, 10_000, 64, 2_000_000, 20_000_000, 1_000_000, 100_000, 300, 60_000, 100, 100_000),
    "small": Scale(3, 200, 2_000, 8, 200_000, 1_000_000, 100_000, 10_000, 100, 10_000, 10, 10_000),
    "tiny": Scale(1, 2, 20, 1, 1_000, 2_000, 1_000, 50, 3, 200, 2, 100),
}


@dataclass(frozen=True)
class Lab:
    """``folder`` is for everything that a run makes; it goes when the run is over."""

    folder: Path
    scale: Scale

    def dir(self, *parts: str) -> Path:
        """A directory of the folder, made if it is not there."""
        path = self.folder.joinpath(*parts)
        path.mkdir(parents=True, exist_ok=True)
        return path

    @contextlib.contextmanager
    def web(self) -> Iterator[tuple[Web, Path]]:
        """A web server, and the folder that it serves."""
        folder = self.dir("www")
        try:
            with web_server(folder, self.dir("nginx")) as web:
                yield web, folder
        finally:
            shutil.rmtree(folder)

    @contextlib.contextmanager
    def service(self, config: str = "", **env: str) -> Iterator[Service]:
        """A Redis and one worker as ``ingest up`` starts them, and a client; ``config`` is the ``ingest.toml``."""
        root = self.dir("service")
        (root / "ingest.toml").write_text(config)
        more = {
            "INGEST_CONFIG": str(root / "ingest.toml"),
            "INGEST_STORE": str(root / "store"),
            "INGEST_NODE": "bench",
            "INGEST_PREFIX": "ingest:",
            "INGEST_LOG_FORMAT": "json",
            "no_proxy": "127.0.0.1",
            "NO_PROXY": "127.0.0.1",
            **env,
        }

        def ready(service: EmbeddedService) -> bool:
            return bool(Client(settings=load(service.env)).workers())

        try:
            with embedded_service(ready, data=root / "redis", env=more, ready_s=60) as running:
                client = Client(settings=load(running.env), lease=False)
                yield Service(root, running, client)
                client.close()
        finally:
            shutil.rmtree(root)


@dataclass(frozen=True)
class Service:
    """A running service."""

    root: Path
    running: EmbeddedService
    client: Client

    @property
    def env(self) -> Mapping[str, str]:
        return self.running.env

    def run(self, work: Callable[[Client], Mapping[str, float]]) -> Measured:
        """``work``, metered: this process as the client, and all of the service."""
        roots = (self.running.worker.pid, self.running.redis.process.pid)
        with metered(roots, clients=(os.getpid(),)) as used:
            counts = work(self.client)
        return Measured(used.seconds, used.cpu_s, used.peak_bytes, used.all_bytes, counts)

    def forget(self) -> None:
        """Nothing was ever fetched: the next run of the same finds an empty store. (Its top directories stay: a node
        whose store lacks them says that it is not fit.)"""
        for path in (self.root / "store" / "data").iterdir():
            shutil.rmtree(path)


@dataclass(frozen=True)
class Ours:
    """The service as a contender. ``work`` is timed: from ``submit`` to the paths in the client's hand."""

    service: Service
    work: Callable[[Client], Mapping[str, float]]
    name: str = "ingest"
    cold: bool = True

    def run(self) -> Measured:
        if self.cold:
            self.service.forget()
        return self.service.run(self.work)


def fetched(client: Client, sources: Sequence[str | AnySource], **options: Any) -> dict[str, float]:
    """Submit, wait, and look at every path. Raises RuntimeError when something did not come."""
    job = client.submit(sources, **options)
    files = job.files(timeout=WAIT_S)
    paths = [file.path for file in files]
    if job.status().state != "done":
        raise RuntimeError(f"the job did not get done: {job.failures()[:3]}")
    return {"files": len(paths), "bytes": sum(file.size for file in files)}


def tally(folder: Path) -> dict[str, float]:
    """How many files, and bytes, a peer made."""
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    return {"files": len(sizes), "bytes": sum(sizes)}


def emptied(folder: Path) -> Callable[[], None]:
    """What makes a folder empty again."""

    def empty() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    return empty
