"""What a process learns of an origin from one file, for the files that come after it."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from urllib.parse import urlsplit

from workers.fetchers.http.pieces import BEGIN_WITH

#: An origin whose ranges were not what was asked for is not asked for several at once for so long.
DISTRUST_S = 3600.0
#: How many connections were of use is believed for so long: the next file begins with as many.
OF_USE_S = 600.0
#: Only of so many origins, those learned of last: a list of files may name a million hosts.
ORIGINS = 1000


@dataclass
class _Origin:
    distrusted_until: float = 0.0
    of_use: int = BEGIN_WITH
    of_use_until: float = 0.0


class Learned:
    """By host and port; for all threads of a process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Origin] = OrderedDict()

    def trusts(self, uri: str) -> bool:
        """Whether it may be asked for several ranges of a file at once."""
        known = self._known.get(urlsplit(uri).netloc)
        return known is None or time.monotonic() >= known.distrusted_until

    def distrust(self, uri: str) -> None:
        """Its ranges were not what was asked for."""
        self._learn(uri).distrusted_until = time.monotonic() + DISTRUST_S

    def of_use(self, uri: str) -> int:
        """How many connections one of its files begins with."""
        known = self._known.get(urlsplit(uri).netloc)
        return known.of_use if known is not None and time.monotonic() < known.of_use_until else BEGIN_WITH

    def were_of_use(self, uri: str, connections: int) -> None:
        """As far as that was measured."""
        known = self._learn(uri)
        known.of_use, known.of_use_until = connections, time.monotonic() + OF_USE_S

    def _learn(self, uri: str) -> _Origin:
        host = urlsplit(uri).netloc
        with self._lock:
            known = self._known.setdefault(host, _Origin())
            self._known.move_to_end(host)
            while len(self._known) > ORIGINS:
                self._known.popitem(last=False)
            return known
