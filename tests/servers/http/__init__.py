"""A real HTTP origin on loopback, in a thread of the test: files with ETags and ranges, a log of what was asked, and
misbehaviour on demand.

    with Origin() as origin:
        url = origin.put("/a.tar", b"...")
        origin.on("/b.tar", flaky(2, status(503), file(b"...")))
        origin.count("/a.tar")

``good`` and ``bad`` hold the behaviours, ``tls`` makes certificates, ``proxy`` is a proxy to send it all through.
"""

from tests.servers.http.bad import (
    answered,
    chunked,
    drip,
    endless,
    endless_headers,
    only,
    only_after,
    raw,
    reset,
    silent,
    silent_after_headers,
    truncated,
    unless,
)
from tests.servers.http.good import (
    file,
    flaky,
    http_date,
    pattern,
    pattern_block,
    redirect,
    sequence,
    slow_start,
    status,
)
from tests.servers.http.origin import Asked, Behaviour, Handler, Origin
from tests.servers.http.tls import self_signed

__all__ = [
    "Asked",
    "Behaviour",
    "Handler",
    "Origin",
    "answered",
    "chunked",
    "drip",
    "endless",
    "endless_headers",
    "file",
    "flaky",
    "http_date",
    "only",
    "only_after",
    "pattern",
    "pattern_block",
    "raw",
    "redirect",
    "reset",
    "self_signed",
    "sequence",
    "silent",
    "silent_after_headers",
    "slow_start",
    "status",
    "truncated",
    "unless",
]
