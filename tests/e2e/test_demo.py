"""``ingest demo`` as a person runs it: its numbers, two at once on one machine, Ctrl-C, and what it leaves: nothing."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ingest.demo import data
from tests.servers.node import until

MAIN = "from ingest.cli import main; main()"
RUN_S = 100.0  # it takes about 12 s, and two at once on a machine that is busy with other tests several times that


class Demo:
    """One running ``ingest demo --json``, whose temporary files are in ``folder``."""

    def __init__(self, folder: Path, code: str = MAIN) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "demo", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[2], env={**os.environ, "TMPDIR": str(folder), "RANK": "1", "WORLD_SIZE": "2"},
            start_new_session=True,  # a process group of its own, as a shell gives it: Ctrl-C is a signal to that group
        )  # fmt: skip
        self.family: dict[int, psutil.Process] = {}

    def commands(self) -> list[str]:
        """The command lines of all that it has started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.process.pid).children(recursive=True)
            self.family |= {child.pid: child for child in children}
        found = []
        for child in self.family.values():
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(" ".join(child.cmdline()))
        return found

    def over(self) -> bool:
        self.commands()
        return self.process.poll() is not None

    def output(self) -> tuple[str, str]:
        return self.process.communicate(timeout=RUN_S)

    def left(self) -> list[str]:
        """Processes that still run and files that are still there."""
        _, alive = psutil.wait_procs(self.family.values(), timeout=0)
        zombies = [p for p in alive if p.is_running() and p.status() == psutil.STATUS_ZOMBIE]
        return [str(p) for p in alive if p not in zombies] + [path.name for path in self.folder.iterdir()]

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@pytest.fixture(scope="module", params=[1, pytest.param(2, marks=pytest.mark.long)])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[dict[str, Any]]]:
    """What so many demos say that run at once, when all are over and have left nothing."""
    running = [Demo(tmp_path_factory.mktemp("d")) for _ in range(request.param)]

    def over() -> bool:
        states = [demo.over() for demo in running]  # each is asked, as that is when it is seen what it has started
        return all(states)

    try:
        until(over, "all are over", RUN_S)
        said = []
        for demo in running:
            out, err = demo.output()
            assert demo.process.returncode == 0, err
            assert (err, demo.left()) == ("", [])
            assert len(demo.family) > 8, "Redis, a worker with its pool, the origins and the loader's workers"
            said.append(json.loads(out))
        yield said
    finally:
        for demo in running:
            demo.end()


def test_all_arrives_but_what_is_bad_on_purpose(runs: list[dict[str, Any]]) -> None:
    for said in runs:
        assert (said["ok"], said["unexpected"], said["dataset"]) == (True, [], "generated")
        status, rows = said["status"], {row["kind"]: row for row in said["rows"]}
        assert {kind: row["files"] for kind, row in rows.items()} == {"HTTP": 13, "S3": 6, "SQL": 4}
        assert {kind: row["failed"] for kind, row in rows.items()} == {"HTTP": 1, "S3": 0, "SQL": 0}
        (failure,) = said["failures"]
        assert failure["source"].endswith("/missing.tar") and "404" in failure["reason"]
        assert (failure["error"], failure["attempts"]) == ("NotFound", 1)
        assert (status["state"], status["files"], status["files_done"], status["files_failed"]) == ("failed", 24, 23, 1)
        assert sum(row["bytes"] for row in rows.values()) == status["bytes"]
        assert sum(row["retries"] for row in rows.values()) == status["retries"]
        assert rows["HTTP"]["retries"] >= 1, "the flaky URL answers 503 first"


def test_every_sample_is_seen_once_and_is_learned_from(runs: list[dict[str, Any]]) -> None:
    for said in runs:
        samples = {row["kind"]: (row["samples"], row["trained"]) for row in said["rows"]}
        tar, rows, table = (data.SHARDS + 1) * data.SHARD_SAMPLES, data.OBJECTS * data.OBJECT_SAMPLES, 4 * 768
        assert samples == {"HTTP": (tar, tar), "S3": (rows, rows), "SQL": (table, table)}
        assert said["steps"] >= (tar + rows + table) / 32
        assert said["loss_last"] < said["loss_first"] / 2
        assert said["accuracy"] > 0.6 and said["held_out"] == 1000


def test_training_begins_before_all_has_landed(runs: list[dict[str, Any]]) -> None:
    for said in runs:
        assert 0 < said["first_batch_s"] < said["status"]["seconds"] < said["seconds"]
        assert 0 < said["steps_before_landed"] <= said["steps"]


def test_the_dataset_is_the_same_everywhere() -> None:
    assert data.shard(3) == data.shard(3) != data.shard(4)
    assert data.parquet(0) == data.parquet(0)


@pytest.mark.parametrize(
    "sign",
    [
        "redis-server",
        *(pytest.param(s, marks=pytest.mark.long) for s in ("ingest.demo.origins", "workers.agent", f"-c {MAIN} demo")),
    ],
    ids=["redis", "origins", "worker", "training"],
)  # fmt: skip
def test_ctrl_c_ends_all_of_it(tmp_path: Path, sign: str) -> None:
    demo = Demo(tmp_path)
    try:
        until(lambda: any(sign in command for command in demo.commands()), f"a process {sign!r}", RUN_S)
        begun = time.monotonic()
        os.killpg(demo.process.pid, signal.SIGINT)
        until(demo.over, "the demo is over", RUN_S)
        out, err = demo.output()
        assert (demo.process.returncode, out, err.strip()) == (130, "", "ingest: interrupted")
        assert demo.left() == []
        assert time.monotonic() - begun < 30
    finally:
        demo.end()


def test_what_is_not_installed_is_named_with_its_cure(tmp_path: Path) -> None:
    demo = Demo(tmp_path, f"import sys; sys.modules['moto'] = None; {MAIN}")
    try:
        out, err = demo.output()
    finally:
        demo.end()
    assert (demo.process.returncode, out) == (1, "")
    assert err == "ingest: demo: moto not installed here: pip install 'ingest[all]'\n"
