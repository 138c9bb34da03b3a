"""Ways to hurt the disk of one node's store, and to heal it: real filesystems in a mount namespace where the machine
allows them to everybody, and what any user can do to a folder and to processes."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ingest.sections import StoreLimits
from ingest.store import Store
from tests.faults.rig import all_processes
from tests.servers.node import Worker
from tests.servers.swap import swap

INJECTED = Path(__file__).parent / "injected"
#: More than a rig's load fetches in a few minutes.
DISK_BYTES = 900 << 20


class Disk(ABC):
    """The disk below a store at ``root``. ``says`` is a part of what the node says of it, once it is hurt; ``env`` is
    what its worker needs."""

    says = ""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.env: dict[str, str] = {"INGEST_STORE": str(root)}

    @abstractmethod
    def hurt(self, worker: Worker) -> None: ...

    @abstractmethod
    def heal(self, worker: Worker) -> None: ...


class RenamedAway(Disk):
    """What is seen of a mount that is gone: an empty folder."""

    says = "mounted"

    @property
    def _away(self) -> Path:
        return self.root.with_name(f"{self.root.name}-away")

    def hurt(self, worker: Worker) -> None:
        self._away.mkdir()
        swap(self.root, self._away)

    def heal(self, worker: Worker) -> None:
        assert list(self.root.iterdir()) == [], "nothing is written where the store is not"
        swap(self.root, self._away)
        self._away.rmdir()


class OtherStore(Disk):
    """Another one is mounted over it."""

    says = "another store"

    @property
    def _other(self) -> Path:
        return self.root.with_name(f"{self.root.name}-other")

    def hurt(self, worker: Worker) -> None:
        Store.open(StoreLimits(root=self._other))
        swap(self.root, self._other)

    def heal(self, worker: Worker) -> None:
        swap(self.root, self._other)
        left = [path for path in (self._other / "data").rglob("*") if path.is_file()]
        assert left == [], "nothing is published into another store"
        shutil.rmtree(self._other)


class FileSizes(Disk):
    """The one refusal to write that any user can bring about, and root meets, too: files may not be longer than a few
    bytes. In processes that run."""

    says = "full"

    def hurt(self, worker: Worker) -> None:
        self._limit(worker, 100)

    def heal(self, worker: Worker) -> None:
        self._limit(worker, None)

    def _limit(self, worker: Worker, most: int | None) -> None:
        for pid in all_processes(worker):
            if pid != worker.process.pid:  # which writes nothing, and whose new children are to be hurt no more
                with suppress(ProcessLookupError):
                    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (hard if most is None else most, hard))


class Modes(Disk):
    """Folders in which this user may not write any more."""

    says = "may not write"
    folders: tuple[str, ...] = ("scratch",)

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.env |= injected(FAULTS_PLAIN="1")

    def hurt(self, worker: Worker) -> None:
        for folder in self.folders:
            (self.root / folder).chmod(0o500)

    def heal(self, worker: Worker) -> None:
        for folder in self.folders:
            (self.root / folder).chmod(0o700)


class ModesOfData(Modes):
    folders = ("data", "manifests")


class Unsynced(Disk):
    """fsync fails: what was written may be on the disk, or not."""

    says = "input/output error"

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.env |= injected(FAULTS_EIO=str(root))
        self._flag = Path(f"{root}.eio")

    def hurt(self, worker: Worker) -> None:
        self._flag.touch()

    def heal(self, worker: Worker) -> None:
        self._flag.unlink()


def injected(**env: str) -> dict[str, str]:
    """The environment of a worker that reads ``injected/sitecustomize.py``."""
    project = str(Path(__file__).parents[2])
    return env | {"PYTHONPATH": os.pathsep.join(filter(None, [str(INJECTED), project, os.environ.get("PYTHONPATH")]))}


class Mounted(Disk):
    """A filesystem of its own: a tmpfs in a mount namespace that ``holder`` keeps, shown to everybody under its
    ``/proc/PID/root``. So nobody needs to be root, and nothing is mounted that others see."""

    def __init__(self, root: Path, holder: int) -> None:
        super().__init__(Path(f"/proc/{holder}/root{root}"))
        self.inside, self._holder = root, holder

    @property
    def whole(self) -> Path:
        """The filesystem's top, of which the store is a part."""
        return Path(f"{self.root}-disk")

    def mount(self, *commands: str) -> None:
        words = ["nsenter", "--target", str(self._holder), "--user", "--mount", "--preserve-credentials"]
        for command in commands:
            subprocess.run([*words, *command.split()], check=True, timeout=30)


