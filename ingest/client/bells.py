"""Ringing from a client. Celery is loaded with the first ring: ``import ingest`` is in every process of a training job,
and most of them submit nothing."""

from __future__ import annotations

from collections.abc import Mapping

from ingest.settings import Settings


def ring(settings: Settings, due: Mapping[str, int]) -> None:
    """Ring for each queue where those settings say, once for each unit that is due."""
    from ingest import doorbell
    from ingest.app import app_for

    doorbell.ring(app_for(settings), due)
