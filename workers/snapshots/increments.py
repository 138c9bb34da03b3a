"""What is new since the last job: from a cursor's last value up to the greatest that is there now.

A cursor belongs to what is asked (connection, table or query, columns, condition, cursor column). It lies in the
ledger, does not expire with a job, and moves on when all of a source has arrived, in the same transition.
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ingest.errors import BadResponse
from ingest.ledger import Claim, Cursor, WorkLedger
from ingest.model import FileSpec
from ingest.record import unpack
from ingest.sources import Sql
from workers.fetchers.base import Context

if TYPE_CHECKING:
    from workers.fetchers.sql.databases import Database


#: In what a partition asks for: the column, and the values after and up to which it has rows.
INCREMENT = "increment"
#: What databases order behind every other number or time, as they and Python write it.
_ABOVE_ALL = {"NaN", "Infinity", "infinity", "nan", "inf"}


@dataclass(frozen=True)
class Narrowed:
    """A source with its increment as part of its condition: ``facts`` of it, and the ``cursor`` as it will stand."""

    source: Sql
    facts: dict[str, Any] | None = None
    cursor: Cursor | None = None


def increment_of(claim: Claim) -> dict[str, Any] | None:
    """The increment that a shard is part of."""
    if not claim.record.origin.startswith("sql://"):
        return None
    request = unpack(FileSpec, claim.spec)[0].request or {}
    return dict(request[INCREMENT]) if INCREMENT in request else None


def narrowed(ledger: WorkLedger, job: str, source: Sql, context: Context) -> Narrowed:
    """The source, asking for its increment if it is one. Raises :class:`BadResponse` where a key is NULL: nothing would
    ever say that such a row is new."""
    if source.incremental_on is None:
        return Narrowed(source)
    from workers.fetchers.sql import parts
    from workers.fetchers.sql.databases import opened
    from workers.fetchers.sql.databases.errors import edge

    stands = ledger.cursor(source.cursor_key)
    after = parts.to_bound(source.since) if source.since is not None else _value(stands)
    with opened(source.uri, context) as database, edge(source.uri, context):
        last = _last(database, source, after)
    key = database.quote(source.incremental_on)
    facts = {"on": source.incremental_on, "after": after, "upto": last}
    if last is None:  # nothing new: one partition without rows, also if some come until it is read
        return Narrowed(dataclasses.replace(source, where="1 = 0", partitions=1), facts)
    conditions = [f"(\n{source.where}\n)"] if source.where else []
    conditions += [f"{key} > {database.literal(after)}"] if after is not None else []
    conditions += [f"{key} <= {database.literal(last)}"]
    stand = {"value": last, "job": job, "source": source.uri, "on": source.incremental_on}
    before = "*" if source.since is not None else stands
    cursor = Cursor(source.cursor_key, before, json.dumps(stand, separators=(",", ":")))
    return Narrowed(dataclasses.replace(source, where=" AND ".join(conditions)), facts, cursor)


def _value(stands: str) -> list[str] | None:
    return list(json.loads(stands)["value"]) if stands else None


def _last(database: Database, source: Sql, after: list[str] | None) -> list[str] | None:
    """The greatest key above ``after`` as it travels, or None where there is none."""
    from workers.fetchers.sql import parts

    assert source.incremental_on is not None
    key = database.quote(source.incremental_on)
    part = parts.whole(dataclasses.replace(source, columns=(), order_by=()))
    conditions = [f"(\n{source.where}\n)"] if source.where else []

    def where(condition: str) -> dict[str, Any]:
        return {**part, "where": " AND ".join([*conditions, condition])}

    (nulls,) = database.ask(parts.select(database, where(f"{key} IS NULL"), ["count(*)"]))
    if int(nulls):
        raise BadResponse(
            source.uri,
            f"{source.incremental_on} is NULL in {nulls} rows, so no job could tell whether they are new: leave them "
            f"out with where={source.incremental_on + ' IS NOT NULL'!r}, or give them a value in a query",
        )
    above = f"{key} > {database.literal(after)}" if after is not None else "1 = 1"
    (greatest,) = database.ask(parts.select(database, where(above), [database.greatest(key)]))
    if greatest is None:
        return None
    last = parts.to_bound(greatest)
    if last[1] in _ABOVE_ALL:
        raise BadResponse(
            source.uri,
            f"{source.incremental_on} is {last[1]} in some row, and no row that is added would ever be above it: leave "
            "such rows out with where=",
        )
    return last
