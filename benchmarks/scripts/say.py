"""How a script says what it measured, with no more than the standard library: peers' environments have no more."""

from __future__ import annotations

import json
import os
import resource
import time
from typing import Any


def say(used: Any, **counts: float) -> None:
    """``used`` has ``seconds``, ``cpu_s``, ``peak_bytes`` and ``all_bytes``."""
    figures = {name: getattr(used, name) for name in ("seconds", "cpu_s", "peak_bytes", "all_bytes")}
    print(json.dumps(figures | {"counts": counts}), flush=True)


def together(samples: list[Any]) -> list[Any]:
    """No tensors are made: a batch is its samples."""
    return samples


class Timed:
    """``with Timed() as used:`` this process and its children that have ended by then."""

    def __enter__(self) -> Timed:
        self._cpu, self._begun = _cpu_s(), time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.seconds = time.perf_counter() - self._begun
        self.cpu_s = _cpu_s() - self._cpu
        # Not beside the children's: several of them may have lived at once.
        self.peak_bytes = max(resource.getrusage(who).ru_maxrss for who in _ALL) * 1024
        self.all_bytes = self.peak_bytes


_ALL = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)


def _cpu_s() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
