"""A picture of the ratios: a line for each peer of each case, on a logarithmic scale. One reads it from the middle:
to the right of 1 ours is ahead."""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from typing import Any

_LEFT, _WIDTH, _LINE, _TOP = 330, 460, 20, 30
_LOW, _HIGH = 0.1, 100.0


def picture(cases: Mapping[str, Any]) -> str:
    """As SVG. A dot is the median, the line goes from quartile to quartile, and the tick is the target."""
    lines = [
        (name, check)
        for name, case in sorted(cases.items(), key=lambda item: item[1]["target"])
        for check in case["checks"]
        if "peer / ours" in check["what"] and "missing" not in check
    ]
    height, width = _TOP + _LINE * len(lines) + 30, _LEFT + _WIDTH + 90
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for value in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100):
        x = _x(value)
        colour = "#666" if value == 1 else "#ddd"
        out.append(f'<path d="M{x:.1f} {_TOP - 6}V{height - 26}" stroke="{colour}"/>')
        out.append(f'<text x="{x:.1f}" y="{height - 12}" font-size="10" text-anchor="middle">{value:g}×</text>')
    for number, (name, check) in enumerate(lines):
        out += _line(_TOP + _LINE * number + _LINE / 2, f"{name}: {check['what'].partition(', peer')[0]}", check)
    return "\n".join([*out, "</svg>", ""])


def _line(y: float, label: str, check: Mapping[str, Any]) -> list[str]:
    colour = {None: "#888", True: "#15803d", False: "#b91c1c"}[check["met"]]
    x = _x(check["value"])
    out = [
        f'<text x="{_LEFT - 12}" y="{y + 3:.1f}" font-size="10" text-anchor="end">{escape(label)}</text>',
        f'<path d="M{_x(check["low"]):.1f} {y:.1f}H{_x(check["high"]):.1f}" stroke="{colour}" stroke-width="2"/>',
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}"/>',
        f'<text x="{_LEFT + _WIDTH + 12}" y="{y + 3:.1f}" font-size="10" fill="{colour}">{check["value"]:.2f}</text>',
    ]
    if check["bound"]:
        target = _x(float(check["bound"].removeprefix("≥ ")))
        out.append(f'<path d="M{target:.1f} {y - 7:.1f}v14" stroke="#111" stroke-width="1.5"/>')
    return out


def _x(ratio: float) -> float:
    part = math.log(min(max(ratio, _LOW), _HIGH) / _LOW) / math.log(_HIGH / _LOW)
    return _LEFT + part * _WIDTH
