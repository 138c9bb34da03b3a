"""The sections of ``ingest.toml`` as frozen values, each of which refuses what cannot be. Nothing is read here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from ingest.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """The ladder of time limits, each rung above the one before it; all in seconds.

    ``connect_s``: to open a connection. ``stall_s``: without a byte. ``soft_s``: a time slice, after which a shard
    hands back what it has and is among the next again. ``hard_s``: Celery kills the process. ``visibility_s``:
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
    plan_ahead: int = 10_000
    # A message goes through the worker's own queue every canary_s. One that answers none for restart_s while Redis is
    # there is ended, so that its supervisor starts it anew: above the 30 s for which Celery's consumer backs off.
    canary_s: float = 20.0
    restart_s: float = 120.0

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
        _at_least(self, "[limits]", renew_s=0.001, progress_s=0, wait_s=0.001, node_grace_s=0, plan_ahead=1)
        _at_least(self, "[limits]", canary_s=0.001, restart_s=0)


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
    For so many seconds of a job (``not_found_s``) what is not found is taken for not there yet.
    """

    attempts: int = 6
    base_s: float = 0.5
    cap_s: float = 60.0
    retry_after_cap_s: float = 600.0
    deadline_s: float = 24 * 3600.0
    deliveries: int = 5
    not_found_s: float = 0.0

    def __post_init__(self) -> None:
        _at_least(self, "[retry]", attempts=1, deliveries=1, retry_after_cap_s=0, not_found_s=0)
        if not 0 <= self.base_s <= self.cap_s <= self.deadline_s or self.retry_after_cap_s > self.deadline_s:
            raise ConfigError(
                "[retry]", "0 <= base_s <= cap_s <= deadline_s and retry_after_cap_s <= deadline_s must hold"
            )


@dataclass(frozen=True)
class Http:
    """HTTP: reads of ``chunk_bytes`` (1 MB measured fastest), ``parallel`` files of a shard at once over kept
    connections. ``refuse_html``: no HTML page is taken for a file whose suffix says that it is data. ``stall_bytes``:
    fewer in ``stall_s`` are a stall.

    A file of ``ranges_from_bytes`` and more comes over up to ``ranges`` connections, ``range_bytes`` a request; beside
    the first connections of its files, a process opens no more than that many in all.
    """

    chunk_bytes: int = 1 << 20
    parallel: int = 8
    redirects: int = 10
    user_agent: str = ""
    refuse_html: bool = True
    stall_bytes: int = 1024
    ranges: int = 8
    range_bytes: int = 16 << 20
    ranges_from_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        _at_least(self, "[http]", chunk_bytes=1, parallel=1, redirects=0, stall_bytes=1)
        _at_least(self, "[http]", ranges=1, range_bytes=64 << 10, ranges_from_bytes=0)


@dataclass(frozen=True)
class StoreLimits:
    """The store of this node. ``fresh_s``: how long a validated file is used without asking the origin again.

    ``max_bytes``: what it may hold (0: what the disk does). What is least recently used is evicted, but nothing that
    was used within ``quiet_s``, or that a job holds: also one that ended ``hold_s`` ago and was read by nobody.
    """

    root: Path = Path("~/.cache/ingest/store")
    min_free_bytes: int = 256 << 20
    max_file_bytes: int = 5 << 40
    fresh_s: float = 600.0
    fsync: bool = True
    scratch_ttl_s: float = 6 * 3600.0
    max_bytes: int = 0
    hold_s: float = 600.0
    quiet_s: float = 60.0

    def __post_init__(self) -> None:
        _at_least(self, "[store]", min_free_bytes=0, max_file_bytes=1, fresh_s=0, scratch_ttl_s=0)
        _at_least(self, "[store]", max_bytes=0, hold_s=0, quiet_s=0.001)


@dataclass(frozen=True)
class Egress:
    """Where this node may connect to: ``allow`` names hosts or CIDR blocks; ``strict`` refuses private addresses not
    named."""

    allow: tuple[str, ...] = ()
    strict: bool = False


@dataclass(frozen=True)
class Files:
    """``link``: a ``file://`` source may become a hard link in the store, where the filesystem has no reflinks."""

    roots: tuple[str, ...] = ()
    link: bool = False


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


_BEHIND_HOST = re.compile(r"[/?#]|:[0-9]*(?:[/?#]|$)")


def is_under(uri: str, prefix: str) -> bool:
    """Whether a URI lies under a prefix: ``https://data.corp`` is no prefix of ``https://data.corp.evil.com/``, and
    ``https://data.corp/public/../private`` is not under ``https://data.corp/public/``, however the dots are written."""
    rest = uri[len(prefix) :]
    if ".." in re.split(r"[/\\]", unquote(unquote(re.split(r"[?#]", rest, maxsplit=1)[0]))):
        return False
    # After a colon comes a port: in "https://data.corp:x@evil.com/" the host is another one.
    return uri.startswith(prefix) and (not rest or prefix.endswith("/") or bool(_BEHIND_HOST.match(rest)))
