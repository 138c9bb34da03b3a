"""An API as a source, through the whole service: beside files, resumed at the page after a kill -9, held back by a rate
limit, and never a place that credentials could be sent to."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import ingest
from ingest.dataset import StreamingDataset
from tests.servers.api import Answer, ApiServer, Call, Reply, at, by_cursor, by_link, reply
from tests.servers.http import Origin
from tests.servers.node import Service, running_service, until

RECORDS = [{"id": n, "amount": n / 8, "note": f"№ {n}"} for n in range(60)]
CURSOR = {"kind": "cursor", "param": "cursor", "field": "meta.next"}
SECRET = "api-Right-Bearer-77"


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with ApiServer() as server:
        yield server


@pytest.fixture
def service(tmp_path: Path, api: ApiServer) -> Iterator[Service]:
    config = f"""
[retry]
attempts = 3
base_s = 0.1
[connections.crm]
url = "{api.url("/v1/")}"
bearer = "{SECRET}"
"""
    with running_service(tmp_path, config=config) as running:
        yield running


def read(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def held_at(number: int, gate: threading.Event, otherwise: Answer) -> Answer:
    """The call of that number is answered once the gate is open."""

    def answer(call: Call) -> Reply:
        made = otherwise(call)
        return Reply(made.data, made.status, made.headers, hold=gate) if call.number == number else made

    return answer


@pytest.mark.long
def test_kill_9_of_the_worker_goes_on_at_the_page(service: Service, api: ApiServer, origin: Origin) -> None:
    gate = threading.Event()
    api.on("/v1/orders", held_at(4, gate, by_cursor(RECORDS, 10)))
    source = ingest.Api("crm", "orders", records="data.items", paginate=CURSOR)
    job = service.client().submit([source, origin.put("/a.bin", b"a")])
    until(lambda: len(api.asked("/v1/orders")) == 4, "the fourth page is asked for")
    worker = service.workers[0]
    pids = [*worker.children(), *worker.agents()]
    worker.kill()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "children and agent follow the worker")
    gate.set()
    service.start_worker("n1")
    orders, file = job.files(timeout=60)
    assert read(orders.path) == RECORDS and orders.path.name == "orders.jsonl"
    assert file.path.read_bytes() == b"a"
    asked = Counter(call.query.get("cursor") for call in api.asked("/v1/orders"))
    assert asked == {None: 1, "c10": 1, "c20": 1, "c30": 2, "c40": 1, "c50": 1}, (
        "only the page in flight is asked twice"
    )
    until(lambda: service.scratch() == [], "nothing is left in scratch")


def test_pages_that_came_do_not_use_up_attempts(service: Service, api: ApiServer) -> None:
    """Every second request fails, more often than there are attempts: each attempt brings a page."""
    pages = by_link(RECORDS, 10)
    api.on("/v1/flaky", lambda call: pages(call) if call.number % 2 else Reply({"error": "busy"}, 500))
    job = service.client().submit(ingest.Api("crm", "flaky", paginate={"kind": "link"}))
    assert job.wait(timeout=60).state == "done", job.failures()
    assert read(job.paths()[0]) == RECORDS


def test_a_rate_limit_is_waited_for_in_the_ledger(service: Service, api: ApiServer) -> None:
    limited = at(3, reply({"error": "slow down"}, 429, retry_after="11"), by_link(RECORDS, 20))
    api.on("/v1/limited", limited)
    job = service.client().submit(ingest.Api("crm", "limited", paginate={"kind": "link"}))
    until(lambda: job.status().retries == 1 or len(api.asked("/v1/limited")) > 3, "the shard is due again later")
    quick = service.client().submit(ingest.Api("crm", "limited", params={"from": 40}), name="meanwhile")
    assert read(quick.files(timeout=10)[0].path) == RECORDS[40:], "the slot is free for other work"
    assert read(job.files(timeout=60)[0].path) == RECORDS


def test_parquet_by_the_loader(service: Service, api: ApiServer) -> None:
    api.on("/v1/orders", by_cursor(RECORDS, 25))
    source = ingest.Api("crm", "orders", records="data.items", paginate=CURSOR, format="parquet")
    job = service.client().submit(source)
    (file,) = job.files(timeout=60)
    assert pq.read_table(file.path).to_pylist() == RECORDS and file.path.suffix == ".parquet"
    samples = list(StreamingDataset(job, shuffle=False))
    assert [sample["id"] for sample in samples] == list(range(60))


def test_what_is_fresh_is_used_again_and_a_failure_is_said(service: Service, api: ApiServer) -> None:
    client = service.client()
    api.on("/v1/one", reply(RECORDS))
    for _ in range(2):
        assert read(client.fetch(ingest.Api("crm", "one"), timeout=30)[0]) == RECORDS
    assert len(api.asked("/v1/one")) == 1
    job = client.submit([ingest.Api("crm", "gone"), ingest.Api("crm", "one", records="rows")])
    assert job.wait(timeout=30).state == "failed"
    failures = {failure.source.partition("#")[0]: failure for failure in job.failures()}
    assert failures["api://crm/gone"].error == "NotFound"
    with pytest.raises(ingest.UnknownConnection):
        client.submit(ingest.Api("nobody", "x"))
    assert "without 'rows'" in failures["api://crm/one"].reason
    assert SECRET not in str(job.failures()) + service.workers[0].log.read_text()


def test_a_next_page_elsewhere_gets_no_credentials(service: Service, api: ApiServer) -> None:
    with ApiServer("127.0.0.2") as other:
        api.on("/v1/led", reply([1], link=f'<{other.url("/v1/led")}>; rel="next"'))
        job = service.client().submit(ingest.Api("crm", "led", paginate={"kind": "link"}))
        assert job.wait(timeout=30).state == "failed"
        assert job.failures()[0].error == "EgressDenied" and not other.log
