"""What a program may do wrong, or may be done to it: typed errors at submit, jobs cancelled at any time, clients that
are killed half-way, two that ask for the same, a ledger that is wiped."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import ingest
from ingest.dataset import StreamingDataset
from tests.servers.http import Origin, file
from tests.servers.node import Service, running_service, until


@pytest.fixture(scope="module")
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A Redis and no data node, with a store of its own."""
    with running_service(
        tmp_path_factory.mktemp("nobody"), workers=0, config="[limits]\nnode_grace_s = 1.5\n"
    ) as started:
        yield started


class Gate:
    """An origin's file that is begun, and comes when it is let."""

    def __init__(self, data: bytes = b"at last") -> None:
        self.data, self.open, self.asked = data, threading.Event(), threading.Event()

    def __call__(self, to: Any) -> None:
        self.asked.set()
        while not self.open.is_set() and to.wait(0.05):
            pass
        file(self.data)(to)


SHA = "sha256:" + "0" * 64
Source, Sql, Manifest = ingest.Source, ingest.Sql, ingest.Manifest


@pytest.mark.parametrize(
    ("sources", "error", "said"),
    [
        ([], ingest.UsageError, "the list of sources is empty"),
        ("", ingest.BadSource, "empty"),
        (" http://host/x", ingest.BadSource, "white space"),
        ("http://host/a\nb", ingest.BadSource, "control characters"),
        (None, ingest.UsageError, "is no source"),
        (42, ingest.UsageError, "is no source"),
        ([Path("/data/x")], ingest.UsageError, "is no source"),
        (Path("/data/x"), ingest.UsageError, "is no source"),
        ([Source(Path("/data/x"))], ingest.UsageError, "URI"),  # type: ignore[arg-type]
        (b"http://host/x", ingest.UsageError, "is no source"),
        ("/data/x", ingest.BadSource, "file:///"),
        ("C:\\data\\x", ingest.BadSource, "no scheme"),
        ("gopher://host/x", ingest.BadSource, "'gopher' is unknown"),
        ("http://[::1/x", ingest.BadSource, "not a URI"),
        ("https:///x", ingest.BadSource, "no host"),
        ("file://data/x", ingest.BadSource, "file:///path"),
        ("s3:///key", ingest.BadSource, "bucket"),
        ("sql://warehouse/x", ingest.BadSource, "ingest.Sql"),
        ("http://host/{9..1}", ingest.BadSource, "{9..1}"),
        ("s3://bucket/{9..1}/*", ingest.BadSource, "{9..1}"),
        ("http://host/{1..3", ingest.BadSource, "{"),
        ("http://host/dir/", ingest.BadSource, "HTTP cannot list"),
        ("https://me:pa55-word@host/x", ingest.BadSource, "[connections.NAME]"),
        (Source("http://host/x", digest="sha256:abc"), ingest.UsageError, "has 64 hexadecimal digits"),
        (Source("http://host/x", digest="abc"), ingest.UsageError, "ALGORITHM:HEX"),
        (Source("http://host/{1..2}", digest=SHA), ingest.BadSource, "one file"),
        (Source("s3://bucket/x/", size=3), ingest.BadSource, "one file"),
        (Source("http://host/x", size=-1), ingest.BadSource, "-1"),
        (Source("http://host/x", connection="nosuch"), ingest.UnknownConnection, "[connections.nosuch]"),
        (Sql("nosuch", table="t"), ingest.UnknownConnection, "'nosuch' is unknown"),
        (Sql("", table="t"), ingest.BadSource, "ingest.toml"),
        (Sql("w"), ingest.BadSource, "table= or query="),
        (Sql("w", table="t", query="SELECT 1"), ingest.BadSource, "table= or query="),
        (Sql("w", query="SELECT 1", partitions=4), ingest.BadSource, "partition_on"),
        (Sql("w", table="t", partitions=0, partition_on="id"), ingest.BadSource, "partitions=0"),
        (Manifest("http://host/list", format="xlsx"), ingest.BadSource, "txt, csv, jsonl"),
        (Manifest("nonsense"), ingest.BadSource, "no scheme"),
    ],
    ids=str,
)
def test_a_bad_source_is_refused_where_the_user_is(
    service: Service, sources: Any, error: type[Exception], said: str
) -> None:
    client = service.client()
    before = client.jobs()
    for given in (sources, ["http://127.0.0.1:1/good", sources]) if isinstance(sources, str | Source) else (sources,):
        with pytest.raises(error) as raised:
            client.submit(given)
        assert type(raised.value) is error and said in str(raised.value) and "pa55" not in repr(raised.value)
    assert [j.id for j in client.jobs()] == [j.id for j in before], "nothing of it is in the ledger"


