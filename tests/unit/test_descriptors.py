"""Whose fault it is when a process can open no more files: in a process of its own, with a real limit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ingest.errors import DigestMismatch, NotFound, SourceChanged
from workers.descriptors import own_fault, raise_own_fault

OUT = """
import os, resource, socket, sqlite3, sys
from ingest.errors import ConnectionLost, DigestMismatch, NodeUnfit, NotFound
from workers.descriptors import own_fault

def lost():
    try:
        socket.create_connection(("127.0.0.1", 9))
    except OSError as error:
        found = ConnectionLost("https://host/a", "the connection failed")
        found.__cause__ = error
        return found

def not_found():
    try:
        sqlite3.connect(sys.argv[1])
    except sqlite3.Error as error:
        found = NotFound("sql://db", "unable to open database file")
        found.__cause__ = error
        return found

sqlite3.connect(sys.argv[1]).close()
taken = []
resource.setrlimit(resource.RLIMIT_NOFILE, (40, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
try:
    while True:
        taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError:
    pass
named, hidden = lost(), not_found()
print(type(own_fault(named)).__name__, type(own_fault(hidden)).__name__, own_fault(hidden).reason)
print(own_fault(DigestMismatch("https://host/a", "sha256:a", "sha256:b", 1)))
os.close(taken.pop())
os.close(taken.pop())
print(type(own_fault(hidden)).__name__)
for file in taken:
    os.close(file)
print(type(own_fault(named)).__name__, own_fault(hidden))
"""


def test_out_of_files_is_the_nodes_fault_whatever_a_library_says(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OUT, str(tmp_path / "db.sqlite")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    during, bytes_, nearly, after = done.stdout.splitlines()
    assert during.startswith("NodeUnfit NodeUnfit") and "ulimit -n" in during
    assert bytes_ == "None", "what came is judged as ever"
    assert nearly == "NodeUnfit", "a library that wanted more than one has given back those that it had"
    assert after == "NodeUnfit None", "what says its number is known later, too"


def test_what_an_origin_says_is_its_own() -> None:
    for error in (NotFound("https://host/a", "404"), SourceChanged("https://host/a", "ETag")):
        assert own_fault(error) is None
        raise_own_fault(error)
    assert own_fault(DigestMismatch("https://host/a", "sha256:a", "sha256:b", 1)) is None
    panic = NotFound("s3://b/a", 'Os { code: 24, kind: TooManyOpenFiles, message: "Too many open files" }')
    assert own_fault(panic) is not None, "said by a library that has no error numbers"


TABLE = """
import resource
from workers import fitness, holding
table = holding.table()
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
fitness.tell(table, fit=False)
holding.hold("j1.0", "7")
import os
print(fitness.is_told_unfit(table), holding.holds(table, os.getpid(), "j1.0", "7"))
holding.let_go()
print(holding.holds(table, os.getpid(), "j1.0", "7"))
"""


def test_what_is_in_hand_is_told_where_no_file_may_grow() -> None:
    """Else the heart of a node whose user has a limit on the size of files would not beat, and say why."""
    done = subprocess.run([sys.executable, "-c", TABLE], stdout=subprocess.PIPE, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True", "True", "False"]


UNSYNCED = """
import os, sys
from pathlib import Path
from ingest.errors import NodeUnfit
from ingest.model import FileSpec
from ingest.sections import StoreLimits
from ingest.store import Store
root = Path(sys.argv[1])
store = Store.open(StoreLimits(root=root, min_free_bytes=0))
spec = FileSpec(0, 0, "https://host/a")

def attempt(fails_at_end=False):
    with store.scratch("k" * 40, spec, on_bytes=lambda n: None, max_bytes=100) as file:
        print(file.size, end=" ")
        file.note('"v1"', 10)
        file.write(b"01234")
        if fails_at_end:
            Path(f"{root}.eio").touch()
            store.publish("k" * 40, spec, file)

attempt()
try:
    attempt(fails_at_end=True)
except NodeUnfit as error:
    print(error.reason, end=" ")
Path(f"{root}.eio").unlink()
print("", os.listdir(root / "scratch"), "")
attempt()
"""


def test_bytes_whose_fsync_failed_are_not_gone_on_with(tmp_path: Path) -> None:
    """fsync says it once: after that the kernel has pages that are not on the disk for clean."""
    tests = Path(__file__).parents[1]
    path = [str(tests / "faults" / "injected"), str(tests.parent), os.environ.get("PYTHONPATH", "")]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), "FAULTS_EIO": str(tmp_path / "store")}
    command = [sys.executable, "-c", UNSYNCED, str(tmp_path / "store")]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=60, check=True, env=env).stdout
    assert done.startswith("0 5 ") and "input/output error" in done and done.split()[-1] == "0", "from the beginning"
    assert " [] " in done, "nothing of it is left in scratch"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_look_leaves_nothing_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    own_fault(NotFound("https://host/a", "404"))
    assert len(os.listdir("/proc/self/fd")) == before
