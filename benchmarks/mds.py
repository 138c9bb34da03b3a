"""The format of mosaicml-streaming, written by its own writer in its own environment."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.harness import Missing
from benchmarks.peers import SCRIPTS, Script, package


def environment() -> dict[str, str]:
    """For peers that import torchvision, which has no build for the CPU torch: what stands in for it."""
    return {
        **os.environ,
        "PYTHONPATH": str(SCRIPTS / "stand_ins"),
        "HF_HUB_OFFLINE": "1",
        "NO_PROXY": "127.0.0.1",
    }


def write(folder: Path, samples: Iterable[Mapping[str, Any]], shard_bytes: int) -> str:
    """Samples of ``key``, ``label`` and ``content`` into shards. What is missing, or nothing."""
    env = environment()
    writer = package("mosaicml-streaming", lambda python: Script("", python, "mds", []), env=env)
    if isinstance(writer, Missing):
        return writer.why
    assert isinstance(writer, Script)
    command = [str(writer.python), str(SCRIPTS / "mds.py"), str(folder), str(shard_bytes)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=env)
    assert process.stdin is not None
    with process.stdin as lines:
        for sample in samples:
            lines.write(json.dumps(sample) + "\n")
    if status := process.wait():
        raise RuntimeError(f"the writer of mosaicml-streaming ended with {status}")
    return ""