@pytest.mark.parametrize(
    "options",
    [
        {"attempts": 0}, {"deadline_s": -1}, {"shard_files": 0}, {"max_bytes": 0}, {"fresh_s": -1}, {"into": ""},
        {"placement": ""}, {"placement": "a node"}, {"attempts": "many"}, {"fresh_s": math.nan},
        {"deadline_s": math.nan},
    ],
    ids=str,
)  # fmt: skip
def test_a_bad_option_is_a_usage_error(service: Service, options: dict[str, Any]) -> None:
    with pytest.raises(ingest.UsageError, match=next(iter(options))):
        service.client().submit("http://127.0.0.1:1/x", **options)


@pytest.mark.parametrize("timeout", [0, -1, math.nan])
def test_a_timeout_of_nothing_is_a_usage_error(service: Service, origin: Origin, timeout: float) -> None:
    client = service.client()
    job = client.submit(origin.put("/t.bin", b"t"))
    for wait in (job.wait, job.files, job.paths, job.as_completed):
        with pytest.raises(ingest.UsageError, match="timeout"):
            wait(timeout=timeout)
    with pytest.raises(ingest.UsageError, match="timeout"):
        client.fetch(origin.url("/t.bin"), timeout=timeout)


def test_a_timeout_without_end_waits_to_the_end(service: Service, origin: Origin) -> None:
    assert service.client().fetch(origin.put("/inf.bin", b"inf"), timeout=math.inf)[0].read_bytes() == b"inf"


def test_an_unknown_job_and_a_wrong_redis(service: Service) -> None:
    with pytest.raises(ingest.UnknownJob, match="nothing-like-it"):
        service.client().job("nothing-like-it")
    for url in ("127.0.0.1:6379", "http://127.0.0.1", "redis://host:port/0"):
        with pytest.raises(ingest.ConfigError, match="Redis URL"):
            ingest.Client(redis_url=url)
    away = ingest.Client(redis_url="redis://:pa55-word@127.0.0.1:1/0", settings=service.settings)
    begun = time.monotonic()
    with pytest.raises(ingest.LedgerUnavailable, match="ingest up") as raised:
        away.submit("http://host/x")
    assert "pa55" not in repr(raised.value) and time.monotonic() - begun < 5


def test_a_node_that_is_not_alive_is_named_with_those_that_are(service: Service) -> None:
    with pytest.raises(ingest.NoDataNode, match=r"'n7' \(alive: n1\)"):
        service.client().submit("http://127.0.0.1:1/x", placement="n7")


def test_no_data_node_is_said_within_seconds_or_queued(nobody: Service, origin: Origin) -> None:
    client = nobody.client()
    url = origin.put("/queued.bin", b"queued")
    begun = time.monotonic()
    with pytest.raises(ingest.NoDataNode, match="require_node=False"):
        client.submit(url)
    assert 1 < time.monotonic() - begun < 6
    for placement in ("here", "spread"):
        with pytest.raises(ingest.NoDataNode, match=placement):
            client.submit(url, placement=placement, require_node=False)
    assert client.jobs() == [], "nothing of what was refused is in the ledger"
    job = client.submit(url, require_node=False)
    assert job.status().state == "running" and job.status().waiting_for == "no data node is alive"
    with pytest.raises(ingest.WaitTimeout, match="no data node is alive"):
        job.wait(timeout=0.2)
    cancelled = client.submit([url, "s3://bucket/*"], require_node=False)
    assert [j.id for j in client.jobs()] == [cancelled.id, job.id]
    cancelled.cancel()
    assert cancelled.wait(timeout=5).state == "cancelled", "what nobody has begun is over at once"
    assert [(f.source, f.error, f.index[0]) for f in cancelled.failures()] == [
        (url, "Cancelled", 0),
        ("s3://bucket/*", "Cancelled", 1),
    ]
    nobody.start_worker("n1")
    assert job.files(timeout=30)[0].path.read_bytes() == b"queued"
    assert client.job(cancelled.id).status().state == "cancelled"


# -- cancelled at every state --------------------------------------------------------------------------------------


def test_cancelled_while_it_is_planned_fetched_retried_and_done(service: Service, origin: Origin) -> None:
    client = service.client()
    planned, fetched = Gate(b"http://127.0.0.1:1/x\n"), Gate()
    busy = origin.on("/busy.bin", lambda to: to.head(503, {"Content-Length": "0", "Retry-After": "500"}))
    jobs = [
        client.submit(Manifest(origin.on("/list.txt", planned))),
        client.submit(origin.on("/fetched.bin", fetched)),
        client.submit(busy),
        client.submit(origin.put("/done.bin", b"done")),
    ]
    assert jobs[3].wait(timeout=30).state == "done"
    until(lambda: planned.asked.is_set() and fetched.asked.is_set(), "both have begun")
    until(lambda: jobs[2].status().waiting_for, "it waits for its next attempt")
    assert jobs[0].status().state == "planning"
    begun = time.monotonic()
    for job in jobs:
        job.cancel()
        job.cancel()
    assert [job.wait(timeout=20).state for job in jobs] == ["cancelled", "cancelled", "cancelled", "done"]
    assert time.monotonic() - begun < 12
    assert [f.error for job in jobs for f in job.failures()] == ["Cancelled"] * 3
    assert [f.path.read_bytes() for f in jobs[3].files()] == [b"done"]
    with pytest.raises(ingest.JobFailed, match="Cancelled"):
        list(StreamingDataset(jobs[1], timeout=5))
    planned.open.set()
    fetched.open.set()
    assert jobs[1].retry().wait(timeout=30).state == "done", "a cancelled job can be taken up again"
    until(lambda: service.scratch() == [], "nothing is left in scratch")


