"""Ringing from a client. Celery is loaded with the first ring: ``import ingest`` is in every process of a training job,
and most of them submit nothing."""

from __future__ import annotations

import threading
from collections.abc import Mapping

from ingest.settings import Settings

#: A bell takes milliseconds. A broker that hangs would take a quarter of a minute, with each.
PATIENCE_S = 1.0


def ring(settings: Settings, due: Mapping[str, int]) -> bool:
    """Ring for each queue where those settings say, once for each unit that is due. Whether that was over in
    ``PATIENCE_S``: a broker that hangs is left to a thread, and what is due is rung for by the reconciler, too."""
    from ingest import doorbell
    from ingest.app import app_for

    app, failed = app_for(settings), list[Exception]()

    def try_to() -> None:
        try:
            doorbell.ring(app, due)
        except Exception as error:  # noqa: BLE001 - raised by whoever waits
            failed.append(error)

    thread = threading.Thread(target=try_to, name="ring", daemon=True)
    thread.start()
    thread.join(PATIENCE_S)
    if failed:
        raise failed[0]
    return not thread.is_alive()
