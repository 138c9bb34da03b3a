"""Redis dies, loses what it had, stands still, refuses, or cannot be reached, under load (4, 5, 6, 7 and 15 of the
list). The short forms are in ``tests/e2e/test_redis_faults.py``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import pytest

from ingest.embedded import RedisServer
from tests.faults import journal, outages
from tests.faults.outages import again, unharmed
from tests.faults.rig import Rig
from tests.servers.node import Service, until
from tests.servers.proxy import Proxy
from tests.servers.redis import sentinel

Rigs = Callable[..., Rig]
#: Of each fault so many, at random instants.
ROUNDS = max(2, int(os.environ.get("INGEST_FAULTS_KILLS", "200")) // 20)
DIED, FULL = "Redis killed or restarted", "Redis out of memory, its disk full"
STOPPED, NETWORK = "Redis or a worker stopped: Redis", "network between worker and Redis"
CLIENTS = "descriptors, clients exhausted"


def loaded(rigs: Rigs, *, workers: int = 2, ways: list[Proxy] | None = None, **how: object) -> Rig:
    """Two nodes at default settings, with slots enough that a new job need not wait for the load's. Those who wait hold
    the handles that ``submit`` gave, and so put back what Redis loses."""
    rig = rigs(workers=0, own=True, jobs=4, patience_s=300, swept_s=90, **how)
    started = []
    for n in range(workers):
        way = {"INGEST_REDIS_URL": ways[n].url} if ways else {}
        started.append(rig.service.start_worker(f"n{n + 1}", ready=False, INGEST_CONCURRENCY="8", **way))
    for worker in started:
        rig.service.await_ready(worker)
    rig.load.start()
    until(lambda: any(asked.waited for asked in rig.load.asked), "it works", 60)
    return rig


def rounds(rig: Rig, name: str, harm: Callable[[], object], *, found_s: float = 0.0) -> None:
    """``harm`` at random instants: begun and over when it returns. Then every node must work again in time."""
    for _ in range(ROUNDS):
        rig.load.pause(rig.rng.uniform(0.2, 3))
        begun = time.monotonic()
        harm()
        again(rig, name, time.monotonic(), time.monotonic() - begun, found_s)
    unharmed(rig)


def lasting(
    rig: Rig, fault: Callable[[], AbstractContextManager[None]], least: float, most: float
) -> Callable[[], None]:
    """That fault, for a time that the seed decides."""

    def harm() -> None:
        with fault():
            outages.pass_time(rig, rig.rng.uniform(least, most))

    return harm


# -- Redis dies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_killed_with_an_append_only_file(rigs: Rigs, fsync: str) -> None:
    rig = loaded(rigs)
    server = rig.service.redis_server

    def harm() -> None:
        outages.configure(server, appendfsync=fsync)
        with outages.down(server):
            outages.pass_time(rig, rig.rng.choice((0, 0, 1, 4)))

    rounds(rig, f"{DIED}: kill -9, {fsync}", harm)


def test_killed_without_persistence(rigs: Rigs) -> None:
    """It comes back empty each time."""
    rig = loaded(rigs, append_only=False)
    server = rig.service.redis_server
    rounds(rig, f"{DIED}: kill -9, no persistence", lasting(rig, lambda: outages.down(server), 0, 2))


def test_emptied(rigs: Rigs) -> None:
    rig = loaded(rigs)

    def harm() -> None:
        with outages.admin(rig.service.redis_server) as operator:
            operator.flushall()

    rounds(rig, f"{DIED}: FLUSHALL", harm)


def test_restarted_in_order(rigs: Rigs) -> None:
    rig = loaded(rigs)
    server = rig.service.redis_server

    def harm() -> None:
        server.stop()
        server.start()

    rounds(rig, f"{DIED}: clean restart", harm)


def test_restarted_three_times_within_three_seconds(rigs: Rigs) -> None:
    rig = loaded(rigs)
    server = rig.service.redis_server

    def harm() -> None:
        begun = time.monotonic()
        for n in range(3):
            if rig.rng.random() < 0.5:
                server.process.kill()
            server.stop()
            server.process.wait()
            server.start()
            outages.pass_time(rig, max(0.0, begun + n + rig.rng.random() - time.monotonic()))

    rounds(rig, f"{DIED}: three times within 3 s", harm)


# -- for how long --------------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
@pytest.mark.parametrize("seconds", [1, 5, 20, 60])
@pytest.mark.parametrize("way", ["stopped", "down", "black hole"])
def test_after_so_many_seconds_workers_work_again(
    proxies: Callable[[int], Proxy], rigs: Rigs, way: str, seconds: float
) -> None:
    """SIGSTOP and SIGCONT; kill -9 and a new start; a network that passes nothing. For so long."""
    ways: list[Proxy] = []

    def before(service: Service) -> None:
        ways.extend(proxies(service.redis_server.port) for _ in range(2))

    rig = loaded(rigs, before=before, ways=ways)
    server = rig.service.redis_server
    name = {"stopped": STOPPED, "down": f"{DIED}: away", "black hole": f"{NETWORK}: black hole"}[way]
    begun = time.monotonic()
    if way == "black hole":
        for proxy in ways:
            proxy.black_hole()
        outages.pass_time(rig, seconds)
        for proxy in ways:
            proxy.pass_on()
    else:
        with (outages.stopped if way == "stopped" else outages.down)(server):
            outages.pass_time(rig, seconds)
    again(rig, f"{name}, {seconds} s", time.monotonic(), time.monotonic() - begun)
    unharmed(rig)


# -- Redis refuses -------------------------------------------------------------------------------------------------


def test_out_of_memory(rigs: Rigs) -> None:
    """The limit is met in the middle of something: some bytes were left when it was set."""
    rig = loaded(rigs)
    server = rig.service.redis_server
    fault = lambda: outages.out_of_memory(server, rig.rng.choice((0, 5_000, 50_000)))  # noqa: E731
    rounds(rig, f"{FULL}: memory", lasting(rig, fault, 2, 7))


@pytest.mark.parametrize("fsync", ["everysec", "always"])
def test_the_disk_of_redis_is_full(rigs: Rigs, fsync: str) -> None:
    """With ``everysec`` it refuses to write until there is room; with ``always`` it ends, and is started again."""
    rig = loaded(rigs)
    server = rig.service.redis_server
    refused = 0

    def harm() -> None:
        nonlocal refused
        outages.configure(server, appendfsync=fsync)
        with outages.disk_full(server, rig.rng.choice((0, 1000, 20_000))):
            outages.pass_time(rig, rig.rng.uniform(3, 7))
            refused += "Short write" in server.log.read_text() or "AOF" in server.log.read_text()
        if server.process.poll() is not None:
            server.start()

    rounds(rig, f"{FULL}: disk, {fsync}", harm)
    assert refused, server.log.read_text()


def test_no_connection_left(rigs: Rigs) -> None:
    rig = loaded(rigs)
    server = rig.service.redis_server
    rounds(rig, f"{CLIENTS}: Redis", lasting(rig, lambda: outages.no_connection_left(server), 1, 6))


def test_a_wrong_password_then_the_right_one(rigs: Rigs) -> None:
    rig = loaded(rigs)
    server = rig.service.redis_server
    rounds(rig, "Redis refuses: wrong password", lasting(rig, lambda: outages.wrong_password(server), 1, 6))


def test_a_read_only_replica_then_the_primary(rigs: Rigs) -> None:
    rig = loaded(rigs)
    server = rig.service.redis_server
    rounds(rig, "Redis refuses: read-only replica", lasting(rig, lambda: outages.read_only(server), 1, 6))


# -- the network ---------------------------------------------------------------------------------------------------


@pytest.fixture
def proxies() -> Iterator[Callable[[int], Proxy]]:
    """Before ``rigs`` among a test's fixtures: they end after it."""
    with ExitStack() as stack:
        yield lambda port: stack.enter_context(Proxy(port))


