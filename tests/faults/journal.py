"""What the suite writes down of every fault, and the table at its end. Lines of JSON in one file, because the tests may
run in several processes."""

from __future__ import annotations

import json
import os
import statistics
import threading
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

#: Where the lines go, for this process and those it starts.
PATH = "INGEST_FAULTS_JOURNAL"
SEED = "INGEST_FAULTS_SEED"
#: What the suite covers; the table has a line for each, also where nothing ran.
LISTED = (
    "kill -9 of a pool child",
    "kill -9 of a worker",
    "SIGTERM, SIGQUIT, a second signal",
    "Redis killed or restarted",
    "Redis or a worker stopped",
    "Redis out of memory, its disk full",
    "network between worker and Redis",
    "store",
    "clock of a worker",
    "poison",
    "message ten times",
    "producer or waiter killed",
    "result expired",
    "retry storm, origin down",
    "descriptors, clients exhausted",
    "two nodes, one store",
    "cancel",
)
_lock = threading.Lock()


def seed() -> int:
    """Of this run of the suite, printed at its begin and its end."""
    return int(os.environ.get(SEED) or "1")


def write(**facts: Any) -> None:
    if path := os.environ.get(PATH):
        with _lock, open(path, "a") as file:
            file.write(json.dumps(facts) + "\n")


def happened(fault: str, run: str, recovered_s: float | None, **more: Any) -> None:
    """A fault, and how long it took until all was as before; None where nothing had to recover. ``run`` ties it to the
    verdict of its rig."""
    write(
        fault=fault,
        run=run,
        seed=seed(),
        recovered_in=None if recovered_s is None else round(recovered_s, 3),
        **more,
    )


def verdict(run: str, *, lost: int, wrong: int, stuck: int, shards: int) -> None:
    """What the oracle found at the end of a rig."""
    write(verdict=run, lost=lost, wrong=wrong, stuck=stuck, shards=shards)


@dataclass
class _Row:
    runs: int = 0
    seconds: list[float] = field(default_factory=list)
    rigs: set[str] = field(default_factory=set)


def table(path: Path) -> list[str]:
    """The lines of the table: fault, runs, recovered in (median, worst), shards lost, wrong files, stuck waiters."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    verdicts = {line["verdict"]: line for line in lines if "verdict" in line}
    rows: dict[str, _Row] = defaultdict(_Row)
    for line in lines:
        if "fault" in line:
            row = rows[line["fault"]]
            row.runs += 1
            row.rigs.add(line["run"])
            if line["recovered_in"] is not None:
                row.seconds.append(line["recovered_in"])
    missing = [name for name in LISTED if not any(fault.startswith(name) for fault in rows)]
    order = {name: number for number, name in enumerate(LISTED)}
    found = sorted(rows, key=lambda f: (min((order[n] for n in LISTED if f.startswith(n)), default=99), f))
    out = [_line("fault", "runs", "median s", "worst s", "shards lost", "wrong files", "stuck waiters")]
    for fault in found:
        row = rows[fault]
        bad = [sum(verdicts.get(rig, {}).get(kind, 0) for rig in row.rigs) for kind in ("lost", "wrong", "stuck")]
        open_ = sum(rig not in verdicts for rig in row.rigs)
        middle, worst = (
            (f"{statistics.median(row.seconds):.1f}", f"{max(row.seconds):.1f}") if row.seconds else ("-", "-")
        )
        out.append(_line(fault, row.runs, middle, worst, *bad) + (f"  {open_} without a verdict" if open_ else ""))
    out += [_line(fault, 0, "-", "-", "-", "-", "-") for fault in missing]
    shards = sum(v["shards"] for v in verdicts.values())
    bad = [sum(v[kind] for v in verdicts.values()) for kind in ("lost", "wrong", "stuck")]
    kills = sum(row.runs for fault, row in rows.items() if fault.startswith("kill -9"))
    out.append(_line("in all", sum(row.runs for row in rows.values()), "", "", *bad))
    return [*out, f"{kills} kills, {shards} shards, {len(verdicts)} rigs, seed {seed()}"]


def _line(fault: str, *cells: object) -> str:
    widths = (5, 9, 9, 12, 12, 14)
    return f"{fault:<58}" + "".join(f"{cell!s:>{width}}" for cell, width in zip(cells, widths, strict=True))
