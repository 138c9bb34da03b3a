"""The benchmarks run, in their smallest form: no time is asserted, and no peer is needed but curl, if it is here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.report import PAGE, RESULTS


@pytest.mark.parametrize("name", ["http-large", "submit"])
def test_a_case_runs_and_prints_its_table(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = RESULTS.read_bytes(), PAGE.read_bytes()
    assert main(["--scale", "tiny", "--dir", str(tmp_path), name]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if f"| {name} |" in line]
    assert lines and all(line.count("|") == 8 for line in lines)
    assert not list(tmp_path.iterdir()), "nothing is left"
    assert kept == (RESULTS.read_bytes(), PAGE.read_bytes()), "only full runs are kept"


def test_an_unknown_case_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["no-such"]) == 2
    assert "no-such: no such case; there are: http-large" in capsys.readouterr().err
