"""Large things in flat memory: a file over HTTP and over S3, a table; every process of the worker is watched.

INGEST_TEST_LARGE=5000:10000000 says how many MB and rows.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest

import ingest
from ingest.model import TERMINAL_JOB
from tests.servers.large import large_origin
from tests.servers.node import Service, running_service
from tests.servers.postgres import postgres_server

SIZE, ROWS = map(int, os.environ.get("INGEST_TEST_LARGE", "400:1000000").split(":"))
SIZE <<= 20
MOST_RESIDENT_MB = 300


class Watch:
    """The largest resident set that any process of the worker has while the block runs, sampled ten times a second."""

    def __init__(self, service: Service) -> None:
        self._worker, self._end, self.peak_mb = service.workers[0], threading.Event(), 0.0
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._end.wait(0.1):
            pids = [self._worker.process.pid, *self._worker.children(), *self._worker.agents()]
            self.peak_mb = max(self.peak_mb, *(_resident_mb(pid) for pid in pids))

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._end.set()
        self._thread.join()


def _resident_mb(pid: int) -> float:
    """VmHWM: the kernel's own record of the peak, so that nothing falls between two samples."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM")), 0.0)


def _free(path: Path) -> None:
    if shutil.disk_usage(path).free < 3 * SIZE:
        pytest.skip(f"needs {3 * SIZE >> 30} GB of free disk")


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_a_large_file_arrives_in_flat_memory(tmp_path: Path, scheme: str) -> None:
    _free(tmp_path)
    with large_origin(SIZE) as origin:
        config = f'[connections.big]\nendpoint = "{origin.endpoint}"\nanonymous = true\n[store]\nfsync = false\n'
        uri = origin.http if scheme == "http" else "s3://bucket/large.bin"
        connection = None if scheme == "http" else "big"
        with running_service(tmp_path, config=config) as service, Watch(service) as watch:
            job = service.client().submit(ingest.Source(uri, digest=origin.digest, connection=connection))
            (file,) = job.files(timeout=1000)
            assert file.size == SIZE and file.digest == origin.digest
            file.path.unlink()
    print(f"{watch.peak_mb:.0f} MB resident at most")
    assert watch.peak_mb < MOST_RESIDENT_MB


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_large_table_arrives_in_flat_memory(tmp_path: Path) -> None:
    with postgres_server() as postgres:
        postgres.execute(
            "CREATE TABLE big AS SELECT n AS id, n * 2 AS a, n / 3.0::float8 AS b, md5(n::text) AS c, "
            "now() + n * interval '1 second' AS d, n % 2 = 0 AS e, (n % 1000)::numeric(9, 2) AS f "
            f"FROM generate_series(1, {ROWS}) AS n"
        )
        config = f'[connections.db]\nurl = "{postgres.url}"\n'
        with running_service(tmp_path, config=config) as service, Watch(service) as watch:
            job = service.client().submit(ingest.Sql("db", table="big", partition_on="id", partitions=2))
            files = job.files(timeout=1000)
            assert job.status().state in TERMINAL_JOB and job.failures() == []
            counts = [f.samples or 0 for f in files]
            assert sum(counts) == ROWS and min(counts) > 0.45 * ROWS, "two files of about one size"
            total = sum(
                sum(batch.column(0).to_pylist())
                for f in files
                for batch in pq.ParquetFile(f.path).iter_batches(columns=["id"])
            )
            assert total == ROWS * (ROWS + 1) // 2
    print(f"{watch.peak_mb:.0f} MB resident at most")
    assert watch.peak_mb < MOST_RESIDENT_MB
