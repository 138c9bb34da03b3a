"""What a dataset holds, and that it lets go of it: threads, sockets, readers, and workers whose parent is gone."""

from __future__ import annotations

import gc
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

pytest.importorskip("torch")

from ingest.dataset import StreamingDataset, relay
from ingest.dataset.wire import Line, Server
from ingest.errors import IngestError, WaitTimeout
from tests.unit.dataset.fakes import FakeJob, expected, finished_job, until


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("ingest-feed")]


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors in /proc")
def test_a_hundred_datasets_leave_no_thread_no_socket_and_no_open_reader(tmp_path: Path) -> None:
    gc.collect()
    until(lambda: not threads(), f"threads of earlier tests: {threads()}")
    before = descriptors()
    jobs = []
    for _ in range(100):
        jobs.append(FakeJob())  # never ends: only the dataset's own end can stop its threads
        dataset = StreamingDataset(jobs[-1])
        del dataset
    done = StreamingDataset(finished_job(tmp_path, 2, 2))
    assert list(done) == expected(2, 2)
    done.close()
    del done
    gc.collect()
    until(lambda: not threads(), "threads of datasets that are gone")
    assert descriptors() <= before
    assert {job.closed for job in jobs} == {1}


def test_close_ends_who_waits() -> None:
    job = FakeJob()
    dataset = StreamingDataset(job, timeout=60)
    threading.Timer(0.2, dataset.close).start()
    with pytest.raises(IngestError, match="was closed"):
        list(dataset)
    until(lambda: job.closed == 1, "the reader to be closed")


def test_a_reader_rests_once_the_job_has_ended_and_holds_the_files_while_the_dataset_is_there(tmp_path: Path) -> None:
    job = finished_job(tmp_path, 2, 2)
    dataset = StreamingDataset(job)
    until(lambda: job.rested == 1, "the reader of a job that is over to let go of its connection")
    assert list(dataset) == list(dataset) == expected(2, 2)
    assert job.closed == 0
    dataset.close()
    until(lambda: job.closed == 1, "the reader to let go of the files")


PARENT = """
import os, signal, sys
from torch.utils.data import DataLoader
from ingest.dataset import StreamingDataset
from tests.unit.dataset.fakes import FakeJob, write_lines
from pathlib import Path

def main():
    job = FakeJob()
    job.add(*[1] * 6)
    for n in range(3):
        job.end(n, [write_lines(Path(sys.argv[1]), f"{n}.jsonl", [n])])
    dataset = StreamingDataset(job, timeout=600)
    loader = DataLoader(dataset, batch_size=None, num_workers=3, multiprocessing_context="fork")
    samples = iter(loader)
    got = sorted(next(samples) for _ in range(3))
    idle = os.fork()  # keeps copies of all that is open here, as any child that is forked and not exec'ed does
    if not idle:
        signal.pause()
    print(got, idle, *(worker.pid for worker in samples._workers), flush=True)
    next(samples)  # never comes

main()
"""


def gone(pid: int) -> bool:
    """Ended, whether or not somebody has asked for its exit status."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_workers_end_when_their_rank_process_is_killed(tmp_path: Path) -> None:
    root = Path(__file__).parents[3]
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path)],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert parent.stdout is not None
        line = parent.stdout.readline()
        assert line.startswith("[0, 1, 2] "), line
        idle, *workers = (int(pid) for pid in line.partition("]")[2].split())
        assert len(workers) == 3 and not any(map(gone, workers))
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()
    try:
        until(lambda: all(map(gone, workers)), "the workers of a killed rank process to end", 15.0)
    finally:
        for pid in (idle, *workers):
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


def test_the_interpreter_ends_at_once_with_a_dataset_open() -> None:
    code = (
        "from tests.unit.dataset.fakes import FakeJob\nfrom ingest.dataset import StreamingDataset\n"
        "dataset = StreamingDataset(FakeJob())\nprint('made')"
    )
    root = Path(__file__).parents[3]
    ended = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=30)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "made\n", "")


def test_a_stranger_is_sent_away_and_disturbs_nobody() -> None:
    server = Server(lambda request: {"echo": request["ask"]})
    try:
        with pytest.raises(IngestError, match="gone"):
            Line(server.address, b"x" * 32, 5.0)
        silent = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        silent.connect(server.address)
        line = Line(server.address, server.key, 5.0)
        assert line.ask({"ask": "é"}) == {"echo": "é"}
        line.close()
        silent.close()
    finally:
        server.close()


def test_an_answer_that_does_not_come_has_a_deadline_and_a_closed_server_an_end() -> None:
    release = threading.Event()
    server = Server(lambda request: {"late": release.wait(20)})
    line = Line(server.address, server.key, 0.5)
    with pytest.raises(IngestError, match="no answer"):
        line.ask({})
    release.set()
    line.close()
    waiting = Line(server.address, server.key, 20.0)
    release.clear()
    threading.Timer(0.2, server.close).start()
    with pytest.raises(IngestError, match="gone, or has closed"):
        waiting.ask({})
    release.set()
    waiting.close()
    with pytest.raises(IngestError, match="gone"):
        Line(server.address, server.key, 1.0)


def test_errors_keep_class_and_fields_on_the_wire_and_class_and_message_through_torch() -> None:
    error = WaitTimeout("j", 3.0, "shard 1")
    back = relay.from_wire(json.loads(json.dumps(relay.to_wire(error))))
    assert type(back) is WaitTimeout and str(back) == str(error)
    twin = relay.twin(error)
    assert isinstance(twin, WaitTimeout) and str(type(twin)("Caught it")) == "Caught it"
    assert type(pickle.loads(pickle.dumps(twin))) is type(twin)
    assert "a class of tomorrow" in str(relay.from_wire({"error": "Tomorrow", "args": ["a class of tomorrow"]}))


def test_torch_is_named_when_it_is_missing_and_not_loaded_before() -> None:
    code = (
        "import sys, ingest.dataset\nassert 'torch' not in sys.modules\nsys.modules['torch'] = None\n"
        "try:\n    from ingest.dataset import StreamingDataset\nexcept ImportError as error:\n    print(error)"
    )
    root = Path(__file__).parents[3]
    said = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=30)
    assert "pip install 'ingest[torch]'" in said.stdout, said.stderr


#: A worker that waits for a lock that nobody will ever release.
ORPHAN = """
import multiprocessing, os, signal
from ingest.dataset import orphan

orphan.LOOK_S, orphan.GRACE_S = 0.05, 0.1
lock = multiprocessing.Lock()
lock.acquire()
if not os.fork():
    for _ in range(2):
        orphan.end_with_parent()
    print(os.getpid(), flush=True)
    lock.acquire()
signal.pause()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts threads in /proc")
def test_a_worker_that_waits_for_a_lock_ends_with_its_parent() -> None:
    root = Path(__file__).parents[3]
    with subprocess.Popen([sys.executable, "-c", ORPHAN], cwd=root, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        assert len(list(Path(f"/proc/{worker}/task").iterdir())) == 2, "one thread looks, however often it is asked"
        parent.kill()
        assert parent.stdout.read() == "", "its end is told when nobody has it any more"
