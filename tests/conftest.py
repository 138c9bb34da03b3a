"""Fixtures: real servers, each on a free port of loopback, and a data node as a user would start one."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.servers.http import Origin
from tests.servers.node import Service, running_service

# How long an example takes says more of who else is at work on the machine than of what is tested.
settings.register_profile("ours", deadline=None)
settings.load_profile("ours")


def pytest_configure() -> None:
    """A shell that runs the tests in the background has made them, and all that they start, deaf to Ctrl-C, which some
    of them press."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Modules that wait for whole services and those that compute take turns, so that the processor is never idle; the
    former are all begun after two thirds of the way, so that what is left at the end is short."""
    modules = dict.fromkeys(item.path for item in items)
    waiting = [path for path in modules if path.parent.name == "e2e"]
    computing = [path for path in modules if path.parent.name != "e2e"]
    turn = {
        path: n / len(group) * share
        for group, share in ((waiting, 2 / 3), (computing, 1))
        for n, path in enumerate(group)
    }
    items.sort(key=lambda item: turn[item.path])


@pytest.fixture
def origin() -> Iterator[Origin]:
    """An HTTP origin of its own for each test, so that its request counts are the test's."""
    with Origin() as server:
        yield server


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A Redis and a data node with the default settings, shared by all tests that leave them as they found them."""
    with running_service(tmp_path_factory.mktemp("service")) as started:
        yield started


@pytest.fixture
def own_service(tmp_path: Path) -> Iterator[Service]:
    """A Redis and a data node for one test alone, which may kill them."""
    with running_service(tmp_path) as started:
        yield started
