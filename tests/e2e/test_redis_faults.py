"""Whatever becomes of Redis, and of the way to it: nothing is lost, waits end, and workers work again by themselves.
The long forms are in ``tests/faults``."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import redis

import ingest
from ingest.app import app_for
from ingest.embedded import RedisServer
from ingest.ledger import JobLedger
from tests.servers.http import Handler, Origin, file
from tests.servers.node import Service, running_service, until
from tests.servers.proxy import Proxy
from tests.servers.redis import sentinel

#: After an outage of T seconds workers work again within min(T, 30) + so many seconds; a loaded machine needs more.
AGAIN_S, SLACK_S = 10.0, 5.0


class Rig:
    """A service whose worker reaches Redis through a proxy, and clients that do not."""

    def __init__(self, service: Service, proxy: Proxy | None) -> None:
        self.service, self.way, self.server = service, proxy, service.redis_server

    @property
    def proxy(self) -> Proxy:
        assert self.way is not None
        return self.way

    def client(self) -> ingest.Client:
        return self.service.client()

    @contextlib.contextmanager
    def admin(self) -> Iterator[Any]:
        with contextlib.closing(redis.Redis.from_url(self.service.redis_url, socket_timeout=10)) as made:
            yield made

    def configure(self, **values: object) -> None:
        with self.admin() as admin:
            for name, value in values.items():
                admin.config_set(name.replace("_", "-"), value)

    def restart(self) -> None:
        self.server.process.kill()
        self.server.process.wait()
        self.server.start()

    def journal(self, event: str, since: float = 0.0) -> list[dict[str, Any]]:
        """The worker's log lines of that event, since then."""
        lines = [line for line in self.service.workers[-1].log.read_text().splitlines() if line.startswith("{")]
        found = [said for line in lines if (said := json.loads(line))["event"] == event]
        return [said for said in found if datetime.fromisoformat(said["time"]).timestamp() >= since]

    def works_within(self, origin: Origin, since: float, outage_s: float) -> float:
        """A new job is done, and how many seconds after ``since`` the worker's journal says so; within the bound."""
        name = f"/again-{time.monotonic_ns()}"
        job = self.client().submit(origin.put(name, b"again"), require_node=False, placement="any")
        assert job.files(timeout=60)[0].path.read_bytes() == b"again"
        said = until(lambda: [s for s in self.journal("shard.done", since) if s["job"] == job.id], "it is in the log")
        took = datetime.fromisoformat(said[0]["time"]).timestamp() - since
        assert took < min(outage_s, 30) + AGAIN_S + SLACK_S, f"{took:.1f} s after an outage of {outage_s:.1f} s"
        return took


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    root = tmp_path_factory.mktemp("redis-faults")
    with running_service(root, workers=0, append_only=True) as service, Proxy(service.redis_server.port) as proxy:
        service.start_worker("n1", INGEST_REDIS_URL=proxy.url)
        yield Rig(service, proxy)


def slowly(data: bytes) -> Callable[[Handler], None]:
    def behave(to: Handler) -> None:
        to.wait(0.1)
        file(data)(to)

    return behave


def load(rig: Rig, origin: Origin, count: int = 12) -> tuple[ingest.Job, list[bytes]]:
    """A job that is at work: some of its files are there, most are not."""
    made = [b"%d-%d" % (time.monotonic_ns(), n) for n in range(count)]
    job = rig.client().submit([origin.on(f"/{data.decode()}", slowly(data)) for data in made])
    until(lambda: job.status().files_done, "it has begun")
    return job, made


def check(job: ingest.Job, made: list[bytes]) -> None:
    assert [f.path.read_bytes() for f in job.files(timeout=60)] == made
    status = job.status()
    assert (status.state, status.files_done, status.shards) == ("done", len(made), {"done": len(made)})


# -- Redis dies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_kill_9_with_an_append_only_file(rig: Rig, origin: Origin, fsync: str) -> None:
    rig.configure(appendfsync=fsync)
    job, made = load(rig, origin)
    rig.restart()
    rig.works_within(origin, time.time(), 1)
    check(job, made)


