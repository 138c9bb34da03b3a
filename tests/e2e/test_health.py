"""Whether a node can do its work, as users see it: ``ingest health``, ``nodes``, ``doctor``, and why a job waits."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ingest.app import app_for
from ingest.embedded.ports import free_port
from ingest.errors import StoreError
from ingest.ledger import WorkerInfo, WorkLedger
from ingest.queues import canary_queue
from ingest.settings import load
from tests.servers.http import Handler, Origin
from tests.servers.node import Service, running_service, until
from tests.servers.swap import swap
from workers.canary import STUCK_STATUS

QUICK = "[limits]\nrenew_s = 0.3\ncanary_s = 0.4\nrestart_s = {restart_s}\n[store]\nmin_free_bytes = 0\n"
DATA = hashlib.sha256(b"health").digest() * 10_000


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("health"), config=QUICK.format(restart_s=0)) as service:
        until(lambda: told(service).able_s is not None, "a message is answered")
        yield service


def told(service: Service, node: str = "n1") -> WorkerInfo:
    (one,) = [worker for worker in service.client().workers() if worker.node == node]
    return one


def health(service: Service, *args: str) -> tuple[int, str]:
    done = service.run("health", *args)
    return done.returncode, done.stderr.strip()


def is_well(service: Service, *args: str) -> None:
    """At some moment: on a busy machine an answer may take longer than three of these messages."""
    until(lambda: health(service, *args) == (0, ""), f"it is well {args}")


def test_a_node_that_is_well(quick: Service) -> None:
    is_well(quick)
    is_well(quick, "--node", "n1", "--live")
    ages = [told(quick).able_s or 0.0]
    until(lambda: ages.append(told(quick).able_s or 0.0) or ages[-1] < ages[-2], "it is answered again")

    def shown() -> bool:
        (node,) = json.loads(quick.run("nodes", "--json").stdout)
        return node["able_s"] < 5 and node["unable"] == node["unfit"] == "" and abs(node["skew_s"]) < 5

    until(shown, "nodes shows it")
    until(lambda: "ok" in quick.run("nodes").stdout, "and says so")
    redis = quick.client().ledger.redis
    assert list(redis.scan_iter("*celery-task-meta*")) == [], "a canary leaves no result behind"


def test_a_node_that_is_not_there(quick: Service) -> None:
    status, line = health(quick, "--node", "nobody")
    assert status == 1 and "nobody" in line and "\n" not in line
    away = f"redis://127.0.0.1:{free_port()}/0"
    done = quick.run("health", INGEST_REDIS_URL=away)
    assert done.returncode == 1 and away in done.stderr and "Traceback" not in done.stderr
    assert quick.run("health", "--live", INGEST_REDIS_URL=away).returncode == 0, "a new worker would not mend it"


def test_a_worker_that_stands_still_is_alive_and_not_able(quick: Service, origin: Origin) -> None:
    pid = quick.workers[0].process.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        until(lambda: told(quick).unable, "it is seen not to answer")
        for args in ((), ("--live",)):
            status, line = health(quick, *args)
            assert status == 1 and "n1" in line and "answered" in line
        assert "not able to work" in quick.run("nodes").stdout
        found = quick.run("doctor")
        assert found.returncode == 1 and "not able to work" in found.stdout
        job = quick.client().submit(origin.put("/still.bin", b"s"))
        assert "not able to work" in job.status().waiting_for
    finally:
        os.kill(pid, signal.SIGCONT)
    assert job.wait(timeout=30).state == "done"
    is_well(quick)


def test_a_store_that_is_gone_and_comes_back(quick: Service, origin: Origin) -> None:
    """One shard is in hand, others are due: they wait and say why, nothing fails, and nothing is tried in vain."""
    half, gate = threading.Event(), threading.Event()

    def slow(to: Handler) -> None:
        to.head(200, {"Content-Length": str(len(DATA))})
        to.send(DATA[: len(DATA) // 2])
        half.set()
        gate.wait(60)
        to.send(DATA[len(DATA) // 2 :])

    origin.on("/slow.bin", slow)
    root, away = quick.root / "store", quick.root / "away"
    client = quick.client()
    held = client.submit(origin.url("/slow.bin"))
    assert half.wait(20)
    away.mkdir()
    swap(root, away)  # what is seen of a mount that is gone
    try:
        until(lambda: "mounted" in told(quick).unfit, "it says why it is unfit")
        due = client.submit([origin.put(f"/due-{n}.bin", b"d%d" % n) for n in range(6)])
        gate.set()
        until(lambda: held.status().shards.get("due"), "what was in hand is handed back")
        assert "unfit" in due.status().waiting_for and "n1" in due.status().waiting_for
        status, line = health(quick)
        assert status == 1 and "unfit" in line
        is_well(quick, "--live")
        assert "is unfit" in quick.run("doctor").stdout and "unfit" in quick.run("nodes").stdout
        bells = lambda: client.ledger.redis.llen("ingest:celery:ingest.fetch")  # noqa: E731
        until(lambda: bells() >= 6, "it rings for them")  # two that ring at once may ring twice
        seen = [bells() for _ in range(100)]
        assert seen == sorted(seen), "and a node that is unfit leaves the bells to others"
        assert due.status().shards == {"due": 6} and not any(origin.count(f"/due-{n}.bin") for n in range(6))
        assert list(root.iterdir()) == [], "nothing is written where the store is not"
    finally:
        swap(root, away)
        away.rmdir()
    assert [file.path.read_bytes() for file in due.files(timeout=30)] == [b"d%d" % n for n in range(6)]
    assert [file.path.read_bytes() for file in held.files(timeout=30)] == [DATA]
    assert held.status().retries == due.status().retries == 0, "no attempt is counted"
    is_well(quick)
    assert (told(quick).unfit, quick.scratch()) == ("", [])
    log = quick.workers[0].log.read_text()
    assert log.count('"node.unfit"') == log.count('"node.fit"') == 1 and "shard.defect" not in log


@pytest.mark.parametrize("what", ["all of it", "a folder"])
def test_a_store_that_somebody_removed(quick: Service, origin: Origin, what: str) -> None:
    """Nobody restarts anything: its node says so, makes it again, and fetches again what is asked for again."""
    client, root, url = quick.client(), quick.root / "store", origin.put("/removed.bin", DATA)
    before = client.submit(url)
    assert before.paths(timeout=30)[0].read_bytes() == DATA
    identity = (root / "STORE_ID").read_text()
    shutil.rmtree(root if what == "all of it" else root / "data")
    until(lambda: "made again" in told(quick).unfit, "it says what was done")
    until(lambda: not told(quick).unfit, "and works again")
    assert (root / "STORE_ID").read_text() == identity
    with pytest.raises(StoreError, match="is gone"):
        before.paths()
    (path,) = client.fetch(url, timeout=30)
    assert path.read_bytes() == DATA and origin.count("/removed.bin") == 2
    is_well(quick)


@pytest.mark.long
def test_a_worker_whose_consumer_is_stuck_is_ended_for_its_supervisor(quick: Service) -> None:
    """Its process is well, its heart beats, and it takes no message: as if Celery had forgotten to consume again."""
    config = quick.root / "restart.toml"
    config.write_text(QUICK.format(restart_s=2))
    worker = quick.start_worker("n2", INGEST_CONFIG=str(config), INGEST_STORE=str(quick.root / "store-2"))
    until(lambda: told(quick, "n2").able_s is not None, "it answers")
    control = app_for(quick.settings).control
    until(lambda: control.cancel_consumer(canary_queue("n2"), destination=["ingest@n2"], reply=True), "it is told so")
    assert worker.process.wait(60) == STUCK_STATUS, "a failure, for supervisors that restart after one"
    log = worker.log.read_text()
    assert '"worker.stuck"' in log and '"node.unable"' in log and log.index("node.unable") < log.index("worker.stuck")
    assert quick.workers[0].process.poll() is None, "and nobody else"


class TestDoctor:
    def test_limits_of_redis_are_said_before_they_are_met(self, quick: Service) -> None:
        redis = quick.client().ledger.redis
        used, clients = redis.info()["used_memory"], redis.info()["connected_clients"]
        most = redis.config_get("maxclients")["maxclients"]
        redis.config_set("maxmemory", int(used * 1.1))
        redis.config_set("maxclients", int(clients * 1.2) + 1)
        try:
            found = json.loads(quick.run("doctor", "--json").stdout)
        finally:
            redis.config_set("maxmemory", 0)
            redis.config_set("maxclients", most)
        said = {f["what"].split(":")[0]: f for f in found if f["level"] != "ok"}
        assert {"Redis's memory", "Redis's connections"} <= set(said)
        assert all(said[what]["cure"] for what in said)

    def test_origins_that_cannot_be_reached(self, quick: Service, origin: Origin, tmp_path: Path) -> None:
        config = tmp_path / "ingest.toml"
        closed = free_port()
        config.write_text(
            f'[connections.there]\nmatch = "{origin.url("/")}"\n'
            f'[connections.away]\nmatch = "s3://bucket/"\nendpoint = "http://127.0.0.1:{closed}"\nsecret = "hidden"\n'
            f'[connections.base]\nurl = "postgresql://u:hidden@127.0.0.1:{closed}/db"\n'
            '[connections.plain]\nmatch = "s3://other/"\n'
            '[connections.odd]\nurl = "postgresql://a:1,b:2/db"\n'
        )
        done = quick.run("doctor", INGEST_CONFIG=str(config))
        warned = [line for line in done.stdout.splitlines() if "cannot be reached" in line]
        assert sorted(line.split()[2] for line in warned) == ["away:", "base:"], done.stdout
        assert all(f"127.0.0.1:{closed}" in line and "→" in line for line in warned) and "hidden" not in done.stdout
        assert done.returncode == 0, "an origin that is away is no fault of the deployment"

    def test_nodes_whose_clock_or_name_is_wrong(self, quick: Service) -> None:
        """Heartbeats of nodes that are not there, under a prefix of their own."""
        settings = load({**quick.env, "INGEST_PREFIX": "elsewhere:"})
        ledger = WorkLedger(settings)
        now = ledger.now_ms() / 1000
        base = {"store": "s", "slots": 2, "connections": [], "free_bytes": 1, "pid": 1}
        for worker, node, version, ahead in (("w1", "a", "1", 7200), ("w2", "b", "2", -7200), ("w3", "b", "2", 0)):
            ledger.beat(worker, base | {"node": node, "version": version, "time": now + ahead}, [], [])
        said = quick.run("doctor", INGEST_PREFIX="elsewhere:").stdout
        ledger.close()
        assert "node a: its clock is 7200 s ahead" in said and "node b: its clock is 7200 s behind" in said
        assert "2 workers are called b" in said and "different versions: 1, 2" in said
