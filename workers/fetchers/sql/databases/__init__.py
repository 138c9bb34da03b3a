"""Databases as streams of Arrow record batches, by the drivers that are best at it; opened by profile, read-only.

PostgreSQL and SQLite are read through ADBC, anything else that SQLAlchemy has a dialect for through its driver.
What is asked for, and what becomes of the rows, is in :mod:`workers.fetchers.sql`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import cast

from ingest.errors import BadResponse
from workers.fetchers.base import Context
from workers.fetchers.sql.databases.base import Database
from workers.fetchers.sql.databases.errors import edge

#: SQLAlchemy backend name → module:class. Any other goes to SQLAlchemy itself.
BACKENDS = {
    "postgresql": "workers.fetchers.sql.databases.postgres:PostgresDatabase",
    "sqlite": "workers.fetchers.sql.databases.sqlite:SqliteDatabase",
}
FALLBACK = "workers.fetchers.sql.databases.alchemy:AlchemyDatabase"


@contextmanager
def opened(uri: str, context: Context) -> Iterator[Database]:
    """The database of the profile, for as long as the block lasts. Raises a FetchError naming ``uri``."""
    if not context.value("url"):
        name = context.connection.name if context.connection else "NAME"
        raise BadResponse(uri, f"[connections.{name}] has no url; write one, like postgresql://host/database")
    with edge(uri, context):
        from sqlalchemy.engine import make_url

        url = make_url(str(context.value("url")))
        url = url.set(
            username=context.value("user") or url.username, password=context.value("password") or url.password
        )
        module, _, name = BACKENDS.get(url.get_backend_name(), FALLBACK).partition(":")
        database = cast(Database, getattr(import_module(module), name)(url, context.settings.limits))
    try:
        yield database
    finally:
        database.close()


__all__ = ["Database", "opened"]
