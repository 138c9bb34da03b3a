"""A ledger in a real Redis: one Redis for a module, one connection for a test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from ingest.ledger import WorkLedger
from tests.servers.redis import redis_server
from tests.unit.ledgers import connect


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def ledger(url: str) -> Iterator[WorkLedger]:
    made = connect(url)
    yield made
    made.close()
