"""Put on the PYTHONPATH of a worker by ``test_store``: what no machine can be asked to do without root, done to a real
process. Without these variables in the environment it does nothing.

FAULTS_EIO     fsync of a file below this folder fails while a file of its name and ``.eio`` exists
FAULTS_PLAIN   a process of root's gives up what root may: then the modes of files hold for it, too
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Any

_under = os.environ.get("FAULTS_EIO")
_fsync = os.fsync


def _failing(file: Any) -> None:
    number = file if isinstance(file, int) else file.fileno()
    if os.path.exists(f"{_under}.eio") and os.readlink(f"/proc/self/fd/{number}").startswith(f"{_under}/"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    _fsync(file)


if _under:
    os.fsync = _failing  # type: ignore[assignment]


def _give_up() -> None:
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # capset(2): the version of what follows, this process
    if ctypes.CDLL(None, use_errno=True).capset(header, (ctypes.c_uint32 * 6)()) != 0:
        raise OSError(ctypes.get_errno(), "capset")


if os.environ.get("FAULTS_PLAIN") and os.geteuid() == 0:
    _give_up()
