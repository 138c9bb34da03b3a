"""A large download whose worker is killed again and again: what came is not asked for a second time, and it is right.

The short form runs by default. ``INGEST_TEST_RESUME=1000000000:20`` is a file of 1 GB whose worker is killed at 20
random points, which takes some minutes.
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from tests.servers.http import Origin
from tests.servers.http.ranged import Answer, Ranged, content, digest_of
from tests.servers.node import Service, running_service, until

MB = 1 << 20
SIZE, KILLS = (int(n) for n in os.environ.get("INGEST_TEST_RESUME", f"{48 * MB}:3").split(":"))
SHORT = KILLS < 5
#: What one kill may cost: of 1 GB and 20 kills, a tenth.
LOSS = 5_000_000
CONFIG = f"""
[limits]
renew_s = 0.5
lease_s = 2
[retry]
deliveries = {2 if SHORT else 5}
[http]
range_bytes = {2 * MB if SHORT else 16 * MB}
ranges_from_bytes = {8 * MB if SHORT else 64 * MB}
"""


def kill(service: Service, whole: bool) -> None:
    """kill -9 of the worker and all that is with it, or of the process that downloads."""
    if whole:
        worker = service.workers[-1]
        pids = [*worker.children(), *worker.agents()]
        worker.kill()
        until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "children and agent follow the worker")
        service.start_worker("n1")
        return
    client = service.client()
    held = client.ledger.redis.hgetall(client.ledger.key("held", client.workers()[0].id))
    for value in held.values():
        os.kill(int(value.partition(b":")[0]), signal.SIGKILL)


def claimed(service: Service) -> list[str]:
    """What the journals say that there is. Bytes that were sent may still be on their way when a process is killed."""
    return sorted(path.read_text() for path in (service.root / "store" / "scratch").glob("*.json"))


@pytest.mark.long
def test_killed_at_random_points_it_costs_little_and_is_right(tmp_path: Path, origin: Origin) -> None:
    seed = int(os.environ.get("INGEST_TEST_SEED", "1"))
    points = sorted(random.Random(seed).sample(range(2 * MB, SIZE - 4 * MB, MB), KILLS))
    large = Ranged(SIZE, rate=(4 if SHORT else 5) * MB)
    url = origin.on("/large.bin", large)
    with running_service(tmp_path, config=CONFIG) as service:
        job = service.client().submit(url)
        before: list[str] = []
        for number, point in enumerate(points):
            until(lambda point=point, number=number: large.sent >= point + number * MB, "it comes", 120)  # type: ignore[misc]
            until(lambda before=before: claimed(service) not in ([], before), "it got further")  # type: ignore[misc]
            before = claimed(service)
            kill(service, whole=number % 3 == 0 or not SHORT)
        assert job.wait(timeout=300).state == "done", job.failures()
        (got,) = job.files()
        assert (got.size, got.digest) == (SIZE, digest_of(SIZE))
        with open(got.path, "rb") as file:
            for at in range(0, SIZE, MB):
                assert file.read(MB) == content(at, min(at + MB, SIZE))
        print(f"{SIZE} bytes, {KILLS} kills, seed {seed}: {large.sent} bytes sent, {large.sent / SIZE:.3f} times")
        assert large.sent <= SIZE + KILLS * LOSS
        until(lambda: service.scratch() == [], "nothing is left in scratch")


EAGER = "[retry]\nattempts = 2\nbase_s = 0.05\ncap_s = 0.1\nnot_found_s = 3600\n"


def test_attempts_are_counted_anew_where_it_gets_further(tmp_path: Path, origin: Origin) -> None:
    """A server that cuts off every connection after a while; and one where nothing more ever comes."""

    def short(answer: Answer) -> None:
        answer.cut = 2 * MB

    def first_only(answer: Answer) -> None:
        answer.cut = 2 * MB if answer.number == 0 else 1000

    size = 15 * MB
    advancing, stuck = Ranged(size, twist=short), Ranged(size, twist=first_only)
    with running_service(tmp_path, config=EAGER) as service:
        client = service.client()
        good = client.submit(origin.on("/advancing.bin", advancing))
        bad = client.submit(origin.on("/stuck.bin", stuck))
        assert good.wait(timeout=60).state == "done", good.failures()
        (got,) = good.files()
        assert got.digest == digest_of(size) and len(advancing.answers) >= 8
        assert good.status().retries == len(advancing.answers) - 1, "each of them is shown"
        assert bad.wait(timeout=60).state == "failed"
        (failure,) = bad.failures()
        assert failure.error == "Truncated" and len(stuck.answers) == 3, "one that advanced, and then two"


def test_what_is_not_there_yet_is_waited_for(tmp_path: Path, origin: Origin) -> None:
    with running_service(tmp_path, config=EAGER) as service:
        job = service.client().submit(origin.url("/later.bin"))
        until(lambda: origin.count("/later.bin") >= 4, "it is looked for more often than there are attempts")
        origin.put("/later.bin", b"here it is")
        assert [file.path.read_bytes() for file in job.files(timeout=30)] == [b"here it is"]
