"""Who we are measured against: programs of Debian's, and packages of PyPI's, each in an environment of its own under
``.bench/env``, since their pins clash. What is not there is :class:`Missing`, with what to install."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from benchmarks.harness import Contender, Measured, Missing
from benchmarks.meter import run_command

ROOT = Path(__file__).parents[1]
ENVIRONMENTS = ROOT / ".bench" / "env"
SCRIPTS = Path(__file__).parent / "scripts"

#: Environment → what is installed there. They find our torch (and what else they do not bring) in our environment.
PACKAGES = {
    "s5cmd": ("s5cmd",),
    "connectorx": ("connectorx", "pyarrow"),
    "webdataset": ("webdataset",),
    "litdata": ("litdata", "polars"),
    "datasets": ("datasets",),
    "img2dataset": ("img2dataset",),
    "mosaicml-streaming": ("mosaicml-streaming",),
}
#: Program → Debian's package.
PROGRAMS = {"curl": "curl", "aria2c": "aria2", "nginx": "nginx-light"}


def install(say: Callable[[str], None]) -> None:
    """Make every environment that is not there yet. One that cannot be made is told of, and its rows say so."""
    for program, package in PROGRAMS.items():
        if shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None:
            say(f"{program} is not here: apt-get install {package}; rows that need it will say so")
    for name, packages in PACKAGES.items():
        if not _ready(name).exists():
            say(f"installing {name}")
            if why := _make(name, packages):
                say(f"{name} cannot be installed, rows that need it will say so: {why}")


def _make(name: str, packages: Sequence[str]) -> str:
    """What went wrong, or nothing."""
    folder = ENVIRONMENTS / name
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    ours = importlib.util.find_spec("redis")
    assert ours is not None and ours.origin is not None
    site = next((folder / "lib").glob("python3*/site-packages"))
    (site / "ours.pth").write_text(f"{Path(ours.origin).parents[1]}\n")
    kept = folder / "constraints.txt"
    kept.write_text(f"torch=={_public(version('torch'))}\n")  # everybody is measured with the torch that is here
    pip = [f"{folder}/bin/pip", "install", "--quiet", "--disable-pip-version-check", "--constraint", str(kept)]
    done = subprocess.run([*pip, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:300]
    _ready(name).touch()
    return ""


def versions() -> dict[str, str]:
    """Of all peers that are here, for the report."""
    found = {}
    for program in ("curl", "aria2c"):
        if shutil.which(program):
            said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
            found[program] = next(word for word in said.split() if word[0].isdigit())
    for name in PACKAGES:
        if _ready(name).exists():
            ask = f"import importlib.metadata as m; print(m.version({name!r}))"
            said = subprocess.run([_python(name), "-c", ask], capture_output=True, text=True, check=False).stdout
            found[name] = said.strip()
    return found


@dataclass(frozen=True)
class Command:
    """A peer that is a command. ``prepare`` makes its place empty again, ``check`` looks at what it made."""

    name: str
    command: Sequence[str]
    log: Path
    prepare: Callable[[], None]
    check: Callable[[], Mapping[str, float]]

    def run(self) -> Measured:
        self.prepare()
        done = run_command(self.command, self.log)
        return Measured(done.seconds, done.cpu_s, done.peak_bytes, done.all_bytes, self.check())


@dataclass(frozen=True)
class Script:
    """A contender that is one of ``scripts/``, run by ``python``. It times itself, without its imports, and prints
    what it measured as JSON."""

    name: str
    python: Path
    script: str
    arguments: Sequence[str]
    prepare: Callable[[], None] = lambda: None
    env: Mapping[str, str] | None = None

    def run(self) -> Measured:
        self.prepare()
        command = [str(self.python), str(SCRIPTS / f"{self.script}.py"), *self.arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self.env, cwd=ROOT, check=False)
        if done.returncode:
            raise RuntimeError(f"{self.script} ended with {done.returncode}: {done.stderr[-2000:]}")
        return Measured(**json.loads(done.stdout.splitlines()[-1]))


def program(name: str, make: Callable[[], Contender], *programs: str) -> Contender | Missing:
    """``make()``, if these programs are on the PATH (without any: ``name``)."""
    for each in programs or (name,):
        if shutil.which(each) is None:
            return Missing(name, f"{each} is not installed: apt-get install {PROGRAMS.get(each, each)}")
    return make()


def package(
    environment: str,
    make: Callable[[Path], Contender],
    *,
    name: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Contender | Missing:
    """``make(python)`` with the Python of that environment, if it is there and its package can be imported."""
    name = name or environment
    if not _ready(environment).exists():
        return Missing(name, f"{environment} is not installed: make bench-peers")
    python = _python(environment)
    module = {"mosaicml-streaming": "streaming"}.get(environment, environment)
    tried = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True, env=env, check=False)
    if tried.returncode:
        return Missing(name, f"{environment} cannot be imported: {tried.stderr.strip().splitlines()[-1][:200]}")
    return make(python)


def _ready(name: str) -> Path:
    return ENVIRONMENTS / name / "installed"


def _python(name: str) -> Path:
    return ENVIRONMENTS / name / "bin" / "python"


def _public(version: str) -> str:
    """Without what a build added: ``2.13.0`` of ``2.13.0+cpu``."""
    return version.partition("+")[0]
