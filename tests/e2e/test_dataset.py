"""A real job into a real DataLoader while it lands: the ledger's reader, a feed, and workers without a connection."""

from __future__ import annotations

import json

import pytest
from torch.utils.data import DataLoader

import ingest
from ingest.dataset import StreamingDataset
from tests.servers.http import Origin, file, slow_start
from tests.servers.node import Service

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def lines(number: int) -> bytes:
    return "".join(json.dumps(number * 100 + n) + "\n" for n in range(10)).encode()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_job_streams_while_it_lands(service: Service, origin: Origin, workers: int) -> None:
    urls = [origin.put(f"/w{workers}-{n}.jsonl", lines(n)) for n in range(6)]
    origin.on("/slow.jsonl", slow_start(2.0, file(lines(6))))
    job = service.client().submit([*urls, origin.url("/slow.jsonl")])
    samples = iter(DataLoader(StreamingDataset(job, timeout=60), batch_size=None, num_workers=workers))
    got = [next(samples)]
    assert job.status().state == "running", "the first sample came only when the job was over"
    got += samples
    assert sorted(got) == [n * 100 + i for n in range(7) for i in range(10)]
    assert {f.samples for f in job.files()} == {10}


def test_a_source_that_fails_is_named_or_skipped(service: Service, origin: Origin) -> None:
    urls = [origin.put("/ok-0.jsonl", lines(0)), origin.url("/no.jsonl"), origin.put("/ok-1.jsonl", lines(1))]
    job = service.client().submit(urls)
    job.wait(timeout=60)
    with pytest.raises(ingest.JobFailed, match=r"/no\.jsonl"):
        list(StreamingDataset(job, timeout=30))
    kept = list(StreamingDataset(job, timeout=30, on_failure="skip"))
    assert kept == [n * 100 + i for n in range(2) for i in range(10)]
