"""A pytest plugin for continuous integration: a test that is skipped fails, because there everything it wants is
installed.

Activated by ``-p tests.no_skips`` (see the Makefile); ``xfail`` stays what it is.
"""

from __future__ import annotations

from collections.abc import Generator

import pytest


def _reason(report: pytest.TestReport | pytest.CollectReport) -> str:
    return str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else str(report.longrepr)


def _failed(report: pytest.TestReport | pytest.CollectReport) -> None:
    report.longrepr = f"skipped, which is a failure in CI: {_reason(report)}"
    report.outcome = "failed"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        _failed(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.outcome == "skipped":
        _failed(report)
    return report