def test_three_restarts_in_three_seconds(rig: Rig, origin: Origin) -> None:
    job, made = load(rig, origin)
    for _ in range(3):
        begun = time.monotonic()
        rig.server.stop()
        rig.server.start()
        rig.server.process.poll()
        while time.monotonic() - begun < 1 and job.status().state != "done":
            time.sleep(0.02)
    rig.works_within(origin, time.time(), 3)
    check(job, made)


def test_stopped_for_seconds(rig: Rig, origin: Origin) -> None:
    job, made = load(rig, origin)
    os.kill(rig.server.process.pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(ingest.WaitTimeout):
        job.wait(timeout=1)
    assert time.monotonic() - begun < 4, "a wait ends by its deadline"
    while time.monotonic() - begun < 3:
        time.sleep(0.05)
    os.kill(rig.server.process.pid, signal.SIGCONT)
    rig.works_within(origin, time.time(), 3)
    check(job, made)


# -- Redis loses everything ----------------------------------------------------------------------------------------


def test_what_was_lost_is_put_back_once_and_nothing_is_fetched_twice(
    rig: Rig, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    gates = [threading.Event() for _ in range(2)]

    def gate(to: Handler) -> None:
        while not gates[0].is_set() and to.wait(0.02):
            pass
        file(b"late")(to)

    done = origin.put("/early.bin", b"early")
    client = rig.client()
    sources = [done, origin.on("/late.bin", gate)]
    job = client.submit(sources, key="put back")
    other = rig.client().submit(sources, key="put back")  # another handle with the same right to put it back
    attached = client.job(job.id)
    seen, raised = job.as_completed(timeout=60), []
    assert next(seen).path.read_bytes() == b"early"
    until(lambda: origin.count("/late.bin"), "the second has begun")

    def wait() -> None:
        try:
            attached.wait(timeout=60)
        except ingest.IngestError as error:
            raised.append(error)

    with rig.admin() as admin:
        admin.flushall()
        with pytest.raises(ingest.UnknownJob, match="submit it again"):
            attached.status()
        threads = [threading.Thread(target=other.wait, args=(60,)), threading.Thread(target=wait)]
        threads[1].start()
        threads[1].join(20)
        assert [type(error) for error in raised] == [ingest.UnknownJob], "a handle that was attached cannot"
        threads[0].start()
        gates[0].set()
        assert [f.path.read_bytes() for f in seen] == [b"late"], "what came before the loss does not come again"
        threads[0].join(30)
        assert not threads[0].is_alive()
        assert [f.path.read_bytes() for f in other.files(timeout=30)] == [b"early", b"late"]
        assert origin.count("/early.bin") == 1, "it was found in the store"
        assert len([r for r in caplog.records if "job.put_back" in r.message]) == 1
        assert job.status().files == 2 and [j.id for j in client.jobs()] == [job.id]
        assert client.submit(sources, key="put back").id == job.id, "its key is its own again"
        # A second loss is another one; and now also the end of the job is gone.
        admin.flushall()
        assert [f.path.read_bytes() for f in job.files(timeout=30)] == [b"early", b"late"]


def test_a_restart_without_persistence_and_a_list_that_changed(rig: Rig, origin: Origin) -> None:
    with rig.admin() as admin:
        admin.flushall()
    rig.configure(appendonly="no")
    origin.put("/many", b"many")
    sources = [f"{origin.url('/many')}?{n}" for n in range(60)]
    for n in range(60):
        origin.put(f"/many?{n}", b"many")
    job = rig.client().submit(sources, shard_files=20)
    for path in (rig.server.data / "appendonly.aof", rig.server.data / "dump.rdb"):
        path.unlink(missing_ok=True)
    rig.restart()
    assert job.wait(timeout=90).files == 60 and job.status().state == "done"
    sources.append("http://127.0.0.1:1/other")
    with rig.admin() as admin:
        admin.flushall()
    with pytest.raises(ingest.UnknownJob):  # what was asked for is not what is in the list now
        job.wait(timeout=20)


def test_a_submission_goes_on_when_the_ledger_is_wiped_under_it(rig: Rig, origin: Origin) -> None:
    client = rig.client()
    sources = [origin.put(f"/s{n}.bin", b"%d" % n) for n in range(9)]
    added, plain = [], client.ledger.add

    def add(*args: Any) -> str:
        answer = plain(*args)
        added.append(answer)
        if len(added) == 1:
            client.ledger.redis.flushall()  # at a known moment, as nobody from outside can
        return answer

    client.ledger.add = add  # type: ignore[method-assign]
    files = client.submit(sources, shard_files=1, key="wiped under it").files(timeout=60)
    assert [f.path.read_text() for f in files] == [str(n) for n in range(9)] and len(added) == 2


def test_what_expired_was_forgotten_or_cancelled_stays_gone(rig: Rig, origin: Origin) -> None:
    client = rig.client()
    forgotten, cancelled, expired = (client.submit(origin.put(f"/{n}.bin", b"x")) for n in ("f", "c", "e"))
    for job in (forgotten, cancelled, expired):
        job.wait(timeout=30)
    ledger = JobLedger(rig.service.settings)
    ledger.forget(forgotten.id)
    ledger.redis.zadd(ledger.key("expire"), {expired.id: 1})
    until(lambda: expired.id not in ledger.recent(100), "the reconciler has forgotten it")
    for job in (forgotten, expired):
        with pytest.raises(ingest.UnknownJob):
            job.wait(timeout=10)
    cancelled.cancel()
    ledger.redis.flushall()
    with pytest.raises(ingest.UnknownJob):
        cancelled.wait(timeout=10)
    assert client.jobs() == []


# -- Redis refuses -------------------------------------------------------------------------------------------------


def full(rig: Rig) -> None:
    rig.configure(maxmemory=1)


def enough(rig: Rig) -> None:
    rig.configure(maxmemory=0)


def replica(rig: Rig) -> None:
    with rig.admin() as admin:
        admin.replicaof("127.0.0.1", 1)


def primary(rig: Rig) -> None:
    with rig.admin() as admin:
        admin.replicaof("NO", "ONE")


def locked(rig: Rig) -> None:
    with rig.admin() as admin:
        admin.config_set("requirepass", "pa55-word")
        admin.client_kill_filter(_type="normal", skipme=True)


def unlocked(rig: Rig) -> None:
    with contextlib.closing(redis.Redis(port=rig.server.port, password="pa55-word")) as admin:
        admin.config_set("requirepass", "")


REFUSALS = {"Redis is out of memory": (full, enough), "read-only replica": (replica, primary),
            "refuses the user or password": (locked, unlocked)}  # fmt: skip


@pytest.mark.parametrize("said", REFUSALS)
def test_a_redis_that_refuses_says_why_and_is_used_again_later(rig: Rig, origin: Origin, said: str) -> None:
    job, made = load(rig, origin)
    begin, end = REFUSALS[said]
    since = time.time()
    begin(rig)
    try:
        begun = time.monotonic()
        with pytest.raises(ingest.LedgerUnavailable, match=said) as raised:
            rig.client().submit(origin.put("/refused.bin", b"refused"), require_node=False)
        assert "pa55" not in str(raised.value) and "ingest up" not in str(raised.value)
        with suppress(ingest.WaitTimeout):  # not raised where all of it was there already
            job.wait(timeout=0.5)
        assert time.monotonic() - begun < 20
        until(
            lambda: [s for s in rig.journal("ledger.unavailable", since) if said in s["reason"]], "the worker says so"
        )
    finally:
        end(rig)
    rig.works_within(origin, time.time(), time.time() - since)
    check(job, made)


def test_no_connection_is_left(rig: Rig, origin: Origin) -> None:
    job, made = load(rig, origin)
    since = time.time()
    with rig.admin() as admin:
        before = admin.config_get("maxclients")["maxclients"]
        admin.config_set("maxclients", 1)
        admin.client_kill_filter(_type="normal", skipme=True)
        with pytest.raises(ingest.LedgerUnavailable, match="no connection left"):
            rig.client().jobs()
        until(lambda: rig.journal("ledger.unavailable", since), "the worker says so")
        admin.config_set("maxclients", before)
    rig.works_within(origin, time.time(), time.time() - since)
    check(job, made)


# -- the network ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "way",
    [
        "cut",
        "black_hole",
        "reset_in_reply",
        *(pytest.param(way, marks=pytest.mark.long) for way in ("half_open", "slow")),
    ],
)
def test_the_network_between_worker_and_redis(rig: Rig, origin: Origin, way: str) -> None:
    job, made = load(rig, origin, 4 if way == "slow" else 12)
    begun = time.time()
    args = {"slow": (0.1,), "reset_in_reply": (5,)}.get(way, ())
    getattr(rig.proxy, way)(*args)
    if way in {"cut", "black_hole"}:
        until(lambda: rig.journal("ledger.unavailable", begun), "the agent misses the ledger", 30)
    elif way == "reset_in_reply":
        until(lambda: rig.proxy.resets_left == 0, "five replies were cut")
    if way not in {"half_open", "slow"}:
        rig.proxy.pass_on()
    rig.works_within(origin, time.time(), time.time() - begun)
    check(job, made)
    rig.proxy.pass_on()


def test_a_client_behind_a_black_hole_is_told_in_time_and_goes_on(rig: Rig, origin: Origin) -> None:
    with Proxy(rig.server.port) as proxy:
        client = ingest.Client(proxy.url, settings=rig.service.settings)
        gate = threading.Event()

        def late(to: Handler) -> None:
            while not gate.is_set() and to.wait(0.02):
                pass
            file(b"late")(to)

        job = client.submit(origin.on("/hole.bin", late))
        for way in (proxy.black_hole, proxy.cut, proxy.half_open):
            way()
            begun = time.monotonic()
            with pytest.raises(ingest.WaitTimeout):
                job.wait(timeout=0.5)
            assert time.monotonic() - begun < 6
        gate.set()
        proxy.pass_on()
        assert job.files(timeout=30)[0].path.read_bytes() == b"late"
        client.close()


# -- failover ------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_a_failover_with_sentinel(tmp_path: Path, origin: Origin) -> None:
    with (
        running_service(tmp_path, workers=0) as service,
        RedisServer(tmp_path / "replica", append_only=False) as replica,
        contextlib.closing(redis.Redis.from_url(replica.url)) as second,
        contextlib.closing(redis.Redis.from_url(service.redis_url)) as first,
    ):
        second.replicaof("127.0.0.1", service.redis_server.port)
        until(lambda: second.info("replication")["master_link_status"] == "up", "the replica has all")
        with sentinel(tmp_path, service.redis_server, replica) as url:
            service.env["INGEST_REDIS_URL"] = url
            until(lambda: first.info("replication")["connected_slaves"], "the Sentinel can find the replica")
            service.start_worker("n1")
            rig = Rig(service, None)
            job, made = load(rig, origin)
            port = int(url.rpartition(":")[2].partition("/")[0])
            with contextlib.closing(redis.Redis(port=port)) as asked:
                until(lambda: asked.sentinel_slaves("mymaster"), "the Sentinel knows the replica", 30)
                begun = time.time()
                service.redis_server.process.kill()
                until(lambda: asked.sentinel_get_master_addr_by_name("mymaster")[1] == replica.port, "it has moved", 30)
            rig.works_within(origin, time.time(), time.time() - begun)
            check(job, made)
            result = app_for(service.settings).AsyncResult(job.task_ids()[0])
            assert Path(result.get(timeout=20)["paths"][0]).read_bytes() == made[0]
            assert service.run("doctor").stdout.count("BAD") == 0
