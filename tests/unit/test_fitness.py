"""Whether a store can be worked in, and whose fault an error of the disk is: in real folders, as root or not."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ingest.errors import NodeUnfit
from ingest.model import FileSpec
from ingest.sections import StoreLimits
from ingest.store import Scratch, Store
from ingest.store.audit import records
from ingest.store.disk import DISK, is_disk, probe
from ingest.store.ground import ground, was_removed
from ingest.store.layout import source_dir
from tests.faults.disks import injected
from tests.servers.node import until
from tests.servers.swap import swap
from workers import fitness, holding
from workers.fitness import Fitness

SPEC = FileSpec(0, 0, "https://host/a")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(StoreLimits(root=tmp_path / "store", min_free_bytes=0))


def look(store: Store) -> str:
    return probe(store.root, store.id, store.limits).reason


def test_a_store_that_is_well_is_left_as_it_was(store: Store) -> None:
    assert look(store) == ""
    assert list((store.root / "scratch").iterdir()) == []


def test_a_mount_that_is_gone_shows_an_empty_folder_and_is_not_written_to(store: Store) -> None:
    store.root.rename(store.root.parent / "away")
    assert "mounted" in look(store), "nothing there at all"
    store.root.mkdir()
    assert "mounted" in look(store) and list(store.root.iterdir()) == []
    with pytest.raises(NodeUnfit), store.scratch("k" * 40, SPEC, on_bytes=lambda n: None, max_bytes=100):
        pass
    with pytest.raises(FileNotFoundError):
        store.write_manifest("j1", "0", b"{}")
    assert list(store.root.iterdir()) == [], "what lies under the mount is not filled"
    store.root.rmdir()
    (store.root.parent / "away").rename(store.root)
    assert look(store) == ""


def test_another_store_in_its_place_takes_nothing(store: Store) -> None:
    """Also what is in the making goes back when it is to be published: the next look may be seconds away."""

    def scratch() -> AbstractContextManager[Scratch]:
        return store.scratch("k" * 40, SPEC, on_bytes=lambda n: None, max_bytes=9)

    with pytest.raises(NodeUnfit, match="another store"), scratch() as file:  # noqa: PT012
        file.write(b"bytes")
        store.root.rename(store.root.parent / "away")
        other = Store.open(store.limits)
        store.publish("k" * 40, SPEC, file)
    with pytest.raises(NodeUnfit, match="another store"), scratch():
        pass
    assert [*records(other)] == [] and [*(other.root / "data").iterdir(), *(other.root / "scratch").iterdir()] == []


def test_another_store_in_its_place_is_told_from_it(store: Store) -> None:
    store.root.rename(store.root.parent / "away")
    Store.open(store.limits)
    assert "another store" in look(store)
    (store.root / "STORE_ID").write_bytes(b"\xff\xfe")
    assert "STORE_ID" in look(store)


@pytest.mark.parametrize("part", ["scratch", "data", "manifests"])
def test_a_folder_that_is_a_file_or_missing(store: Store, part: str) -> None:
    (store.root / part).rmdir()
    assert "a part of it is missing" in look(store)
    (store.root / part).write_text("")
    assert f"{store.root / part} is in the way; remove it" in look(store)


PARTS = ["data", "manifests", "scratch", "STORE_ID"]


@pytest.mark.parametrize("removed", [["."], PARTS, *([part] for part in PARTS)], ids=" ".join)
def test_what_was_removed_is_made_again_and_keeps_its_id(store: Store, removed: list[str]) -> None:
    watched = Fitness(store, "n1", hangs_s=60)
    watched.look()
    assert watched.reason == ""
    for name in removed:
        path = store.root / name
        path.unlink() if path.is_file() else shutil.rmtree(path)
    watched.look()
    assert "a part of it is missing" in watched.reason and "made again" in watched.reason
    watched.look()
    assert watched.reason == "" and Store.open(store.limits).id == store.id


@pytest.mark.parametrize("linked", [False, True])
@pytest.mark.parametrize("what", ["the store", "a folder above it"])
def test_what_lies_on_a_filesystem_that_is_gone_is_not_made_again(tmp_path: Path, what: str, linked: bool) -> None:
    """Its mount point shows: an empty folder, and another one than was there."""
    root = tmp_path / "disk" / "store"
    root.mkdir(parents=True)
    if linked:
        (tmp_path / "link").symlink_to(root)
    store = Store.open(StoreLimits(root=tmp_path / "link" if linked else root, min_free_bytes=0))
    watched = Fitness(store, "n1", hangs_s=60)
    watched.look()
    point = root if what == "the store" else root.parent
    (tmp_path / "point").mkdir()
    swap(tmp_path / "point", point)
    for one in (watched, Fitness(store, "n1", hangs_s=60)):  # the other never saw it well
        one.look()
        one.look()
        assert "mounted" in one.reason and "removed" not in one.reason
    assert list(point.iterdir()) == []
    swap(tmp_path / "point", point)
    watched.look()
    assert watched.reason == ""


def test_another_device_is_another_folder_whatever_its_inode(store: Store) -> None:
    before = ground(store.root)
    assert was_removed(before, before) and was_removed(before, before[1:]) and not was_removed(before, ())
    assert not was_removed((), before)
    assert not was_removed(before, (before[1]._replace(device=-1), *before[2:]))


PLAIN = """
import sys
from pathlib import Path
from ingest.errors import NodeUnfit
from ingest.model import FileSpec
from ingest.sections import StoreLimits
from ingest.store import Store
from ingest.store.disk import probe
limits = StoreLimits(root=Path(sys.argv[1]), min_free_bytes=0)
store = Store.attach(limits)
print(probe(store.root, store.id, limits).reason)
spec = FileSpec(0, 0, "https://host/a")
try:
    with store.scratch(store.key(spec), spec, on_bytes=lambda n: None, max_bytes=9) as file:
        store.publish(store.key(spec), spec, file)
