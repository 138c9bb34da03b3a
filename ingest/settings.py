"""The one place that reads the environment and ``ingest.toml``. Everything else is handed a frozen ``Settings``.

The order is: environment, then the file, then the defaults below. ``INGEST_CONFIG`` names the file; without it
``./ingest.toml`` and then ``~/.config/ingest/ingest.toml`` are used where they exist.
"""

from __future__ import annotations

import dataclasses
import os
import re
import socket
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from ingest.errors import ConfigError
from ingest.sections import Connection, Egress, Files, Http, Limits, Retry, StoreLimits, is_under
from ingest.sentinels import is_sentinel, parse_sentinels

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True)
class Settings:
    """Everything that may differ between two deployments. Passwords inside URLs are hidden from the repr."""

    redis_url: str = field(default=DEFAULT_REDIS_URL, repr=False)
    broker_url: str = field(default=DEFAULT_REDIS_URL, repr=False)
    result_url: str = field(default=DEFAULT_REDIS_URL, repr=False)
    ledger_url: str = field(default=DEFAULT_REDIS_URL, repr=False)
    prefix: str = "ingest:"
    node: str = "localhost"
    concurrency: int = 5
    keep_s: float = 7 * 24 * 3600.0
    log_format: str = "auto"
    limits: Limits = field(default_factory=Limits)
    retry: Retry = field(default_factory=Retry)
    http: Http = field(default_factory=Http)
    store: StoreLimits = field(default_factory=StoreLimits)
    egress: Egress = field(default_factory=Egress)
    file_roots: tuple[str, ...] = ()
    file_link: bool = False
    connections: Mapping[str, Connection] = field(default_factory=dict)
    config_path: Path | None = None

    def connection_for(self, uri: str, name: str | None) -> Connection | None:
        """The profile of that name, else the one with the longest ``match`` for the URI, else None.

        Raises :class:`KeyError` for a name that is not configured here.
        """
        if name is not None:
            return self.connections[name]
        matching = [c for c in self.connections.values() if c.match and is_under(uri, c.match)]
        return max(matching, key=lambda c: len(c.match or ""), default=None)


def redact(url: str) -> str:
    """A URL without its password, fit to be shown."""
    if is_sentinel(url):
        url = ";".join(_redact_one(part) for part in re.split(r";(?=[^@]*://)", url))
        return url
    return _redact_one(url)


def _redact_one(url: str) -> str:
    # By hand, because urlsplit ends a host at the first "/", "?" or "#", and a password may hold one of them.
    scheme, is_url, rest = url.partition("://")
    if not is_url:
        return "(not a URL)"
    login, has_login, place = rest.rpartition("@")
    user = login.partition(":")[0]
    shown = f"{user}@" if has_login and user and not set(user) & set("/?#") else ""
    return f"{scheme}://{shown}{re.split('[?#]', place, maxsplit=1)[0]}"


S = TypeVar("S")


def _section(cls: type[S], table: Any, where: str, given: Mapping[str, Any] | None = None) -> S:
    """A settings dataclass from a TOML table, refusing unknown keys and wrong types by name."""
    values = dict(given or {})
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not isinstance(table, dict):
        raise ConfigError(where, "must be a table")
    for key, value in table.items():
        if key not in known:
            raise ConfigError(where, f"unknown key {key!r}; known: {', '.join(sorted(known))}")
        default = known[key].default
        if isinstance(default, bool) != isinstance(value, bool):
            raise ConfigError(where, f"{key} must be {type(default).__name__}, not {value!r}")
        if isinstance(default, float) and isinstance(value, int):
            value = float(value)
        if isinstance(default, tuple) and isinstance(value, list):
            value = tuple(value)
        if isinstance(default, Path) and isinstance(value, str):
            value = Path(value)
        if not isinstance(value, type(default)):
            raise ConfigError(where, f"{key} must be {type(default).__name__}, not {value!r}")
        if isinstance(value, tuple) and not all(isinstance(item, str) for item in value):
            raise ConfigError(where, f"{key} must be a list of strings, not {list(value)!r}")
        values.setdefault(key, value)
    try:
        return cls(**values)
    except ConfigError as error:
        raise ConfigError(where, error.reason) from None


