"""The embedded Redis, and processes that are ended in order. Real processes, real signals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis

from ingest.embedded import EmbeddedService, RedisServer, embedded_service
from ingest.embedded.claim import claimed, holder
from ingest.embedded.ports import answers, connect, free_port
from ingest.errors import ServiceFailed
from tests.servers.redis import redis_server

ROOT = Path(__file__).parents[2]


def until(condition: Callable[[], bool], deadline_s: float = 15.0) -> None:
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextlib.contextmanager
def python(script: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """A Python process with ``script``, in a session of its own; killed at the end with all that it started."""
    command = [sys.executable, "-u", "-c", script, *map(str, args)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                for child in psutil.Process(process.pid).children(recursive=True):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        child.kill()
            process.kill()


class TestRedisServer:
    def test_listens_on_loopback_only_and_evicts_nothing(self, tmp_path: Path) -> None:
        with redis_server(tmp_path) as server, contextlib.closing(connect(server.url)) as client:
            assert client.config_get("bind")["bind"] == "127.0.0.1"
            assert client.config_get("maxmemory-policy")["maxmemory-policy"] == "noeviction"
            assert client.config_get("save")["save"] == ""

    def test_survives_its_own_death_on_the_same_port(self, tmp_path: Path) -> None:
        with redis_server(tmp_path, append_only=True) as server:
            with contextlib.closing(connect(server.url)) as client:
                client.set("key", "value")
            until(lambda: b"value" in b"".join(p.read_bytes() for p in tmp_path.rglob("*.aof")))
            url = server.url
            server.process.kill()
            server.process.wait()
            server.start()
            assert server.url == url
            with contextlib.closing(connect(url)) as client:
                assert client.get("key") == b"value"

    def test_is_gone_after_the_block(self, tmp_path: Path) -> None:
        with redis_server(tmp_path) as server:
            assert answers(server.url)
        assert not answers(server.url)
        assert server.process.returncode == 0

    def test_stops_although_it_is_paused(self, tmp_path: Path) -> None:
        with redis_server(tmp_path) as server:
            server.process.send_signal(signal.SIGSTOP)
            begun = time.monotonic()
        assert server.process.returncode == 0
        assert time.monotonic() - begun < 5

    def test_a_password_is_asked_for_and_is_in_no_argument(self, tmp_path: Path) -> None:
        with RedisServer(tmp_path, password='s3c"r t\\') as server:
            with contextlib.closing(connect(server.url)) as client:
                assert client.ping()
            with pytest.raises(ServiceFailed, match="refuses us") as caught:
                answers(f"redis://127.0.0.1:{server.port}/0")
            assert "s3c" not in str(caught.value)
            assert not any("s3c" in part for part in psutil.Process(server.process.pid).cmdline())

    def test_a_port_that_is_taken_is_named(self, tmp_path: Path) -> None:
        with (
            redis_server(tmp_path / "a") as first,
            pytest.raises(ServiceFailed, match=rf"127\.0\.0\.1:{first.port}.*in use"),
            RedisServer(tmp_path / "b", port=first.port),
        ):
            pass

    def test_files_of_a_newer_redis_are_not_silently_left_aside(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = tmp_path / "bin" / "redis-server"
        program.parent.mkdir()
        program.write_text("#!/bin/sh\necho 'Redis server v=6.2.14 sha=0'\n")
        program.chmod(0o755)
        (tmp_path / "data" / "appendonlydir").mkdir(parents=True)
        monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
        with pytest.raises(ServiceFailed, match="Redis 7 or later"):
            RedisServer(tmp_path / "data").start()

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux can end a process with its parent")
    def test_ends_with_the_process_that_started_it(self, tmp_path: Path) -> None:
        script = """
import sys, pathlib, time
from ingest.embedded import RedisServer
print(RedisServer(pathlib.Path(sys.argv[1])).start().process.pid)
time.sleep(60)
"""
        with python(script, tmp_path) as process:
            assert process.stdout is not None
            pid = int(process.stdout.readline())
            assert alive(pid)
            process.kill()
            until(lambda: not alive(pid))


class TestAnswers:
    def test_nobody(self) -> None:
        assert not answers(f"redis://127.0.0.1:{free_port()}/0")

    def test_a_stranger(self) -> None:
        script = "import http.server as h; s = h.HTTPServer(('127.0.0.1', 0), h.BaseHTTPRequestHandler); " + (
            "print(s.server_port); s.serve_forever()"
        )
        with python(script) as process:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            with pytest.raises(ServiceFailed, match="does not answer like a Redis"):
                answers(f"redis://127.0.0.1:{port}/0")


class TestClaim:
    def test_the_second_is_told_of_the_first(self, tmp_path: Path) -> None:
        with claimed(tmp_path, redis="redis://x"):
            assert holder(tmp_path)
            with pytest.raises(ServiceFailed, match=rf"pid {os.getpid()}, redis redis://x"), claimed(tmp_path):
                pass
        assert holder(tmp_path) is None
        with claimed(tmp_path):
            pass

    def test_a_directory_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ServiceFailed, match="--data"), claimed(tmp_path / "file" / "data"):
            pass

    def test_a_disk_that_takes_nothing(self, tmp_path: Path) -> None:
        (tmp_path / "up.json").symlink_to("/dev/full")
        with (
            pytest.raises(ServiceFailed, match=f"cannot write to {tmp_path}: No space left .*--data"),
            claimed(tmp_path),
        ):
            pass


SUPERVISED = """
import sys
from ingest.embedded.supervisor import Supervisor
supervisor = Supervisor(grace_s=float(sys.argv[1]))
for number, script in enumerate(sys.argv[2:]):
    supervisor.add_process(f"p{number}", [sys.executable, "-u", "-c", script])
