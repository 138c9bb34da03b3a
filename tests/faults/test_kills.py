"""kill -9 under load, at random instants and at chosen ones (1 and 2 of the list), and the signals of a supervisor
(3)."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.faults import schedule
from tests.faults.rig import MANY_LIVES, SHORT_LEASES, Rig
from tests.servers.node import Worker, until

#: kill -9 of a worker's main process at so many random instants, of a process of its pool or its agent at a third.
KILLS = int(os.environ.get("INGEST_FAULTS_KILLS", "200"))
Rigs = Callable[..., Rig]


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("part", range(4))
def test_random_kills(rigs: Rigs, part: int) -> None:
    """A quarter of them with the leases of a default configuration."""
    rig = rigs(workers=3, config=("" if part == 0 else SHORT_LEASES) + MANY_LIVES, patience_s=300)
    rig.load.start()
    kinds = {"kill -9 of a worker": 6, "kill -9 of a pool child, any": 2, "kill -9 of an agent": 1}
    schedule.run(rig, max(1, KILLS // 4), kinds, mean_s=4)


@pytest.mark.timeout(1800)
def test_random_signals(rigs: Rigs) -> None:
    rig = rigs(workers=3, config=SHORT_LEASES + MANY_LIVES, patience_s=300)
    rig.load.start()
    kinds = {name: 1 for name in schedule.FAULTS if name.startswith("SIGTERM, SIGQUIT")}
    schedule.run(rig, max(3, KILLS // 10), kinds, mean_s=5)
    ends = {
        worker.process.poll(): worker.log.read_text()[-2000:] for worker in rig.service.workers if not _is_right(worker)
    }
    assert not ends
    until(lambda: len(rig.client().workers()) >= 3, "three workers are there again", 60)


def _is_right(worker: Worker) -> bool:
    """Whether a worker ended as one does that got these signals."""
    status, said = worker.process.poll(), worker.log.read_text()
    if status in {-signal.SIGTERM, -signal.SIGQUIT}:
        return "node.stopped" in said  # the second one came when Python, all done, had given signals their meaning back
    if status == 1:
        return "Cold shutdown" in said  # Celery's own status for it
    return status in {None, 0, -signal.SIGKILL, -signal.SIGALRM}  # the last: it hung in its own shutdown
