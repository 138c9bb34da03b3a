"""Messages that are poison, forged, ten of a kind; shards that kill their process (10 and 11 of the list)."""

from __future__ import annotations

import base64
import json
import signal
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from ingest.app import app_for
from ingest.queues import FETCH_TASK, PLAN_TASK
from tests.faults import journal
from tests.faults.load import exactly
from tests.faults.origins import Paced
from tests.faults.rig import SHORT_LEASES, Rig, send
from tests.servers.node import until

Rigs = Callable[..., Rig]
UNKNOWN = "j0000000000000000.7"


def message(task: str, args: Any, queue: str, **headers: Any) -> dict[str, Any]:
    """A message as Celery would put it into Redis, to be spoilt."""
    body = base64.b64encode(json.dumps([args, {}, {}]).encode()).decode()
    return {
        "body": body,
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "task": task, "id": str(uuid.uuid4()), "argsrepr": "", "kwargsrepr": "", **headers},
        "properties": {
            "correlation_id": str(uuid.uuid4()),
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": queue},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }


def spoilt(queue: str) -> dict[str, bytes]:
    """Messages that nobody should have sent."""
    good = message(FETCH_TASK, [queue], queue)

    def with_(**more: Any) -> bytes:
        return json.dumps({**good, **more}).encode()

    return {
        "no JSON": b"\x80\x04\x95 this is no JSON",
        "no UTF-8": b"\xff\xfe\xfa",
        "empty": b"",
        "a list": b"[1, 2, 3]",
        "a number": b"7",
        "half": json.dumps(good).encode()[:100],
        "nothing in it": b"{}",
        "no properties": json.dumps({k: v for k, v in good.items() if k != "properties"}).encode(),
        "no delivery tag": with_(properties={"body_encoding": "base64"}),
        "no headers": with_(headers={}),
        "no id": with_(headers={k: v for k, v in good["headers"].items() if k != "id"}),
        "headers of another kind": with_(headers=[1]),
        "a body that is no base64": with_(body="%%%"),
        "a body that is no JSON": with_(body=base64.b64encode(b"{{{").decode()),
        "a body of another shape": with_(body=base64.b64encode(b'"x"').decode()),
        "pickled": with_(**{"content-type": "application/x-python-serialize"}),
        "an unknown encoding": with_(**{"content-encoding": "klingon"}),
        "compressed with nothing": with_(headers={**good["headers"], "compression": "application/x-gzip"}),
        "an unknown task": json.dumps(message("ingest.nobody", [queue], queue)).encode(),
        "no arguments": json.dumps(message(FETCH_TASK, [], queue)).encode(),
        "an unknown queue": json.dumps(message(FETCH_TASK, ["ingest.fetch.nobody"], queue)).encode(),
        "a forged queue": json.dumps(message(PLAN_TASK, ["../../job:x"], queue)).encode(),
        "a queue that is no text": json.dumps(message(FETCH_TASK, [{"a": [1]}], queue)).encode(),
        "an unknown shard for a queue": json.dumps(message(FETCH_TASK, [UNKNOWN], queue)).encode(),
        "an unknown shard to be planned": json.dumps(message(PLAN_TASK, [UNKNOWN], queue)).encode(),
        "a shard too many": json.dumps(message(FETCH_TASK, [queue, UNKNOWN], queue)).encode(),
        "a time in the future": json.dumps(message(FETCH_TASK, [queue], queue, eta="2199-01-01T00:00:00")).encode(),
        "a time that is none": json.dumps(message(FETCH_TASK, [queue], queue, eta="soon")).encode(),
        "expired": json.dumps(message(FETCH_TASK, [queue], queue, expires="1999-01-01T00:00:00")).encode(),
    }


def test_messages_that_are_poison(rigs: Rigs) -> None:
    """Each is taken by a worker that lives on, and does the next job; with the load all the time."""
    rig = rigs(workers=1, config=SHORT_LEASES)
    (worker,) = rig.alive()
    broker = rig.client().ledger.redis
    prefix = rig.service.settings.prefix
    rig.load.start()
    for name, raw in spoilt("ingest.fetch").items():
        begun = time.monotonic()

        def taken() -> bool:
            assert worker.process.poll() is None, f"{name}: {worker.log.read_text()[-3000:]}"  # noqa: B023
            return raw not in broker.lrange(f"{prefix}celery:ingest.fetch", 0, -1)  # noqa: B023

        with rig.meddler.still():  # the worker is to have it
            broker.rpush(f"{prefix}celery:ingest.fetch", raw)  # the end at which a worker takes
            until(taken, f"{name} is taken", 60)
        asked = rig.probe()
        until(lambda: asked.waited, f"work goes on after {name}", 60)  # noqa: B023
        journal.happened("poison: a message", rig.run, time.monotonic() - begun, what=name)
        assert worker.process.poll() is None, f"{name}: {worker.log.read_text()[-3000:]}"
    assert rig.client().ledger.redis.hlen(f"{prefix}celery:unacked") <= 1, "noted as in hand: the future one"


def test_shards_that_are_forged_or_unknown(rigs: Rigs) -> None:
    """A bell names a queue, and what is due there is what the ledger says: so a forgery is of the ledger's list, or of
    a task id. It is passed over; what is over is not done again, and keeps its end and its result."""
    rig = rigs(workers=1, config=SHORT_LEASES)
    ledger, url = rig.client().ledger, rig.load.http("told", 20_000)
    job = rig.client().submit(url, placement="any", fresh_s=0)
    rig.load.follow(job, [exactly("told", 20_000)])
    paths = job.paths(timeout=60)
    unit = f"{job.id}.0"
    until(lambda: rig.result_of(unit, 30), "its result is written")
    before = rig.record(unit)
    rig.load.start()
    for name in (UNKNOWN, unit, f"{job.id}.99", f"{job.id}.p0", f"{job.id}.", "no unit", "..", "\udcff"):
        begun = time.monotonic()
        due = ledger.key("due", "ingest.fetch")
        ledger.redis.zadd(due, {name.encode("utf-8", "surrogateescape"): -(2**52)})  # before all others
        asked = rig.probe()
        until(lambda: asked.waited, f"work goes on after {name!r}", 60)  # noqa: B023
        assert ledger.redis.zscore(due, name.encode("utf-8", "surrogateescape")) is None, "it is passed over for good"
        journal.happened("poison: a forged shard", rig.run, time.monotonic() - begun, what=name)
    begun = time.monotonic()
    with rig.meddler.still():  # a message with a meaning of its own is lost with it
        app_for(rig.service.settings).send_task(
            "ingest.download", (rig.load.http("other", 10_000),), task_id=unit, queue="ingest.fetch"
        )
        until(lambda: rig.origin.count("/other.bin"), "a message under the id of a shard is a job of its own", 60)
    journal.happened("poison: a forged shard", rig.run, time.monotonic() - begun, what="a task id")
    rig.settle()
    assert rig.record(unit) == before and rig.origin.count("/told.bin") == 1
    assert rig.result_of(unit, 30) == {"paths": [str(paths[0])]}


def test_a_shard_that_kills_its_process_each_time(rigs: Rigs) -> None:
    """After the fifth it is quarantined, and says why; the others are none the worse for it."""
    rig = rigs(workers=2)
    rig.load.start()
    poison = Paced("poison", 1 << 20, hold=threading.Event(), held=1 << 19)
    job = rig.client().submit(rig.origin.on("/poison.bin", poison), placement="any")
    asked = rig.load.follow(job, [], ends=("failed",))
    begun = time.monotonic()
    deaths = rig.service.settings.retry.deliveries
    for death in range(deaths):
        held = until(lambda: rig.held_by(job.id), f"it is tried after {death} deaths", 60)
        until(lambda: len(poison.starts) > death, "it has begun", 60)  # noqa: B023
        send(list(held), signal.SIGKILL)
        until(lambda: rig.record(f"{job.id}.0").get("dl", 0) > death, "it is counted", 60)  # noqa: B023
    until(lambda: asked.waited, "its waiter is told", 60)
    journal.happened("poison: a shard that kills its process", rig.run, time.monotonic() - begun)
    (failure,) = job.failures()
    assert (failure.error, failure.reason) == ("Quarantined", f"killed its worker {deaths} times")


@pytest.mark.parametrize("times", [10, 100])
def test_the_same_message_many_times_at_once(rigs: Rigs, times: int) -> None:
    rig = rigs(workers=2)
    for round_ in range(3):
        names = [f"one{round_}-{n}" for n in range(4)]
        for name in names:
            rig.load.http(name, 50_000)
        begun = time.monotonic()
        job = rig.client().submit([rig.origin.url(f"/{name}.bin") for name in names], placement="any")
        asked = rig.load.follow(job, [exactly(name, 50_000) for name in names])
        same = json.dumps(message(FETCH_TASK, ["ingest.fetch"], "ingest.fetch"))
        rig.client().ledger.redis.lpush(f"{rig.service.settings.prefix}celery:ingest.fetch", *[same] * times)
        until(lambda: asked.waited, "it is done", 60)  # noqa: B023
        journal.happened("message ten times", rig.run, time.monotonic() - begun)
        assert [rig.origin.count(f"/{name}.bin") for name in names] == [1] * 4, "each is fetched once"


def test_one_plain_download_ten_times(rigs: Rigs) -> None:
    """``ingest.download`` is a message with a meaning of its own, and has one id: so all ten are one job, and that some
    of them are lost or doubled changes nothing."""
    rig = rigs(workers=2)
    app = app_for(rig.service.settings)
    url = rig.load.http("plain", 50_000)
    task = str(uuid.uuid4())
    begun = time.monotonic()
    for _ in range(10):
        result = app.send_task("ingest.download", (url,), task_id=task, queue="ingest.fetch")
    (path,) = result.get(timeout=60)["paths"]
    journal.happened("message ten times: a plain task", rig.run, time.monotonic() - begun)
    until(lambda: not rig.units_of(None), "nothing is in hand", 30)
    job = rig.client().job(task)
    rig.load.follow(job, [exactly("plain", 50_000)])
    assert str(job.paths(timeout=30)[0]) == path