@pytest.mark.parametrize("way", ["cut", "black_hole", "half_open", "slow", "reset_in_reply"])
def test_the_network_between_worker_and_redis(proxies: Callable[[int], Proxy], rigs: Rigs, way: str) -> None:
    """Of one worker, or of all; each has a proxy of its own."""
    ways: list[Proxy] = []

    def before(service: Service) -> None:
        ways.extend(proxies(service.redis_server.port) for _ in range(2))

    rig = loaded(rigs, before=before, ways=ways)

    def harm() -> None:
        some = rig.rng.choice((ways, ways, ways[:1], ways[1:]))
        args = {"slow": (0.2,), "reset_in_reply": (rig.rng.randint(1, 20),)}.get(way, ())
        for proxy in some:
            getattr(proxy, way)(*args)
        if way == "slow":
            begun = time.monotonic()
            probes = [rig.probe(f"node:n{n}") for n in (1, 2)]
            until(lambda: all(p.waited for p in probes), "it is slow, and works", 60)
            journal.happened(f"{NETWORK}: meanwhile, 200 ms late", rig.run, time.monotonic() - begun)
        elif way != "half_open":  # which only new connections end
            outages.pass_time(rig, rig.rng.uniform(0.5, 6))
        if way != "half_open":
            for proxy in some:
                proxy.pass_on()

    # Of connections that are half open no word comes: each has to be found out by who is the first to need it.
    rounds(rig, f"{NETWORK}: {way.replace('_', ' ')}", harm, found_s=10.0 if way == "half_open" else 0.0)


# -- failover ------------------------------------------------------------------------------------------------------


@pytest.fixture
def second(tmp_path: Path) -> Iterator[ExitStack]:
    """Before ``rigs``: what a rig needs beside its Redis, and for longer than itself."""
    with ExitStack() as stack:
        yield stack


def test_a_failover_with_sentinel(second: ExitStack, rigs: Rigs, tmp_path: Path) -> None:
    """What was not yet copied is lost, and is put back like anything that Redis loses."""
    replica = second.enter_context(RedisServer(tmp_path / "replica", append_only=False))
    watching: list[int] = []

    def before(service: Service) -> None:
        with outages.admin(replica) as operator:
            operator.replicaof("127.0.0.1", service.redis_server.port)
            until(lambda: operator.info("replication")["master_link_status"] == "up", "the replica has all")
        url = second.enter_context(sentinel(tmp_path, service.redis_server, replica))
        watching.append(int(url.rpartition(":")[2].partition("/")[0]))
        service.env["INGEST_REDIS_URL"] = url

    rig = loaded(rigs, before=before)
    pair = [rig.service.redis_server, replica]
    import redis

    with redis.Redis(port=watching[0], socket_timeout=10) as asked:
        for _ in range(2):
            master, other = pair
            until(lambda: any(s["flags"] == "slave" for s in asked.sentinel_slaves("mymaster")), "it knows it", 60)
            with outages.admin(other) as operator:
                until(lambda: operator.info("replication").get("master_link_status") == "up", "it is copied", 60)
            rig.load.pause(rig.rng.uniform(0.5, 3))
            begun = time.monotonic()
            master.process.kill()
            master.process.wait()
            until(
                lambda: asked.sentinel_get_master_addr_by_name("mymaster")[1] == other.port,  # noqa: B023
                "it has moved",
                30,
            )
            again(rig, f"{DIED}: Sentinel moves to a replica", time.monotonic(), time.monotonic() - begun)
            master.start()
            pair.reverse()
    unharmed(rig)