# -- the same key --------------------------------------------------------------------------------------------------


def many(origin: Origin, folder: Path, name: str) -> list[str]:
    """URIs that take turns between what is cut here and what is planned there: 20 steps of submitting, 60 files."""
    folder.mkdir()
    sources = []
    for n in range(10):
        origin.put(f"/{name}-{n}-0", b"%d" % n)
        origin.put(f"/{name}-{n}-1", b"%d" % n)
        for m in range(4):
            (folder / f"{n}-{m}").write_bytes(b"%d" % n)
        sources += [origin.url(f"/{name}-{n}-{{0..1}}"), f"file://{folder}/{n}-*"]
    return sources


def check_many(job: ingest.Job) -> None:
    files = job.files(timeout=60)
    assert [f.index for f in files] == [(s, p) for s in range(20) for p in range(4 if s % 2 else 2)]
    assert [f.path.read_text() for f in files] == [str(f.index[0] // 2) for f in files]
    status = job.status()
    assert (status.state, status.files, len(job.task_ids())) == ("done", 60, 60)


def test_two_clients_with_one_key_at_once_make_one_job(service: Service, origin: Origin, tmp_path: Path) -> None:
    sources = many(origin, tmp_path / "two", "two")
    start, made = threading.Barrier(4), []

    def submit() -> None:
        client = service.client()
        start.wait(10)
        made.append(client.submit(sources, key="at once", shard_files=1))

    threads = [threading.Thread(target=submit) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({job.id for job in made}) == 1 and len(made) == 4
    check_many(made[0])


HALF = """
import os, signal, sys, ingest
from ingest.ledger import JobLedger

kill_after, *sources = sys.argv[1:]
added, calls = JobLedger.add, []

def add(self, *args):
    answer = added(self, *args)
    calls.append(answer)
    if len(calls) == int(kill_after):
        os.kill(os.getpid(), signal.SIGKILL)
    return answer

JobLedger.add = add  # to die at a known moment, as a kill -9 from outside cannot
print(ingest.Client().submit(sources, key="half-way", shard_files=1).id)
"""


def test_a_client_killed_half_way_and_the_same_key_again(service: Service, origin: Origin, tmp_path: Path) -> None:
    sources = many(origin, tmp_path / "half", "half")

    def submit(kill_after: int) -> Any:
        return service.python(f"import sys; sys.argv[1:] = {[str(kill_after), *sources]!r}\n{HALF}")

    assert submit(7).returncode == -9
    (half,) = service.client().jobs(1)
    until(lambda: half.status().files_done == 4 * 2 + 3 * 4, "what there is of it is fetched already")
    assert half.status().state == "planning", "it is not over: nobody knows what was still to come"
    with pytest.raises(ingest.WaitTimeout):
        half.wait(timeout=0.2)
    again = submit(0)
    assert again.stdout.strip() == half.id, again.stderr
    check_many(half)


# -- another process, and a ledger that is wiped -------------------------------------------------------------------


def test_a_job_is_attached_from_another_process(service: Service, origin: Origin) -> None:
    gate = Gate()
    job = service.client().submit([origin.put("/near.bin", b"near"), origin.on("/far.bin", gate)])
    code = f"""
import ingest
job = ingest.Client().job({job.id!r})
for file in job.as_completed(timeout=30):
    print(file.path.read_text(), flush=True)
print(job.status().state)
"""
    done: list[Any] = []
    other = threading.Thread(target=lambda: done.append(service.python(code)))
    other.start()
    until(gate.asked.is_set, "the second file has begun")
    gate.open.set()
    other.join(40)
    assert done[0].stdout.split("\n") == ["near", "at last", "done", ""], done[0].stderr


def test_a_wiped_ledger_is_an_error_and_no_hang(service: Service, origin: Origin) -> None:
    gate = Gate()
    client = service.client()
    job = client.submit(origin.on("/lost.bin", gate))
    until(gate.asked.is_set, "the download has begun")
    raised: list[BaseException] = []

    def wait() -> None:
        try:
            service.client().job(job.id).wait(timeout=60)
        except ingest.IngestError as error:
            raised.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.3)  # it is in the middle of its wait, which nothing shows from outside
    client.ledger.redis.flushall()
    waiter.join(10)
    assert not waiter.is_alive() and [type(e) for e in raised] == [ingest.UnknownJob]
    gate.open.set()
    url = origin.put("/after.bin", b"after")
    assert client.fetch(url, timeout=30)[0].read_bytes() == b"after", "the node goes on"
