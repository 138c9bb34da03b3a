"""What a job costs, in what can be counted: requests at the origin, messages, and round trips to Redis. Times depend on
the machine, these do not."""

from __future__ import annotations

from tests.servers.http import Origin
from tests.servers.node import Service

FILES, EACH = 256, 2
SHARDS = FILES // EACH


def test_a_job_costs_what_it_has_to(own_service: Service, origin: Origin) -> None:
    urls = [origin.put(f"/{n}", b"%d" % n) for n in range(FILES)]
    client = own_service.client()
    redis = client.ledger.redis
    client.fetch(urls[:1], timeout=60)  # what is loaded or opened with the first one
    for kind, requests in (("new", FILES - 1), ("here", 0)):
        before = origin.count()
        redis.config_resetstat()
        job = client.submit(urls, shard_files=EACH)
        assert len(job.paths(timeout=60)) == FILES
        calls = {name.removeprefix("cmdstat_"): stat["calls"] for name, stat in redis.info("commandstats").items()}
        assert origin.count() - before == requests, f"{kind}: each file is asked for once, or not at all"
        # The agent's heart beats meanwhile, a few scripts a second, and the client waits; nothing of that grows with
        # the job. Bells are rung for the processes that there are, 32 at the least, and passed on every half second.
        scripts, messages = calls["evalsha"] / SHARDS, calls.get("lpush", 0)
        assert scripts < (9 if kind == "new" else 6), f"{kind}: {calls}"
        assert messages < SHARDS, f"{kind}: a process takes shard after shard: {calls}"
