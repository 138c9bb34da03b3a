"""Requests at the edges: odd task ids, the same source twice, lists that change under a planner, work for nobody."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import ingest
from ingest.app import app_for
from tests.servers.http import Handler, Origin, file
from tests.servers.node import Service, until


@pytest.fixture(scope="module")
def origins() -> Iterator[Origin]:
    with Origin() as server:
        yield server


@pytest.mark.parametrize("task_id", ["nightly run", "nightly-2026.10.03", "a:b", "x" * 300, "größe", "plain-1"])
def test_any_task_id_is_answered(service: Service, origins: Origin, task_id: str) -> None:
    app, client = app_for(service.settings), service.client()
    url = origins.put(f"/task-{abs(hash(task_id))}.bin", b"t")
    (path,) = app.send_task("ingest.download", (url,), task_id=task_id).get(timeout=15)["paths"]
    assert Path(path).read_bytes() == b"t"
    assert client.fetch(url, timeout=15, fresh_s=0)[0].read_bytes() == b"t", "and others may have it, too"


def test_a_task_id_used_again_gives_the_last_call(service: Service, origins: Origin) -> None:
    for text in (b"first", b"second"):
        answered_with(service, origins, "daily", text)


def answered_with(service: Service, origins: Origin, task_id: str, text: bytes) -> None:
    """Download a file of that text under that task id, until the id's result is that file."""
    app, url = app_for(service.settings), origins.put(f"/{task_id}-{text.decode()}.bin", text)
    app.send_task("ingest.download", (url,), task_id=task_id)

    def answered() -> bool:
        found = app.AsyncResult(task_id)
        return found.ready() and Path(found.result["paths"][0]).read_bytes() == text

    until(answered, f"the result of the call for {text!r}")


def test_a_task_id_used_again_while_its_files_are_read(service: Service, origins: Origin) -> None:
    client, paths = service.client(), []
    for text in (b"one", b"two", b"three"):
        answered_with(service, origins, "read", text)
        paths += client.job("read").paths(timeout=15)
    assert [path.read_bytes() for path in paths] == [b"one"] * 3, "who reads a job reads on in it"
    client.close()


def test_a_source_twice_in_a_shard_is_fetched_once(service: Service, origin: Origin) -> None:
    url, gone = origin.put("/twice.bin", b"twice"), origin.url("/gone.bin")
    job = service.client().submit([url, gone, url, gone], shard_files=4, fresh_s=0)
    job.wait(timeout=20)
    assert [f.index for f in job.files()] == [(0, 0), (2, 0)] and [f.index for f in job.failures()] == [(1, 0), (3, 0)]
    assert origin.count() == 2


def test_size_and_limit_hold_for_what_is_stored_already(service: Service, origin: Origin) -> None:
    url = origin.put("/sized.bin", b"x" * 1000)
    client = service.client()
    client.fetch(url, timeout=20)
    for fresh_s in (600, 0):
        job = client.submit(ingest.Source(url, size=10), fresh_s=fresh_s)
        assert job.wait(timeout=20).state == "failed" and job.failures()[0].error == "BadResponse"
        job = client.submit(url, max_bytes=10, fresh_s=fresh_s)
        assert job.wait(timeout=20).state == "failed" and job.failures()[0].error == "TooLarge"


def test_a_mended_manifest_adds_only_what_was_missing(service: Service, origin: Origin) -> None:
    good = [origin.put(f"/m{n}.bin", b"%d" % n) for n in range(5)]
    listed = origin.put("/list.txt", "\n".join([*good[:2], "nonsense", *good[2:]]).encode())
    job = service.client().submit(ingest.Manifest(listed))
    assert job.wait(timeout=20).state == "failed" and len(job.files()) == 5
    origin.put("/list.txt", "\n".join([*good[:2], origin.put("/mended.bin", b"m"), *good[2:]]).encode())
    assert job.retry().wait(timeout=20).state == "done"
    assert [f.source for f in job.files()] == [*good[:2], origin.url("/mended.bin"), *good[2:]]


def test_a_list_that_grows_while_its_planner_dies_gives_no_file_twice(service: Service, origin: Origin) -> None:
    good = [origin.put(f"/g{n}.bin", b"g") for n in range(450)]
    listed = origin.put("/grows.jsonl", "\n".join(json.dumps({"uri": u}) for u in good).encode())
    client = service.client()
    job = client.submit(ingest.Manifest(listed), shard_files=1, fresh_s=0)
    ledger = client.ledger

    def planner() -> int | None:
        for worker in client.workers():
            for unit, tag in ledger.redis.hgetall(ledger.key("held", worker.id)).items():
                if unit == f"{job.id}.p0".encode():
                    return int(tag.split(b":")[0])
        return None

    def begun() -> bool:
        return int(ledger.meta(job.id)["next"]) > 0

    until(begun, "the first step is planned")
    if pid := planner():
        os.kill(pid, signal.SIGKILL)
    origin.put(
        "/grows.jsonl", "\n".join(json.dumps({"uri": u}) for u in [origin.put("/new.bin", b"n"), *good]).encode()
    )
    job.wait(timeout=60)
    sources = [f.source for f in job.files()]
    assert len(sources) == len(set(sources)) and set(good) <= set(sources)


def test_two_jobs_with_one_manifest_ask_for_it_once(service: Service, origin: Origin) -> None:
    text = origin.put("/only.bin", b"o").encode()

    def slow(to: Handler) -> None:
        to.wait(1.0)
        file(text)(to)

    origin.on("/slow.txt", slow)
    client = service.client()
    jobs = [client.submit(ingest.Manifest(origin.url("/slow.txt"))) for _ in range(3)]
    assert [job.wait(timeout=30).state for job in jobs] == ["done"] * 3
    assert origin.count("/slow.txt") == 1


def test_work_for_a_node_that_is_not_there_makes_no_pile_of_messages(service: Service, origin: Origin) -> None:
    client = service.client()
    job = client.submit(origin.put("/ghost.bin", b"g"), placement="ghost", require_node=False)
    ledger = client.ledger
    queue = f"{service.settings.prefix}celery:ingest.fetch.ghost"

    def rounds() -> int:
        return int(ledger.redis.get(ledger.key("tick")) or 0) // 2000

    first = rounds()
    until(lambda: rounds() > first + 1, "a round of the reconciler")
    rung = ledger.redis.llen(queue)
    assert rung in (1, 2), "by the client, and by the reconciler if that was at the same moment"
    until(lambda: rounds() > first + 4, "three more rounds of the reconciler")
    assert ledger.redis.llen(queue) == rung
    job.cancel()
    assert job.wait(timeout=10).state == "cancelled"


def test_a_damaged_record_does_not_stop_the_heart(service: Service, origin: Origin) -> None:
    client = service.client()
    ledger = client.ledger
    job = client.submit(origin.put("/ok.bin", b"1"))
    job.wait(timeout=10)
    (worker,) = client.workers()
    agents = service.workers[0].agents()
    ledger.redis.hset(ledger.key("held", worker.id), "u.0", "abc f")
    ledger.redis.hset(ledger.key("job", job.id, "done"), "0", b"garbage")
    ledger.redis.zadd(ledger.key("outbox"), {f"{job.id}.0": 0})
    until(lambda: ledger.redis.zscore(ledger.key("outbox"), f"{job.id}.0") is None, "the damaged result is dropped")
    assert client.fetch(origin.put("/next.bin", b"2"), timeout=20)[0].read_bytes() == b"2"
    assert service.workers[0].agents() == agents and client.workers()[0].age_s < 6
    ledger.redis.hdel(ledger.key("held", worker.id), "u.0")
