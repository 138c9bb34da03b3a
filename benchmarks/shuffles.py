"""How well each shuffle mixes, and what it holds: a table, and a picture of where samples come from.

    python benchmarks/shuffles.py [--svg docs/shuffles.svg]

40 files of 1,000 samples. *moved*: how far a sample is from where its file has it, of the most it could be (a third of
the epoch is what a perfect shuffle gives). *files in a batch*: of 256 samples, of how many files they are. *held*:
bytes that the order keeps at most for its permutations, beside the files that are open. *first needs*: files that must
have landed before the first sample is given.
"""

from __future__ import annotations

import argparse
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ingest.dataset.order import Entry, Order, Recipe

FILES, SAMPLES = 40, 1000
WAYS = {
    'shuffle="files"': Recipe(shuffle="files"),
    'shuffle="window"': Recipe(shuffle="window"),
    'shuffle="window", streams=8': Recipe(shuffle="window", streams=8),
    'shuffle="blocks", shuffle_window=8000': Recipe(shuffle="blocks", window=8000),
}
_SIDE, _GAP = 200, 24


class _Extent(NamedTuple):
    files: int = FILES
    complete: bool = True


class _Catalog:
    """Files that have all landed; counts how many the order asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def extent(self, at_least: int) -> _Extent:
        return _Extent()

    def entry(self, position: int) -> Entry:
        self.asked += 1
        return Entry(SAMPLES)


def epoch(recipe: Recipe) -> Iterator[tuple[int, int]]:
    """(file, number) of every sample, in the order of the epoch."""
    order, at = Order(_Catalog(), recipe), 0
    while picks := order.locate(range(at, at + 256)):
        found = {slot: (pick.position, n) for pick in picks for n, slot in zip(pick.numbers, pick.slots, strict=True)}
        yield from (found[slot] for slot in range(len(found)))
        at += len(found)


def row(name: str, recipe: Recipe) -> tuple[str, float, float, int, int]:
    catalog = _Catalog()
    Order(catalog, recipe).locate(range(1))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in epoch(recipe):
        pass
    held = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    places = list(epoch(recipe))
    total = len(places)
    moved = sum(abs(at - (file * SAMPLES + n)) for at, (file, n) in enumerate(places)) / total / total
    batches = [len({file for file, _ in places[at : at + 256]}) for at in range(0, total - 256, 256)]
    return name, moved, sum(batches) / len(batches), held, catalog.asked


def picture() -> str:
    """A panel for each way: across, the place in the epoch; up, where the sample lies in the job."""
    width = len(WAYS) * (_SIDE + _GAP) + _GAP
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {_SIDE + 60}" font-family="sans-serif">',
        f'<rect width="{width}" height="{_SIDE + 60}" fill="white"/>',
    ]
    for number, (name, recipe) in enumerate(WAYS.items()):
        left = _GAP + number * (_SIDE + _GAP)
        out.append(f'<rect x="{left}" y="30" width="{_SIDE}" height="{_SIDE}" fill="none" stroke="#999"/>')
        out.append(f'<text x="{left}" y="22" font-size="10">{name.replace(chr(34), "&quot;")}</text>')
        total = FILES * SAMPLES
        dots = "".join(
            f"M{left + at * _SIDE / total:.1f} {30 + _SIDE - (file * SAMPLES + n) * _SIDE / total:.1f}h1"
            for at, (file, n) in enumerate(epoch(recipe))
            if not at % 16
        )
        out.append(f'<path d="{dots}" stroke="#2563eb" stroke-width="1"/>')
        out.append(f'<text x="{left}" y="{_SIDE + 45}" font-size="9" fill="#555">place in the epoch →</text>')
    return "\n".join([*out, "</svg>", ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--svg", type=Path, help="where the picture goes")
    args = parser.parse_args()
    print("| way | moved | files in a batch | held | first needs |\n| --- | --- | --- | --- | --- |")
    for name, recipe in WAYS.items():
        way, moved, batch, held, first = row(name, recipe)
        print(f"| `{way}` | {moved:.2f} | {batch:.1f} | {held / 1e3:,.0f} KB | {first} |")
    if args.svg:
        args.svg.write_text(picture())


if __name__ == "__main__":
    main()
