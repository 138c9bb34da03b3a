"""All cases by name, in the order in which they are run and told of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

from benchmarks import feed, growth, http, s3, sql, start, submit
from benchmarks.harness import Case
from benchmarks.lab import Lab

CASES: Mapping[str, Callable[[Lab], AbstractContextManager[Case]]] = {
    "http-large": http.large,
    "http-paced": http.paced,
    "http-small": http.small,
    "http-packed": http.packed,
    "s3-large": s3.large,
    "s3-middle": s3.middle,
    "s3-small": s3.small,
    "sql-table": sql.table,
    "sql-growth": sql.growth,
    "submit": submit.listed,
    "here": submit.here,
    "latency": submit.latency,
    **feed.cases(),
    "first-batch": start.first_batch,
    "growth-files": growth.files,
    "growth-shards": growth.shards,
}
