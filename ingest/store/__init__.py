"""A node's directory of verified files, with its id. ``layout`` says where things lie, ``scratch`` is a file in the
making, ``store`` looks up and publishes, ``audit`` counts and verifies."""

from ingest.store.layout import Stored
from ingest.store.scratch import Journal, Scratch
from ingest.store.store import Store, link_into

__all__ = ["Journal", "Scratch", "Store", "Stored", "link_into"]
