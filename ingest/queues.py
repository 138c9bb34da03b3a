"""Names of the service's tasks and queues."""

from __future__ import annotations

FETCH_QUEUE = "ingest.fetch"
PLAN_QUEUE = "ingest.plan"
FETCH_TASK = "ingest.fetch"
PLAN_TASK = "ingest.plan"
DOWNLOAD_TASK = "ingest.download"
CANARY_TASK = "ingest.canary"


def node_queue(queue: str, node: str) -> str:
    """The queue for work of that kind that must land on that node."""
    return f"{queue}.{node}"


def canary_queue(node: str) -> str:
    """Where a node is asked whether it answers; whatever other queues it consumes."""
    return f"ingest.canary.{node}"


def queues_of(node: str) -> list[str]:
    """What a data node consumes: its own queues and the shared ones. Planning first: fetching waits for it."""
    return [node_queue(PLAN_QUEUE, node), PLAN_QUEUE, node_queue(FETCH_QUEUE, node), FETCH_QUEUE]
