"""The process in which snapshots are held: one open transaction for each, until it is told to let go.

A script with nothing of ours in it, so that it is small and starts fast. It is told and tells in lines of JSON:
``{"open": name, "uri": …, "options": {…}, "begin": […], "every_s": …}`` and ``{"close": name}`` come in,
``{"name": …, "moment": …}`` and ``{"name": …, "gone": text, "sqlstate": …, "at": "connect" | "export" | "hold"}`` go
out. It ends when its input does: with its keeper, however that ends.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import uuid
from contextlib import closing
from typing import Any

import adbc_driver_postgresql.dbapi as adbc

#: How long transactions may take to end in order when the process ends.
_END_S = 2.0

_speaking = threading.Lock()


def say(**facts: Any) -> None:
    with _speaking:
        print(json.dumps(facts), flush=True)


def hold(order: dict[str, Any], end: threading.Event) -> None:
    """Export a snapshot and keep it, asking every few seconds whether it is still there."""
    name, at = order["open"], "connect"
    try:
        connected = adbc.connect(order["uri"], order["options"])
        with closing(connected) as connection, closing(connection.cursor()) as cursor:
            for statement in order["begin"]:
                cursor.execute(statement)
            at = "export"
            cursor.execute("SELECT pg_export_snapshot()")
            (snapshot,) = cursor.fetchall()[0]
            at = "hold"
            # PostgreSQL gives the same names again, to others: this one is told from all of them.
            say(name=name, moment=f"{uuid.uuid4().hex}/{snapshot}")
            while not end.wait(order["every_s"]):
                cursor.execute("SELECT 1")
                cursor.fetchall()
    except Exception as error:  # noqa: BLE001 - whatever it is, the keeper decides what becomes of it
        say(name=name, gone=str(error), sqlstate=getattr(error, "sqlstate", None), at=at)


def main() -> None:
    held: dict[str, tuple[threading.Event, threading.Thread]] = {}
    for line in sys.stdin:
        order = json.loads(line)
        if name := order.get("open"):
            end = threading.Event()
            held[name] = end, threading.Thread(target=hold, args=(order, end), daemon=True)
            held[name][1].start()
        elif order.get("close") in held:
            held.pop(order["close"])[0].set()
    for end, _ in held.values():
        end.set()
    for _, thread in held.values():
        thread.join(_END_S / max(1, len(held)))
    sys.stdout.flush()
    os._exit(0)  # a thread that waits for a dead server is not waited for


if __name__ == "__main__":
    main()
