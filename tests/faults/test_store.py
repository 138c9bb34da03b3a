"""A store that cannot be worked in, files that were damaged in it, and a worker that may open few files (8 and 15 of
the list).

Two nodes: n1 with the store that is hurt, which is the client's own, and n2 with a good one.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ingest import stream
from ingest.client.files import LocalFile
from ingest.errors import StoreError
from ingest.ledger import WorkerInfo
from ingest.model import FileSpec
from ingest.store import Store
from ingest.store.layout import source_dir
from tests.faults import journal
from tests.faults.disks import ALWAYS, WITH_MOUNTS, Disk, Unsynced, mounted
from tests.faults.load import ELSEWHERE, Asked, exactly
from tests.faults.origins import Paced, content
from tests.faults.rig import BOUND_S, SHORT_LEASES, Rig
from tests.faults.test_storm import descriptors, open_files
from tests.servers.node import Worker, until

Rigs = Callable[..., Rig]
MB = 1 << 20
CONFIG = SHORT_LEASES + "canary_s = 2\n[store]\nmin_free_bytes = 0\n"
ROUNDS = max(2, int(os.environ.get("INGEST_FAULTS_KILLS", "200")) // 20)


@contextmanager
def disk_called(kind: str, root: Path) -> Iterator[Disk]:
    """Skips where the machine allows no such disk."""
    if kind in ALWAYS:
        yield ALWAYS[kind](root)
        return
    with ExitStack() as stack:
        try:
            holder = stack.enter_context(mounted(root))
        except OSError as error:
            pytest.skip(str(error))
        yield WITH_MOUNTS[kind](root, holder)


@pytest.fixture
def disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Disk]:
    with disk_called(request.param, tmp_path / "hurt") as made:
        yield made


def two_nodes(rigs: Rigs, disk: Disk, **more: object) -> tuple[Rig, Worker]:
    """The rig, whose nodes and clients have the store on that disk, and its worker; start n2 with :func:`another`."""
    rig = rigs(workers=1, config=CONFIG, swept_s=20, **{**disk.env, **more})
    # A client that came while another store was in its place takes that one for its own.
    ELSEWHERE[(disk.root / "STORE_ID").read_text()] = disk.root
    return rig, rig.service.workers[0]


def another(rig: Rig) -> Worker:
    """A node with a good store of its own."""
    good = rig.service.root / "good"
    worker = rig.service.start_worker("n2", INGEST_STORE=str(good))
    ELSEWHERE[(good / "STORE_ID").read_text()] = good
    return worker


def told(rig: Rig, node: str = "n1") -> WorkerInfo:
    (one,) = until(lambda: [w for w in rig.client().workers() if w.node == node], f"{node} is heard", 30)
    return one


def gated(rig: Rig, name: str, size: int = 4 * MB) -> tuple[Asked, Paced, threading.Event]:
    """A job that anybody may do, for a file whose last byte does not come yet; all others of it are there."""
    go = threading.Event()
    paced = Paced(name, size, rate=8e6, hold=go)
    job = rig.client().submit(rig.origin.on(f"/{name}.bin", paced), placement="any")
    asked = rig.load.follow(job, [exactly(name, size)])
    until(lambda: paced.sent >= size - 1 and rig.held_by(job.id), "all but its last byte is there")
    return asked, paced, go


def on_node(rig: Rig, name: str, node: str) -> Asked:
    url = rig.load.http(name, 50_000)
    return rig.load.follow(rig.client().submit(url, placement=node), [exactly(name, 50_000)])


def all_uncounted(rig: Rig) -> None:
    """Nothing that the node was at fault for is held against a shard."""
    for asked in rig.load.asked:
        status = asked.job.status()
        assert (status.state, status.retries) == ("done", 0), asked.job.failures()[:2]
        deaths = [record.unit for record in rig.client().ledger.all_units(asked.job.id) if record.deaths]
        assert deaths == []


@pytest.mark.parametrize("disk", [*ALWAYS, *WITH_MOUNTS], indirect=True)
def test_a_store_that_cannot_be_worked_in(disk: Disk, rigs: Rigs, request: pytest.FixtureRequest) -> None:
    """One shard is in hand. It goes back uncounted, the node says why it is unfit, another has the work, and the node
    works again as soon as its disk does."""
    name = f"store: {request.node.callspec.params['disk']}"
    rig, worker = two_nodes(rigs, disk)
    held, _, go = gated(rig, "held")
    another(rig)
    rig.load.start()
    until(lambda: sum(bool(a.waited) for a in rig.load.asked) >= 3, "it works", 60)
    begun = time.monotonic()
    disk.hurt(worker)
    try:
        until(lambda: disk.says in told(rig).unfit, f"it is unfit and says {disk.says!r}")
        journal.happened(f"{name}: until it says so", rig.run, time.monotonic() - begun)
        go.set()
        until(lambda: held.waited, "another node does what it had in hand", BOUND_S)
        assert [f.node for f in held.job.files()] == ["n2"]
        journal.happened(f"{name}: until another has its work", rig.run, time.monotonic() - begun)
        shown = {w["node"]: w for w in json.loads(rig.service.run("nodes", "--json").stdout)}
        assert disk.says in shown["n1"]["unfit"] and shown["n2"]["unfit"] == ""
        health = rig.service.run("health")
        assert health.returncode == 1 and disk.says in health.stderr
        assert rig.service.run("health", "--live").returncode == 0, "a new worker would not mend it"
        waits = on_node(rig, "waits", "n1")
        assert "unfit" in waits.job.status().waiting_for
        rig.load.pause(rig.rng.uniform(0, 3))
        assert waits.job.status().shards == {"due": 1}
    finally:
        disk.heal(worker)
    healed = time.monotonic()
    until(lambda: waits.waited, "it works again", BOUND_S)
    journal.happened(name, rig.run, time.monotonic() - healed)
    until(lambda: not told(rig).trouble, "and says so")
    rig.settle()
    all_uncounted(rig)
    log = worker.log.read_text()
    assert worker.process.poll() is None and "shard.defect" not in log and "agent.error" not in log, log[-3000:]
    assert "Traceback" not in log


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("disk", [*ALWAYS, *WITH_MOUNTS], indirect=True)
def test_hurt_and_healed_at_random(disk: Disk, rigs: Rigs, request: pytest.FixtureRequest) -> None:
    """At any instant, for less than it takes to be noticed or for longer."""
    name = f"store: {request.node.callspec.params['disk']}, at random"
    rig, worker = two_nodes(rigs, disk)
    another(rig)
    rig.load.start()
    for number in range(max(2, ROUNDS // 4)):
        rig.load.pause(rig.rng.expovariate(1 / 3))
        disk.hurt(worker)
        rig.load.pause(rig.rng.choice((0.05, 0.5, 3.0)) * rig.rng.uniform(0.5, 1.5))
        disk.heal(worker)
        healed = time.monotonic()
        asked = on_node(rig, f"after{number}", "n1")
        until(lambda: asked.waited, "it works again", BOUND_S)  # noqa: B023
        journal.happened(name, rig.run, time.monotonic() - healed)
    rig.settle()
    all_uncounted(rig)
    assert "shard.defect" not in worker.log.read_text()


def test_a_store_that_somebody_removes(rigs: Rigs) -> None:
    """Again and again, with a shard in hand: it is made again with the same id, the shard is fetched once more, and so
    is what had been published, when it is read. Nobody restarts anything."""
    rig = rigs(workers=1, config=CONFIG, swept_s=20)
    root, (worker,) = rig.service.root / "store", rig.alive()
    identity = (root / "STORE_ID").read_text()
    for number in range(max(2, ROUNDS // 4)):
        held, _, go = gated(rig, f"held{number}", MB)
        gone = root.with_name(f"gone-{number}")
        root.rename(gone)  # in one step: what goes on being written there would keep its folders
        shutil.rmtree(gone)
        begun = time.monotonic()
        go.set()
        until(lambda: held.waited, "it is fetched again", BOUND_S)  # noqa: B023
        journal.happened("store: removed", rig.run, time.monotonic() - begun)
        assert (root / "STORE_ID").read_text() == identity
    for asked in rig.load.asked:
        assert [len(sample["bytes"]) for sample in stream(asked.job)] == [MB]
    rig.settle()
    all_uncounted(rig)
    log = worker.log.read_text()
    assert worker.process.poll() is None and "shard.defect" not in log and "agent.error" not in log, log[-3000:]


@pytest.mark.parametrize("disk", ["fsync error"], indirect=True)
def test_what_could_not_be_made_durable_is_not_believed(disk: Unsynced, rigs: Rigs) -> None:
    """After fsync failed the kernel takes the bytes for written, whatever is on the disk: nobody may go on with
    them."""
    rig, worker = two_nodes(rigs, disk)
    held, paced, go = gated(rig, "held")
    disk.hurt(worker)
    go.set()
    until(lambda: "input/output" in told(rig).unfit, "it is unfit")
    until(lambda: rig.record(f"{held.job.id}.0")["s"] == "due", "it is handed back")
    assert list((disk.root / "scratch").glob("*.part")) == []
    disk.heal(worker)
    begun = time.monotonic()
    until(lambda: held.waited, "it is fetched", BOUND_S)
    journal.happened("store: fsync error: fetched from the beginning", rig.run, time.monotonic() - begun)
    assert paced.starts == [0, 0]
    all_uncounted(rig)


def _flipped(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def _no_record(path: Path) -> None:
    path.parent.with_suffix(".json").write_bytes(b'{"uri": ')


#: How a published file is damaged, whether its reader sees that, and what ``store verify`` says of it.
DAMAGE: dict[str, tuple[Callable[[Path], None], bool, str]] = {
    "a bit flipped": (_flipped, False, "has digest"),
    "cut": (_cut, True, "bytes, not"),
    "removed": (Path.unlink, True, "is missing"),
    "record damaged": (_no_record, False, ""),
}


def published(rig: Rig) -> tuple[list[str], list[LocalFile]]:
    """Six files, under load: their names, and how their job has them."""
    names = [f"kept{n}" for n in range(6)]
    job = rig.client().submit([rig.load.http(name, 300_000) for name in names], shard_files=2)
    rig.load.follow(job, [exactly(name, 300_000) for name in names])
    rig.load.start()
    files = job.files(timeout=60)
    until(lambda: sum(bool(a.waited) for a in rig.load.asked) >= 5, "it works", 60)
    return names, files


def damaged_by(how: str, rig: Rig, files: list[LocalFile]) -> list[LocalFile]:
    """Two of them, damaged; who asks for their path is told, where that can be seen at a glance."""
    harm, seen, _ = DAMAGE[how]
    victims = rig.rng.sample(files, 2)
    for file in victims:
        harm(file.path)
        if seen:
            with pytest.raises(StoreError):
                _ = file.path
    return victims


def fetched_again(rig: Rig, names: list[str], victims: list[LocalFile]) -> None:
    """Another job of the same files fetches those that were damaged, and only those."""
    urls = [rig.origin.url(f"/{name}.bin") for name in names]
    again = rig.client().submit(urls, key="again", shard_files=2)
    asked = rig.load.follow(again, [exactly(name, 300_000) for name in names])
    until(lambda: asked.waited, "it is there again", BOUND_S)
    fetched = {f.source for f in again.files() if not f.reused}
    assert fetched == {f.source for f in victims}, "those that are whole are used as they are"
    assert rig.service.run("store", "verify").returncode == 0


USES = [("cut", "a reader"), ("cut", "another job"), ("removed", "a reader"), ("removed", "another job")]


@pytest.mark.parametrize(("how", "use"), [*USES, ("a bit flipped", "a reader that verifies")])
def test_damage_is_found_on_use(rigs: Rigs, how: str, use: str) -> None:
    """No ``store verify``. A path is not given out for a file of another size; a reader of the same job has it fetched
    again, and so has another job. Other bytes of the same size are found by who reads all of them."""
    seen = DAMAGE[how][1]
    rig = rigs(config=CONFIG, swept_s=20)
    names, files = published(rig)
    victims = damaged_by(how, rig, files)
    begun = time.monotonic()
    if use != "another job":
        samples = stream(rig.load.asked[0].job, verify=not seen)
        bytes_of = {sample["__key__"]: sample["bytes"] for sample in samples}
        assert bytes_of == {name: content(name, 300_000) for name in names}
        victims = []
    fetched_again(rig, names, victims)
    journal.happened(f"store: damaged after publication: {how}, on use by {use}", rig.run, time.monotonic() - begun)


@pytest.mark.parametrize("how", DAMAGE)
def test_files_damaged_after_publication(rigs: Rigs, how: str) -> None:
    """Under load: ``store verify`` names what is damaged and nothing else, and it is fetched again."""
    _, seen, says = DAMAGE[how]
    rig = rigs(config=CONFIG, swept_s=20)
    names, files = published(rig)
    assert rig.service.run("store", "verify").returncode == 0
    victims = damaged_by(how, rig, files)
    begun = time.monotonic()
    found = rig.service.run("store", "verify", "--json")
    damaged = {d["uri"]: d["reason"] for d in json.loads(found.stdout)["damaged"]}
    assert set(damaged) == ({f.source for f in victims} if says else set()), damaged
    assert all(says in reason for reason in damaged.values()) and found.returncode == bool(says)
    if not seen and says:  # its size is right: only who reads all of it knows
        assert rig.service.run("store", "verify", "--remove").returncode == 1
    fetched_again(rig, names, victims)
    journal.happened(f"store: damaged after publication: {how}", rig.run, time.monotonic() - begun)


def test_a_file_where_a_folder_belongs(rigs: Rigs) -> None:
    """The shard that needs the folder says what is in the way, uncounted, until its job's deadline; the others are none
    the worse for it. Once it is removed the same source is fetched."""
    rig = rigs(workers=1, config=CONFIG, swept_s=20)
    rig.load.start()
    url = rig.load.http("foreign", 50_000)
    way = source_dir(rig.service.root / "store", Store.key(FileSpec(0, 0, url))).parent
    until(lambda: sum(bool(a.waited) for a in rig.load.asked) >= 3, "it works", 60)
    shutil.rmtree(way, ignore_errors=True)
    way.write_text("not ours")
    begun = time.monotonic()
    job = rig.client().submit(url, deadline_s=25)  # it has its turn among the load's before that
    asked = rig.load.follow(job, [], ends=("failed",))
    until(lambda: f"{way} is in the way; remove it" in job.status().waiting_for, "it says what is in the way")
    until(lambda: asked.waited, "it ends with its deadline", BOUND_S)
    journal.happened("store: a file where a folder belongs", rig.run, time.monotonic() - begun)
    (failure,) = job.failures()
    assert failure.error == "NodeUnfit" and str(way) in failure.reason and job.status().retries == 0
    rig.load.stop()
    way.unlink()
    assert rig.client().fetch(url, timeout=60)[0].stat().st_size == 50_000


def test_a_worker_that_may_open_few_files(rigs: Rigs) -> None:
    """Its limit is low from its start, and the load wants many connections and files at once: what does not fit goes
    back uncounted, what fits is done; with more files all is done."""
    config = CONFIG + "[http]\nranges = 8\nrange_bytes = 65536\nranges_from_bytes = 100000\nparallel = 16\n"
    rig = rigs(workers=1, config=config)
    most = open_files(rig.service.workers[0].process.pid) + rig.rng.randint(6, 12)  # enough to start
    few = rig.service.start_worker("n2", ready=False)
    descriptors(few.process.pid, most)
    rig.service.await_ready(few)
    for child in few.children():  # what each needs first is found out by chance: connections, files, a database
        descriptors(child, open_files(child) + rig.rng.randint(4, 12))
    names = [f"many{n}" for n in range(48)]
    urls = [rig.load.http(name, 1_000_000, 2e6) for name in names]
    job = rig.client().submit(urls, placement="n2", shard_files=16)
    rig.load.follow(job, [exactly(name, 1_000_000) for name in names])
    rig.load.start()

    def said() -> bool:
        return few.log.read_text().count("too many open files; raise its limit") >= 5

    until(said, "it says what is wrong, and what to do", BOUND_S)
    rig.load.pause(rig.rng.uniform(2, 5))
    assert few.process.poll() is None
    for pid in [few.process.pid, *few.children(), *few.agents()]:
        descriptors(pid, None)
    begun = time.monotonic()
    after = on_node(rig, "after", "n2")
    until(lambda: after.waited, "it works again", BOUND_S)
    journal.happened("descriptors, clients exhausted: a low limit", rig.run, time.monotonic() - begun)
    until(lambda: job.status().state == "done", "all is done", 120)
    rig.settle()
    all_uncounted(rig)
    assert "shard.defect" not in few.log.read_text()
