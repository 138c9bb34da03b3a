"""A node's directory of verified files, with its id. ``layout`` says where things lie, ``scratch`` is a file in the
making, ``store`` looks up and publishes, ``links`` is ``into=``, ``audit`` counts and verifies."""

from ingest.store.layout import Piece, Stored
from ingest.store.links import link_into
from ingest.store.partial import Journal
from ingest.store.scratch import Scratch
from ingest.store.store import Store

__all__ = ["Journal", "Piece", "Scratch", "Store", "Stored", "link_into"]
