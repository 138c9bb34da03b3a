"""Cursors of increments as a user sees them: a value of the column, as a number or as the database writes it."""

from __future__ import annotations

import json

from ingest.errors import UsageError
from ingest.sources import Sql


def key_of(sql: Sql) -> str:
    """Under which the ledger keeps the cursor. Raises :class:`UsageError` for a source that has none."""
    if sql.incremental_on is None:
        raise UsageError(f"{sql.uri} has no cursor: name the column that grows with incremental_on=")
    return sql.cursor_key


def value_of(stands: str) -> str | int | float | None:
    """What the ledger keeps of a cursor → its value; None for none."""
    if not stands:
        return None
    kind, text = json.loads(stands)["value"]
    return int(text) if kind == "int" else float(text) if kind == "float" else str(text)


def text_of(sql: Sql) -> str:
    """A cursor at ``since`` of that source, as the ledger keeps it; "" for none."""
    if sql.since is None:
        return ""
    kind = {int: "int", float: "float"}.get(type(sql.since), "str")
    text = repr(sql.since) if kind == "float" else str(sql.since)
    return json.dumps({"value": [kind, text], "source": sql.uri, "on": sql.incremental_on}, separators=(",", ":"))
