"""A real Ceph object gateway (S3) on loopback for tests: a monitor, an OSD that keeps all in memory, and radosgw,
as the current user, in a folder of their own. Needs the Debian packages in ``PACKAGES``. No assertions here.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import botocore.session
from botocore.config import Config

from tests.servers.s3 import S3Server

PROGRAMS = ("monmaptool", "ceph-mon", "ceph-osd", "ceph", "radosgw", "radosgw-admin")
PACKAGES = "ceph-mon ceph-osd ceph-common radosgw"
KEY, SECRET = "ceph-test", "ceph-test-secret"
START_S = 60.0

#: One copy, in memory, without authentication: a cluster that is gone when its test is. No manager: nothing here
#: needs one, and it takes 300 MB.
CONF = """
[global]
fsid = {fsid}
mon initial members = a
mon host = [v1:127.0.0.1:{mon}/0]
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 4
mon warn on pool no redundancy = false
mon allow pool size one = true
mon data avail crit = 0
mon data avail warn = 0
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4294967296
ms bind ipv6 = false
public addr = 127.0.0.1
run dir = {dir}
pid file =
log file = {dir}/$name.log
log to stderr = false
err to stderr = true
admin socket = {dir}/$name.sock
mon cluster log file = {dir}/cluster.log
mon data = {dir}/mon
osd data = {dir}/osd
[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw data = {dir}/rgw
rgw dns name = localhost
"""


def missing() -> list[str]:
    """The programs that are not installed here."""
    path = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
    return [program for program in PROGRAMS if shutil.which(program, path=path) is None]


@contextmanager
def ceph_server() -> Iterator[S3Server]:
    """Ready in about 12 s. Raises RuntimeError with the last of the logs when it does not start."""
    # A short path: the admin sockets lie in it.
    folder = Path(tempfile.mkdtemp(prefix="ceph-"))
    try:
        with ExitStack() as stack:
            yield _Cluster(folder, stack).start()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Cluster:
    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self._stack = folder, stack
        self.port, mon = _free_ports(2)
        self._mon, self._fsid = mon, str(uuid.uuid4())
        for name in ("mon", "osd", "rgw"):
            (folder / name).mkdir()
        (folder / "ceph.conf").write_text(CONF.format(fsid=self._fsid, mon=mon, port=self.port, dir=folder))
        path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin"
        self._env = {**os.environ, "PATH": path, "CEPH_CONF": str(folder / "ceph.conf")}

    def start(self) -> S3Server:
        monmap = str(self.folder / "monmap")
        self._run("monmaptool", "--create", "--fsid", self._fsid, "--addv", "a", f"[v1:127.0.0.1:{self._mon}]", monmap)
        self._run("ceph-mon", "-i", "a", "--mkfs", "--monmap", monmap)
        self._daemon("ceph-mon", "-i", "a", "-f")
        osd = str(uuid.uuid4())
        self._run("ceph", "osd", "new", osd)
        self._run("ceph-osd", "-i", "0", "--mkfs", "--no-mon-config", "--osd-uuid", osd)
        self._osd()
        gateway = self._daemon("radosgw", "-n", "client.rgw", "-f")
        endpoint = f"http://127.0.0.1:{self.port}"
        self._until("the gateway to answer", lambda: _answers(endpoint), gateway)
        self._run(
            "radosgw-admin", "user", "create", "--uid=test", "--display-name=test",
            f"--access-key={KEY}", f"--secret-key={SECRET}",
        )  # fmt: skip
        client = botocore.session.Session().create_client(
            "s3", region_name="us-east-1", endpoint_url=endpoint, aws_access_key_id=KEY, aws_secret_access_key=SECRET,
            config=Config(retries={"total_max_attempts": 3}, s3={"addressing_style": "path"}),
        )  # fmt: skip
        self._stack.callback(client.close)
        return S3Server(endpoint, client, KEY, SECRET)

    def _osd(self) -> None:
        """The OSD may meet the monitor before that has the cluster's id ("wrong fsid"), and ends: then once more."""
        daemon: list[subprocess.Popen[bytes]] = []

        def up() -> bool:
            if not daemon or daemon[-1].poll() is not None:
                daemon.append(self._daemon("ceph-osd", "-i", "0", "-f"))
            return bool(json.loads(self._run("ceph", "osd", "stat", "--format", "json"))["num_up_osds"])

        self._until("the OSD to be up", up, None)

    def _run(self, *command: str) -> bytes:
        done = subprocess.run(command, env=self._env, cwd=self.folder, capture_output=True, timeout=START_S)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.decode(errors='replace')[-2000:]}")
        return done.stdout

    def _daemon(self, *command: str) -> subprocess.Popen[bytes]:
        with open(self.folder / f"{command[0]}.out", "ab") as out:
            process = subprocess.Popen(command, env=self._env, cwd=self.folder, stdout=out, stderr=out)
        self._stack.callback(_end, process)
        return process

    def _until(self, what: str, ready: Callable[[], bool], process: subprocess.Popen[bytes] | None) -> None:
        deadline = time.monotonic() + START_S
        while not ready():
            if time.monotonic() > deadline or (process is not None and process.poll() is not None):
                said = "\n".join(p.read_text(errors="replace")[-1500:] for p in sorted(self.folder.glob("*.out")))
                raise RuntimeError(f"waited in vain for {what}:\n{said}")
            time.sleep(0.1)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It keeps nothing, so it need not end well."""
    process.kill()
    process.wait()


def _answers(endpoint: str) -> bool:
    try:
        with urllib.request.urlopen(endpoint, timeout=2):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except OSError:
        return False


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [int(each.getsockname()[1]) for each in sockets]
    finally:
        for each in sockets:
            each.close()
