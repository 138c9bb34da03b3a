"""``into=``: what a user writes, as a request carries it; and whether what a record says lies there."""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import unquote

from ingest.errors import StoreError, UsageError
from ingest.sources import check_source_text

#: They have no place to write to, or one that is the node's own.
_NOT_WRITTEN = {"http", "https", "sql", "api", "data", "memory", "local"}


def destination(into: str | os.PathLike[str] | None) -> str | None:
    """An absolute directory, or a URI that ends with a slash. Raises :class:`UsageError`."""
    if into is None:
        return None
    if not str(into):
        raise UsageError("into='' is no directory")
    if isinstance(into, str) and "://" in into:
        return _uri(into)
    return os.path.abspath(Path(into).expanduser())


def _uri(into: str) -> str:
    import fsspec

    check_source_text(into)
    scheme, _, rest = into.partition("://")
    if scheme in _NOT_WRITTEN or "::" in into or (scheme != "s3" and scheme not in fsspec.available_protocols()):
        raise UsageError(
            f"into={into!r}: nothing can be written to {scheme}://; a directory, or s3://, gs://, sftp://, …"
        )
    if scheme == "file" and not rest.startswith("/"):
        raise UsageError(f"into={into!r}: file URIs are absolute: write file:///path")
    if ".." in rest.split("/"):
        raise UsageError(f"into={into!r}: '..' leads elsewhere; name the place itself")
    if scheme == "file":
        return os.path.abspath(unquote(rest))
    return into if into.endswith("/") else into + "/"


def inside(found: Path | str, into: str) -> Path | str:
    """What the ledger gave, if it lies where the user wanted it: the ledger is not trusted with more. Raises
    :class:`StoreError`."""
    if isinstance(found, str):
        good = found.startswith(into) and ".." not in found[len(into) :].split("/")
    else:
        good = found.resolve().is_relative_to(os.path.realpath(into))
    if not good:
        raise StoreError(str(found), f"is not under {into}, where it was asked for")
    return found