except NodeUnfit as error:
    print(error.reason)
"""


def test_folders_that_another_user_made_are_tried_as_well(store: Store) -> None:
    """Two users share a store whose own folders both may write. What the first publishes is in folders that are its
    own; so the second one's probe must say what its publishing would meet."""
    bucket = source_dir(store.root, store.key(SPEC)).parent

    def said() -> str:
        command, env = [sys.executable, "-c", PLAIN, str(store.root)], os.environ | injected(FAULTS_PLAIN="1")
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=True).stdout

    assert said() == "\n" and bucket.is_dir(), "there is none yet: it is published"
    shutil.rmtree(bucket)
    bucket.mkdir(0o500)
    lines = said().splitlines()
    assert len(lines) == 2 and all("may not write" in line and str(bucket) in line for line in lines), lines


LIMITED = """
import sys, resource
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
from pathlib import Path
from ingest.errors import NodeUnfit
from ingest.model import FileSpec
from ingest.sections import StoreLimits
from ingest.store import Store
from ingest.store.disk import probe
limits = StoreLimits(root=Path(sys.argv[1]), min_free_bytes=0)
store = Store.attach(limits)
print(probe(store.root, store.id, limits).reason)
try:
    with store.scratch("k" * 40, FileSpec(0, 0, "https://host/a"), on_bytes=lambda n: None, max_bytes=1 << 20) as file:
        file.write(b"x" * 20000)
except NodeUnfit as error:
    print(error.reason)
"""


