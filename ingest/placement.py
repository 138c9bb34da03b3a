"""Which queue a shard goes to: a pure function of the placement, the live nodes and the shard. No I/O here."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

from ingest.errors import NoDataNode
from ingest.queues import node_queue


def rendezvous(key: str, nodes: Sequence[str]) -> str:
    """The node that a key belongs to, by highest random weight: when a node goes, only its own keys move.

    (Thaler and Ravishankar, "Using name-based mappings to increase hit rates", 1998.)
    """
    return max(nodes, key=lambda node: hashlib.sha256(f"{node}\0{key}".encode("utf-8", "surrogatepass")).digest())


def choose_queue(queue: str, placement: str, nodes: Iterable[str], key: str) -> str:
    """``any``: the shared queue. ``spread``: the node that ``key`` belongs to. Else the node of that name,
    or of several (``node:a,b``: nodes with one store) the one that ``key`` belongs to.

    Raises :class:`NoDataNode` for ``spread`` without a node.
    """
    if placement == "any":
        return queue
    if placement == "spread":
        live = sorted(set(nodes))
        if not live:
            raise NoDataNode("placement 'spread'")
        return node_queue(queue, rendezvous(key, live))
    return node_queue(queue, rendezvous(key, placement.removeprefix("node:").split(",")))