supervisor.loop()
print("fallen", supervisor.fallen)
"""
SLEEPS = "import time; print('up'); time.sleep(60)"
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up'); time.sleep(60)"
#: Ends well when told, but a child of it would say so if the signal had reached it as well.
PARENT = """
import os, signal, sys, time
def child(*_):
    print("child was told"); sys.exit()
def parent(*_):
    time.sleep(0.3)  # long enough for the child to speak
    os.kill(pid, signal.SIGKILL); os.wait(); print("parent ended well"); sys.exit()
pid = os.fork()
signal.signal(signal.SIGTERM, parent if pid else child)
if pid: print("up")
time.sleep(60)
"""
#: Its child keeps its output open when it dies.
ORPHANING = """
import os, sys, time
pid = os.fork()
if pid == 0: time.sleep(60)
print("orphan", pid)
sys.exit(7)
"""


class TestSupervisor:
    @staticmethod
    def read_until_up(process: subprocess.Popen[str], count: int) -> str:
        assert process.stdout is not None
        seen = ""
        while seen.count("| up") < count:
            line = process.stdout.readline()
            assert line, seen
            seen += line
        return seen

    @pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_all(self, signum: signal.Signals) -> None:
        with python(SUPERVISED, 10, SLEEPS, PARENT) as process:
            self.read_until_up(process, 2)
            process.send_signal(signum)
            out, _ = process.communicate(timeout=15)
            assert process.returncode == 0
        assert "fallen {}" in out
        assert "parent ended well" in out
        assert "child was told" not in out

    def test_one_that_does_not_end_is_killed(self) -> None:
        with python(SUPERVISED, 0.5, STUBBORN) as process:
            self.read_until_up(process, 1)
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=15)
        assert "SIGKILL" in out
        assert "fallen {}" in out

    def test_one_that_ends_ends_the_others_and_is_named(self) -> None:
        with python(SUPERVISED, 10, SLEEPS, ORPHANING) as process:
            out, _ = process.communicate(timeout=15)
        assert "fallen {'p1': 7}" in out
        orphan = int(out.partition("orphan ")[2].split()[0])
        until(lambda: not alive(orphan))

    def test_a_signal_while_it_starts(self) -> None:
        with python(SUPERVISED, 10, SLEEPS, SLEEPS, SLEEPS) as process:
            assert process.stdout is not None
            process.stdout.readline()  # the first has started, the last may not have
            process.send_signal(signal.SIGINT)
            out, _ = process.communicate(timeout=15)
        assert "Traceback" not in out
        assert "fallen {}" in out

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux can end a process with its parent")
    def test_all_end_when_it_is_killed(self) -> None:
        with python(SUPERVISED, 10, SLEEPS, SLEEPS) as process:
            self.read_until_up(process, 2)
            pids = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
            assert len(pids) >= 4
            process.kill()
            until(lambda: not any(map(alive, pids)))


class TestEmbeddedService:
    WORKER = (
        sys.executable,
        "-c",
        "import os, redis, time; "
        "redis.Redis.from_url(os.environ['INGEST_LEDGER_URL']).set('who', os.environ['WHO']); "
        "print('working', flush=True); time.sleep(60)",
    )

    @staticmethod
    def ready(service: EmbeddedService) -> bool:
        with contextlib.closing(redis.Redis.from_url(service.redis_url)) as client:
            return client.get("who") == b"me"

    def test_runs_for_the_length_of_the_block(self) -> None:
        before = dict(os.environ)
        with embedded_service(self.ready, env={"WHO": "me"}, worker=self.WORKER) as service:
            assert service.env["INGEST_REDIS_URL"] == service.redis_url
            assert alive(service.worker.pid)
            until(lambda: "working" in service.worker_log.read_text())
            assert dict(os.environ) == before
        assert not alive(service.worker.pid)
        assert not answers(service.redis_url)
        assert not service.data.exists()

    def test_a_worker_that_does_not_boot_is_quoted(self, tmp_path: Path) -> None:
        broken = (sys.executable, "-c", "raise SystemExit('no such thing')")
        with (
            pytest.raises(ServiceFailed, match=r"status 1 .*no such thing"),
            embedded_service(lambda _: False, worker=broken, data=tmp_path),
        ):
            pass

    def test_a_worker_that_is_never_ready(self) -> None:
        with (
            pytest.raises(ServiceFailed, match=r"not ready after 0\.5 s"),
            embedded_service(lambda _: False, env={"WHO": "me"}, worker=self.WORKER, ready_s=0.5),
        ):
            pass
