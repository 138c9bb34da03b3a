"""The Celery app and its settings. What its tasks do is in ``workers``.

Importing it connects to nothing. An operator overrides the settings in ``celeryconfig.py``; a reason stands beside
each one that is not Celery's default.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

from celery import Celery

from ingest.queues import DOWNLOAD_TASK, FETCH_QUEUE, PLAN_QUEUE, PLAN_TASK
from ingest.sentinels import is_sentinel, parse_sentinels
from ingest.settings import Settings, current

#: A Redis that is well answers within milliseconds; one that does not for so long is asked over another connection.
SILENCE_S = 3.0


def _celery_url(url: str, options: dict[str, Any]) -> str:
    """The URL as Celery reads it; what it wants to be told beside it goes into ``options``."""
    if not is_sentinel(url):
        return url
    sentinels = parse_sentinels(url)
    options |= sentinels.transport_options
    return sentinels.celery_url


def defaults(settings: Settings | None = None) -> dict[str, Any]:
    """Celery's settings for every process of the service, clients included."""
    s = settings or current()
    return {**_connections(s), **_messages(s), **_processes(s)}


def _connections(s: Settings) -> dict[str, Any]:
    transport: dict[str, Any] = {
        # Our keys stand beside others' in one Redis without meeting them.
        "global_keyprefix": f"{s.prefix}celery:",
        # kombu's default is no timeout: a publish to a Redis that stopped answering would hang for ever. It must stay
        # above the second for which the worker's own blocking pop waits.
        "socket_timeout": SILENCE_S,
        "socket_connect_timeout": s.limits.connect_s,
        "socket_keepalive": True,
        # A connection whose other end is gone without a word (a machine that lost power, a firewall that forgot it)
        # is found out within two of these and a second.
        "health_check_interval": 2,
        # Doorbells are acknowledged when a process takes them, so nothing is unacknowledged for long; the
        # ledger, not this, brings back what a dead worker had.
        "visibility_timeout": s.limits.visibility_s,
    }
    results: dict[str, Any] = {"global_keyprefix": f"{s.prefix}celery:"}
    return {
        "broker_url": _celery_url(s.broker_url, transport),
        "result_backend": _celery_url(s.result_url, results),
        "broker_transport_options": transport,
        "result_backend_transport_options": results,
        # Services start in any order and outlive each other: keep trying, at start as later, without a last time.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_connection_timeout": s.limits.connect_s,
        # A Redis that answers and refuses (out of memory, a replica now) would else end the worker.
        "broker_channel_error_retry": True,
        "redis_socket_timeout": SILENCE_S,
        "redis_socket_connect_timeout": s.limits.connect_s,
        "redis_socket_keepalive": True,
        "redis_retry_on_timeout": True,
    }


def _messages(s: Settings) -> dict[str, Any]:
    return {
        # JSON only, both ways: unpickling what anybody could write to Redis would be running their code.
        "task_serializer": "json",
        "result_serializer": "json",
        "event_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        # A trainer that cannot ring is told within seconds; the reconciler rings for it anyway.
        "task_publish_retry_policy": {
            "max_retries": 3,
            "interval_start": 0.1,
            "interval_step": 0.3,
            "interval_max": 1.0,
        },
        # As long as the ledger remembers the job.
        "result_expires": s.keep_s,
        "task_default_queue": FETCH_QUEUE,
        # A node's queues are named after it and made when it first speaks, or is first spoken to; only
        # ``node_queue`` names them, so a typing error cannot make a queue that nobody reads.
        "task_create_missing_queues": True,
        # A doorbell says "there is work", no more: losing or doubling one is harmless, so it is acknowledged early.
        # Late acknowledgement would bring kombu's restore and visibility timeout into play, which double running work.
        "task_acks_late": False,
        # True concerns none of ours, which are all acknowledged early; False makes Celery warn at each lost connection.
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        "task_reject_on_worker_lost": False,
        "task_routes": {PLAN_TASK: {"queue": PLAN_QUEUE}, "ingest.*": {"queue": FETCH_QUEUE}},
        # What Flower and `celery events` show.
        "worker_send_task_events": True,
        "enable_utc": True,
        "timezone": "UTC",
    }


def _processes(s: Settings) -> dict[str, Any]:
    return {
        # A doorbell taken out of Redis before a process is free for it would ring for nobody: take them one by one.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        # Prefork is the only pool with both limits, and the hard one ends native code too (obstore, ADBC): SIGKILL.
        # The soft one interrupts Python that does not look at its time slice by itself.
        "worker_pool": "prefork",
        "task_soft_time_limit": (s.limits.soft_s + s.limits.hard_s) / 2,
        "task_time_limit": s.limits.hard_s,
        # Downloads wait more than they compute; one slot is kept for planning.
        "worker_concurrency": s.concurrency,
        # A process that native libraries have blown up is replaced after its task (KiB).
        "worker_max_memory_per_child": 600_000,
        # Importing pyarrow or a cloud SDK on a cold disk takes longer than the default of 4 s.
        "worker_proc_alive_timeout": 60.0,
        # Logging is set up by workers.logs (JSON lines, or text on a terminal).
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
    }


def make_app(settings: Settings | None = None) -> Celery:
    """An app with our defaults; without ``settings``, those of this process, read when first needed."""
    made = Celery("ingest", set_as_current=False, amqp="ingest.broker:AMQP")
    made.add_defaults(lambda: defaults(settings))
    return made


@lru_cache(maxsize=8)
def _app_at(broker_url: str, result_url: str, prefix: str) -> Celery:
    return make_app(dataclasses.replace(current(), broker_url=broker_url, result_url=result_url, prefix=prefix))


def app_for(settings: Settings) -> Celery:
    """The app that rings and reads where those settings say: one per broker, whatever the number of clients."""
    own = current()
    if (settings.broker_url, settings.result_url, settings.prefix) == (own.broker_url, own.result_url, own.prefix):
        return app
    return _app_at(settings.broker_url, settings.result_url, settings.prefix)


app = make_app()


@app.task(name=DOWNLOAD_TASK)  # type: ignore[untyped-decorator] # Celery has no types
def download(
    uri: str, into: str | None = None, digest: str | None = None, connection: str | None = None
) -> dict[str, Any]:
    """``ingest.download.delay(uri, into=None, digest=None, connection=None).get(timeout=…)`` →
    ``{"paths": [absolute, …]}``.

    One message, one source, one result, for those who want nothing but Celery. It takes the same way as a job: retried,
    fetched once for all who want it, and failing with the same typed errors. This is its declaration; data nodes have
    the task itself (``workers.tasks``).
    """
    raise RuntimeError("ingest.download runs on a data node: call it with .delay(uri), not directly")