def _secret(value: Any, where: str, env: Mapping[str, str]) -> Any:
    """``{env = "NAME"}`` and ``{file = "PATH"}`` become what they point at, so that a config file need hold no
    secret."""
    if not isinstance(value, dict):
        return value
    if set(value) not in ({"env"}, {"file"}):
        return {k: _secret(v, where, env) for k, v in value.items()}
    ((kind, name),) = value.items()
    if not isinstance(name, str):
        raise ConfigError(where, f"{kind} must be a string, not {name!r}")
    if kind == "env":
        if name not in env:
            raise ConfigError(where, f"the environment variable {name} is not set")
        return env[name]
    try:
        return Path(name).expanduser().read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(where, f"cannot read {name}: {getattr(error, 'strerror', 'it is not text')}") from None


def _connections(table: Any, where: str, env: Mapping[str, str]) -> dict[str, Connection]:
    if not isinstance(table, dict):
        raise ConfigError(f"{where} [connections]", "must be a table of tables: [connections.NAME]")
    made = {}
    for name, values in table.items():
        here = f"{where} [connections.{name}]"
        if not isinstance(values, dict):
            raise ConfigError(here, "must be a table")
        made[name] = Connection(name, {key: _secret(value, f"{here} {key}", env) for key, value in values.items()})
        if not isinstance(made[name].values.get("match", ""), str):
            raise ConfigError(here, "match must be a string: the prefix of a URI")
    return made


def _config_file(environ: Mapping[str, str]) -> Path | None:
    if "INGEST_CONFIG" in environ:
        path = Path(environ["INGEST_CONFIG"]).expanduser()
        if not path.is_file():
            raise ConfigError("INGEST_CONFIG", f"{path} is not a file")
        return path
    for path in (Path("ingest.toml"), Path("~/.config/ingest/ingest.toml").expanduser()):
        if path.is_file():
            return path.resolve()
    return None


_SECTIONS = {"limits": Limits, "retry": Retry, "http": Http, "store": StoreLimits, "egress": Egress}
_NUMBERS: dict[str, type[int] | type[float]] = {"concurrency": int, "keep_s": float}
LOG_FORMATS = ("auto", "json", "text")
_TOP = {"redis_url", "broker_url", "result_url", "ledger_url", "prefix", "node", "concurrency", "keep_s", "log_format"}


