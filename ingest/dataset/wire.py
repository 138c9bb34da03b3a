"""The way between a rank process and its DataLoader workers: a Unix socket, one JSON answer to one JSON request.

Never pickle: whoever could write to the socket could then run code. On Linux the socket is an abstract one, so that no
file is left behind whatever dies. Both ends prove that they hold the dataset's key (HMAC-SHA256 over two nonces), since
abstract sockets have no permissions. Nothing here knows what is asked.
"""

from __future__ import annotations

import hmac
import json
import os
import platform
import secrets
import shutil
import socket
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, Self

from ingest.errors import IngestError

Ask = Callable[[Mapping[str, Any]], Mapping[str, Any]]

_HANDSHAKE_S = 30.0  # a worker on a busy machine may be slow to say its word, not slower than this
_WATCH_S = 1.0  # how often a waiting worker looks whether its parent still lives
_REQUEST_BYTES = 64 << 10
_NONCE_BYTES = 32
_GONE = "the training process that this DataLoader worker belongs to is gone, or has closed its dataset"


def _proof(key: bytes, role: bytes, server: bytes, client: bytes) -> bytes:
    return hmac.digest(key, role + server + client, "sha256")


def _receive(line: Connection, limit_bytes: int) -> bytes:
    if not line.poll(_HANDSHAKE_S):
        raise OSError("no word from the other side")
    return line.recv_bytes(limit_bytes)


class Server:
    """Answers requests until ``close()``: one thread that accepts, and one for each worker's connection."""

    def __init__(self, answer: Ask) -> None:
        self.key = secrets.token_bytes(32)
        name = "ingest-feed-" + secrets.token_hex(16)
        abstract = platform.system() == "Linux"
        self._folder = None if abstract else tempfile.mkdtemp(prefix="ingest-")
        self.address = f"\0{name}" if self._folder is None else os.path.join(self._folder, "feed")
        self._answer = answer
        self._lock = threading.RLock()  # close() may be called by the garbage collector, on any line of any thread
        self._lines: set[Connection] = set()
        self._closed = False
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.address)
        self._listener.listen(128)
        _SERVERS.add(self)
        threading.Thread(target=self._accept, name=name, daemon=True).start()

    def _accept(self) -> None:
        with self._listener:
            while True:
                try:
                    accepted, _ = self._listener.accept()
                except OSError:
                    if self._closed:
                        break
                    time.sleep(0.05)  # out of descriptors: workers retry for longer than that lasts
                    continue
                if self._closed:
                    accepted.close()
                    break
                line = Connection(accepted.detach())
                with self._lock:
                    self._lines.add(line)
                threading.Thread(target=self._serve, args=(line,), name="ingest-feed-line", daemon=True).start()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _serve(self, line: Connection) -> None:
        try:
            self._welcome(line)
            while not self._closed:
                request = json.loads(line.recv_bytes(_REQUEST_BYTES))
                line.send_bytes(json.dumps(self._answer(request), default=str).encode())
        except (EOFError, OSError, ValueError):
            pass  # the worker has ended, or was none of ours: there is nobody left to tell
        finally:
            with self._lock:
                self._lines.discard(line)
            line.close()

    def _welcome(self, line: Connection) -> None:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        line.send_bytes(nonce)
        word = _receive(line, _REQUEST_BYTES)
        theirs, proof = word[:_NONCE_BYTES], word[_NONCE_BYTES:]
        if not hmac.compare_digest(proof, _proof(self.key, b"worker", nonce, theirs)):
            raise OSError("a stranger")
        line.send_bytes(_proof(self.key, b"feed", nonce, theirs))

    def close(self) -> None:
        """Let go of every worker; each sees the end of its connection. Never waits."""
        if self._closed:
            return
        self._closed = True
        with self._lock:
            for line in self._lines:
                with socket.fromfd(line.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as copy, suppress(OSError):
                    copy.shutdown(socket.SHUT_RDWR)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as wake, suppress(OSError):
            wake.setblocking(False)
            wake.connect(self.address)  # ends the accept() that waits

    def forget(self) -> None:
        """In a forked child: drop our copies, or the parent's death would not be seen by those who wait for it.

        No lock is taken: a thread that is not here may have held it. Nothing is shut down: the parent goes on.
        """
        self._closed = True
        self._listener.close()
        for line in tuple(self._lines):
            line.close()
        self._lines.clear()


_SERVERS: weakref.WeakSet[Server] = weakref.WeakSet()


def _forget_all() -> None:
    for server in list(_SERVERS):
        server.forget()


os.register_at_fork(after_in_child=_forget_all)


class Line:
    """A worker's connection to its rank process. ``patience_s`` bounds the wait for any one answer."""

    def __init__(self, address: str, key: bytes, patience_s: float) -> None:
        self._parent = os.getppid()
        self._patience_s = patience_s
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            end.settimeout(_HANDSHAKE_S)
            end.connect(address)
            end.setblocking(True)
        except OSError as error:
            end.close()
            raise IngestError(f"{_GONE} ({error})") from error
        self._line = Connection(end.detach())
        try:
            self._introduce(key)
        except (OSError, EOFError) as error:
            self._line.close()
            raise IngestError(f"{_GONE} ({error})") from error

    def _introduce(self, key: bytes) -> None:
        theirs, nonce = _receive(self._line, _NONCE_BYTES), secrets.token_bytes(_NONCE_BYTES)
        self._line.send_bytes(nonce + _proof(key, b"worker", theirs, nonce))
        if not hmac.compare_digest(_receive(self._line, _NONCE_BYTES), _proof(key, b"feed", theirs, nonce)):
            raise OSError("the other side does not hold the dataset's key")

    def ask(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """One question, one answer. Raises :class:`IngestError` when the rank process is gone or says nothing."""
        deadline = time.monotonic() + self._patience_s
        try:
            self._line.send_bytes(json.dumps(request).encode())
            while not self._line.poll(_WATCH_S):
                # Not left to the socket alone: a process forked at a bad moment may hold a copy of its other end.
                if os.getppid() != self._parent:
                    raise EOFError("its process has ended")
                if time.monotonic() > deadline:
                    raise IngestError(f"no answer from the training process for {self._patience_s:g} s: is it stopped?")
            answer: Mapping[str, Any] = json.loads(self._line.recv_bytes())
            return answer
        except (OSError, EOFError) as error:
            raise IngestError(f"{_GONE} ({error or 'end of file'})") from error

    def close(self) -> None:
        self._line.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
