"""How comparisons are made and told: turns, ratios, what is missing, and that the page is of the kept results."""

from __future__ import annotations

import json
import tomllib
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks import plot, report
from benchmarks.harness import Against, Case, Measured, Missing, Within, judge, measure, spread
from benchmarks.servers import own_server
from benchmarks.suite import CASES


@dataclass
class Scripted:
    """A contender whose runs are known."""

    name: str
    seconds: list[float]
    order: list[str]
    counts: dict[str, float] = field(default_factory=dict)

    def run(self) -> Measured:
        self.order.append(self.name)
        return Measured(self.seconds.pop(0), 1.0, counts=self.counts)


def case(
    ours: list[float], theirs: list[float] | None, *checks: Against | Within, order: list[str], rounds: int
) -> Case:
    peer = Scripted("peer", theirs, order) if theirs else Missing("peer", "apt-get install peer")
    us = Scripted("ours", ours, order, {"files": 100})
    return Case("made-up", 1, "nothing", (us, peer), checks, 2.0, "GB", rounds, warm_up=False)


def test_contenders_take_turns_and_ratios_are_of_one_turn() -> None:
    order: list[str] = []
    # The machine is ten times slower in the second turn: the ratio of a turn does not see it.
    done = measure(case([1, 10, 1], [2, 20, 2], Against("peer", 1.5), order=order, rounds=3), print)
    assert order == ["ours", "peer"] * 3
    assert done["checks"][0] | {"value": 2, "low": 2, "high": 2, "met": True, "bound": "≥ 1.5"} == done["checks"][0]


def test_a_turn_for_warming_up_does_not_count() -> None:
    order: list[str] = []
    made = case([99, 1], [99, 3], Against("peer", 4.0), order=order, rounds=1)
    warmed = Case(**{**vars(made), "warm_up": True})
    done = measure(warmed, print)
    assert order == ["ours", "peer"] * 2
    assert (done["checks"][0]["value"], done["checks"][0]["met"]) == (3, False)


def test_who_is_missing_is_said_and_the_others_run() -> None:
    checks = (Against("peer", 1.0), Within("files_a_second", at_least=40))
    done = measure(case([2.0], None, *checks, order=[], rounds=1), print)
    against, within = done["checks"]
    assert against["missing"] == "apt-get install peer" and against["met"] is None
    assert within["value"] == 50 and within["met"] is True
    assert "skipped: apt-get install peer" in report.table({"made-up": done})


@pytest.mark.parametrize(
    ("check", "met"),
    [(Within("seconds", at_most=3), True), (Within("seconds", at_most=1), False), (Within("seconds"), None)],
)
def test_a_limit_is_judged_by_the_median(check: Within, met: bool | None) -> None:
    runs = {"ours": [Measured(seconds, 0.0) for seconds in (1, 2, 30)]}
    assert judge(check, runs, {})["met"] is met


def test_the_spread_is_that_of_the_quartiles() -> None:
    assert spread([5, 1, 3, 2, 4]) == (2, 3, 4)
    assert spread([1, 3]) == (1, 2, 3)


def test_costs_are_told_for_all_by_their_amount() -> None:
    done = measure(case([1.0], [1.0], order=[], rounds=1), print)
    lines = report.costs({"made-up": done}).splitlines()
    assert lines[2:] == ["| made-up | ours | 0.50 | GB |  |  |", "| made-up | peer | 0.50 | GB | 1.00 | yes |"]


def test_page_and_picture_are_of_the_kept_results() -> None:
    results = json.loads(report.RESULTS.read_text())
    assert report.PAGE.read_text() == report.page(results, tomllib.loads(report.REMARKS.read_text()))
    assert report.PICTURE.read_text() == plot.picture(results["cases"])


def test_remarks_and_results_are_of_cases_that_exist() -> None:
    assert set(tomllib.loads(report.REMARKS.read_text())) <= set(CASES)
    assert set(json.loads(report.RESULTS.read_text())["cases"]) <= set(CASES)


def test_our_own_server_gives_ranges_of_one_version(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(range(100)))
    with own_server(tmp_path) as web:
        whole = urllib.request.urlopen(f"{web.url}/a.bin?1")
        asked = urllib.request.Request(f"{web.url}/a.bin", headers={"Range": "bytes=10-19"})
        part = urllib.request.urlopen(asked)
        assert whole.read() == bytes(range(100)) and part.read() == bytes(range(10, 20))
        assert part.status == 206 and part.headers["Content-Range"] == "bytes 10-19/100"
        assert part.headers["ETag"] == whole.headers["ETag"]
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{web.url}/../b.bin")
