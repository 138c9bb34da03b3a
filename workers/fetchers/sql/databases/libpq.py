"""PostgreSQL without a driver: what it is told to connect, and the statements with which a transaction of ours begins.

Apart from the driver, because the agent, which has snapshots opened, is to stay small.
"""

from __future__ import annotations

import re

from sqlalchemy.engine import URL

from ingest.sections import Limits
from workers.fetchers.sql.parts import text_literal

#: A snapshot's name, as PostgreSQL gives it.
_SNAPSHOT = re.compile(r"[0-9A-F]+(?:-[0-9A-F]+)+")

#: Options of ADBC's driver: it knows the types that every PostgreSQL has. By default it would read all types and all
#: columns of the database as well, each time that it connects: 50 ms of CPU where there is no table yet, a second where
#: there are thousands. What others made has no name so, and is looked up where a column has it (``postgres_types``).
DRIVER = {"adbc.postgresql.type_resolver_mode": "builtin"}


def libpq_uri(url: URL, limits: Limits) -> str:
    """libpq's own form of a SQLAlchemy URL, with limits for a peer that has gone (libpq documentation, 32.1.2)."""
    defaults = {
        "connect_timeout": str(max(2, round(limits.connect_s))),
        "tcp_user_timeout": str(int(limits.stall_s * 1000)),
        "keepalives_idle": str(max(1, int(limits.stall_s / 2))),
        "application_name": "ingest",
    }
    query = {**defaults, **url.query}
    return url.set(drivername="postgresql", query=query).render_as_string(hide_password=False)


def begin(limits: Limits, version: int) -> list[str]:
    """What a transaction begins with: read-only, at one moment, bounded. ``version`` is the server's, as in 160002.

    All is local to the transaction, so that a pooler between us and the server hands no setting on to somebody else.
    A client that is gone leaves nothing behind: the server ends a transaction in which nobody speaks, a statement that
    nobody waits for, and a connection whose other end does not answer.
    """
    idle_ms = int(max(10.0, limits.stall_s) * 1000)
    return [
        "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
        f"SET LOCAL statement_timeout = {int(limits.soft_s * 1000)}",
        f"SET LOCAL idle_in_transaction_session_timeout = {idle_ms}",
        *([f"SET LOCAL tcp_user_timeout = {idle_ms}"] if version >= 120000 else []),
        # Else a statement goes on for a client that was killed, with its locks, until it has something to send.
        *(["SET LOCAL client_connection_check_interval = '5s'"] if version >= 140000 else []),
        "SET LOCAL timezone = 'UTC'",
        "SET LOCAL datestyle = 'ISO'",
        "SET LOCAL intervalstyle = 'postgres'",
        "SET LOCAL standard_conforming_strings = on",
        "SET LOCAL extra_float_digits = 1",
        "SET LOCAL bytea_output = 'hex'",
        "SET LOCAL synchronize_seqscans = off",  # a sample is then the same again
    ]


def import_snapshot(snapshot: str) -> str:
    """It must come before any query of the transaction. Raises ValueError for what is no snapshot's name."""
    if not _SNAPSHOT.fullmatch(snapshot):
        raise ValueError(f"{snapshot!r} is no name of a snapshot")
    return f"SET TRANSACTION SNAPSHOT {text_literal(snapshot)}"
