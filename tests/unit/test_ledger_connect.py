"""Connections to the ledger's Redis and to the broker that were idle: a network that forgot them costs a second, not a
whole timeout."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from ingest.app import SILENCE_S, make_app
from ingest.embedded import RedisServer
from ingest.errors import LedgerUnavailable
from ingest.ledger import JobLedger
from ingest.ledger.connect import IDLE_S, PING_S, SOCKET_TIMEOUT_S
from ingest.model import JobOptions
from ingest.settings import Settings
from tests.servers.node import until
from tests.servers.proxy import Proxy
from tests.servers.redis import redis_server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture
def way(server: RedisServer) -> Iterator[Proxy]:
    with Proxy(server.port) as proxy:
        yield proxy


def idle(way: Proxy) -> JobLedger:
    ledger = JobLedger(Settings(ledger_url=way.url))
    ledger.ping()
    end = time.monotonic() + IDLE_S
    until(lambda: time.monotonic() > end, "it was idle")
    return ledger


def test_one_whose_other_end_is_gone_is_found_out_within_a_second(way: Proxy) -> None:
    with contextlib.closing(idle(way)) as ledger:
        way.half_open()
        begun = time.monotonic()
        ledger.ping()
        assert PING_S * 0.9 < time.monotonic() - begun < SOCKET_TIMEOUT_S
        assert way.connections == 2


def test_one_that_answers_stays_and_what_is_asked_over_it_has_all_its_time(way: Proxy) -> None:
    with contextlib.closing(idle(way)) as ledger:
        assert ledger.redis.blpop(["nothing"], timeout=PING_S * 1.5) is None
        assert way.connections == 1


def test_a_connection_of_the_pool_to_the_broker_is_found_out_as_soon(way: Proxy) -> None:
    app = make_app(Settings(broker_url=way.url, ledger_url=way.url))
    with app.producer_or_acquire() as producer:
        channel = producer.channel
        assert channel._size("queue") == 0
        end = time.monotonic() + app.conf.broker_transport_options["health_check_interval"]
        until(lambda: time.monotonic() > end, "it was idle")
        way.half_open()
        begun = time.monotonic()
        with contextlib.suppress(*app.connection_for_write().connection_errors):
            channel._size("queue")
        assert PING_S * 0.9 < time.monotonic() - begun < SILENCE_S
        assert channel._size("queue") == 0, "another one is made"
    app.close()


def test_a_broker_that_is_lost_with_a_message_in_hand_is_left_in_order(way: Proxy) -> None:
    """As Celery's consumer leaves it. An error that is not of the connection would end the worker."""
    app = make_app(Settings(broker_url=way.url, ledger_url=way.url))
    connection = app.connection_for_read()
    channels = (connection.default_channel, connection.channel())
    for channel in channels:
        channel.queue_declare("queue")
        app.send_task("task", queue="queue", ignore_result=True)
        assert channel.basic_get("queue", no_ack=False) is not None
    for channel in channels:
        channel.basic_consume("queue", False, lambda message: None, "tag")
        channel.connection.cycle._register_BRPOP(channel)  # it waits for the next one
    way.cut()
    connection.collect(socket_timeout=1)
    connection.close()
    app.close()


def test_a_primary_that_is_none_any_more_ends_no_connection_that_another_thread_uses(server: RedisServer) -> None:
    with (
        contextlib.closing(JobLedger(Settings(ledger_url=server.url))) as ledger,
        contextlib.closing(redis.Redis.from_url(server.url)) as operator,
        ThreadPoolExecutor(1) as other,
    ):
        operator.replicaof("127.0.0.1", 1)
        try:
            waiting = other.submit(ledger.events, "job", "0-0", 1000)
            until(lambda: any(client["cmd"] == "xread" for client in operator.client_list()), "it waits")
            with pytest.raises(LedgerUnavailable, match="read-only replica"):
                ledger.create(JobOptions(), None)
            assert waiting.result() == []
        finally:
            operator.replicaof("NO", "ONE")
