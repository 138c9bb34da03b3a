"""What processes use: CPU seconds and resident memory, of commands that end and of trees that go on."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.harness import Measured

#: What Linux takes in ``/proc/PID/clear_refs`` for: the peak of resident memory begins anew (proc_pid_clear_refs(5)).
_RESET_PEAK = "5"
_USAGE = Path(__file__).parent / "scripts" / "usage.py"


@dataclass
class Used:
    """Filled in at the end of the ``with`` block of :func:`metered`."""

    seconds: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0
    all_bytes: int = 0


@contextlib.contextmanager
def metered(roots: Sequence[int], clients: Sequence[int] = ()) -> Iterator[Used]:
    """Time the block, and what these processes and all below them use meanwhile; of ``clients``, CPU only and without
    those below."""
    used = Used()
    trees = _trees(roots)
    for process in trees:
        with contextlib.suppress(OSError):  # then the peak is that of its life, which is no less
            Path(f"/proc/{process.pid}/clear_refs").write_text(_RESET_PEAK)
    before, own = _cpu_s(trees), _own_cpu_s(clients)
    begun = time.perf_counter()
    yield used
    used.seconds = time.perf_counter() - begun
    own = _own_cpu_s(clients) - own  # first, as looking at the others costs some of it
    trees = _trees(roots)
    used.cpu_s = _cpu_s(trees) - before + own
    peaks = [_peak_bytes(process.pid) for process in trees]
    used.peak_bytes, used.all_bytes = max(peaks), sum(peaks)


def run_command(command: Sequence[str], log: Path) -> Measured:
    """A command from its start to its end. Raises RuntimeError with the end of its output if it fails."""
    said = log.with_suffix(".json")
    with log.open("wb") as out:
        status = subprocess.call(
            [sys.executable, "-I", "-S", str(_USAGE), str(said), *command],
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
        )  # fmt: skip
    if status:
        end = log.read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command)[:300]} ended with {status}: {end}")
    used = json.loads(said.read_text())
    return Measured(**used, all_bytes=used["peak_bytes"])


def _trees(roots: Sequence[int]) -> list[psutil.Process]:
    found = []
    for root in roots:
        process = psutil.Process(root)
        found += [process, *process.children(recursive=True)]
    return found


def _cpu_s(processes: Sequence[psutil.Process]) -> float:
    """Of those who live, and of their children that have ended."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):  # it is its parent's by now
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def _own_cpu_s(pids: Sequence[int]) -> float:
    times = [psutil.Process(pid).cpu_times() for pid in pids]
    return sum(each.user + each.system for each in times)


def _peak_bytes(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0
