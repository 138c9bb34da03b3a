"""The end of a DataLoader worker whose training process was killed."""

from __future__ import annotations

import os
import threading
import time

#: How often a worker looks whether its parent lives. Then it has so long to end by itself: torch's workers look every
#: 5 s, and have something to clear away.
LOOK_S, GRACE_S = 2.0, 15.0

_looks = 0  # the process that does


def end_with_parent() -> None:
    """A thread ends this process some seconds after its parent died; one of them, however often it is called.

    torch's workers look after their parent as well, but wait without bound for locks that they share with it and with
    each other, those of an event and of queues: who is killed while it holds one leaves the others waiting for ever.
    """
    global _looks
    if _looks != os.getpid():  # a fork does not take the thread along
        _looks = os.getpid()
        threading.Thread(target=_look, args=(os.getppid(),), name="ingest-orphan", daemon=True).start()


def _look(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    time.sleep(GRACE_S)
    os._exit(1)  # nothing is lost: whom it worked for is gone
