"""A store with a budget, from outside: two nodes share it, jobs hold and let go, and it never has more than it may."""

from __future__ import annotations

import hashlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ingest import Client, Job
from tests.servers.budget import never_more
from tests.servers.http import Origin
from tests.servers.node import Service, running_service, until

MOST = 1_000_000
CONFIG = f"[store]\nmax_bytes = {MOST}\nmin_free_bytes = 0\nhold_s = 0\nquiet_s = 0.3\n[limits]\nrenew_s = 0.3\n"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("space")
    with running_service(root, config=CONFIG, workers=2) as started, never_more(root / "store", MOST):
        yield started


@pytest.fixture(autouse=True)
def _emptied(service: Service) -> Iterator[None]:
    """Each test begins with a store of which nothing is held."""
    yield
    client = service.client()
    for job in client.jobs(100):
        job.cancel()
    until(lambda: all(job.status().state in {"done", "failed", "cancelled"} for job in client.jobs(100)), "all over")


@pytest.fixture
def client(service: Service) -> Iterator[Client]:
    made = service.client()
    yield made
    made.close()


def body(name: str, size: int = 200_000) -> bytes:
    return (hashlib.sha256(name.encode()).digest() * (size // 32 + 1))[:size]


def put(origin: Origin, *names: str, size: int = 200_000) -> list[str]:
    return [origin.put(f"/{name}", body(name, size)) for name in names]


def waiting(job: Job) -> str:
    """What the job says that it waits for, once that is space."""
    return until(
        lambda: said if "waits for" in (said := job.status().waiting_for) and "held are" in said else "", "it waits"
    )


def reading(service: Service, job: Job, then: str) -> subprocess.Popen[str]:
    """A process that reads the job, says so, and then does ``then``."""
    code = (
        "import sys, ingest\n"
        f"job = ingest.Client().job({job.id!r})\n"
        "print(len(job.paths(timeout=30)), flush=True)\n"
        f"{then}\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], env=service.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline().strip() == str(len(job.task_ids()))
    return process


def test_a_job_larger_than_the_store_comes_to_its_end_if_its_reader_lets_go(
    service: Service, origin: Origin, client: Client
) -> None:
    urls = put(origin, *(f"large-{n}" for n in range(12)))
    job = client.submit(urls, shard_files=1, placement="any")
    reader = job.reader()
    read: set[int] = set()
    end = time.monotonic() + 90
    while len(read) < 12:
        assert time.monotonic() < end, job.status()
        reader.poll(0.5)
        for number, ended in list(reader.ends.items()):
            if number not in read:
                (file,) = ended.files
                assert file.path.read_bytes() == body(file.source.rpartition("/")[2])
                read.add(number)
                reader.release([number])
    reader.close()
    assert job.status().state == "done"


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 2])
def test_two_epochs_of_a_job_four_times_the_store(
    service: Service, origin: Origin, client: Client, workers: int
) -> None:
    """Shuffled, in forked DataLoader workers: what is over makes room for what comes next, and is fetched again."""
    torch_data = pytest.importorskip("torch.utils.data")
    from ingest.dataset import StreamingDataset

    wanted = [f"d{workers}-{n:02}.bin" for n in range(4 * MOST // 150_000)]
    job = client.submit(put(origin, *wanted, size=150_000), shard_files=1, placement="any")
    with closing(StreamingDataset(job, shuffle="files", batch_size=1, timeout=90, keep=False)) as dataset:
        loader = torch_data.DataLoader(dataset, batch_size=None, num_workers=workers)
        orders = []
        for epoch in range(2):
            dataset.set_epoch(epoch)
            got = {sample["__url__"].rpartition("/")[2]: sample["bytes"] for sample in loader}
            assert got == {name: body(name, 150_000) for name in wanted}
            orders.append(list(got))
    assert orders[0] != orders[1]
    assert job.wait(timeout=30).state == "done"


def test_what_a_dataset_reads_stays_while_it_is_there_long_after_all_has_landed(
    service: Service, origin: Origin, client: Client
) -> None:
    pytest.importorskip("torch")
    from ingest.dataset import StreamingDataset

    wanted = [f"e{n}.bin" for n in range(4)]
    job = client.submit(put(origin, *wanted), placement="any")
    with closing(StreamingDataset(job, timeout=60)) as dataset:
        assert len(list(dataset)) == 4
        job.wait(timeout=30)
        unread = Client(settings=service.settings, lease=False)
        other = unread.submit(put(origin, "other-0", "other-1"), placement="any")
        assert f"by job {job.id}, which 1 process reads" in waiting(other)
        assert [sample["bytes"] for sample in dataset] == [body(name) for name in wanted], "the next epoch"
    assert other.wait(timeout=30).state == "done"
    unread.close()


def test_the_least_recently_used_goes_and_what_is_read_stays(service: Service, origin: Origin, client: Client) -> None:
    first = client.submit(put(origin, "kept-0", "kept-1"), placement="any")
    kept = first.paths(timeout=30)
    unread = Client(settings=service.settings, lease=False)
    # What is missing and a twentieth of the store more: all of it in the oldest file.
    old = unread.submit(put(origin, "old-0", size=300_000), placement="any").paths(timeout=30)
    later = unread.submit(put(origin, "later-0", size=100_000), placement="any").paths(timeout=30)
    new = client.fetch(put(origin, "new-0", "new-1"), placement="any", timeout=60)
    assert [path.exists() for path in (*kept, *later, *new)] == [True] * 5 and not old[0].exists()
    unread.close()


def test_where_all_is_held_shards_wait_and_go_on_when_a_reader_ends(
    service: Service, origin: Origin, client: Client
) -> None:
    unread = Client(settings=service.settings, lease=False)
    held = unread.submit(put(origin, *(f"held-{n}" for n in range(4))), name="train", placement="any")
    held.wait(timeout=30)
    process = reading(service, held, "sys.stdin.read()")
    try:
        job = unread.submit(put(origin, "waits-0", "waits-1"), placement="any")
        said = waiting(job)
        assert f"by job {held.id} (train), which 1 process reads" in said, said
        assert "in the store of node n" in said and "max_bytes = 1.0 MB" in said
        assert held.id in service.run("status", job.id).stdout
        du = service.run("store", "du")
        assert "1.0 MB may be used" in du.stdout and f"800.0 kB held by job {held.id}" in du.stdout, du.stdout
        assert service.run("store", "evict", "--to", "0").returncode == 1
        assert all(file.path.exists() for file in held.files(timeout=5))
        process.communicate("end")
        assert job.wait(timeout=30).state == "done"
    finally:
        process.kill()
        process.communicate()


def test_a_reader_that_is_killed_holds_nothing_after_its_lease(
    service: Service, origin: Origin, client: Client
) -> None:
    held = client.submit(put(origin, *(f"killed-{n}" for n in range(4))), placement="any")
    held.wait(timeout=30)
    process = reading(service, held, "sys.stdin.read()")
    job = client.submit(put(origin, "after-0", "after-1"), placement="any")
    waiting(job)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert job.status().state == "running"
    ledger = client.ledger  # as if a minute had passed in which nobody renewed it
    readers = ledger.key("readers", held.id)
    ledger.redis.zadd(readers, dict.fromkeys(ledger.redis.zrange(readers, 0, -1), 1))
    ledger.redis.zadd(ledger.key("reading"), {held.id: 1})
    assert job.wait(timeout=30).state == "done"


def test_what_goes_to_a_directory_needs_space_for_one_file_at_a_time(
    service: Service, origin: Origin, client: Client, tmp_path: Path
) -> None:
    """The store's copy may go as soon as the directory has its own; what it has stays when the store's goes."""
    wanted = [f"into-{n}" for n in range(9)]
    job = client.submit(put(origin, *wanted), into=str(tmp_path), placement="any", shard_files=1)
    assert job.wait(timeout=90).state == "done"
    assert service.run("store", "evict", "--to", "0").returncode == 0
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {name: body(name) for name in wanted}


def test_a_packed_shard_reserves_what_has_come_and_what_is_made_of_it(
    service: Service, origin: Origin, client: Client
) -> None:
    job = client.submit(put(origin, *(f"pack-{n}.bin" for n in range(8)), size=50_000), pack="tar", placement="any")
    (file,) = job.files(timeout=60)
    assert file.samples == 8 and file.path.exists()
    until(
        lambda: client.ledger.space((service.root / "store" / "STORE_ID").read_text()).reserved == 0,
        "no reservation to be left",
    )


def test_what_never_fits_fails_at_once(service: Service, origin: Origin, client: Client) -> None:
    large = put(origin, "never", size=MOST + 1)
    for options in ({}, {"pack": "tar"}, {"convert": ["unpack"]}):
        begun = time.monotonic()
        job = client.submit(large, placement="any", **options)  # type: ignore[arg-type]
        assert job.wait(timeout=30).state == "failed"
        (failure,) = job.failures()
        assert failure.error == "TooLarge" and f"max_bytes = {MOST}" in failure.reason, failure
        assert time.monotonic() - begun < 20
    halves = put(origin, "half-0", "half-1", size=MOST * 2 // 3)
    packed = client.submit(halves, placement="any", pack="tar")
    assert packed.wait(timeout=30).state == "failed" and packed.failures()[0].error == "TooLarge"
    together = client.submit(halves, placement="any", shard_files=2)
    assert together.wait(timeout=30).state == "failed"
    assert "shard_files" in together.failures()[0].reason
    assert service.scratch() == []
