"""Samples a second from local disk, through a DataLoader with 0 and 2 workers, against who else reads the files."""

from __future__ import annotations

import contextlib
import io
import json
import random
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from benchmarks import mds
from benchmarks.harness import Against, Case, Contender, Missing, Unavailable, Within
from benchmarks.lab import Lab
from benchmarks.peers import Script, package

_FILES = 20
_BYTES = 2000
#: Kind of file → who reads it, and how many times as fast as each we are to be.
_PEERS = {
    "tar": (("webdataset", "datasets"), 3.0),
    "parquet": (("litdata", "datasets"), 1.2),
    "jsonl": (("datasets",), 1.5),
    "mds": (("mosaicml-streaming",), None),
}


def cases() -> dict[str, Callable[[Lab], contextlib.AbstractContextManager[Case]]]:
    """``feed-KIND-WORKERS`` of every kind. Target 9."""
    return {f"feed-{kind}-{workers}": partial(feed, kind, workers) for kind in _PEERS for workers in (0, 2)}


@contextlib.contextmanager
def feed(kind: str, workers: int, lab: Lab) -> Iterator[Case]:
    """One kind of file, with so many DataLoader workers."""
    folder = lab.dir("samples")
    per_file = lab.scale.samples // _FILES
    samples = per_file * _FILES
    suffix = _WRITERS[kind](folder, per_file)
    files = sorted(folder.glob(f"*.{suffix}"))
    peers, at_least = _PEERS[kind]
    arguments = [kind, str(folder), str(workers), str(samples)]
    with lab.service(f"[files]\nroots = [{json.dumps(str(folder))}]\n") as service:
        job = service.client.submit([file.as_uri() for file in files])
        job.wait(timeout=120)
        ours = Script("ingest", Path(sys.executable), "feed", ["ingest", *arguments, job.id], env=service.env)
        yield Case(
            f"feed-{kind}-{workers}",
            9,
            f"{samples:,} samples of {_BYTES // 1000} KB from {_FILES} {suffix} files, DataLoader, {workers} workers",
            (ours, *(_peer(name, arguments) for name in peers)),
            (*(Against(name, at_least) for name in peers), Within("samples_a_second")),
            samples / 1000,
            "1,000 samples",
            lab.scale.rounds,
            warm_up=False,  # each run is a process of its own, which loads its libraries before it begins
        )


def _peer(name: str, arguments: list[str]) -> Contender | Missing:
    env = mds.environment() | {"HF_DATASETS_CACHE": f"{arguments[1]}-cache"}
    return package(name, lambda python: Script(name, python, "feed", [name, *arguments], env=env), env=env)


def _contents(seed: int, count: int) -> Iterator[tuple[int, str]]:
    source = random.Random(seed)
    for number in range(count):
        yield seed * count + number, source.randbytes(_BYTES // 2).hex()


def _write_tars(folder: Path, per_file: int) -> str:
    for number in range(_FILES):
        with tarfile.open(folder / f"{number:03}.tar", "w") as tar:
            for key, content in _contents(number, per_file):
                for name, data in ((f"{key:08}.bin", content.encode()), (f"{key:08}.cls", b"%d" % (key % 10))):
                    info = tarfile.TarInfo(name)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return "tar"


def _write_parquets(folder: Path, per_file: int) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for number in range(_FILES):
        keys, contents = zip(*_contents(number, per_file), strict=True)
        table = pa.table({"key": keys, "label": [key % 10 for key in keys], "content": contents})
        pq.write_table(table, folder / f"{number:03}.parquet", row_group_size=1000, compression="zstd")
    return "parquet"


def _write_jsonl(folder: Path, per_file: int) -> str:
    for number in range(_FILES):
        with (folder / f"{number:03}.jsonl").open("w") as file:
            for key, content in _contents(number, per_file):
                file.write(json.dumps({"key": key, "label": key % 10, "content": content}) + "\n")
    return "jsonl"


def _write_mds(folder: Path, per_file: int) -> str:
    samples = (
        {"key": key, "label": key % 10, "content": content}
        for number in range(_FILES)
        for key, content in _contents(number, per_file)
    )
    if why := mds.write(folder, samples, per_file * (_BYTES + 50)):
        raise Unavailable(why)
    return "mds"


_WRITERS: Mapping[str, Callable[[Path, int], str]] = {
    "tar": _write_tars,
    "parquet": _write_parquets,
    "jsonl": _write_jsonl,
    "mds": _write_mds,
}
