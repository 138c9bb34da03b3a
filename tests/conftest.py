"""Fixtures: real servers, each on a free port of loopback, and a data node as a user would start one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.http import Origin
from tests.servers.node import Service, running_service


@pytest.fixture
def origin() -> Iterator[Origin]:
    """An HTTP origin of its own for each test, so that its request counts are the test's."""
    with Origin() as server:
        yield server


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A Redis and a data node, shared by the tests of a module."""
    with running_service(tmp_path_factory.mktemp("service")) as started:
        yield started


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    """A Redis and a data node for one test alone, which may kill them."""
    with running_service(tmp_path) as started:
        yield started
