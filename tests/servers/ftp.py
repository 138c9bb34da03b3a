"""A small real FTP server on loopback (RFC 959, 2428, 3659: passive, MLSD, RETR, STOR, REST), with files in memory."""

from __future__ import annotations

import socket
import socketserver
import threading
from typing import Self


class _Session(socketserver.StreamRequestHandler):
    server: _Server
    timeout = 30

    def handle(self) -> None:
        self.user, self.allowed, self.rest, self.renamed = "", False, 0, ""
        self.passive: socket.socket | None = None
        self.say("220 here")
        try:
            while line := self.rfile.readline():
                verb, _, argument = line.decode().rstrip("\r\n").partition(" ")
                if verb.upper() == "QUIT":
                    return self.say("221 bye")
                self.serve(verb.upper(), argument)
        except OSError:
            return None
        finally:
            if self.passive:
                self.passive.close()
        return None

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())

    def serve(self, verb: str, argument: str) -> None:
        ftp = self.server.ftp
        if verb == "USER":
            self.user = argument
            self.say("331 password?")
        elif verb == "PASS":
            self.allowed = ftp.password is None or (self.user, argument) == ("me", ftp.password)
            self.say("230 in" if self.allowed else "530 no")
        elif not self.allowed:
            self.say("530 log in")
        elif verb == "TYPE":
            self.say("200 ok")
        elif verb in {"PASV", "EPSV"}:
            self.listen(verb)
        elif verb == "REST":
            self.rest = int(argument)
            self.say("350 from there")
        elif verb == "MLSD":
            self.listing(argument)
        elif verb == "RETR":
            self.retrieve(argument)
        elif verb == "STOR":
            self.store(argument)
        elif verb == "MKD":
            self.say(f'257 "{argument}"')  # folders are what is in them
        elif verb == "DELE":
            self.say("550 no such file" if ftp.files.pop("/" + argument.lstrip("/"), None) is None else "250 gone")
        elif verb == "RNFR":
            self.renamed = "/" + argument.lstrip("/")
            self.say("350 to what?" if self.renamed in ftp.files else "550 no such file")
        elif verb == "RNTO":
            ftp.put("/" + argument.lstrip("/"), ftp.files.pop(self.renamed))
            self.say("250 done")
        else:
            self.say("502 not here")

    def listen(self, verb: str) -> None:
        if self.passive:
            self.passive.close()
        self.passive = socket.create_server(("127.0.0.1", 0))
        self.passive.settimeout(10)
        port = self.passive.getsockname()[1]
        high, low = divmod(port, 256)
        self.say(f"229 (|||{port}|)" if verb == "EPSV" else f"227 (127,0,0,1,{high},{low})")

    def listing(self, folder: str) -> None:
        ftp = self.server.ftp
        prefix = "/" + folder.strip("/") + "/" if folder.strip("/") else "/"
        below = [path.removeprefix(prefix) for path in ftp.files if path.startswith(prefix)]
        if prefix in ftp.closed_folders or (not below and prefix != "/"):
            return self.say("550 no such folder")
        rows = {}
        for name in below:
            first, slash, _ = name.partition("/")
            size = len(ftp.files[prefix + first]) if not slash else 0
            facts = "type=dir;" if slash else f"type=file;size={size};modify={ftp.modified[prefix + first]:014d};"
            rows[first] = f"{facts} {first}\r\n"
        return self.transfer("".join(rows.values()).encode(), None)

    def retrieve(self, path: str) -> None:
        ftp = self.server.ftp
        data = ftp.files.get("/" + path.lstrip("/"))
        if data is None:
            return self.say("550 no such file")
        offset, self.rest = self.rest, 0
        return self.transfer(data[offset:], ftp.cuts.get(path))

    def store(self, path: str) -> None:
        assert self.passive is not None
        self.say("150 let it come")
        offset, self.rest = self.rest, 0
        path, data = "/" + path.lstrip("/"), b""
        with self.passive, self.passive.accept()[0] as connection:
            while block := connection.recv(1 << 16):
                data += block
        self.passive = None
        self.server.ftp.put(path, self.server.ftp.files.get(path, b"")[:offset] + data)
        self.say("226 that was it")

    def transfer(self, data: bytes, cut: int | None) -> None:
        assert self.passive is not None
        self.say("150 it comes")
        with self.passive, self.passive.accept()[0] as connection:
            connection.sendall(data[:cut])
        self.passive = None
        self.say("226 that was it")


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    ftp: Ftp


class Ftp:
    """``files`` by absolute path, ``cuts``: how many bytes of one come, ``closed_folders``: may not be listed."""

    def __init__(self, password: str | None = None) -> None:
        self.files: dict[str, bytes] = {}
        self.modified: dict[str, int] = {}
        self.cuts: dict[str, int] = {}
        self.closed_folders: set[str] = set()
        self.password = password
        self._server = _Server(("127.0.0.1", 0), _Session)
        self._server.ftp = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def url(self, path: str) -> str:
        return f"ftp://127.0.0.1:{self._server.server_address[1]}{path}"

    def put(self, path: str, data: bytes) -> str:
        self.modified[path] = max(self.modified.values(), default=20260101000000) + 1
        self.files[path] = data
        return self.url(path)
