"""The arrows between our modules point one way (read from the source), and ``import ingest`` is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: What everybody may speak in.
NOUNS = {"ingest.errors", "ingest.record", "ingest.sources", "ingest.model"}

#: layer → what it may import of ours. A new module is given its place here, and in docs/architecture.md.
ARROWS: dict[str, set[str]] = {
    "ingest.errors": set(),
    "ingest.record": set(),
    "ingest.sources": {"ingest.errors", "ingest.record"},
    "ingest.model": {"ingest.errors", "ingest.record"},
    "ingest.sections": {"ingest.errors"},
    "ingest.sentinels": set(),
    "ingest.settings": {"ingest.errors", "ingest.sections", "ingest.sentinels"},
    "ingest.apis": {"ingest.errors", "ingest.record", "ingest.sources"},
    "ingest.braces": {"ingest.errors"},
    "ingest.names": {"ingest.errors"},
    "ingest.steps": {"ingest.errors"},
    "ingest.streams": set(),
    "ingest.manifests": {"ingest.streams", *NOUNS},
    "ingest.digests": NOUNS,
    "ingest.queues": set(),
    "ingest.cuts": NOUNS,
    "ingest.placement": {"ingest.queues", *NOUNS},
    "ingest.ledger": {
        "ingest.names",
        "ingest.queues",
        "ingest.sections",
        "ingest.sentinels",
        "ingest.settings",
        *NOUNS,
    },
    "ingest.store": {"ingest.digests", "ingest.names", "ingest.sections", "ingest.settings", *NOUNS},
    "ingest.app": {"ingest.errors", "ingest.queues", "ingest.sections", "ingest.sentinels", "ingest.settings"},
    "ingest.broker": set(),
    "ingest.doorbell": {"ingest.queues"},
    "ingest.space": {"ingest.ledger", "ingest.store", *NOUNS},
}
ARROWS["ingest.client"] = set(ARROWS)
ARROWS["ingest.dataset"] = {"ingest.client", "ingest.settings", "ingest.store", "ingest.streams", *NOUNS}
ARROWS["ingest.embedded"] = {"ingest.errors", "ingest.sections", "ingest.sentinels", "ingest.settings"}
ARROWS["ingest.demo"] = {"ingest.client", "ingest.dataset", "ingest.embedded", "ingest.settings", *NOUNS}
ARROWS["ingest"] = {"ingest.app", "ingest.client", "ingest.dataset", *NOUNS}
ARROWS["ingest.cli"] = set(ARROWS) | {"ingest"}
#: A data node plans and counts samples as the trainer does, but knows nothing of commands, nor of who started it.
ARROWS["workers"] = set(ARROWS) - {"ingest", "ingest.cli", "ingest.demo", "ingest.embedded"}

#: What only these may import: they are optional, or slow to load.
KEPT_APART = {
    "torch": {"ingest.dataset.streaming", "ingest.demo.train"},
    "moto": {"ingest.demo.origins"},
    "honcho": {"ingest.embedded.supervisor"},
}

#: ``import ingest`` is in every training script, and in every DataLoader worker again.
HEAVY = ("celery", "torch", "pyarrow", "numpy", "s3fs", "obstore", "sqlalchemy", "boto3", "aiohttp", "rich")
#: So many times what the import of redis-py takes, which is a part of it; it is 1.7 times as this is written.
MOST_IMPORT = 2.5


def modules() -> dict[str, Path]:
    """Dotted name → file, of everything in the packages."""
    found = {}
    for package in ("ingest", "workers"):
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports, anywhere in it, by full name: the submodule where a name from a package is one."""
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    return frozenset(_imports(ast.parse(MODULES[module].read_text()), package))


def _imports(tree: ast.AST, package: str) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            source = ".".join(filter(None, [base, node.module]))
            for alias in node.names:
                full = f"{source}.{alias.name}"
                yield full if full in MODULES else source


def layer(module: str) -> str:
    return "workers" if module.split(".")[0] == "workers" else ".".join(module.split(".")[:2])


def ours(module: str) -> Iterator[str]:
    for name in imports(module):
        if name.split(".")[0] in {"ingest", "workers"}:
            assert name in MODULES, f"{module} imports {name}, which does not exist"
            yield name


def test_every_module_has_its_place() -> None:
    assert {layer(module) for module in MODULES} - set(ARROWS) == set()


@pytest.mark.parametrize("module", MODULES)
def test_arrows_point_one_way(module: str) -> None:
    here = layer(module)
    against = {name for name in ours(module) if layer(name) != here and layer(name) not in ARROWS[here]}
    assert not against, f"{module} may not import {sorted(against)}"


def test_there_is_no_circle() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' → '.join((*way[way.index(module) :], module))}"
        if module in done:
            return
        for name in ours(module):
            # A package's __init__ re-exports its modules, which may well import each other by their full names.
            if name != module and not module.startswith(f"{name}."):
                visit(name, (*way, module))
        done.add(module)

    for module in MODULES:
        visit(module, ())


def test_fetchers_do_not_know_each_other() -> None:
    """``base`` is what they share; all else of a fetcher lies in a folder of its own. An API is HTTP: its fetcher has
    the connections and the words of the one for files, and none of what that does with a file."""
    shared = {f"workers.fetchers.http.{name}" for name in ("answers", "exchange", "wire")}

    def kind(module: str) -> str | None:
        parts = module.split(".")
        return parts[2] if parts[:2] == ["workers", "fetchers"] and len(parts) > 2 and parts[2] != "base" else None

    for module in MODULES:
        if kind(module):
            others = {name for name in ours(module) if kind(name) not in (None, kind(module))}
            others -= shared if kind(module) == "api" else set()
            assert not others, f"{module} imports {others}"


@pytest.mark.parametrize("library", KEPT_APART)
def test_optional_libraries_are_kept_apart(library: str) -> None:
    users = {module for module in MODULES if any(name.split(".")[0] == library for name in imports(module))}
    assert users <= KEPT_APART[library]


@pytest.mark.parametrize("module", MODULES)
def test_the_environment_is_read_in_one_place(module: str) -> None:
    """``ingest.embedded.service`` hands its own environment on to the processes that it starts."""
    if module in {"ingest.settings", "ingest.embedded.service"}:
        return
    tree = ast.parse(MODULES[module].read_text())
    read = [n for n in ast.walk(tree) if isinstance(n, ast.Attribute) and n.attr in {"environ", "getenv", "environb"}]
    assert not read, f"{module}:{read[0].lineno} reads the environment"


def fresh(script: str) -> str:
    """What a new interpreter prints that runs ``script``."""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_loads_nothing_heavy() -> None:
    assert fresh(f"import sys, ingest; print(*sorted(set({HEAVY!r}) & set(sys.modules)))") == ""


def test_importing_is_quick() -> None:
    # Processor time, the best of some, and as a ratio: how long anything takes is a matter of who else is there.
    script = "import time; begun = time.process_time(); import {}; print(time.process_time() - begun)"
    ours, redis = (min(float(fresh(script.format(module))) for _ in range(3)) for module in ("ingest", "redis"))
    assert ours < MOST_IMPORT * redis
