"""A real job into a real DataLoader while it lands: the ledger's reader, a feed, and workers without a connection."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from torch.utils.data import DataLoader

import ingest
from ingest.dataset import StreamingDataset, formats
from ingest.model import Consumer
from tests.servers.http import Behaviour, Origin, file, slow_start
from tests.servers.node import Service, until

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def lines(number: int) -> bytes:
    return "".join(json.dumps(number * 100 + n) + "\n" for n in range(10)).encode()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_job_streams_while_it_lands(service: Service, origin: Origin, workers: int) -> None:
    urls = [origin.put(f"/w{workers}-{n}.jsonl", lines(n)) for n in range(6)]
    origin.on("/slow.jsonl", slow_start(2.0, file(lines(6))))
    job = service.client().submit([*urls, origin.url("/slow.jsonl")])
    samples = iter(DataLoader(StreamingDataset(job, timeout=60), batch_size=None, num_workers=workers))
    got = [next(samples)]
    assert job.status().state == "running", "the first sample came only when the job was over"
    got += samples
    assert sorted(got) == [n * 100 + i for n in range(7) for i in range(10)]
    assert {f.samples for f in job.files()} == {10}


def test_the_index_of_an_archive_is_made_when_it_lands(service: Service, origin: Origin) -> None:
    """And goes when the archive goes, of which it is a part to those who make room."""
    with io.BytesIO() as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for n in range(20):
            member = tarfile.TarInfo(f"{n}.txt")
            member.size = 2
            archive.addfile(member, io.BytesIO(b"%02d" % n))
        archive.close()
        url = origin.put("/indexed.tar", packed.getvalue())
    job = service.client().submit([url])
    (path,) = job.paths(timeout=60)
    index = formats.index_of(path)
    made = index.stat()
    assert [sample["txt"] for sample in StreamingDataset(job, timeout=30)] == [b"%02d" % n for n in range(20)]
    assert index.stat().st_mtime_ns == made.st_mtime_ns and index.stat().st_ino == made.st_ino


@pytest.mark.parametrize("workers", [0, 2])
def test_who_reads_and_how_far_they_are_is_seen_by_others(service: Service, origin: Origin, workers: int) -> None:
    job = service.client().submit([origin.put(f"/seen{workers}-{n}.jsonl", lines(n)) for n in range(4)])
    dataset = StreamingDataset(job, timeout=60, batch_size=5, rank=1, world_size=2)
    dataset.set_epoch(3)
    loader = DataLoader(dataset, batch_size=5, num_workers=workers)
    assert job.consumers() == [], "nobody has begun"
    assert len(list(loader)) == 4

    def told() -> list[Consumer]:
        return [each for each in service.client().job(job.id).consumers() if each.samples >= 20]

    (seen,) = until(told, "it has said how far it is")
    assert (seen.rank, seen.world, seen.epoch, seen.step, seen.pid) == (1, 2, 3, 4, os.getpid())
    shown = service.run("status", job.id)
    assert shown.returncode == 0 and "1/2" in shown.stdout, shown.stdout + shown.stderr
    (said,) = json.loads(service.run("status", job.id, "--json").stdout)["consumers"]
    assert (said["rank"], said["epoch"], said["samples"]) == (1, 3, 20)
    watched = [json.loads(line) for line in service.run("watch", job.id, "--json").stdout.splitlines()]
    assert watched[-1]["state"] == "done" and watched[-1]["consumers"][0]["rank"] == 1
    dataset.close()
    assert job.consumers() == []


def test_a_source_that_fails_is_named_or_skipped(service: Service, origin: Origin) -> None:
    urls = [origin.put("/ok-0.jsonl", lines(0)), origin.url("/no.jsonl"), origin.put("/ok-1.jsonl", lines(1))]
    job = service.client().submit(urls)
    job.wait(timeout=60)
    with pytest.raises(ingest.JobFailed, match=r"/no\.jsonl"):
        list(StreamingDataset(job, timeout=30))
    kept = list(StreamingDataset(job, timeout=30, on_failure="skip"))
    assert kept == [n * 100 + i for n in range(2) for i in range(10)]


@pytest.mark.parametrize("how", ["deleted", "cut"])
def test_a_file_that_is_gone_when_it_is_read_is_fetched_again(service: Service, origin: Origin, how: str) -> None:
    urls = [origin.put(f"/{how}-{n}.jsonl", lines(n)) for n in range(3)]
    job = service.client().submit(urls, shard_files=1)
    path = job.paths(timeout=60)[1]
    samples = iter(StreamingDataset(job, timeout=60))
    got = [next(samples)]
    if how == "deleted":
        path.unlink()
    else:
        path.chmod(0o644)
        path.write_bytes(b"{")
    assert got + list(samples) == [n * 100 + i for n in range(3) for i in range(10)]
    assert [origin.count(f"/{how}-{n}.jsonl") for n in range(3)] == [1, 2, 1]


def test_a_damaged_file_is_found_on_use_and_fetched_again(service: Service, origin: Origin) -> None:
    """Once on a machine: what nobody wrote since is not read twice."""
    urls = [origin.put(f"/damaged-{n}.jsonl", lines(n)) for n in range(3)]
    job = service.client().submit(urls, shard_files=1)
    path = job.paths(timeout=60)[1]
    whole, expected = path.read_bytes(), [n * 100 + i for n in range(3) for i in range(10)]
    path.chmod(0o644)
    path.write_bytes(whole.replace(b"105", b"999"))
    assert 999 in list(StreamingDataset(job, timeout=60)), "of the same size: nobody has looked"
    assert list(StreamingDataset(job, timeout=60, verify=True)) == expected
    assert path.read_bytes() == whole and [origin.count(urlsplit(url).path) for url in urls] == [1, 2, 1]
    times = path.stat()
    path.chmod(0o644)
    path.write_bytes(whole.replace(b"105", b"999"))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert 999 in list(StreamingDataset(job, timeout=60, verify=True)), "it was read once, and not written since"


@pytest.mark.parametrize("comes_back", [True, False])
def test_an_origin_that_dies_in_the_middle_of_an_epoch(service: Service, origin: Origin, comes_back: bool) -> None:
    """Every rank says which file, of which origin, and why, by its own deadline; or goes on where it was."""
    gone = threading.Event()
    gone.set()

    def while_it_lives(number: int) -> Behaviour:
        return lambda to: to.reset() if gone.is_set() else file(lines(number))(to)

    kind = f"dies-{comes_back}"
    urls = [origin.put(f"/{kind}-{n}.jsonl", lines(n)) for n in range(2)]
    urls += [origin.on(f"/{kind}-{n}.jsonl", while_it_lives(n)) for n in range(2, 6)]
    job = service.client().submit(urls, shard_files=1)
    timeout_s = 90.0 if comes_back else 6.0

    def train(rank: int, seen: list[int]) -> tuple[float, str]:
        """How long it waited for the error that ended it, and that; 0 where it came to the end."""
        dataset = StreamingDataset(job, batch_size=5, timeout=timeout_s, rank=rank, world_size=2)
        began = time.monotonic()
        try:
            for batch in DataLoader(dataset, batch_size=5):  # no workers: these would be forked from a thread
                seen += batch.tolist()
                began = time.monotonic()
        except (ingest.WaitTimeout, ingest.JobFailed) as error:
            return time.monotonic() - began, str(error)
        finally:
            dataset.close()
        return 0.0, ""

    seen: list[list[int]] = [[], []]
    with ThreadPoolExecutor(2) as ranks:
        ends = [ranks.submit(train, rank, seen[rank]) for rank in range(2)]
        until(lambda: all(len(each) == 10 for each in seen), "they train on what is there")
        if comes_back:
            until(lambda: job.status().retries > 0, "the origin is found to be away")
            gone.clear()
        said = [end.result(timeout=100) for end in ends]
    if comes_back:
        assert sorted(seen[0] + seen[1]) == [n * 100 + i for n in range(6) for i in range(10)]
    else:
        assert all(0 < waited_s < timeout_s + 8 and origin.url("") in error for waited_s, error in said), said
        job.cancel()


JOINED = """
import ingest, sys
job = ingest.distributed_job([sys.argv[1]], timeout={timeout})
print(job.id, *(sample for sample in ingest.stream(job, timeout=30)))
"""


def test_one_job_for_all_ranks_whoever_comes_first(service: Service, origin: Origin, tmp_path: Path) -> None:
    url = origin.put("/shared.jsonl", lines(1))
    code = tmp_path / "rank.py"
    code.write_text(JOINED.format(timeout=60))

    def rank(number: int, **env: str) -> subprocess.Popen[str]:
        own = {"RANK": str(number), "WORLD_SIZE": "3", "TORCHELASTIC_RUN_ID": "r1", "LOCAL_RANK": str(number), **env}
        return subprocess.Popen(
            [sys.executable, str(code), url], env={**service.env, **own}, stdout=subprocess.PIPE, text=True
        )

    waiting = [rank(1), rank(2)]
    first = rank(0)
    said = [(process.communicate(timeout=60)[0].split(), process.returncode) for process in (first, *waiting)]
    assert {status for _, status in said} == {0}
    assert len({words[0] for words, _ in said}) == 1, "one job"
    assert [sorted(map(int, words[1:])) for words, _ in said] == [
        [100, 103, 106, 109],
        [101, 104, 107, 107],
        [102, 105, 108, 108],
    ]
    assert origin.count("/shared.jsonl") == 1


def test_who_waits_for_a_rank_that_is_gone_is_told(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "gone"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TimeoutError, match=r"rank 1 of 2 waited 0\.3 s for the job that local rank 0"):
        ingest.distributed_job("http://127.0.0.1:1/x", client=service.client(), timeout=0.3)
    monkeypatch.delenv("TORCHELASTIC_RUN_ID")
    with pytest.raises(ingest.UsageError, match="give key="):
        ingest.distributed_job("http://127.0.0.1:1/x", client=service.client())
