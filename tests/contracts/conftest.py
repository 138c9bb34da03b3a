"""Fixtures: no proxy of the machine's own between a test and its servers; servers that speak S3."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.contracts.s3cases import Scripted, close_scratches, scripted_s3
from tests.servers.simulated import SimulatedS3, simulated_s3
from workers.fetchers.s3 import S3Fetcher


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def fetcher() -> S3Fetcher:
    return S3Fetcher()


@pytest.fixture(scope="module")
def _simulated() -> Iterator[SimulatedS3]:
    with simulated_s3() as running:
        yield running


@pytest.fixture
def s3(_simulated: SimulatedS3) -> SimulatedS3:
    """One server for a module, so that its clients are made once; as new for each test."""
    _simulated.reset()
    return _simulated


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    with scripted_s3() as running:
        yield running


@pytest.fixture(autouse=True)
def _scratches_closed() -> Iterator[None]:
    yield
    close_scratches()