def test_a_disk_that_takes_no_more_is_the_nodes_fault(store: Store) -> None:
    """A limit on the size of files is the one refusal to write that any user can bring about, and root meets, too."""
    command = [sys.executable, "-c", LIMITED, str(store.root)]
    small = subprocess.run([*command, "1000"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert small.count("ulimit -f") == 1 and "disk is full" in small, "a short write, then a refusal"
    large = subprocess.run([*command, "10000"], capture_output=True, text=True, timeout=60, check=True).stdout
    assert large.splitlines()[0] == "" and "ulimit -f" in large, "what the probe does not meet, the shard does"


INTO = """
import sys, resource
from pathlib import Path
from ingest.errors import NodeUnfit
from ingest.settings import Settings
from ingest.store import Piece
from workers.destinations import Into
source = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    into = Into(sys.argv[2], Settings(), lambda uri: None, lambda: None)
    into.put("https://host/a", source, Piece("data/a", 5000, "sha256:aa"), "a", "tag")
except NodeUnfit as error:
    print(error.reason)
"""


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="needs a second filesystem (/dev/shm)")
def test_a_folder_of_the_users_whose_disk_takes_no_more_is_no_failure_of_the_source(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x" * 5000)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        command = [sys.executable, "-c", INTO, str(tmp_path / "a"), elsewhere]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
        assert "into: cannot be written" in done and os.listdir(elsewhere) == []


FULL = """
import sys, resource
from pathlib import Path
from ingest.sections import StoreLimits
from ingest.store import Store
from workers.fitness import Fitness
store = Store.attach(StoreLimits(root=Path(sys.argv[1]), min_free_bytes=0))
asked = []

def make_room(missing):
    asked.append(missing())
    if sys.argv[2] == "some":
        resource.setrlimit(resource.RLIMIT_FSIZE, (10000, 10000))
    return "" if missing() == 0 else "held are 9 bytes by job j1"

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 10000))
fitness = Fitness(store, "n1", 60, make_room)
fitness.look()
print(len(asked), asked[0] > 0, fitness.reason)
"""


@pytest.mark.parametrize(("there_is", "said"), [("some", ""), ("none", "held are 9 bytes by job j1")])
def test_of_a_disk_that_is_full_room_is_made_before_the_node_is_unfit(store: Store, there_is: str, said: str) -> None:
    """A claim would do it, and an unfit node is given none. What stands for the disk is the limit on a file's size."""
    command = [sys.executable, "-c", FULL, str(store.root), there_is]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    assert done.startswith("1 True") and done.endswith(said) and ("full" in done) == bool(said)


@pytest.mark.parametrize("number", sorted(DISK))
def test_an_error_of_the_disk_is_never_one_of_the_source(store: Store, number: int) -> None:
    with pytest.raises(NodeUnfit) as caught, store.scratch("k" * 40, SPEC, on_bytes=len.__call__, max_bytes=9):  # type: ignore[arg-type]
        raise OSError(number, os.strerror(number))
    assert str(store.root) in caught.value.reason


def test_what_is_missing_elsewhere_is_not_the_stores_fault(store: Store, tmp_path: Path) -> None:
    for path, ours in ((tmp_path / "source", False), (store.root / "scratch" / "x", True)):
        with pytest.raises(FileNotFoundError) as caught:
            path.open()
        assert is_disk(caught.value, store.root) is ours
    assert not is_disk(OSError("a library's own words"), store.root)
    assert not is_disk(ConnectionResetError(errno.ECONNRESET, "reset"), store.root)


def test_a_look_that_hangs_is_seen_and_its_end_too(store: Store) -> None:
    """A FIFO stands for a network filesystem that is gone: whoever opens it waits."""
    told = holding.table()
    watched = Fitness(store, "n1", hangs_s=0.2)
    watched.look()
    assert watched.heed(told) == "" and not fitness.is_told_unfit(told) and watched.free_bytes > 0
    real = (store.root / "STORE_ID").read_text()
    (store.root / "STORE_ID").unlink()
    os.mkfifo(store.root / "STORE_ID")
    thread = threading.Thread(target=watched.look, daemon=True)
    begun = time.monotonic()
    thread.start()
    assert watched.reason == "" or time.monotonic() - begun > 0.2, "not before its time"
    until(lambda: "does not answer" in watched.heed(told), "it is seen to hang")
    assert fitness.is_told_unfit(told)
    (store.root / "STORE_ID").write_text(real)  # whoever waited reads it
    thread.join(10)
    assert watched.heed(told) == "" and not fitness.is_told_unfit(told)
