"""``python -m benchmarks [CASE…]``: run cases, print their table; at full scale keep it in the documentation."""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import peers, report
from benchmarks.harness import Unavailable, measure, skipped
from benchmarks.lab import SCALES, Lab
from benchmarks.suite import CASES

#: What a full run needs room for: the table of the SQL cases, twice, is the largest.
_ROOM_BYTES = 8 << 30
_MEMORY = Path("/dev/shm")


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 also where a target is missed: a loaded machine is no defect."""
    asked = _parser().parse_args(arguments)
    wanted = [name for name in CASES if not asked.cases or any(_is_of(name, each) for each in asked.cases)]
    if unknown := [each for each in asked.cases if not any(_is_of(name, each) for name in CASES)]:
        print(f"{', '.join(unknown)}: no such case; there are: {', '.join(CASES)}", file=sys.stderr)
        return 2
    if asked.install:
        peers.install(_say)
        return 0
    if asked.page:
        report.save(report.load())
        return 0
    scale = SCALES[asked.scale]
    if asked.rounds:
        scale = dataclasses.replace(scale, rounds=asked.rounds)
    keep = asked.keep or asked.scale == "full"
    results = report.load() if keep else {}
    for name in wanted:
        _say(name)
        results = report.merged(results, _run(name, Lab(_folder(asked.dir), scale)))
        if keep:
            report.save(results)
    print(report.table({name: results["cases"][name] for name in wanted}))
    return 0


def _is_of(name: str, asked: str) -> bool:
    """``feed-tar`` asks for ``feed-tar-0`` and ``feed-tar-2``."""
    return name == asked or name.startswith(f"{asked}-")


def _run(name: str, lab: Lab) -> dict[str, Any]:
    """One case, as JSON, with where and when it was run."""
    try:
        with CASES[name](lab) as case:
            done = measure(case, _say)
    except Unavailable as missing:
        done = skipped(str(missing))
    finally:
        shutil.rmtree(lab.folder, ignore_errors=True)
    at = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return {"machine": report.machine(), "cases": {name: done | {"at": at, "on": report.filesystem(lab.folder.parent)}}}


def _folder(wanted: Path | None) -> Path:
    """Memory where there is enough: else it is the disk's speed that is compared, and only ours waits for it."""
    if wanted is None and _MEMORY.is_dir() and shutil.disk_usage(_MEMORY).free >= _ROOM_BYTES:
        wanted = _MEMORY
    return Path(tempfile.mkdtemp(prefix="ingest-bench-", dir=wanted))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"one of {', '.join(CASES)} (default: all)")
    parser.add_argument(
        "--scale", choices=SCALES, default="full", help="sizes; a full run is kept in docs/performance.md"
    )
    parser.add_argument("--rounds", type=int, help="how often everybody takes a turn")
    parser.add_argument("--keep", action="store_true", help="keep a run that is not full, too")
    parser.add_argument("--dir", type=Path, help="where all files go (default: /dev/shm where that has 8 GiB free)")
    parser.add_argument("--install", action="store_true", help="make the peers' environments, and run nothing")
    parser.add_argument("--page", action="store_true", help="write the page of the kept runs again, with its remarks")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended, and the folder goes
    sys.exit(main())
