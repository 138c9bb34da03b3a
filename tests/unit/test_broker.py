"""The channel to the broker."""

from __future__ import annotations

import os

import pytest

from ingest.app import app_for
from ingest.doorbell import ring_on, waiting
from ingest.settings import Settings
from tests.unit.ledgers import QUEUE, connect


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_channel_keeps_its_client_as_long_as_its_connections(url: str) -> None:
    ledger = connect(url)
    app = app_for(Settings(url, url, url, url))
    with app.producer_or_acquire() as producer:
        channel = producer.channel
        first = channel._create_client()
        with channel.conn_or_acquire() as client:
            assert client is first
        channel._disconnect_pools()
        second = channel._create_client()
        assert second is not first and second.connection_pool is channel.pool
        child = os.fork()
        if not child:
            channel._after_fork()
            third = channel._create_client()
            os._exit(0 if third is not second and third.ping() else 1)
        assert os.waitpid(child, 0)[1] == 0 and second.ping()
        ledger.redis.client_kill_filter(_type="normal", skipme=True)
        ring_on(app, [QUEUE])
        assert waiting(channel, QUEUE) == 1
    ledger.close()
