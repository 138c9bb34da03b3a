"""Several data nodes, each with its own store: placement, what is local to whom, and the slot kept for planning."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import ingest
from ingest import Client
from ingest.settings import load
from tests.servers.http import Handler, Origin
from tests.servers.node import Service, running_service, until


@pytest.fixture(scope="module")
def two_nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("nodes")
    with running_service(root, workers=0) as service:
        service.start_worker("a", INGEST_STORE=str(root / "store-a"), INGEST_CONCURRENCY="3")
        service.start_worker("b", INGEST_STORE=str(root / "store-b"), INGEST_CONCURRENCY="3")
        yield service


def client_at(service: Service, store: str) -> Client:
    return Client(settings=load({**service.env, "INGEST_STORE": str(service.root / store)}))


def urls(origin: Origin, tag: str, count: int) -> list[str]:
    return [origin.put(f"/{tag}-{n}.bin", b"x%d" % n) for n in range(count)]


def test_here_is_the_node_with_the_submitters_store(two_nodes: Service, origin: Origin) -> None:
    for name in ("a", "b"):
        client = client_at(two_nodes, f"store-{name}")
        (file,) = client.submit(urls(origin, f"here-{name}", 1)).files(timeout=30)
        assert file.node == name and file.path.is_relative_to(two_nodes.root / f"store-{name}")


def test_a_named_node_gets_the_work_and_its_files_are_not_local_elsewhere(two_nodes: Service, origin: Origin) -> None:
    client = client_at(two_nodes, "store-a")
    (file,) = client.submit(urls(origin, "named", 1), placement="b").files(timeout=30)
    assert file.node == "b" and not file.is_local
    with pytest.raises(ingest.NotLocalError, match="node b"):
        _ = file.path
    assert client_at(two_nodes, "store-b").job(file_job(client)).paths()[0].read_bytes() == b"x0"


def file_job(client: Client) -> str:
    return client.jobs(1)[0].id


def test_spread_gives_each_shard_to_the_node_it_belongs_to(two_nodes: Service, origin: Origin) -> None:
    client = client_at(two_nodes, "store-a")
    wanted = urls(origin, "spread", 24)
    first = {f.source: f.node for f in client.submit(wanted, placement="spread").files(timeout=30)}
    assert set(first.values()) == {"a", "b"}
    assert {f.source: f.node for f in client.submit(wanted, placement="spread").files(timeout=30)} == first
    assert origin.count() == len(wanted), "the same node, so the same store, so no second request"


def test_without_a_store_here_any_node_takes_it(two_nodes: Service, origin: Origin) -> None:
    client = client_at(two_nodes, "store-nowhere")
    (file,) = client.submit(urls(origin, "any", 1)).files(timeout=30)
    with pytest.raises(ingest.NotLocalError):
        _ = file.path


def test_an_unknown_node_is_refused_with_the_names_of_the_living(two_nodes: Service, origin: Origin) -> None:
    with pytest.raises(ingest.NoDataNode, match="a, b"):
        client_at(two_nodes, "store-a").submit(urls(origin, "nobody", 1), placement="c")
    with pytest.raises(ingest.NoDataNode, match="store-nowhere"):
        client_at(two_nodes, "store-nowhere").submit(urls(origin, "nobody", 1), placement="here")


def test_planning_finds_a_process_while_all_others_download(two_nodes: Service, origin: Origin) -> None:
    gate = threading.Event()
    at_work = threading.Semaphore(0)

    def slow(to: Handler) -> None:
        to.head(200, {"Content-Length": "2"})
        to.send(b"x")
        at_work.release()
        gate.wait(60)
        to.send(b"y")

    client = client_at(two_nodes, "store-a")
    busy = []
    for n in range(6):
        origin.on(f"/busy-{n}.bin", slow)
        busy.append(origin.url(f"/busy-{n}.bin"))
    job = client.submit(busy)
    try:
        for _ in range(2):  # of three processes, two may fetch
            assert at_work.acquire(timeout=20)
        (two_nodes.root / "listed").mkdir(exist_ok=True)
        for n in range(3):
            (two_nodes.root / "listed" / f"{n}.txt").write_text(str(n))
        listed = client.submit(f"file://{two_nodes.root}/listed/*.txt")
        until(lambda: listed.status().state == "running", "the glob is planned")
        assert listed.status().files == 3 and not at_work.acquire(blocking=False)
    finally:
        gate.set()
    assert len(listed.paths(timeout=30)) == 3 and job.wait(timeout=30).state == "done"


@pytest.mark.parametrize(
    ("flags", "said"),
    [(["-P", "threads"], "prefork"), (["-Q", "ingest.plan,ingest.fecth"], "-Q ingest.fecth: node n1 may consume")],
    ids=["pool", "queue"],
)
def test_wrong_flags_of_a_worker_are_refused(two_nodes: Service, flags: list[str], said: str) -> None:
    command = [sys.executable, "-m", "celery", "-A", "workers", "worker", *flags]
    ended = subprocess.run(command, env=two_nodes.env, capture_output=True, text=True, timeout=60, cwd=two_nodes.root)
    assert ended.returncode != 0 and said in ended.stderr and "Traceback" not in ended.stderr


def test_what_a_node_consumes_is_known_and_nothing_is_placed_where_nobody_takes_it(
    two_nodes: Service, origin: Origin
) -> None:
    store = two_nodes.root / "store-c"
    worker = two_nodes.start_worker("c", "-Q", "ingest.plan", INGEST_STORE=str(store))
    try:
        client = client_at(two_nodes, "store-c")
        consumed = {w.node: w.queues for w in client.workers()}
        assert consumed["c"] == ("ingest.plan",) and len(consumed["a"]) == 4
        rows = [line.split() for line in two_nodes.run("nodes").stdout.splitlines()]
        assert {row[0] for row in rows if "all" in row} == {"a", "b"}
        assert {row[0] for row in rows if "ingest.plan" in row} == {"c"}
        for placement in (None, "spread"):  # the first would be `here`
            made = client.submit(urls(origin, f"flags-{placement}", 4), placement=placement)
            assert {f.node for f in made.files(timeout=30)} <= {"a", "b"}
        waits = client.submit(urls(origin, "flags-c", 1), placement="c")
        assert "node c does not consume that queue (see -Q)" in waits.status().waiting_for
        waits.cancel()
    finally:
        worker.stop()


def test_a_store_that_cannot_be_used_ends_the_worker_at_its_start(two_nodes: Service, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "celery", "-A", "workers", "worker"]
    env = {**two_nodes.env, "INGEST_STORE": str(tmp_path / "file")}
    ended = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, cwd=two_nodes.root)
    assert ended.returncode != 0 and "INGEST_STORE" in ended.stderr and "Traceback" not in ended.stderr
