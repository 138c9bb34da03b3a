"""Errors on their way between processes: as JSON over the feed's socket, and through a DataLoader's own relay.

torch rebuilds a worker's error as ``type(error)(one message)`` and makes a RuntimeError of it where that fails, as it
would for every error of ours that has fields. So what leaves a DataLoader worker is a twin of its class that takes one
message: ``except WaitTimeout`` works whatever ``num_workers`` is, but only the message is there, not the fields.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ingest import errors

_WATCH_S = 1.0  # between two looks


class FromWorker(errors.IngestError):
    """What all twins have in common: the message is all there is."""

    def __init__(self, message: str) -> None:
        Exception.__init__(self, message)
        self.message_from_worker = message

    def __str__(self) -> str:
        return self.message_from_worker


def _twins() -> dict[str, type[FromWorker]]:
    ours = {k: v for k, v in vars(errors).items() if isinstance(v, type) and issubclass(v, errors.IngestError)}
    return {k: type(k, (FromWorker, cls), {"__module__": __name__, "__doc__": cls.__doc__}) for k, cls in ours.items()}


_TWINS = _twins()
globals().update(_TWINS)  # pickle finds a class by its name in its module; the module itself says errors.NAME


def twin(error: errors.IngestError) -> errors.IngestError:
    """The error as it can leave a DataLoader worker."""
    return _TWINS.get(type(error).__name__, FromWorker)(str(error))


@contextmanager
def relayed() -> Iterator[None]:
    """What is raised inside leaves as its twin."""
    try:
        yield
    except errors.IngestError as error:
        raise twin(error) from error


def watched() -> threading.Event:
    """Until it is set, this worker ends with the process that started it: torch looks for its parent only from when a
    worker has begun, and would wait for ever for one that died before that."""
    asked = threading.Event()
    threading.Thread(target=_watch, args=(asked,), name="ingest-watch", daemon=True).start()
    return asked


def _watch(asked: threading.Event) -> None:
    while not asked.wait(_WATCH_S):
        if _is_orphan():
            os._exit(1)


def _is_orphan() -> bool:
    starter = multiprocessing.parent_process()
    if starter is None or starter.pid is None or os.getppid() == starter.pid:
        return False
    try:  # under forkserver the starter is no parent, and may well live
        os.kill(starter.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False


def relaying(samples: Iterator[Any], asked: threading.Event) -> Iterator[Any]:
    """The samples; the first one sets ``asked``."""
    asked.set()
    with relayed():
        yield from samples


def to_wire(error: errors.IngestError) -> dict[str, Any]:
    return {"error": type(error).__name__, "args": list(error.args)}


def from_wire(data: Mapping[str, Any]) -> errors.IngestError:
    """The error again; a class that is not ours (a newer process on the other side) becomes its message."""
    cls = getattr(errors, data["error"], None)
    if isinstance(cls, type) and issubclass(cls, errors.IngestError):
        return cls(*data["args"])
    return errors.IngestError(f"{data['error']}: {', '.join(map(str, data['args']))}")
