"""How soon training can begin: the first batch of many shards behind a latency, with nothing fetched before."""

from __future__ import annotations

import contextlib
import io
import random
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from benchmarks import mds
from benchmarks.harness import Against, Case, Contender, Measured, Missing
from benchmarks.lab import Lab, Ours, Service, emptied, fetched
from benchmarks.peers import SCRIPTS, Script, package
from benchmarks.servers import own_server
from ingest import Client

_LATENCY_S = 0.05
_SAMPLE_BYTES = 100_000
_SHARD_SAMPLES = 100
_PEERS = ("webdataset", "datasets", "litdata", "mosaicml-streaming")


@contextlib.contextmanager
def first_batch(lab: Lab) -> Iterator[Case]:
    """Target 10."""
    shards = lab.scale.shards
    folder = lab.dir("far")
    _write(folder, shards)
    with own_server(folder, _LATENCY_S) as web, lab.service() as service:
        cache = lab.dir("cache")

        def one(client: Client) -> Mapping[str, float]:
            return fetched(client, [f"{web.url}/tar/000000.tar"])

        def script(name: str, python: Path, env: Mapping[str, str]) -> Script:
            return Script(name, python, "first", [name, web.url, str(shards), str(cache)], emptied(cache), env)

        def peer(name: str) -> Contender | Missing:
            env = mds.environment()
            return package(name, lambda python: script(name, python, env), env=env)

        yield Case(
            "first-batch",
            10,
            f"first batch of {shards} tars of 10 MB, each answer {_LATENCY_S * 1000:g} ms away",
            (
                _Cold(service, script("ingest", Path(sys.executable), service.env)),
                Ours(service, one, "one shard alone"),
                *(peer(name) for name in _PEERS),
            ),
            (Against("one shard alone", 1 / 1.3), *(Against(name, 2.0) for name in _PEERS)),
            _SHARD_SAMPLES * _SAMPLE_BYTES / 1e9,
            "GB of the first shard",
            lab.scale.rounds,
        )


class _Cold:
    """Our script, with an empty store; what it asked for and did not read is cancelled."""

    name = "ingest"

    def __init__(self, service: Service, script: Script) -> None:
        self._service, self._script = service, script

    def run(self) -> Measured:
        self._service.forget()
        done = self._script.run()
        for job in self._service.client.jobs():
            job.cancel()
            job.wait(timeout=60)
        return done


def _write(folder: Path, shards: int) -> None:
    """The same samples three times: as tars, and by the writers of two peers where they are here."""
    (folder / "tar").mkdir()
    for number in range(shards):
        with tarfile.open(folder / "tar" / f"{number:06}.tar", "w") as tar:
            for key in range(number * _SHARD_SAMPLES, (number + 1) * _SHARD_SAMPLES):
                info = tarfile.TarInfo(f"{key:08}.bin")
                info.size = _SAMPLE_BYTES
                tar.addfile(info, io.BytesIO(random.Random(key).randbytes(_SAMPLE_BYTES)))
    total, size = shards * _SHARD_SAMPLES, _SHARD_SAMPLES * _SAMPLE_BYTES
    half = _SAMPLE_BYTES // 2
    samples = ({"key": key, "label": 0, "content": random.Random(key).randbytes(half).hex()} for key in range(total))
    mds.write(folder / "mds", samples, size)  # whoever is not here needs no data either
    chunks = package("litdata", lambda python: Script("litdata", python, "chunks", []), env=mds.environment())
    if isinstance(chunks, Script):
        command = [str(chunks.python), str(SCRIPTS / "chunks.py"), str(folder / "litdata"), str(total), str(size)]
        subprocess.run(command, env=mds.environment(), check=True, capture_output=True)
