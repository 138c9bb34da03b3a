"""The fault suite's own: its marker, its seed, and the table at its end."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.faults import journal
from tests.faults.rig import Rig, running_rig


def pytest_configure(config: pytest.Config) -> None:
    if journal.PATH not in os.environ:  # the first process; those of xdist are its children
        handle, path = tempfile.mkstemp(prefix="ingest-faults-", suffix=".jsonl")
        os.close(handle)
        os.environ[journal.PATH] = path
    os.environ.setdefault(journal.SEED, str(random.SystemRandom().randrange(1_000_000)))


def pytest_report_header() -> str:
    return f"faults: seed {journal.seed()}, journal {os.environ[journal.PATH]}"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.faults)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(600))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    path = Path(os.environ[journal.PATH])
    if path.exists() and path.stat().st_size:
        terminalreporter.section("faults")
        for line in journal.table(path):
            terminalreporter.write_line(line)


@pytest.fixture
def rigs(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Callable[..., Rig]]:
    """``rigs(workers=2, config="…")`` starts one; it ends with the test."""
    with ExitStack() as stack:
        yield lambda **how: stack.enter_context(running_rig(tmp_path, name=request.node.name, **how))
