"""The plain design: one Celery task for each file, ``requests.get``, two prefork processes.

python plain.py URLS.txt OUT
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import requests
from celery import Celery

sys.path.insert(0, str(Path(__file__).parents[2]))
app = Celery("plain", broker=os.environ.get("PLAIN_URL"), backend=os.environ.get("PLAIN_URL"))
app.conf.update(worker_prefetch_multiplier=16, task_ignore_result=False)


@app.task(name="download")
def download(url: str, path: str) -> str:
    answer = requests.get(url, timeout=60)
    answer.raise_for_status()
    Path(path).write_bytes(answer.content)
    return path


def main(listed: Path, out: Path) -> None:
    from benchmarks.meter import metered
    from benchmarks.scripts.say import say
    from ingest.embedded import RedisServer

    urls = listed.read_text().splitlines()
    with RedisServer(out.with_name("plain-redis"), append_only=False) as redis:
        env = {**os.environ, "PLAIN_URL": redis.url, "PYTHONPATH": str(Path(__file__).parent)}
        app.conf.update(broker_url=redis.url, result_backend=redis.url)
        command = [sys.executable, "-m", "celery", "-A", "plain", "worker", "-c", "2", "--loglevel", "error"]
        worker = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not app.control.ping(timeout=0.2):
                time.sleep(0.1)
            with metered([worker.pid, redis.process.pid], clients=[os.getpid()]) as used:
                results = [download.delay(url, str(out / f"{number:06}")) for number, url in enumerate(urls)]
                paths = [result.get(timeout=600) for result in results]
        finally:
            worker.terminate()
            worker.wait()
    say(used, files=len(paths))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
