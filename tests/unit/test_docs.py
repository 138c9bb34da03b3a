"""The documents say what the code does: commands, options, settings, errors, events, keys and links are looked up.

What is true but cannot be looked up (behaviour) is for the other tests.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import ingest
from ingest import errors, settings
from ingest.cli import cli
from ingest.dataset import StreamingDataset
from ingest.ledger import JobLedger
from workers import logs

ROOT = Path(__file__).parents[2]
DOCS = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
SECTIONS: dict[str, type[Any]] = {**settings._SECTIONS, "files": settings.Files}
CONFIGURATION, OPERATIONS, ARCHITECTURE = "docs/configuration.md", "docs/operations.md", "docs/architecture.md"


def text(name: str) -> str:
    return DOCS[name].read_text()


def fences(name: str, *languages: str) -> list[str]:
    """The fenced blocks of those languages, without their indentation."""
    found = re.findall(r"^( *)```(\w*)\n(.*?)^ *```$", text(name), re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, kind, body in found if kind in languages]


def prose(name: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", text(name), flags=re.MULTILINE | re.DOTALL)


def inline(name: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(name))


def rows(name: str, heading: str) -> list[list[str]]:
    """The cells of every table row between that heading and the next one of its level or above."""
    level = len(heading) - len(heading.lstrip("#"))
    body = re.split(rf"^{re.escape(heading)}$", text(name), flags=re.MULTILINE)[1]
    body = re.split(rf"^#{{1,{level}}} ", body, flags=re.MULTILINE)[0]
    cells = [[cell.strip() for cell in line.strip()[1:-1].split(" | ")] for line in body.splitlines() if "| " in line]
    return [row for row in cells if set(row[0]) - set("- ")][1:]


def ticks(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


@pytest.fixture(scope="module")
def source() -> str:
    """All our code as one text, with adjacent string literals joined, as an error message's reader sees them."""
    files = [p for package in ("ingest", "workers") for p in (ROOT / package).rglob("*") if p.suffix in {".py", ".lua"}]
    joined = "\n".join(path.read_text() for path in [*files, ROOT / "Makefile"])
    return re.sub(r"[\"']\s*\n\s*f?[\"']", "", joined)


# -- commands ----------------------------------------------------------------------------------------------------------


def commands(name: str) -> Iterator[list[str]]:
    """Every ``ingest …`` of a document, split into words."""
    lines = [line for block in fences(name, "sh", "console") for line in block.splitlines()] + inline(name)
    for line in lines:
        try:
            words = shlex.split(line, comments=True)
        except ValueError:
            continue  # prose in code quotes
        if words[:1] == ["ingest"] and len(words) > 1:
            yield words[1:]


@pytest.mark.parametrize("name", DOCS)
def test_every_command_and_option_exists(name: str) -> None:
    for words in commands(name):
        command: click.Command = cli
        while isinstance(command, click.Group) and words and words[0] != "COMMAND":
            found = command.get_command(click.Context(command), words[0])
            assert found is not None, f"{name}: there is no `ingest {' '.join(words)}`"
            command, words = found, words[1:]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        used = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert used <= known, f"{name}: `{command.name}` has no {used - known}"


def test_readme_names_every_command() -> None:
    named = {words[0] for words in commands("README.md")}
    assert set(cli.list_commands(click.Context(cli))) <= named


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    used = {target for name in DOCS for target in re.findall(r"^make (\w+)|`make (\w+)`", text(name), re.MULTILINE)}
    assert {one for pair in used for one in pair if one} <= targets


def test_extras_are_documented() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {ticks(row[0])[0] for row in rows("README.md", "## Install")} == set(declared) - {"dev", "bench"}


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("section", SECTIONS)
def test_every_key_is_documented_with_its_default(section: str) -> None:
    documented = {ticks(row[0])[0]: tomllib.loads(f"x = {ticks(row[1])[0]}")["x"] for row in keys_of(section)}
    fields = {field.name: field.default for field in dataclasses.fields(SECTIONS[section])}
    assert documented == {key: _as_toml(default) for key, default in fields.items()}


def keys_of(section: str) -> list[list[str]]:
    return rows(CONFIGURATION, f"## [{section}]")


def _as_toml(default: object) -> object:
    return list(default) if isinstance(default, tuple) else str(default) if isinstance(default, Path) else default


def test_top_level_keys_are_documented() -> None:
    assert {ticks(row[0])[0] for row in rows(CONFIGURATION, "## Top level")} == settings._TOP


def test_environment_variables_are_documented_and_exist() -> None:
    ours = set(re.findall(r"\"(INGEST_[A-Z_]+)\"", inspect.getsource(settings)))
    ours |= {f"INGEST_{key.upper()}" for key in settings._TOP}
    assert {ticks(row[0])[0] for row in rows(CONFIGURATION, "## Environment")} == ours
    for name in DOCS:
        assert set(re.findall(r"\bINGEST_[A-Z_]+\b", text(name))) <= ours, name


def test_the_ladder_is_that_of_the_settings() -> None:
    rungs = {ticks(row[0])[0]: float(ticks(row[1])[0]) for row in rows(OPERATIONS, "## Time limits")}
    limits = dataclasses.asdict(settings.Limits())
    assert len(rungs) == 5 and list(rungs) == list(limits)[:5]
    assert rungs == {rung: limits[rung] for rung in rungs}


@pytest.mark.parametrize("name", DOCS)
def test_toml_examples_load(name: str, tmp_path: Path) -> None:
    for block in fences(name, "toml"):
        (tmp_path / "secret").write_text("x")
        block = re.sub(r'file = "[^"]+"', f'file = "{tmp_path}/secret"', block)
        (tmp_path / "ingest.toml").write_text(block)
        variables = dict.fromkeys(re.findall(r'env = "(\w+)"', block), "x")
        assert settings.load({"INGEST_CONFIG": str(tmp_path / "ingest.toml"), **variables}).config_path


