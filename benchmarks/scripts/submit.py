"""Submit that many URLs to the Redis of the environment: ``python submit.py COUNT``. The memory is the process's peak,
the list and the libraries among it."""

from __future__ import annotations

import hashlib
import sys

import redis
from say import Timed, say

import ingest


def main(count: int) -> None:
    urls = [
        f"https://images.example.org/train/{number // 1000:04}/{hashlib.md5(b'%d' % number).hexdigest()[:12]}.jpg"
        for number in range(count)
    ]
    client = ingest.Client()
    server = redis.Redis.from_url(client.settings.redis_url)
    server.flushall()
    before = server.info("memory")["used_memory"]
    with Timed() as used:
        client.submit(urls, require_node=False)
    after = server.info("memory")["used_memory"]
    say(used, urls=count, redis_bytes_a_url=(after - before) / count)


if __name__ == "__main__":
    main(int(sys.argv[1]))
