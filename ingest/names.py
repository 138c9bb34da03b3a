"""File names: making any text safe as one, and the readable name of a URI. Paths and stores live elsewhere.

Names are for people; what a file is, is decided by its (URI, profile, version), never by its name.
"""

from __future__ import annotations

import re
import unicodedata
from urllib.parse import unquote

#: File systems allow 255 bytes; the store puts a hash or a suffix beside the name.
MAX_NAME_BYTES = 200
#: A longer "extension" is the tail of a sentence, not an extension, and may be cut.
_MAX_EXTENSION_BYTES = 24
_EXTENSION = re.compile(r"(?:\.[^.\s]{1,11}){1,2}$")
_SEPARATORS = re.compile(r"[/\\]")
#: Control, format (bidirectional overrides make a name read as another), surrogate, line and paragraph separator.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
#: Joiners that words and emoji are written with.
_JOINERS = frozenset("\u200c\u200d")


def safe_name(text: str, default: str) -> str:
    """``text`` as a single file name: no separators, no ``..``, no control characters, at most 200 bytes of UTF-8.

    Unicode is kept; the extension survives a cut (``.tar.gz`` counts as one). ``default`` where nothing is left.
    """
    parts = (part for part in _SEPARATORS.split(text) if part.strip() not in {"", ".", ".."})
    name = "_".join(parts)
    name = "".join("_" if unicodedata.category(c) in _HIDDEN and c not in _JOINERS else c for c in name).strip()
    return _cut(name) or default


def safe_parts(path: str) -> list[str]:
    """A relative path as safe names, outermost first: nothing in it leads up or to the root."""
    return [safe_name(part, "file") for part in path.split("/") if part.strip() not in {"", ".", ".."}]


def base_name(uri: str) -> str:
    """The readable file name of a URI: its last path component, decoded, without a query; ``file`` where it has none.

    Only http and file URIs are percent-encoded; in an object store's key ``%``, ``?`` and ``#`` are letters like any.
    """
    scheme, _, rest = uri.partition("://")
    scheme = scheme.lower()
    if scheme in {"http", "https"}:
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    elif scheme == "s3":
        rest = rest.partition("?versionId=")[0]
    _, _, path = rest.partition("/")
    last = path.rstrip("/").rpartition("/")[2]
    if scheme in {"http", "https", "file"}:
        last = unquote(last)
    return safe_name(last, "file")


def _cut(name: str) -> str:
    if len(name.encode()) <= MAX_NAME_BYTES:
        return name
    found = _EXTENSION.search(name)
    extension = found[0] if found and len(found[0].encode()) <= _MAX_EXTENSION_BYTES else ""
    stem = name[: len(name) - len(extension)].encode()[: MAX_NAME_BYTES - len(extension.encode())]
    return stem.decode(errors="ignore").rstrip() + extension
