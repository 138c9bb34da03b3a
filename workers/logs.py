"""Log lines of a data node: JSON for machines, one line of text for people. Events have names; the facts stand
beside them."""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

#: Facts that a record may carry (``extra=``), in the order in which they are written.
FACTS = (
    "job",
    "shard",
    "node",
    "origin",
    "attempt",
    "files",
    "failed",
    "bytes",
    "seconds",
    "delay_s",
    "error",
    "reason",
    "source",
)

log = logging.getLogger("ingest")


class JsonLines(logging.Formatter):
    """``{"time": …, "level": …, "event": …, "job": …, …}``, one object a line."""

    def format(self, record: logging.LogRecord) -> str:
        out: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            "pid": record.process,
        }
        out |= {name: value for name in FACTS if (value := getattr(record, name, None)) is not None}
        if record.exc_info:
            out["traceback"] = self.formatException(record.exc_info)
        return json.dumps(out, ensure_ascii=False, default=str)


class Text(logging.Formatter):
    """``12:00:01 INFO shard.done job=… shard=… bytes=…``."""

    def format(self, record: logging.LogRecord) -> str:
        facts = " ".join(f"{name}={value}" for name in FACTS if (value := getattr(record, name, None)) is not None)
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{clock} {record.levelname:<7} {record.getMessage()} {facts}".rstrip()
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def setup(log_format: str, level: int) -> None:
    """Log to stderr: ``json``, ``text``, or ``auto`` (text on a terminal)."""
    handler = logging.StreamHandler(sys.stderr)
    as_text = log_format == "text" or (log_format == "auto" and sys.stderr.isatty())
    handler.setFormatter(Text() if as_text else JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # What these say at INFO is about doorbells, not about data.
    for name in ("celery.app.trace", "celery.worker.strategy", "kombu", "botocore", "urllib3", "fsspec", "aiobotocore"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))