# -- errors, events, keys ----------------------------------------------------------------------------------------------


def test_errors_of_the_sources_exist_and_are_retried_as_said() -> None:
    tables = re.findall(
        r"^\| what .+ \| error \| retried \|\n\|[-| ]+\|\n((?:\|.*\|\n)+)", text("docs/sources.md"), re.MULTILINE
    )
    seen = set()
    for row in (line[2:-1] for table in tables for line in table.splitlines()):
        _, error, retried = (cell.strip() for cell in row.split(" | ", 2))
        for found in ticks(error):
            cls = getattr(errors, found)
            seen.add(found)
            if issubclass(cls, errors.FetchError):
                assert issubclass(cls, errors.TransientFetchError) == retried.startswith("yes"), row
    leaves = {n for n, c in vars(errors).items() if isinstance(c, type) and issubclass(c, errors.FetchError)}
    assert leaves - seen == {"FetchError", "TransientFetchError"}, "every error of a fetch is in docs/sources.md"


def test_symptoms_are_texts_of_the_code(source: str) -> None:
    elsewhere = "A rediss:// URL must have parameter ssl_cert_reqs; Error 111 connecting to"  # Celery's, redis-py's
    symptoms = [symptom for row in rows("README.md", "## Troubleshooting") for symptom in ticks(row[0])]
    parts = [part.strip(" :;,.()'") for symptom in symptoms for part in re.split(r"…|\d+", symptom)]
    assert not [part for part in parts if part not in source and part not in elsewhere], "no message says so"


def test_log_events_are_documented_and_exist(source: str) -> None:
    documented = {event for row in rows(OPERATIONS, "## Logs") for event in ticks(row[0])}
    literal = set(re.findall(r"log\.\w+\(\s*\"([a-z]+\.[a-z_]+)\"", source)) - {"dataset.skipped"}
    states = ("done", "failed", "cancelled", "retried", "lost")
    outcomes = {f"{kind}.{state}" for kind in ("shard", "plan") for state in states}
    assert documented == literal | outcomes
    assert all(f"`{fact}`" in text(OPERATIONS) for fact in logs.FACTS)


def test_ledger_keys_are_documented_and_exist() -> None:
    scripts = "\n".join(path.read_text() for path in (ROOT / "ingest" / "ledger").glob("*.lua"))
    used = set(re.findall(r"P \.\. '([a-z]+)", scripts))
    used |= {f"job:{part}" for part in re.findall(r"jobkey\(job, '([a-z]+)'\)", scripts)}
    parts = set(re.findall(r"ipairs\(\{'spec', ('\w+'[^}]*)\}", scripts).pop().replace("'", "").split(", "))
    named = {key for row in rows(ARCHITECTURE, "## The ledger") for key in ticks(row[0])}
    assert {re.sub(r":?[A-Z]+", "", key) for key in named} == used | {f"job:{part}" for part in parts}


def test_modules_are_named_and_exist() -> None:
    named = {token for token in inline(ARCHITECTURE) if re.fullmatch(r"(ingest|workers|tests)/[\w/]*(\.\w+)?", token)}
    assert not [token for token in named if not (ROOT / token).exists()]
    for package in ("ingest", "workers"):
        for path in (ROOT / package).iterdir():
            if path.suffix == ".py" or (path / "__init__.py").exists():
                shown = f"{package}/{path.name}" + "/" * path.is_dir()
                assert shown in named, f"{shown} has no place in {ARCHITECTURE}"


# -- Python and links --------------------------------------------------------------------------------------------------

CALLS: dict[str, Any] = {
    "ingest.Client": ingest.Client,
    "ingest.Source": ingest.Source,
    "ingest.Sql": ingest.Sql,
    "ingest.Api": ingest.Api,
    "ingest.Manifest": ingest.Manifest,
    "client.submit": ingest.Client.submit,
    "client.fetch": ingest.Client.fetch,
    "StreamingDataset": StreamingDataset,
}
JOB = ingest.Job("j1", settings.Settings(), JobLedger(settings.Settings()), None)  # connects to nothing
OBJECTS = {"ingest": ingest, "client": ingest.Client, "job": JOB, "same": JOB, "file": ingest.LocalFile,
           "failure": ingest.Failure, "dataset": StreamingDataset}  # fmt: skip


@pytest.mark.parametrize("name", DOCS)
def test_python_examples_use_what_exists(name: str) -> None:
    for block in fences(name, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in {"ingest", "workers"}:
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in OBJECTS:
                known = OBJECTS[node.value.id]
                fields = {f.name for f in dataclasses.fields(known)} if dataclasses.is_dataclass(known) else set()
                imported = f"import ingest.{node.attr}" in block or f"from ingest.{node.attr}" in block
                assert hasattr(known, node.attr) or node.attr in fields or imported, f"{name}: {ast.unparse(node)}"
            elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
                parameters = inspect.signature(CALLS[ast.unparse(node.func)]).parameters
                assert {keyword.arg for keyword in node.keywords} <= set(parameters), f"{name}: {ast.unparse(node)}"


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", [*DOCS, "CHANGELOG.md"])
def test_relative_links_resolve(name: str) -> None:
    here = ROOT / name
    for target in re.findall(r"\]\(([^)\s]+)\)", here.read_text()):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (here.parent / path).resolve() if path else here
        assert found.exists(), f"{name}: {target} is not there"
        assert not anchor or anchor in anchors(found), f"{name}: {target} has no such heading"