def load(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the environment and the file. Raises :class:`ConfigError` naming the key at fault."""
    env = os.environ if environ is None else environ
    path = _config_file(env)
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(str(path), f"cannot be read: {error.strerror}") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(str(path), str(error)) from None
    if unknown := set(data) - _TOP - set(_SECTIONS) - {"connections", "files"}:
        raise ConfigError(str(path), f"unknown key {sorted(unknown)[0]!r}")
    where = str(path) if path else "environment"
    values = _top(data, where, env)
    for name, cls in _SECTIONS.items():
        given = {"root": Path(env["INGEST_STORE"])} if name == "store" and env.get("INGEST_STORE") else {}
        values[name] = _section(cls, data.get(name, {}), f"{where} [{name}]", given)
    root = Path(values["store"].root).expanduser()
    values["store"] = dataclasses.replace(values["store"], root=Path(os.path.abspath(root)))
    files = _section(Files, data.get("files", {}), f"{where} [files]")
    values["file_roots"] = tuple(str(Path(path).expanduser()) for path in files.roots)
    values["file_link"] = files.link
    values["connections"] = _connections(data.get("connections", {}), where, env)
    return Settings(config_path=path, **values)


def _top(data: Mapping[str, Any], where: str, env: Mapping[str, str]) -> dict[str, Any]:
    """What is not in a section: from the environment, else from the file, else a default."""
    values: dict[str, Any] = {}
    at: dict[str, str] = {}  # key → where a person finds it
    for key in sorted(_TOP):
        variable = f"INGEST_{key.upper()}"
        if variable in env:
            values[key], at[key] = env[variable], variable
        elif key in data:
            values[key], at[key] = data[key], f"{where} {key}"
    for key, value in values.items():
        if key in _NUMBERS:
            values[key] = _number(value, _NUMBERS[key], at[key])
        elif not isinstance(value, str):
            raise ConfigError(at[key], f"must be a string, not {value!r}")
    redis_url = values.setdefault("redis_url", DEFAULT_REDIS_URL)
    for key in ("redis_url", "broker_url", "result_url", "ledger_url"):
        check_redis_url(values.setdefault(key, redis_url), at.get(key, key))
    values.setdefault("node", socket.gethostname() or "localhost")
    if not NODE_NAME.fullmatch(values["node"]):
        raise ConfigError(at.get("node", "INGEST_NODE"), f"{values['node']!r} must be letters, digits, '_', '.' or '-'")
    values.setdefault("concurrency", max(4, os.cpu_count() or 1) + 1)
    if values["concurrency"] < 2:
        raise ConfigError(
            at["concurrency"], f"{values['concurrency']} must be at least 2: one slot is kept for planning"
        )
    if not 0 < values.get("keep_s", 1) < 1e11:
        raise ConfigError(at["keep_s"], f"{values['keep_s']:g} must be a number of seconds above 0")
    if values.get("log_format", "auto") not in LOG_FORMATS:
        raise ConfigError(at["log_format"], f"{values['log_format']!r} must be one of {', '.join(LOG_FORMATS)}")
    return values


def _number(value: Any, kind: type[int] | type[float], where: str) -> int | float:
    try:
        if isinstance(value, bool) or (kind is int and isinstance(value, float)):
            raise ValueError
        return kind(value)
    except (ValueError, TypeError):
        raise ConfigError(where, f"must be a {'whole ' * (kind is int)}number, not {value!r}") from None


def check_redis_url(url: str, where: str) -> None:
    """Raises :class:`ConfigError` for a URL that redis-py could not open."""
    if is_sentinel(url):
        try:
            parse_sentinels(url)
        except ValueError as error:
            raise ConfigError(where, f"{redact(url)!r} is no URL of Sentinels: {error}") from None
        return
    try:
        parts = urlsplit(url)
        # No Unix sockets: Celery, kombu and redis-py each write them differently.
        ok = parts.scheme in {"redis", "rediss"} and (parts.port is None or parts.port > 0)
    except ValueError:
        ok = False
    if not ok:
        raise ConfigError(
            where, f"{redact(url)!r} is not a Redis URL; write redis://HOST:PORT/DB, rediss://… or sentinel://…"
        )


def rank_and_world(environ: Mapping[str, str] | None = None) -> tuple[int, int]:
    """``RANK`` and ``WORLD_SIZE`` as torchrun sets them, else ``(0, 1)``. Raises :class:`ConfigError` for what
    cannot be."""
    env = os.environ if environ is None else environ
    try:
        rank, world = int(env.get("RANK", "0")), int(env.get("WORLD_SIZE", "1"))
    except ValueError:
        rank, world = -1, -1
    if not 0 <= rank < world:
        shown = f"RANK={env.get('RANK')!r} and WORLD_SIZE={env.get('WORLD_SIZE')!r}"
        raise ConfigError("environment", f"{shown}: need 0 <= RANK < WORLD_SIZE; torchrun sets both")
    return rank, world


class Launch(NamedTuple):
    """This process in a distributed run, as torchrun says it; ``run`` is "" where nothing says which run it is."""

    rank: int
    world: int
    local_rank: int
    run: str


def launch(environ: Mapping[str, str] | None = None) -> Launch:
    """From ``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK`` and what identifies the run. Raises :class:`ConfigError`."""
    env = os.environ if environ is None else environ
    rank, world = rank_and_world(env)
    local = env.get("LOCAL_RANK", str(rank))
    if not local.isdecimal():
        raise ConfigError("environment", f"LOCAL_RANK={local!r}: a whole number; torchrun sets it")
    run = env.get("TORCHELASTIC_RUN_ID", "none")
    if run in ("", "none"):  # torchrun says "none" where it was given no id
        run = f"{env['MASTER_ADDR']}:{env['MASTER_PORT']}" if {"MASTER_ADDR", "MASTER_PORT"} <= env.keys() else ""
    return Launch(rank, world, int(local), run)


def local_world(environ: Mapping[str, str] | None = None) -> int:
    """``LOCAL_WORLD_SIZE``, how many ranks are on this node, as torchrun sets it; else 1."""
    found = (os.environ if environ is None else environ).get("LOCAL_WORLD_SIZE", "1")
    if not found.isdecimal() or int(found) < 1:
        raise ConfigError("environment", f"LOCAL_WORLD_SIZE={found!r}: a whole number, 1 or more; torchrun sets it")
    return int(found)


def keep_flower_private() -> None:
    """Flower listens on all interfaces unless told otherwise, and asks for no password unless one is set: here it
    listens on loopback, unless ``FLOWER_ADDRESS`` or ``--address`` says so."""
    os.environ.setdefault("FLOWER_ADDRESS", "127.0.0.1")


@lru_cache(maxsize=1)
def current() -> Settings:
    """The settings of this process, read once. ``current.cache_clear()`` makes the next call read again."""
    return load()
