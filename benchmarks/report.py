"""What a run came to: JSON (``benchmarks/results.json``), a table, a picture, and ``docs/performance.md`` of them and
of the remarks in ``benchmarks/remarks.toml``. Measures nothing."""

from __future__ import annotations

import json
import os
import platform
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil

from benchmarks import peers, plot
from benchmarks.harness import spread

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
REMARKS = HERE / "remarks.toml"
PAGE = HERE.parent / "docs" / "performance.md"
PICTURE = HERE.parent / "docs" / "performance.svg"

#: What costs are told by: in GB or in thousands of files.
_COSTED = ("GB", "1,000 files")

#: Targets whose first contender is the service itself, not a script that reads its files.
_SERVICE = frozenset({1, 2, 3, 4, 5, 7, 8, 11})
_WORKER_MB = 300

_HEAD = """\
# Performance

The last runs of `benchmarks/`: this project and what one would use instead, on the same bytes and the same machine,
taking turns (A B A B …). The whole service is timed, from `submit` to the paths in the client's hand, digests verified
and files published; of a peer, the command from its start to its end, or the call of its library without the imports.
A ratio is taken within each turn; the table has the median of these ratios, and their quartiles.

Each case says its sizes: those of the targets are the full ones, and a case that was kept from a small run is a first
look. What no case is here for was not run yet.

`make bench` runs all of it and writes this page, `make bench-http-large` runs one case. With `SCALE=small` the sizes
are small, and nothing is kept. The numbers of every turn are in `benchmarks/results.json`.
"""


def load() -> dict[str, Any]:
    """The runs that are kept."""
    found: dict[str, Any] = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return found


def merged(results: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """``new`` beside what was there; a case that was run again is replaced."""
    return {**results, **new, "cases": {**results.get("cases", {}), **new["cases"]}}


def save(results: Mapping[str, Any]) -> None:
    """Write the results, the page and the picture."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    cases = results["cases"]
    PICTURE.write_text(plot.picture(cases))
    PAGE.write_text(page(results, tomllib.loads(REMARKS.read_text()) if REMARKS.exists() else {}))


def page(results: Mapping[str, Any], remarks: Mapping[str, str]) -> str:
    """``docs/performance.md``."""
    cases = results["cases"]
    parts = [_HEAD, f"Machine: {results['machine']['text']}\n", "## Targets\n", table(cases)]
    parts += ["![Ratios, ours to each peer](performance.svg)\n", "## What falls short\n", _short(cases)]
    parts += ["## Costs\n", costs(cases), "## Memory of a worker\n", memory(cases)]
    parts += ["## Runs\n", *_details(cases, remarks)]
    return "\n".join(parts)


def table(cases: Mapping[str, Any]) -> str:
    """A line for each check of each case."""
    lines = ["| # | case | what | median | quartiles | target | met |", "| --- | --- | --- | --- | --- | --- | --- |"]
    for name, case in sorted(cases.items(), key=lambda item: item[1]["target"]):
        for check in case["checks"]:
            if "missing" in check:
                lines.append(f"| {case['target']} | {name} | {check['what']} | skipped: {check['missing']} | | | |")
                continue
            met = {None: "", True: "yes", False: "**no**"}[check["met"]]
            between = f"{number(check['low'])} – {number(check['high'])}"
            what = f"{check['what']} | {number(check['value'])} | {between} | {check['bound']} | {met}"
            lines.append(f"| {case['target']} | {name} | {what} |")
    return "\n".join([*lines, ""])


def costs(cases: Mapping[str, Any]) -> str:
    """Target 13: CPU seconds by GB and by thousand files, of everybody, and how ours compare."""
    lines = ["| case | who | CPU s | of | ours / theirs | target 13 |", "| --- | --- | --- | --- | --- | --- |"]
    for name, case in cases.items():
        if case["unit"] not in _COSTED:
            continue
        each = {who: _median(runs, "cpu_s") / case["amount"] for who, runs in case["runs"].items()}
        ours = next(iter(each.values()))
        for number_, (who, cpu_s) in enumerate(each.items()):
            verdict = "" if not number_ else f"{ours / cpu_s:.2f} | {'yes' if ours <= cpu_s * 1.2 else '**no**'}"
            lines.append(f"| {name} | {who} | {cpu_s:.2f} | {case['unit']} | {verdict or ' | '} |")
    return "\n".join([*lines, ""])


def memory(cases: Mapping[str, Any]) -> str:
    """Target 12: the largest of the service's processes, in whatever case it was."""
    peaks = {
        name: max(run["peak_bytes"] for run in next(iter(case["runs"].values()))) / 1e6
        for name, case in cases.items()
        if case["target"] in _SERVICE and case["runs"]
    }
    if not peaks:
        return "Nothing of it was measured.\n"
    name = max(peaks, key=lambda each: peaks[each])
    verdict = "met" if peaks[name] <= _WORKER_MB else "**not met**"
    return f"At most {number(peaks[name])} MB, in `{name}`; asked for are {_WORKER_MB} MB (target 12): {verdict}.\n"


def number(value: float) -> str:
    """Three significant figures, with commas."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = psutil.virtual_memory().total >> 30
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    versions = ", ".join(f"{name} {version}" for name, version in peers.versions().items())
    text = f"{model}, {os.cpu_count()} cores, {memory} GiB of memory, {system}. Peers: {versions or 'none'}."
    return {"text": text}


def filesystem(path: Path) -> str:
    """The kind of filesystem that a path is on."""
    real = path.resolve()
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    while real not in mounts and real != real.parent:
        real = real.parent
    return mounts.get(real, "unknown")


def _short(cases: Mapping[str, Any]) -> str:
    missed = [(name, check) for name, case in cases.items() for check in case["checks"] if check["met"] is False]
    if not missed:
        return "Nothing, in this run.\n"
    lines = [
        f"- `{name}`: {check['what']} is {number(check['value'])}, asked for is {check['bound']}."
        for name, check in missed
    ]
    return "\n".join([*lines, ""])


def _details(cases: Mapping[str, Any], remarks: Mapping[str, str]) -> Iterator[str]:
    for name, case in cases.items():
        yield f"### {name}\n"
        yield f"{case['what']}. Run {case['at']}, files on {case['on']}.\n"
        yield "| who | seconds | quartiles | a second | CPU s | largest process, MB |"
        yield "| --- | --- | --- | --- | --- | --- |"
        for who, runs in case["runs"].items():
            low, middle, high = spread([run["seconds"] for run in runs])
            pace = _pace(case["amount"] / middle, case["unit"])
            memory = number(_median(runs, "peak_bytes") / 1e6)
            between = f"{number(low)} – {number(high)}"
            yield f"| {who} | {number(middle)} | {between} | {pace} | {number(_median(runs, 'cpu_s'))} | {memory} |"
        for who, why in case["missing"].items():
            yield f"| {who} | skipped: {why} | | | | |"
        yield ""
        if name in remarks:
            yield f"{remarks[name].strip()}\n"


def _pace(amount: float, unit: str) -> str:
    if unit.startswith("1,000 "):
        amount, unit = amount * 1000, unit.removeprefix("1,000 ")
    return f"{number(amount)} {unit}"


def _median(runs: list[dict[str, Any]], figure: str) -> float:
    return spread([run[figure] for run in runs])[1]
