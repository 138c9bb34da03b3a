"""A real MariaDB for tests: Debian's ``mariadb-server``, run by whoever runs the tests, in a folder of its own.

Skips where the program is not installed. No assertions here.
"""

from __future__ import annotations

import getpass
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymysql
import pytest

_START_S = 60.0


@dataclass(frozen=True)
class MariaServer:
    """``url`` is of a superuser without a password, in a database that is called as it is for SQLAlchemy."""

    folder: Path
    process: subprocess.Popen[bytes]

    @property
    def socket(self) -> Path:
        return self.folder / "s"

    @property
    def url(self) -> str:
        return f"mysql+pymysql://root@localhost/ware?unix_socket={self.socket}"

    def execute(self, *statements: str, many: Sequence[Any] | None = None) -> list[tuple[Any, ...]]:
        """Run them; the rows of the last. With ``many`` each is run for each of those rows."""
        with pymysql.connect(unix_socket=str(self.socket), user="root", database="ware", autocommit=True) as connection:
            cursor = connection.cursor()
            for statement in statements:
                if many is None:
                    cursor.execute(statement)
                else:
                    cursor.executemany(statement, many)
            return list(cursor.fetchall())


@contextmanager
def mariadb_server() -> Iterator[MariaServer]:
    server = shutil.which("mariadbd", path="/usr/sbin:/usr/bin:/usr/local/bin")
    install = shutil.which("mariadb-install-db")
    if not server or not install:
        pytest.skip("needs MariaDB: apt-get install mariadb-server")
    folder = Path(tempfile.mkdtemp(prefix="maria-"))  # pytest's own paths are too long for a Unix socket
    user = f"--user={getpass.getuser()}"
    subprocess.run(
        [install, "--no-defaults", user, f"--datadir={folder}/data", "--auth-root-authentication-method=normal",
         "--skip-test-db"], check=True, capture_output=True,
    )  # fmt: skip
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            [server, "--no-defaults", user, f"--datadir={folder}/data", f"--socket={folder}/s", "--skip-networking",
             "--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=32M", "--skip-log-bin"],
            stdout=log, stderr=log,
        )  # fmt: skip
    try:
        _wait(folder, process)
        yield MariaServer(folder, process)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(folder: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _START_S
    while not _listens(folder / "s"):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"MariaDB did not start: {(folder / 'log').read_text()[-2000:]}")
        time.sleep(0.05)
    with pymysql.connect(unix_socket=f"{folder}/s", user="root") as connection:
        connection.cursor().execute("CREATE DATABASE ware CHARACTER SET utf8mb4")


def _listens(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0
