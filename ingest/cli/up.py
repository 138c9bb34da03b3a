"""``ingest up``: Redis, a data node and the dashboard on this machine, in the foreground. Nothing here knows a job."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from urllib.parse import urlsplit

import click
import redis

from ingest.embedded import RedisServer
from ingest.embedded.claim import claimed, holder
from ingest.embedded.ports import LOOPBACK, answers, connect, is_taken
from ingest.embedded.service import WORKER, environment
from ingest.errors import ServiceFailed
from ingest.settings import current, redact

_FOLLOW = Path(__file__).parent.parent / "embedded" / "follow.py"


@click.command("up")
@click.option(
    "--redis-port",
    type=click.IntRange(1, 65535),
    help="Port of Redis on loopback.  [default: that of INGEST_REDIS_URL]",
)
@click.option(
    "--flower-port",
    type=click.IntRange(1, 65535),
    default=5555,
    show_default=True,
    help="Port of the dashboard on loopback.",
)
@click.option("--flower/--no-flower", default=True, show_default=True, help="Whether to start the dashboard.")
@click.option(
    "--concurrency",
    type=click.IntRange(2),
    help="Shards at once; one slot is kept for planning.  [default: CPUs + 1, at least 5]",
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("~/.local/share/ingest"),
    show_default=True,
    help="Directory of Redis's append-only file and log.",
)
def up(redis_port: int | None, flower_port: int, flower: bool, concurrency: int | None, data: Path) -> None:
    """Start everything on this machine: Redis, a data node, and the dashboard. Ctrl-C stops all of it.

    A Redis that answers already is used, and left running.
    """
    chosen = f"redis://{LOOPBACK}:{redis_port}/0" if redis_port else None
    url = chosen or current().redis_url
    data = data.expanduser().absolute()
    more = {"PYTHONUNBUFFERED": "1"}  # a log line is to be seen when it is written
    if concurrency:
        more["INGEST_CONCURRENCY"] = str(concurrency)
    commands = {"worker": list(WORKER)}
    if flower and _has_flower():
        commands["flower"] = _flower(flower_port)
    dashboard = f"http://{LOOPBACK}:{flower_port}" if "flower" in commands else "none"
    try:
        with _until_told(), contextlib.ExitStack() as stack:
            stack.enter_context(claimed(data, redis=redact(url), flower=dashboard))
            ours = _redis(url, data, stack)
            if "flower" in commands and is_taken(flower_port):
                raise ServiceFailed(
                    "flower", f"port {flower_port} is in use; choose another with --flower-port, or --no-flower"
                )
            if ours:
                commands["redis"] = [sys.executable, "-I", "-S", str(_FOLLOW), str(ours.port), str(ours.log)]
            whose = f"started, its files are in {data}" if ours else "found running, and left so"
            click.echo(f"redis    {redact(url)}  ({whose})")
            click.echo(f"flower   {dashboard}")
            click.echo("Ctrl-C stops all of it.")
            _run(commands, environment(chosen, more))
    except KeyboardInterrupt:
        pass
    click.echo("stopped")


def _redis(url: str, data: Path, stack: contextlib.ExitStack) -> RedisServer | None:
    """The Redis that we started at that URL, to be stopped with ``stack``; None when one was there already."""
    if answers(url):
        _refuse_second(url, data)
        return None
    parts = urlsplit(url)
    if (
        parts.scheme != "redis"
        or parts.hostname not in {LOOPBACK, "localhost"}
        or parts.username not in {None, "", "default"}
    ):
        reason = (
            "nothing answers there, and `ingest up` can start one only at redis://127.0.0.1:PORT (see --redis-port)"
        )
        raise ServiceFailed("redis", f"{redact(url)}: {reason}")
    return stack.enter_context(RedisServer(data, port=parts.port or 6379, password=parts.password))


def _refuse_second(url: str, data: Path) -> None:
    """Refuse a Redis that is another ``ingest up``'s: two data nodes of one name would answer for each other."""
    with contextlib.closing(connect(url)) as client:
        try:
            theirs = Path(str(client.config_get("dir")["dir"]))
        except (redis.RedisError, KeyError):
            return  # managed Redis often does not tell; then it is not one that we started
    if theirs != data and (running := holder(theirs)):
        raise ServiceFailed("up", running)


def _has_flower() -> bool:
    if importlib.util.find_spec("flower") is None:
        click.echo("no dashboard: Flower is not installed (pip install 'ingest[flower]')", err=True)
        return False
    return True


def _flower(port: int) -> list[str]:
    # Flower listens on all interfaces unless told, and its pages ask for no password.
    # Until the worker is up it warns of each question that nobody answers, and where it is we say ourselves.
    flags = [f"--address={LOOPBACK}", f"--port={port}", "--logging=error"]
    return [*WORKER[:-1], "flower", *flags]


def _run(commands: dict[str, list[str]], env: dict[str, str]) -> None:
    """Until a signal comes. Raises :class:`ServiceFailed` naming the part that ended by itself, when all have ended."""
    try:
        from ingest.embedded.supervisor import Supervisor
    except ModuleNotFoundError as error:
        raise ServiceFailed("up", "honcho is not installed: pip install 'ingest[embedded]'") from error
    supervisor = Supervisor(unseen=["redis"])
    for name, command in commands.items():
        supervisor.add_process(name, command, env=env)
    supervisor.loop()
    # From here on only Redis is left, and it is to be stopped in order.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    if supervisor.fallen:
        told = ", ".join(f"{name} (status {status})" for name, status in supervisor.fallen.items())
        raise ServiceFailed("up", f"ended by itself: {told}; everything else was stopped. Its last lines above say why")


@contextlib.contextmanager
def _until_told() -> Iterator[None]:
    """SIGTERM, and a terminal that goes away, are as good as a Ctrl-C; also before honcho takes the signals over."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    def terminate(signum: int, frame: FrameType | None) -> None:
        signal.raise_signal(signal.SIGTERM)

    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    signal.signal(signal.SIGTERM, interrupt)
    if before[signal.SIGHUP] is not signal.SIG_IGN:  # under nohup it stays ignored
        signal.signal(signal.SIGHUP, terminate)
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
