"""Where a shard goes: the same for all who ask, even over the nodes, and moving only what must."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.errors import NoDataNode
from ingest.placement import choose_queue, rendezvous
from ingest.queues import FETCH_QUEUE, node_queue, queues_of

NAMES = st.lists(st.from_regex(r"\A[a-z0-9][a-z0-9.-]{0,9}\Z"), min_size=1, max_size=8, unique=True)
KEYS = [f"https://host/{n}" for n in range(3000)]


@given(NAMES, st.text(st.characters(exclude_categories=())), st.randoms())
def test_the_order_in_which_nodes_are_named_does_not_matter(names: list[str], key: str, random: object) -> None:
    chosen = rendezvous(key, names)
    assert chosen in names and rendezvous(key, names[::-1]) == chosen == rendezvous(key, sorted(names))


@given(NAMES.filter(lambda names: len(names) > 1))
def test_when_a_node_goes_only_its_own_keys_move(names: list[str]) -> None:
    gone, *rest = names
    for key in KEYS[:100]:
        before = rendezvous(key, names)
        assert rendezvous(key, rest) == before or before == gone


def test_a_new_node_takes_its_share_and_moves_nothing_else() -> None:
    names = [f"n{n}" for n in range(9)]
    before = {key: rendezvous(key, names) for key in KEYS}
    after = {key: rendezvous(key, [*names, "new"]) for key in KEYS}
    moved = [key for key in KEYS if before[key] != after[key]]
    assert {after[key] for key in moved} == {"new"} and 0.07 < len(moved) / len(KEYS) < 0.13


def test_the_load_is_even() -> None:
    shares = Counter(rendezvous(key, ["a", "b", "c", "d", "e"]) for key in KEYS)
    assert len(shares) == 5 and max(shares.values()) < 1.2 * min(shares.values())


def test_each_placement() -> None:
    nodes = ["n1", "n2", "n3"]
    assert choose_queue(FETCH_QUEUE, "any", [], "k") == FETCH_QUEUE
    assert (
        choose_queue(FETCH_QUEUE, "node:n7", nodes, "k")
        == choose_queue(FETCH_QUEUE, "n7", [], "k")
        == "ingest.fetch.n7"
    )
    spread = choose_queue(FETCH_QUEUE, "spread", iter(nodes), "k")
    assert (
        spread == node_queue(FETCH_QUEUE, rendezvous("k", nodes)) == choose_queue(FETCH_QUEUE, "spread", nodes * 2, "k")
    )
    assert all(choose_queue(FETCH_QUEUE, p, nodes, "k") in queues_of("n7") for p in ("any", "n7"))


def test_spreading_over_nobody() -> None:
    with pytest.raises(NoDataNode, match="spread"):
        choose_queue(FETCH_QUEUE, "spread", [], "k")