class Full(Mounted):
    """Something else fills the disk, and takes whatever is given up."""

    says = "full"
    _thread: threading.Thread

    def hurt(self, worker: Worker) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._fill, daemon=True)
        self._fill_once()
        self._thread.start()

    def _fill(self) -> None:
        while not self._over.wait(0.02):
            self._fill_once()

    def _fill_once(self) -> None:
        with open(self.whole / "ballast", "ab", buffering=0) as file:
            step = 64 << 20
            while step >= 1:
                try:
                    at = os.fstat(file.fileno()).st_size
                    os.posix_fallocate(file.fileno(), at, step)
                except OSError:
                    step //= 4

    def heal(self, worker: Worker) -> None:
        self._over.set()
        self._thread.join()
        (self.whole / "ballast").unlink()


class ReadOnly(Mounted):
    """Another mount of the same folder lies over it, read-only: a plain remount waits for those who write."""

    says = "read-only"

    def hurt(self, worker: Worker) -> None:
        self.mount(f"mount --bind {self.inside}-ro {self.inside}")

    def heal(self, worker: Worker) -> None:
        self.mount(f"umount -l {self.inside}")


class Unmounted(Mounted):
    says = "mounted"

    def hurt(self, worker: Worker) -> None:
        self.mount(f"umount -l {self.inside}")

    def heal(self, worker: Worker) -> None:
        assert list(self.root.iterdir()) == [], "nothing is written where the store is not"
        self.mount(f"mount --bind {self.inside}-disk/store {self.inside}")


_HOLD = """
mkdir -p {0} {0}-disk {0}-ro && mount -t tmpfs -o size={1} none {0}-disk && mkdir {0}-disk/store &&
mount --bind {0}-disk/store {0} && mount --bind {0}-disk/store {0}-ro && mount -o remount,bind,ro {0}-ro &&
echo ready && exec cat
"""


@contextmanager
def mounted(root: Path) -> Iterator[int]:
    """The process that keeps such a namespace, with a tmpfs of ``DISK_BYTES``. Raises OSError saying why the machine
    does not allow it."""
    missing = [name for name in ("unshare", "nsenter", "mount") if shutil.which(name) is None]
    if missing:
        raise OSError(f"no {', '.join(missing)} (util-linux)")
    script = _HOLD.format(root, DISK_BYTES)
    command = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as holder:
        assert holder.stdout is not None and holder.stdin is not None
        said = holder.stdout.readline()
        try:
            if said != b"ready\n":
                raise OSError(f"no mount in a user namespace: {(said + holder.stdout.read()).decode().strip()}")
            yield holder.pid
        finally:
            holder.stdin.close()


#: What is hurt, by its name in the journal.
ALWAYS: dict[str, Callable[[Path], Disk]] = {
    "vanished, renamed away": RenamedAway,
    "another store in its place": OtherStore,
    "takes no more bytes (file size limit)": FileSizes,
    "wrong permissions, scratch": Modes,
    "wrong permissions, data": ModesOfData,
    "fsync error": Unsynced,
}
WITH_MOUNTS: dict[str, Callable[[Path, int], Mounted]] = {
    "disk full": Full,
    "read-only": ReadOnly,
    "vanished mount": Unmounted,
}
