"""URLs that are good for a while only: a function that the operator installed on the data node signs them anew.

Nothing of it is in a request: the profile names an entry point. A signed URL is a credential, so it is in no error, no
log and no result; the file's identity is the source's own URI.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import metadata
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded

from ingest.errors import AccessDenied, FetchError, OriginUnavailable, PermanentFetchError
from workers.fetchers.base import Context

#: ``[project.entry-points."ingest.refreshers"]`` of a package on the data node.
GROUP = "ingest.refreshers"


def signer(uri: str, context: Context) -> Callable[[], str] | None:
    """What gives a fresh URL for ``uri``, where the profile has ``refresh = "NAME"``; else None. Raises FetchError."""
    name = context.value("refresh")
    if name is None or context.connection is None:
        return None
    values = context.connection.values

    def sign() -> str:
        function = _load(uri, str(name))
        try:
            url = function(uri, values)
        except (FetchError, SoftTimeLimitExceeded):
            raise
        except OSError as error:  # timeouts and lost connections are OSErrors, those of requests too
            raise OriginUnavailable(uri, f"refresh = {name!r} could not sign it: {type(error).__name__}") from None
        except Exception as error:  # noqa: BLE001 - somebody else's code; what it says may hold the URL or a key
            raise AccessDenied(uri, f"refresh = {name!r} failed to sign it: {type(error).__name__}") from None
        if not isinstance(url, str) or not url.startswith(("http://", "https://")):
            raise AccessDenied(uri, f"refresh = {name!r} gave no http:// or https:// URL")
        return url

    return sign


def _load(uri: str, name: str) -> Callable[[str, Any], Any]:
    try:
        return _entry_point(name)
    except LookupError:
        raise PermanentFetchError(
            uri, f"no refresher {name!r} is installed on the data node (entry point group {GROUP})"
        ) from None
    except Exception as error:  # noqa: BLE001 - importing somebody else's module may raise anything
        raise PermanentFetchError(uri, f"refresher {name!r} cannot be loaded: {type(error).__name__}") from None


@cache
def _entry_point(name: str) -> Callable[[str, Any], Any]:
    for entry in metadata.entry_points(group=GROUP, name=name):
        function: Callable[[str, Any], Any] = entry.load()
        return function
    raise LookupError(name)
