"""The URL of a Redis that Sentinels watch: ``sentinel://[USER:PASSWORD@]HOST:PORT;sentinel://HOST2:PORT/DB?master=NAME``.
Read here, and followed to the primary; broker and results are Celery's to connect to."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

#: Where a Sentinel listens unless told otherwise.
PORT = 26379
_KNOWN = {"master", "sentinel_username", "sentinel_password", "ssl"}


@dataclass(frozen=True)
class Sentinels:
    """Who knows where the primary is, and how that is spoken to. ``username`` and ``password`` are those of Redis,
    ``sentinel_login`` those of the Sentinels themselves."""

    hosts: tuple[tuple[str, int], ...]
    master: str
    db: int = 0
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel_login: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ssl: bool = False

    @property
    def celery_url(self) -> str:
        """As kombu and Celery's result backend read it: each Sentinel with the login and the database of Redis."""
        login = ""
        if self.password is not None:
            login = f"{quote(self.username or '', safe='')}:{quote(self.password, safe='')}@"
        hosts = ((f"[{host}]" if ":" in host else host, port) for host, port in self.hosts)
        return ";".join(f"sentinel://{login}{host}:{port}/{self.db}" for host, port in hosts)

    @property
    def transport_options(self) -> dict[str, Any]:
        """What kombu and Celery's result backend are told beside the URL."""
        return {"master_name": self.master, "sentinel_kwargs": self.sentinel_kwargs}

    @property
    def sentinel_kwargs(self) -> dict[str, Any]:
        """How a Sentinel itself is spoken to."""
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        return {
            **dict(self.sentinel_login),
            **({"ssl": True} if self.ssl else {}),
            # One that is gone must not hold up the question to the next one: redis-py would try it for seconds.
            "retry": Retry(NoBackoff(), 0),
            "socket_timeout": 2.0,
            "socket_connect_timeout": 2.0,
        }


def is_sentinel(url: str) -> bool:
    return url.lower().startswith("sentinel://")


def open_client(url: str, **how: Any) -> Any:
    """A client of redis-py for that Redis, of the primary where Sentinels watch it. Connects with its first command."""
    import redis
    import redis.sentinel

    if not is_sentinel(url):
        return redis.Redis.from_url(url, **how)
    known = parse_sentinels(url)
    login = {"username": known.username, "password": known.password, "db": known.db, "ssl": known.ssl}
    watch = redis.sentinel.Sentinel(  # type: ignore[no-untyped-call]
        list(known.hosts), sentinel_kwargs=known.sentinel_kwargs
    )
    return watch.master_for(known.master, **how, **login)  # type: ignore[no-untyped-call]


def parse_sentinels(url: str) -> Sentinels:
    """Raises :class:`ValueError` saying what is wrong, without the password."""
    chunks = [chunk for chunk in url.split(";") if chunk]
    parts = [urlsplit(chunk if "://" in chunk else f"sentinel://{chunk}") for chunk in chunks]
    if any(part.scheme != "sentinel" or not part.hostname for part in parts):
        raise ValueError("each Sentinel is written as sentinel://HOST:PORT, with ';' between them")
    options = {name: values[-1] for part in parts for name, values in parse_qs(part.query).items()}
    if unknown := sorted(set(options) - _KNOWN):
        raise ValueError(f"unknown option {unknown[0]!r}; known: {', '.join(sorted(_KNOWN))}")
    if not options.get("master"):
        raise ValueError("?master=NAME at its end says which of the Sentinels' primaries is meant")
    db = next((part.path.strip("/") for part in parts if part.path.strip("/")), "0")
    if not re.fullmatch(r"[0-9]{1,5}", db):
        raise ValueError("the database is a number: /0")
    login = next((part for part in parts if part.password or part.username), None)
    names = (("username", "sentinel_username"), ("password", "sentinel_password"))
    return Sentinels(
        tuple((part.hostname or "", part.port or PORT) for part in parts),
        options["master"],
        int(db),
        unquote(login.username) if login and login.username else None,
        unquote(login.password) if login and login.password else None,
        tuple((name, options[option]) for name, option in names if option in options),
        options.get("ssl", "").lower() in {"1", "true", "yes"},
    )
