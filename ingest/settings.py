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
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from ingest.errors import ConfigError

DEFAULT_REDIS_URL = "redis://127.0.0.1:6379/0"
NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")


@dataclass(frozen=True)
class Limits:
    """The ladder of time limits, each rung above the one before it; all in seconds.

    ``connect_s``: to open a connection. ``stall_s``: without a byte. ``soft_s``: a time slice, after which a shard
    hands back what it has and goes to the end of the queue. ``hard_s``: Celery kills the process. ``visibility_s``:
    kombu hands an unacknowledged message out again; doorbells are acknowledged early, so it bounds only what the
    broker remembers.
    """

    connect_s: float = 10.0
    stall_s: float = 60.0
    soft_s: float = 900.0
    hard_s: float = 960.0
    visibility_s: float = 3600.0
    # Outside the ladder: a node that is not heard for lease_s loses its shards. Three renewals fit in one lease, so
    # that two may be lost; 12 s bounds how long a dead node's work waits.
    lease_s: float = 12.0
    renew_s: float = 2.0
    progress_s: float = 0.5
    wait_s: float = 24 * 3600.0
    node_grace_s: float = 5.0

    def __post_init__(self) -> None:
        ladder = [("connect_s", self.connect_s), ("stall_s", self.stall_s), ("soft_s", self.soft_s)]
        ladder += [("hard_s", self.hard_s), ("visibility_s", self.visibility_s)]
        for (low, a), (high, b) in pairwise(ladder):
            if not 0 < a < b:
                raise ConfigError("[limits]", f"{low} ({a:g}) must be above 0 and below {high} ({b:g})")
        if not self.renew_s * 3 <= self.lease_s <= 12:
            raise ConfigError(
                "[limits]", f"lease_s ({self.lease_s:g}) must be at most 12 and at least 3 × renew_s ({self.renew_s:g})"
            )
        _at_least(self, "[limits]", renew_s=0.001, progress_s=0, wait_s=0.001, node_grace_s=0)


def _at_least(section: object, where: str, **least: float) -> None:
    for key, low in least.items():
        value = getattr(section, key)
        if not value >= low:  # not a number is not at least anything either
            raise ConfigError(where, f"{key} ({value:g}) must be at least {low:g}")


@dataclass(frozen=True)
class Retry:
    """How a transient failure is tried again: ``attempts`` in all, full jitter between 0 and ``base_s * 2**n``, up
    to ``cap_s``.

    ``retry_after_cap_s`` bounds what an origin may ask for; ``deadline_s`` ends a job's retries whatever is left.
    """

    attempts: int = 6
    base_s: float = 0.5
    cap_s: float = 60.0
    retry_after_cap_s: float = 600.0
    deadline_s: float = 24 * 3600.0
    deliveries: int = 5

    def __post_init__(self) -> None:
        _at_least(self, "[retry]", attempts=1, deliveries=1, retry_after_cap_s=0)
        if not 0 <= self.base_s <= self.cap_s <= self.deadline_s or self.retry_after_cap_s > self.deadline_s:
            raise ConfigError(
                "[retry]", "0 <= base_s <= cap_s <= deadline_s and retry_after_cap_s <= deadline_s must hold"
            )


@dataclass(frozen=True)
class Http:
    """HTTP: reads of ``chunk_bytes`` (1 MB measured fastest), ``parallel`` files of a shard at once over kept
    connections."""

    chunk_bytes: int = 1 << 20
    parallel: int = 8
    redirects: int = 10
    user_agent: str = ""

    def __post_init__(self) -> None:
        _at_least(self, "[http]", chunk_bytes=1, parallel=1, redirects=0)


@dataclass(frozen=True)
class StoreLimits:
    """The store of this node. ``fresh_s``: how long a validated file is used without asking the origin again."""

    root: Path = Path("~/.cache/ingest/store")
    min_free_bytes: int = 256 << 20
    max_file_bytes: int = 5 << 40
    fresh_s: float = 600.0
    fsync: bool = True
    scratch_ttl_s: float = 6 * 3600.0

    def __post_init__(self) -> None:
        _at_least(self, "[store]", min_free_bytes=0, max_file_bytes=1, fresh_s=0, scratch_ttl_s=0)


@dataclass(frozen=True)
class Egress:
    """Where this node may connect to: ``allow`` names hosts or CIDR blocks; ``strict`` refuses private addresses not
    named."""

    allow: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True)
class _Files:
    roots: tuple[str, ...] = ()


@dataclass(frozen=True)
class Connection:
    """A named profile on the data node. Its values may be secret: they are in neither its repr nor its messages.

    ``match`` is a URI prefix for which this profile is taken when a source names none.
    """

    name: str
    values: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    @property
    def match(self) -> str | None:
        return self.values.get("match")


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


def is_under(uri: str, prefix: str) -> bool:
    """Whether a URI lies under a prefix: ``https://data.corp`` is no prefix of ``https://data.corp.evil.com/``, and
    ``https://data.corp/public/../private`` is not under ``https://data.corp/public/``, however the dots are written."""
    rest = uri[len(prefix) :]
    if ".." in re.split(r"[/\\]", unquote(unquote(re.split(r"[?#]", rest, maxsplit=1)[0]))):
        return False
    return uri.startswith(prefix) and (not rest or prefix.endswith("/") or rest[0] in "/:?#")


def redact(url: str) -> str:
    """A URL without its password, fit to be shown."""
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
    roots = _section(_Files, data.get("files", {}), f"{where} [files]").roots
    values["file_roots"] = tuple(str(Path(path).expanduser()) for path in roots)
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
    try:
        parts = urlsplit(url)
        # No Unix sockets: Celery, kombu and redis-py each write them differently.
        ok = parts.scheme in {"redis", "rediss"} and (parts.port is None or parts.port > 0)
    except ValueError:
        ok = False
    if not ok:
        raise ConfigError(where, f"{redact(url)!r} is not a Redis URL; write redis://HOST:PORT/DB or rediss://…")


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


def keep_flower_private() -> None:
    """Flower listens on all interfaces unless told otherwise, and asks for no password unless one is set: here it
    listens on loopback, unless ``FLOWER_ADDRESS`` or ``--address`` says so."""
    os.environ.setdefault("FLOWER_ADDRESS", "127.0.0.1")


@lru_cache(maxsize=1)
def current() -> Settings:
    """The settings of this process, read once. ``current.cache_clear()`` makes the next call read again."""
    return load()
