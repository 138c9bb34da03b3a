"""Trainers that are killed at any moment, with DataLoader workers or after one of these, and what is left of them:
nothing.

``INGEST_INTERRUPTED=10000`` for as many of them (about a third of a second each).
"""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

pytest.importorskip("torch")

from ingest.dataset import StreamingDataset, formats
from ingest.ledger.space import READER_TTL_S
from ingest.store.disk import unnamed
from tests.servers.http import Origin
from tests.servers.node import Service, until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")

RUNS = int(os.environ.get("INGEST_INTERRUPTED", "12"))
ROOT = Path(__file__).parents[2]

#: Forks a trainer after the other, lets it come to a step of its own, and kills it there; sometimes one of its workers
#: first, which may hold a lock that torch shares among them.
TRAINERS = """
import os, random, select, signal, sys, time
from pathlib import Path
from torch.utils.data import DataLoader
import ingest
from ingest.dataset import StreamingDataset

job, runs, indexes = sys.argv[1], int(sys.argv[2]), [Path(each) for each in sys.argv[3:]]

def train(said):
    os.setsid()
    os.write(said, b".")
    dataset = StreamingDataset(ingest.Client().job(job), shuffle=True, batch_size=2, timeout=60)
    os.write(said, b".")
    while True:
        for _ in DataLoader(dataset, batch_size=2, num_workers=2, collate_fn=list, multiprocessing_context="fork"):
            os.write(said, b".")

for run in range(runs):
    draw = random.Random(run)
    for index in indexes:  # is made again, by whoever reads first, or by both workers
        index.unlink(missing_ok=True)
    hears, said = os.pipe()
    trainer = os.fork()
    if not trainer:
        train(said)
    os.close(said)
    for step in range(draw.randrange(1, 9)):
        if not select.select([hears], [], [], 60)[0] or not os.read(hears, 1):
            os.killpg(trainer, signal.SIGKILL)
            sys.exit(f"trainer {run} stood still, or ended by itself, after {step} steps")
    time.sleep(draw.uniform(0, 0.03))
    if draw.random() < 0.2:
        for worker in Path(f"/proc/{trainer}/task/{trainer}/children").read_text().split()[:1]:
            os.kill(int(worker), signal.SIGKILL)
    os.kill(trainer, signal.SIGKILL)
    os.waitpid(trainer, 0)
    os.close(hears)
    print(trainer, flush=True)
"""


def archive(number: int) -> bytes:
    with io.BytesIO() as packed, tarfile.open(fileobj=packed, mode="w") as made:
        for n in range(10):
            member = tarfile.TarInfo(f"{number}-{n}.txt")
            member.size = 2
            made.addfile(member, io.BytesIO(b"%d%d" % (number, n)))
        made.close()
        return packed.getvalue()


def processes_of(sessions: set[int]) -> list[str]:
    """The processes of these sessions that are not over."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = path.read_text().rpartition(")")
        except OSError:
            continue
        state, _, _, session = rest.split()[:4]
        if state not in "ZX" and int(session) in sessions:
            found.append(name)
    return found


def shared_memory() -> set[str]:
    """But what other programs make there, and the semaphores that Python takes back as soon as they are made."""
    others = ("sem.", "PostgreSQL.", "faketime_")
    return {path.name for path in Path("/dev/shm").iterdir() if not path.name.startswith(others)}


@pytest.mark.timeout(60 + RUNS)
def test_nothing_is_left_of_trainers_that_were_killed(service: Service, origin: Origin, tmp_path: Path) -> None:
    urls = [origin.put(f"/{n}.tar", archive(n)) for n in range(3)]
    urls.append(origin.put("/3.tar.gz", gzip.compress(archive(3))))
    client = service.client()
    job = client.submit(urls)
    paths = job.paths(timeout=60)
    expected = [b"%d%d" % (n, i) for n in range(4) for i in range(10)]
    dataset = StreamingDataset(job, timeout=30)
    assert [sample["txt"] for sample in dataset] == expected
    dataset.close()
    store, redis = service.root / "store", client.ledger.redis

    def files() -> set[Path]:
        return {path for path in store.rglob("*") if path.is_file()}

    def lasting() -> set[bytes]:
        return {key for key in redis.scan_iter(count=1000) if redis.pttl(key) == -1}

    before, kept, shared = files(), lasting(), shared_memory()
    assert {formats.index_of(path) for path in paths} < before
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    indexes = [str(formats.index_of(path)) for path in paths]
    command = [sys.executable, "-c", TRAINERS, job.id, str(RUNS), *indexes]
    env = {**service.env, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
    said, errors = tmp_path / "said", tmp_path / "errors"  # no pipes, which the workers of a killed trainer hold open
    with said.open("wb") as out, errors.open("wb") as err:
        ran = subprocess.run(command, env=env, stdout=out, stderr=err, check=False, timeout=40 + RUNS)
    assert ran.returncode == 0, errors.read_text()[-3000:]
    trainers = {int(line) for line in said.read_text().split()}
    assert len(trainers) > RUNS * 0.9, "a process id may come again"

    until(lambda: not processes_of(trainers), "the workers of killed trainers to end", 60)
    assert files() <= before, "files in the store"
    assert list(temporary.iterdir()) == []
    until(lambda: shared_memory() <= shared, "the end of what is in /dev/shm")
    assert lasting() <= kept, "keys without an end"
    now_ms = client.ledger.now_ms()
    held = redis.zrange(client.ledger.key("readers", job.id), 0, -1, withscores=True)
    assert held and all(until_ms - now_ms <= READER_TTL_S * 1000 for _, until_ms in held)
    again = StreamingDataset(job, timeout=30)
    assert [sample["txt"] for sample in again] == expected
    again.close()


#: Is killed at each line of what writes an index, one after the other, and prints what each left.
WRITERS = """
import json, os, signal, sys
from pathlib import Path
from ingest.dataset.formats import index

path, before = Path(sys.argv[1]), sys.argv[2]

def write(at):
    lines = 0

    def traced(frame, event, arg):
        nonlocal lines
        if "/formats/index.py" not in frame.f_code.co_filename:
            return None
        lines += event == "line"
        if lines == at:
            os.kill(os.getpid(), signal.SIGKILL)
        return traced

    sys.settrace(traced)
    index._write(path, b"whole")
    sys.settrace(None)
    os._exit(0)

at, status = 0, 1
while status:
    at += 1
    path.unlink(missing_ok=True)
    if before:
        path.write_text(before)
    writer = os.fork() or write(at)
    status = os.waitpid(writer, 0)[1]
    print(json.dumps({each.name: each.read_text() for each in path.parent.iterdir()}))
"""


@pytest.mark.parametrize("before", ["", "old"])
def test_who_is_killed_while_it_writes_an_index_leaves_a_whole_one_or_none(tmp_path: Path, before: str) -> None:
    if (file := unnamed(tmp_path)) is None:
        pytest.skip("this filesystem has no files without names")
    os.close(file)
    command = [sys.executable, "-c", WRITERS, str(tmp_path / "index"), before]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    left = [json.loads(line) for line in ran.stdout.splitlines()]
    assert len(left) > 5 and left[-1] == {"index": "whole"}
    assert all(each in ({}, {"index": before}, {"index": "whole"}) for each in left), left
