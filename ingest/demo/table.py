"""The demo's numbers, for people. They are made in ``report``."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ingest.demo import data
from ingest.demo.origins import PACE
from ingest.demo.report import Report

_COLUMNS = ("source", "", "files", "bytes", "samples", "retries", "failed")


def show(report: Report, console: Console) -> None:
    """Table, training, failures and where to go next."""
    console.print(_table(report))
    console.print()
    for name, text in _lines(report):
        console.print(Text.assemble((f"{name:<10}", "bold"), text), soft_wrap=True)
    for failure in report.failures:
        console.print(Text.assemble((f"{'failed':<10}", "bold red"), str(failure)), soft_wrap=True)
    if not report.unexpected:
        console.print(f"{'':<10}(that one is there on purpose: the job went on without it)", style="dim")
    console.print()
    next_ = [
        ("next", "`ingest up` keeps the service running, and `ingest fetch URI…` brings any URI through it"),
        ("", "README.md has the ten lines of Python for your own training, and how to add data nodes"),
    ]
    for name, text in next_:
        console.print(Text.assemble((f"{name:<10}", "bold"), text), soft_wrap=True)


def _table(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True, footer_style="bold")
    totals = [
        sum(row.files for row in report.rows), sum(row.bytes for row in report.rows),
        sum(row.samples for row in report.rows), report.status.retries, len(report.failures),
    ]  # fmt: skip
    for name, footer in zip(_COLUMNS, ("all", "", *(f"{total:,}" for total in totals)), strict=True):
        table.add_column(name, footer, justify="right" if name in _COLUMNS[2:] else "left")
    for row in report.rows:
        numbers = (row.files, row.bytes, row.samples, row.retries, row.failed)
        table.add_row(row.kind, row.what, *(f"{number:,}" for number in numbers))
    return table


def _lines(report: Report) -> list[tuple[str, str]]:
    status = report.status
    trained = sum(row.trained for row in report.rows)
    return [
        ("data", "generated here (noisy digits, drawn from bitmaps): nothing was downloaded from outside"),
        ("origins", f"real servers on this machine; HTTP is held to {PACE // 1000} kB/s a connection"),
        (
            "streaming",
            f"first batch {report.first_batch_s:.2f} s after the job was submitted, last file after "
            f"{status.seconds:.1f} s; {report.steps_before_landed} of {report.steps} steps were done by then",
        ),
        (
            "training",
            f"{trained:,} samples at {report.samples_per_s:,.0f}/s; loss {report.loss_first:.3f} → "
            f"{report.loss_last:.3f}; accuracy {report.accuracy:.1%} on {data.HELD_OUT:,} held-out samples",
        ),
        ("time", f"{report.seconds:.1f} s from the start of the command to the end of the training"),
    ]
