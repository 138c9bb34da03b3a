"""What runs on a data node: ``celery -A workers worker``, and ``celery -A workers flower`` for the dashboard.

The operator's ``celeryconfig.py`` is read from the working directory, if it is ours (one that builds on
``ingest.app.defaults``).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

from ingest.app import app, defaults
from ingest.errors import ConfigError, UsageError
from ingest.settings import keep_flower_private


def _operators_file() -> None:
    path = os.path.join(os.getcwd(), "celeryconfig.py")
    if not os.path.exists(path):
        return
    spec = importlib.util.spec_from_file_location("celeryconfig", path)
    if spec is None or spec.loader is None:
        return
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if getattr(module, "defaults", None) is defaults:
        app.config_from_object(module)


keep_flower_private()
try:
    _operators_file()
    from workers import boot, tasks

    boot.configure()
except (ConfigError, UsageError) as error:
    sys.exit(f"ingest: {error}")

app.set_default()

__all__ = ["app", "boot", "tasks"]
