"""Shows the log of a Redis on loopback, and ends when that Redis ends: ``python -I -S follow.py PORT LOG``.

Redis is stopped after everything else and is therefore not a process of the supervisor; this script stands for it
there, so that its lines are among the others and its death is noticed. It imports nothing of ours.
"""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

_LOOK_S = 0.2  # how late a line may be shown


def _main(argv: Sequence[str]) -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    out = sys.stdout.buffer
    with socket.create_connection(("127.0.0.1", int(argv[0])), timeout=5) as redis, Path(argv[1]).open("rb") as log:
        redis.settimeout(_LOOK_S)
        alive = True
        while alive:
            try:
                alive = bool(redis.recv(1))
            except TimeoutError:
                alive = True
            except ConnectionError:
                alive = False
            out.writelines(log)
            out.flush()
    return 1


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
