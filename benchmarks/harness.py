"""How a comparison is made: contenders take turns (A B C A B C …) on the same bytes, and what is judged is the ratio
within each turn, by its median and quartiles. Nothing here knows what is measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class Measured:
    """One run: wall clock, CPU of all processes that worked for it, resident memory of the largest of them and of all,
    and what else the contender counts (``files``, ``bytes``, …)."""

    seconds: float
    cpu_s: float
    peak_bytes: int = 0
    all_bytes: int = 0
    counts: Mapping[str, float] = field(default_factory=dict)

    def figure(self, name: str) -> float:
        """One of its numbers by name; ``files_a_second`` is made of a count, ``peak_mb`` of bytes. Raises KeyError."""
        if name.endswith("_mb"):
            return self.figure(f"{name.removesuffix('_mb')}_bytes") / 1e6
        if name.endswith("_a_second"):
            return self.counts[name.removesuffix("_a_second")] / self.seconds
        return float(self.counts[name]) if name in self.counts else float(asdict(self)[name])


class Contender(Protocol):
    """Who can do the work. ``run`` does all of it once more, from nothing."""

    @property
    def name(self) -> str: ...

    def run(self) -> Measured: ...


class Unavailable(Exception):
    """A case cannot be made here; the message says what is missing."""


@dataclass(frozen=True)
class Missing:
    """A contender that is not here, and why."""

    name: str
    why: str


@dataclass(frozen=True)
class Against:
    """Ours does the same in at most 1/``at_least`` of the peer's ``figure``. None: told, not asked for."""

    peer: str
    at_least: float | None = None
    figure: str = "seconds"

    @property
    def what(self) -> str:
        return f"{self.peer}: {_words(self.figure)}, peer / ours"

    @property
    def bound(self) -> str:
        return "" if self.at_least is None else f"≥ {self.at_least:g}"

    def values(self, runs: Mapping[str, Sequence[Measured]]) -> list[float]:
        both = zip(runs[self.peer], next(iter(runs.values())), strict=True)
        return [peer.figure(self.figure) / max(ours.figure(self.figure), 1e-9) for peer, ours in both]

    def met(self, value: float) -> bool | None:
        return None if self.at_least is None else value >= self.at_least


@dataclass(frozen=True)
class Within:
    """A ``figure`` of ours, and how much it may be (or must be). Neither: told, not asked for."""

    figure: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def what(self) -> str:
        return _words(self.figure)

    @property
    def bound(self) -> str:
        if self.at_least is not None:
            return f"≥ {self.at_least:,g}"
        return "" if self.at_most is None else f"≤ {self.at_most:,g}"

    def values(self, runs: Mapping[str, Sequence[Measured]]) -> list[float]:
        return [ours.figure(self.figure) for ours in next(iter(runs.values()))]

    def met(self, value: float) -> bool | None:
        if self.at_least is not None:
            return value >= self.at_least
        return None if self.at_most is None else value <= self.at_most


Check = Against | Within


@dataclass(frozen=True)
class Case:
    """``contenders`` do the same work, ours first. ``amount`` of ``unit`` is what each does in one run."""

    name: str
    target: int
    what: str
    contenders: Sequence[Contender | Missing]
    checks: Sequence[Check]
    amount: float
    unit: str
    rounds: int
    warm_up: bool = True  # one turn that does not count: nobody is measured while loading libraries


def measure(case: Case, say: Callable[[str], None]) -> dict[str, Any]:
    """All rounds of a case, as JSON: every run, and what each check came to."""
    here = [each for each in case.contenders if not isinstance(each, Missing)]
    runs: dict[str, list[Measured]] = {each.name: [] for each in here}
    for turn in range(-int(case.warm_up), case.rounds):
        for contender in here:
            done = contender.run()
            if turn >= 0:
                runs[contender.name].append(done)
            say(f"  {turn + 1}/{case.rounds} {contender.name}: {done.seconds:.3f} s, CPU {done.cpu_s:.2f} s")
    missing = {each.name: each.why for each in case.contenders if isinstance(each, Missing)}
    return {
        "target": case.target,
        "what": case.what,
        "amount": case.amount,
        "unit": case.unit,
        "runs": {name: [asdict(run) for run in some] for name, some in runs.items()},
        "missing": missing,
        "checks": [judge(check, runs, missing) for check in case.checks],
    }


def skipped(why: str) -> dict[str, Any]:
    """What is kept of a case that is :class:`Unavailable`."""
    case = {"target": 0, "what": "Skipped", "amount": 1, "unit": "", "runs": {}, "missing": {"all": why}}
    return case | {"checks": [{"what": "all", "bound": "", "met": None, "missing": why}]}


def judge(check: Check, runs: Mapping[str, Sequence[Measured]], missing: Mapping[str, str]) -> dict[str, Any]:
    """``value`` is the median, ``low`` and ``high`` the quartiles; ``met`` is None where nothing is asked for, or the
    peer is missing."""
    said: dict[str, Any] = {"what": check.what, "bound": check.bound, "met": None}
    if isinstance(check, Against) and check.peer in missing:
        return said | {"missing": missing[check.peer]}
    low, value, high = spread(check.values(runs))
    return said | {"value": value, "low": low, "high": high, "met": check.met(value)}


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile; of one or two values their extremes."""
    if len(values) < 3:
        return min(values), statistics.median(values), max(values)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def _words(figure: str) -> str:
    return {"cpu_s": "CPU seconds", "peak_bytes": "memory of the largest process"}.get(figure, figure.replace("_", " "))
