"""A TCP proxy on loopback that can do to a connection what networks do: ``with Proxy(port) as proxy: proxy.cut()``."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from types import TracebackType

from ingest.embedded.ports import LOOPBACK

RESET = b"\x01\x00\x00\x00\x00\x00\x00\x00"  # SO_LINGER on, for 0 s: closing sends RST


class Proxy:
    """Passes what comes to its ``port`` on to ``target`` (a port of loopback). Its ways, each until the next call:

    ``pass_on``; ``cut``: all connections are reset and new ones refused; ``black_hole``: nothing passes, in neither
    direction, nothing is closed, and what was sent comes late; ``half_open``: the same, but those connections never
    come back, while new ones do pass; ``slow``: each piece comes so many seconds late; ``reset_in_reply``: the next
    ``count`` replies are cut in the middle by a reset.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._mode, self._delay_s, self._resets = "pass", 0.0, 0
        self._open = threading.Condition()
        self._pairs: set[_Pair] = set()
        self.connections = 0
        self._closed = False
        self._listener = socket.create_server((LOOPBACK, 0), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._closed = True
        self.cut()
        self._listener.close()

    @property
    def url(self) -> str:
        return f"redis://{LOOPBACK}:{self.port}/0"

    def pass_on(self) -> None:
        self._set("pass")

    def cut(self) -> None:
        self._set("cut")
        for pair in tuple(self._pairs):
            pair.reset()

    def black_hole(self) -> None:
        self._set("hole")

    def half_open(self) -> None:
        for pair in tuple(self._pairs):
            pair.dead = True
        self._set("pass")

    def slow(self, delay_s: float) -> None:
        self._set("pass", delay_s)

    def reset_in_reply(self, count: int) -> None:
        with self._open:
            self._resets = count

    @property
    def resets_left(self) -> int:
        return self._resets

    def _set(self, mode: str, delay_s: float = 0.0) -> None:
        with self._open:
            self._mode, self._delay_s, self._resets = mode, delay_s, 0
            self._open.notify_all()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            if self._mode == "cut":
                _reset(client)
                continue
            threading.Thread(target=self._join, args=(client,), daemon=True).start()

    def _join(self, client: socket.socket) -> None:
        self.await_way(None)
        try:
            server = socket.create_connection((LOOPBACK, self.target), timeout=10)
        except OSError:
            return _reset(client)
        server.settimeout(None)
        pair = _Pair(self, client, server)
        self._pairs.add(pair)
        pair.start()

    def await_way(self, pair: _Pair | None) -> None:
        """Until something may pass."""
        with self._open:
            self._open.wait_for(lambda: self._mode != "hole" or self._closed or (pair is not None and pair.over))
            delay_s = self._delay_s
        time.sleep(delay_s)

    def one_reset(self) -> bool:
        """Whether this reply is one to be cut."""
        with self._open:
            if self._resets == 0:
                return False
            self._resets -= 1
            return True

    def forget(self, pair: _Pair) -> None:
        self._pairs.discard(pair)


class _Pair:
    """One connection: two sockets, and a thread for each direction."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self.proxy, self.client, self.server = proxy, client, server
        self.dead = self.over = False
        self._ends = 0

    def start(self) -> None:
        for source, sink in ((self.client, self.server), (self.server, self.client)):
            threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def reset(self) -> None:
        self.over = True
        _reset(self.client)
        _reset(self.server)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                self.proxy.await_way(self)
                if self.dead:
                    continue
                if sink is self.client and self.proxy.one_reset():
                    sink.sendall(data[: len(data) // 2])
                    return self.reset()
                sink.sendall(data)
            if not self.dead:
                with contextlib.suppress(OSError):
                    sink.shutdown(socket.SHUT_WR)
        except OSError:
            self.reset()
        finally:
            self._ends += 1
            if self._ends == 2:
                self.client.close()
                self.server.close()
                self.proxy.forget(self)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        # A thread that reads from it is woken, which closing alone does not do.
        end.shutdown(socket.SHUT_RD)
    end.close()
