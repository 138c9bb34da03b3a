"""A service under load with a bad broker, and the means to hurt it: what every test of the fault suite begins with.

    with running_rig(tmp_path, workers=2) as rig:
        rig.load.start()
        with rig.fault("kill -9 of a worker", rig.victim()) as hurt: hurt.worker.kill()
        # at the end of the block: the oracle

What must hold at the end is in ``oracle``; what happened goes into ``journal``.
"""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from ingest import Client
from ingest.app import app_for
from ingest.errors import IngestError
from ingest.model import TERMINAL_SHARD
from ingest.queues import FETCH_QUEUE, PLAN_QUEUE
from tests.faults import journal, oracle
from tests.faults.load import Asked, Load, exactly
from tests.faults.meddler import Meddler
from tests.faults.origins import make_database
from tests.servers.http import Origin
from tests.servers.node import Service, Worker, running_service, until
from tests.servers.simulated import SimulatedS3, simulated_s3

#: No recovery may take longer, however loaded the machine is; the table says how long they took.
BOUND_S = 60.0
#: For tests of what no lease has to do with: recovery takes 4 s instead of 14.
SHORT_LEASES = "[limits]\nrenew_s = 0.7\nlease_s = 3\n"
#: For storms of kills at random: they would take whoever is killed five times in a row for poison, and be right.
MANY_LIVES = "[retry]\ndeliveries = 1000\n"


@dataclass
class Hurt:
    """A fault while it happens: ``units`` (unit → token) are what its victim had in hand when it began."""

    worker: Worker | None
    units: dict[str, str] = field(default_factory=dict)
    begun: float = field(default_factory=time.monotonic)


class Rig:
    """``run`` is the name of this rig in the journal. ``rng`` decides whatever is left to chance."""

    def __init__(self, service: Service, origin: Origin, s3: SimulatedS3, name: str, load: dict[str, float]) -> None:
        self.service, self.origin, self.s3 = service, origin, s3
        self.seed = journal.seed()
        self.run = f"{name}-{os.getpid()}-{service.redis_server.port}"
        self.rng = random.Random(f"{self.seed} {name}")
        self._client = service.client()
        self.watchers: list[threading.Thread] = []
        self.late: list[str] = []
        self._lock = threading.Lock()
        self._probes = 0
        self.load = Load(self, random.Random(f"{self.seed} {name} load"), **load)  # type: ignore[arg-type]
        nodes = [f"n{n}" for n in range(1, 6)]
        queues = [q for kind in (FETCH_QUEUE, PLAN_QUEUE) for q in (kind, *(f"{kind}.{node}" for node in nodes))]
        rng = random.Random(f"{self.seed} {name} meddler")
        self.meddler = Meddler(service.settings.broker_url, service.settings.prefix, queues, rng)

    # Clients

    def client(self) -> Client:
        """The one of this process; all threads share its connections."""
        return self._client

    def close(self) -> None:
        self._client.close()

    # What the ledger says

    def units_of(self, worker: Worker | None, child: int | None = None) -> dict[str, str]:
        """unit → token of what a worker (or one process of it) has in hand; of all, without a worker."""
        ledger = self._client.ledger
        infos = [w for w in self._client.workers() if worker is None or w.pid == worker.process.pid]
        found: dict[str, str] = {}
        for info in infos:
            for unit, value in ledger.redis.hgetall(ledger.key("held", info.id)).items():
                tag, _, fence = value.decode().partition(" ")
                if child is None or tag.partition(":")[0] == str(child):
                    found[unit.decode()] = fence
        return found

    def record(self, unit: str) -> dict[str, object]:
        """The ledger's record of a unit, as it lies there; {} where there is none."""
        job, _, number = unit.rpartition(".")
        ledger = self._client.ledger
        with ledger.translated():
            found = ledger.redis.hget(ledger.key("job", job, "shard"), number)
        return json.loads(found) if found else {}

    def held_by(self, job: str) -> dict[int, str]:
        """process → unit of a job."""
        found = {}
        ledger = self._client.ledger
        for key in ledger.redis.scan_iter(ledger.key("held", "*"), count=1000):
            for unit, value in ledger.redis.hgetall(key).items():
                if unit.decode().rpartition(".")[0] == job:
                    found[int(value.split(b":")[0])] = unit.decode()
        return found

    def result_of(self, task: str, timeout_s: float) -> object:
        """What Celery alone says of a shard, by its task id."""
        app = app_for(self.service.settings)
        result = app.AsyncResult(task)
        try:
            return result.get(timeout=timeout_s)
        finally:  # or the garbage collector would unsubscribe one day, when this Redis is no more
            app.backend.remove_pending_result(result)
            result.backend = None

    # Faults

    def alive(self) -> list[Worker]:
        return [worker for worker in self.service.workers if worker.process.poll() is None]

    def victim(self) -> Worker:
        """One of the workers that the ledger knows to be alive, by chance."""
        return self.rng.choice(self.working() or self.alive())

    def working(self) -> list[Worker]:
        """Those that the ledger knows, of those that live. Redis may be away: none."""
        known: set[int] = set()
        with suppress(IngestError):
            known = {w.pid for w in self._client.workers()}
        return [w for w in self.alive() if w.process.pid in known]

    @contextmanager
    def fault(self, name: str, worker: Worker | None = None, *, child: int | None = None) -> Iterator[Hurt]:
        """Do the harm inside the block. From its end on a watcher waits until what the victim had in hand is in other
        hands, or over, and a new job is done; how long that took goes into the journal."""
        units: dict[str, str] = {}
        with suppress(IngestError):
            units = self.units_of(worker, child) if worker is not None else {}
        hurt = Hurt(worker, units)
        yield hurt
        self.watch(name, hurt)

    def watch(self, name: str, hurt: Hurt) -> None:
        watcher = threading.Thread(target=self._watch, args=(name, hurt), daemon=True)
        self.watchers.append(watcher)
        watcher.start()

    def _watch(self, name: str, hurt: Hurt) -> None:
        try:
            asked = self.probe()
            until(lambda: asked.waited, "a new job is done", BOUND_S * 2)
            probe = time.monotonic() - hurt.begun
            until(lambda: all(self._moved(*pair) for pair in hurt.units.items()), "its shards are others'", BOUND_S)
            took = time.monotonic() - hurt.begun
        except (AssertionError, IngestError) as error:
            self.late.append(f"{name}: {error}")
            took = probe = time.monotonic() - hurt.begun
        journal.happened(name, self.run, took, units=len(hurt.units), probe=round(probe, 3), at=round(time.time(), 1))
        if took > BOUND_S:
            self.late.append(f"{name} took {took:.1f} s")

    def _moved(self, unit: str, fence: str) -> bool:
        with suppress(IngestError):
            record = self.record(unit)
            return not record or record["s"] in TERMINAL_SHARD or record.get("f") != fence
        return False

    def probe(self, node: str = "any") -> Asked:
        """A small new job, for that node if one is named. Redis may be away: it is submitted as soon as that can be."""
        with self._lock:
            self._probes += 1
            name = f"probe{self._probes}"
        url = self.load.http(name, 1000)

        def submitted() -> Asked | None:
            with suppress(IngestError):
                job = self.client().submit(url, key=f"{self.run}-{name}", placement=node, require_node=False)
                return self.load.follow(job, [exactly(name, 1000)])
            return None

        return until(submitted, "a job can be submitted", BOUND_S)

    def restart(self, worker: Worker, *, ready: bool = False) -> Worker:
        """As a supervisor would: another worker of the same node."""
        node = node_of(worker)
        return self.service.start_worker(node, ready=ready)

    # The end

    def settle(self) -> None:
        """No more load; all that was asked for is waited for."""
        self.load.stop()
        for watcher in self.watchers:
            watcher.join(BOUND_S * 3)
        for asked in list(self.load.asked):
            assert asked.thread is not None
            asked.thread.join(max(0.0, asked.deadline - time.monotonic()) + 10)
            if self.load.own and asked.waited:
                with suppress(IngestError):  # its waiter was answered, then Redis lost it: whoever has it puts it back
                    asked.job.wait(30)

    def judge(self) -> oracle.Verdict:
        """Wait for the end of all that was asked for, and say what became of it. The meddler goes on until then."""
        self.settle()
        self.meddler.stop()
        verdict = oracle.judge(self)
        journal.verdict(
            self.run, lost=len(verdict.lost), wrong=len(verdict.wrong), stuck=len(verdict.stuck), shards=verdict.shards
        )
        return verdict


