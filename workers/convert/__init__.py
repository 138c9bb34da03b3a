"""Steps between fetching and publishing: what comes from the origin becomes the files that a user wants.

``steps`` finds a step, ``work`` is what one is given; ours are a module each. What a request may ask for is in
``ingest.steps``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded

from ingest.errors import BadResponse, FetchError, MissingExtra, NothingMatched
from ingest.model import FileSpec
from ingest.steps import CUSTOM_PREFIX
from ingest.store import Scratch
from ingest.store.disk import DISK, RIGHTS
from workers.convert.steps import resolve
from workers.convert.work import File, Work
from workers.fetchers.base import Interrupted

__all__ = ["File", "Work", "convert", "resolve"]

_MOST_WORDS = 500
#: Of these it is the node that is at fault, in whoever's code they come up.
_DISK = DISK - RIGHTS


def convert(spec: FileSpec, scratch: Scratch, name: str, steps: Sequence[Mapping[str, Any]]) -> None:
    """Send the verified file, called ``name``, and its pieces through ``steps``; what the last one makes are
    ``scratch.pieces``.

    Raises a FetchError, whatever a step raises, and :class:`Interrupted`; then nothing of it is of use.
    """
    files = [File(name.rpartition("/")[2], scratch), *(File(str(piece.name), piece) for piece in scratch.pieces)]
    for step, run, told in resolve(spec.uri, steps):
        work = Work(spec.uri, name, scratch)
        work.check()
        try:
            run(files, work, **told)
        except (FetchError, Interrupted, SoftTimeLimitExceeded):
            raise
        except Exception as error:
            if not step.startswith(CUSTOM_PREFIX) or (isinstance(error, OSError) and error.errno in _DISK):
                raise  # a defect of ours, or a disk that is full
            if isinstance(error, ImportError):
                raise MissingExtra(spec.uri, error.name or str(error)) from error
            words = f"{type(error).__name__}: {error}"[:_MOST_WORDS]
            raise BadResponse(spec.uri, f"step {step!r} failed: {words}") from error
        files = work.finish(files)
        if not files:
            raise NothingMatched(spec.uri, f"step {step!r} made no file of it")
