"""What the demo runs on: a folder that goes away again, the origins' process, and an embedded service of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ingest.client import Client
from ingest.demo import origins
from ingest.demo.interrupts import Interrupts
from ingest.embedded import EmbeddedService, embedded_service
from ingest.embedded.bound import bound
from ingest.errors import ServiceFailed
from ingest.settings import load

#: Libraries that the demo needs here or in a process that it starts; all of them are in the extra ``demo``.
_NEEDED = (
    "torch", "numpy", "pyarrow", "sqlalchemy", "adbc_driver_sqlite", "s3fs", "obstore", "moto", "flask", "flask_cors",
)  # fmt: skip

_READY_S = 60.0  # two seconds on a quiet machine; importing moto from a cold disk takes the longest
_STOP_S = 5.0
_LOOK_S = 0.02
_TAIL_LINES = 15


def check_installed() -> None:
    """Raises :class:`ServiceFailed` naming what is missing, and what to install."""
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ServiceFailed("demo", f"{', '.join(missing)} not installed here: pip install 'ingest[all]'")


@dataclass(frozen=True)
class Origins:
    """The origins' process. They may be starting still."""

    folder: Path
    log: Path
    process: subprocess.Popen[bytes]

    def addresses(self) -> Mapping[str, str]:
        """``http``, ``s3`` and ``sql``, once all answer. Raises :class:`ServiceFailed` with the end of the log."""
        ready = self.folder / origins.READY
        end = time.monotonic() + _READY_S
        while not ready.exists():
            if self.process.poll() is not None or time.monotonic() > end:
                raise ServiceFailed("demo", f"its HTTP and S3 servers did not start: {tail(self.log, 3)}")
            time.sleep(_LOOK_S)
        facts: dict[str, str] = json.loads(ready.read_text())
        return facts


@contextlib.contextmanager
def started_origins(folder: Path) -> Iterator[Origins]:
    """Returns at once; ended with the block, or with this process."""
    log = folder / "origins.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            bound([sys.executable, "-m", "ingest.demo.origins", str(folder)]),
            stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            start_new_session=True,  # a Ctrl-C in the terminal is for us: we end it in order
        )  # fmt: skip
    try:
        yield Origins(folder, log, process)
    finally:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
        process.kill()
        process.wait()


@contextlib.contextmanager
def started_service(folder: Path, addresses: Mapping[str, str], interrupts: Interrupts) -> Iterator[Client]:
    """A client of a Redis and a worker that know the origins, with store and logs in ``folder``. Start it with the
    interrupts held: they are looked at where nothing is half done."""
    config = folder / "ingest.toml"
    s3 = {"endpoint": addresses["s3"], "key": origins.KEY, "secret": origins.SECRET, "region": "us-east-1"}
    config.write_text(_table("connections.demo-s3", s3) + _table("connections.demo-sql", {"url": addresses["sql"]}))
    env = {
        "INGEST_CONFIG": str(config),
        "INGEST_STORE": str(folder / "store"),
        "INGEST_NODE": "demo",
        "INGEST_PREFIX": "ingest:",
        "INGEST_CONCURRENCY": "4",  # the demo is the same on every machine
        "INGEST_LOG_FORMAT": "text",
        "no_proxy": "127.0.0.1",  # the user's proxy does not lead to our loopback
        "NO_PROXY": "127.0.0.1",
    }

    def ready(service: EmbeddedService) -> bool:
        interrupts.check()
        return bool(Client(settings=load(service.env)).workers())

    with embedded_service(ready, data=_service(folder), env=env, ready_s=_READY_S) as service:
        yield Client(settings=load(service.env))


def worker_log(folder: Path) -> str:
    """The end of it, or nothing where no worker was started."""
    log = _service(folder) / "worker.log"
    return tail(log, _TAIL_LINES) if log.exists() else ""


def tail(log: Path, lines: int) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def _service(folder: Path) -> Path:
    return folder / "service"


def _table(name: str, values: Mapping[str, str]) -> str:
    """A table of TOML; JSON's strings are among TOML's."""
    return "\n".join([f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items()), "", ""])