def node_of(worker: Worker) -> str:
    """The name of a worker's node, from its environment."""
    node: str = worker.log.with_suffix(".node").read_text()
    return node


@dataclass
class RigService(Service):
    """A service that remembers which node a worker was."""

    def start_worker(self, node: str = "n1", *, ready: bool = True, **env: str) -> Worker:
        (self.root / f"worker-{len(self.workers)}.node").write_text(node)
        return super().start_worker(node, ready=ready, **env)


@contextmanager
def running_rig(
    root: Path,
    *,
    name: str,
    workers: int = 2,
    config: str = "",
    meddle: bool = True,
    judged: bool = True,
    before: Callable[[Service], None] = lambda service: None,
    jobs: int = 8,
    patience_s: float = 150.0,
    append_only: bool = True,
    own: bool = False,
    swept_s: float = 30.0,
    **more: str,
) -> Iterator[Rig]:
    """``config`` is further text of the ``ingest.toml``; ``before`` is called before the workers start. What nobody
    touches for ``swept_s`` is swept from scratch: longer than anything here rests and is still to be used. At the end
    of the block the oracle speaks, unless ``judged`` is False; an exception out of the block goes first."""
    make_database(root / "samples.sqlite")
    with ExitStack() as stack:
        origin = stack.enter_context(Origin())
        s3 = stack.enter_context(simulated_s3())
        first, _, rest = config.partition("[store]\n")
        text = f"""{first}
[store]
scratch_ttl_s = {swept_s}
{rest}
[connections.lake]
endpoint = "{s3.endpoint}"
anonymous = true
match = "s3://lake/"
[connections.db]
url = "sqlite:///{root}/samples.sqlite"
"""
        plain = stack.enter_context(
            running_service(root, config=text, workers=0, append_only=append_only, INGEST_CONCURRENCY="4", **more)
        )
        service = RigService(**{f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)})
        before(service)
        rig = Rig(service, origin, s3, name, {"jobs": jobs, "patience_s": patience_s, "own": own})
        stack.callback(rig.close)
        if meddle:
            rig.meddler.start()
            stack.callback(rig.meddler.stop)
        stack.callback(rig.load.stop)
        started = [service.start_worker(f"n{n + 1}", ready=False) for n in range(workers)]
        for worker in started:
            service.await_ready(worker)
        yield rig
        if judged:
            verdict = rig.judge()
            assert not verdict.complaints, f"seed {rig.seed}: " + "\n".join(verdict.complaints)


def all_processes(worker: Worker) -> list[int]:
    """The worker's own, its pool's and its agent's."""
    with suppress(OSError):
        return [worker.process.pid, *worker.children(), *worker.agents()]
    return [worker.process.pid]


def send(pids: Sequence[int], signum: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)
