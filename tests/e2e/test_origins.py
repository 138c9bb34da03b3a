"""An origin that is away keeps nobody else waiting, is hardly asked, and is gone on with when it is back."""

from __future__ import annotations

import threading

from tests.servers.http import Origin, file
from tests.servers.http.origin import Handler
from tests.servers.node import Service, until

FILES = 120


def test_an_origin_that_is_away(service: Service, origin: Origin) -> None:
    back = threading.Event()

    def away(to: Handler) -> None:
        file(b"here again")(to) if back.is_set() else to.reset()

    urls = [origin.on(f"/{n}", away) for n in range(FILES)]
    client = service.client()
    job = client.submit(urls, shard_files=4)
    until(lambda: "has not answered" in job.status().waiting_for, "the ledger knows")
    with Origin() as other:
        others = [other.put(f"/{n}", b"x") for n in range(40)]
        assert len(client.fetch(others, timeout=10)) == 40
    # Six attempts at each would be 720 requests.
    assert origin.count() < FILES and job.status().files_failed == 0
    assert f"{origin.url('')} has not answered for" in job.status().waiting_for
    back.set()
    assert len(job.files(timeout=90)) == FILES and job.failures() == []
    assert not client.ledger.redis.exists(client.ledger.key("origin", origin.url("")))
