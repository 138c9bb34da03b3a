"""Databases as streams of Arrow record batches, by the drivers that are best at it; opened by profile, read-only.

PostgreSQL and SQLite are read through ADBC, MySQL and MariaDB through PyMySQL, anything else that SQLAlchemy has a
dialect for through its driver.
What is asked for, and what becomes of the rows, is in :mod:`workers.fetchers.sql`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, cast

from ingest.errors import BadResponse
from workers.fetchers.base import Context
from workers.fetchers.sql.databases.errors import edge

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

    from workers.fetchers.sql.databases.base import Database

#: SQLAlchemy backend name → module:class. Any other goes to SQLAlchemy itself.
BACKENDS = {
    "postgresql": "workers.fetchers.sql.databases.postgres:PostgresDatabase",
    "mysql": "workers.fetchers.sql.databases.mysql:MysqlDatabase",
    "mariadb": "workers.fetchers.sql.databases.mysql:MysqlDatabase",
    "sqlite": "workers.fetchers.sql.databases.sqlite:SqliteDatabase",
}
FALLBACK = "workers.fetchers.sql.databases.alchemy:AlchemyDatabase"


@contextmanager
def opened(uri: str, context: Context) -> Iterator[Database]:
    """The database of the profile, at the context's moment, for as long as the block lasts. Raises a FetchError naming
    ``uri``, :class:`SnapshotLost` where that moment is past."""
    url = url_of(uri, context)
    with edge(uri, context):
        module, _, name = BACKENDS.get(url.get_backend_name(), FALLBACK).partition(":")
        database = cast("Database", getattr(import_module(module), name)(url, context.settings.limits))
    try:
        if context.moment is not None:
            with edge(uri, context):
                database.join(context.moment)
        yield database
    finally:
        database.close()


def url_of(uri: str, context: Context) -> URL:
    """Where the profile's database is, and as whom."""
    if not context.value("url"):
        name = context.connection.name if context.connection else "NAME"
        raise BadResponse(uri, f"[connections.{name}] has no url; write one, like postgresql://host/database")
    with edge(uri, context):
        from sqlalchemy.engine import make_url

        url = make_url(str(context.value("url")))
        return url.set(
            username=context.value("user") or url.username, password=context.value("password") or url.password
        )


__all__ = ["Database", "opened", "url_of"]
