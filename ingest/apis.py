"""What an ``Api`` source may ask for: its path, the ways into its answers, and how its pages follow each other.

Pure. It is checked where it is submitted, and again on the data node, which trusts nothing. No request is made here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from ingest.errors import BadSource
from ingest.sources import Api

#: Keys from the outside in; () is the whole answer.
Way = tuple[str, ...]

FORMATS = ("jsonl", "parquet")
METHODS = ("GET", "POST")

_COMMON = {"kind", "more", "max_pages"}
_PLACED = {"param", "in", "size", "size_param"}
_KEYS = {
    "link": _COMMON | {"rel"},
    "cursor": _COMMON | _PLACED | {"field", "last"},
    "offset": _COMMON | _PLACED | {"start", "total"},
    "page": _COMMON | _PLACED | {"start", "total", "pages"},
}
_NUMBERS = {"start": 0, "size": 1, "max_pages": 1}

#: What a URL's path is never written with. "?" and "#" would end it, "\" is a "/" to some servers.
_NOT_IN_A_PATH = re.compile(r"[\x00-\x20\x7f?#\\<>\"`{|}^]")
#: Dots may be written %2e, %252e and so on; more layers than this are nobody's file name.
_DEEPEST_ESCAPE = 8


@dataclass(frozen=True)
class Paging:
    """How the pages of an API follow each other. ``kind``: ``one``, ``link``, ``cursor``, ``offset`` or ``page``.

    ``param`` and ``size_param`` are ways into ``place``: the query (``params``; a single name) or the ``body``.
    ``field`` (in the answer) or ``last`` (in the page's last record) is where a cursor is read; a cursor without
    ``param`` is the next page's URL. ``more``, ``total`` (records) and ``pages`` are ways to what says where it ends.
    """

    kind: str = "one"
    param: Way = ()
    place: str = "params"
    rel: str = "next"
    field: Way | None = None
    last: Way | None = None
    more: Way | None = None
    total: Way | None = None
    pages: Way | None = None
    start: int = 0
    size: int | None = None
    size_param: Way = ()
    max_pages: int | None = None

    @property
    def ways(self) -> tuple[Way, ...]:
        """What is looked up in each answer."""
        return tuple(way for way in (self.field, self.more, self.total, self.pages) if way is not None)


def way(given: str | Sequence[str]) -> Way:
    """``"data.items"`` or ``["data", "items"]`` → ``("data", "items")``; a key with a dot in it needs the list."""
    if isinstance(given, str):
        return tuple(given.split(".")) if given else ()
    return tuple(given)


def records_way(given: str | Sequence[str]) -> tuple[Way, bool]:
    """The way to the records, and whether its last key may be missing: ``"items?"``, for servers that leave out what is
    empty."""
    if isinstance(given, str) and given.endswith("?"):
        return way(given[:-1]), True
    return way(given), False


def check_api(api: Api) -> Paging:
    """Refuse what cannot be right; the pages as they are asked for. Raises :class:`BadSource` naming the argument."""
    shown = f"api://{api.connection}"
    if not isinstance(api.connection, str) or not api.connection:
        raise BadSource(shown, "name the connection, as in ingest.toml's [connections.NAME]")
    check_path(shown, api.path)
    if api.method not in METHODS:
        raise BadSource(shown, f"method={api.method!r} must be one of {', '.join(METHODS)}")
    if api.format not in FORMATS:
        raise BadSource(shown, f"format={api.format!r} must be one of {', '.join(FORMATS)}")
    _check_params(shown, api.params)
    _check_json(shown, "body", api.body)
    if api.body is not None and api.method == "GET":
        raise BadSource(shown, 'a GET has no body=: pass params=, or method="POST"')
    _checked_way(shown, "records", api.records)
    if api.records == "?":
        raise BadSource(shown, "records='?' names no key that may be missing")
    return paging(api, shown)


def check_path(shown: str, path: Any) -> None:
    """A path is appended to the connection's URL, and leads to nowhere but under it. Raises :class:`BadSource`."""
    if not isinstance(path, str):
        raise BadSource(shown, f"path={path!r} must be text")
    reason = None
    if "://" in path or path.startswith("//"):
        reason = "it is appended to the connection's url, so it names no host"
    elif found := _NOT_IN_A_PATH.search(path):
        cure = "give the query as params=" if found[0] in "?#" else "write it percent-encoded"
        reason = f"it has {found[0]!r} in it; {cure}"
    else:
        plain = path
        for _ in range(_DEEPEST_ESCAPE):
            plain, before = unquote(plain), plain
            if plain == before:
                break
        else:
            reason = "it is percent-encoded again and again"
        if any(part in {".", ".."} for part in re.split(r"[/\\;]", plain)):
            reason = "it may not have a '.' or '..' as a part, however it is written"
        elif re.search(r"[\x00-\x1f\x7f]", plain):
            reason = "it has a control character in it"
    if reason:
        raise BadSource(shown, f"path={path!r}: {reason}")


def paging(api: Api, shown: str = "") -> Paging:
    """``paginate=`` as a :class:`Paging`. Raises :class:`BadSource` naming the key at fault."""
    shown = shown or api.uri
    given = api.paginate
    if given is None:
        return Paging()
    kind = given.get("kind") if isinstance(given, Mapping) else None
    if not isinstance(given, Mapping) or not isinstance(kind, str) or kind not in _KEYS:
        raise BadSource(shown, f'paginate= must be a mapping with "kind", one of {", ".join(_KEYS)}; not {given!r}')
    if unknown := sorted(map(str, set(given) - _KEYS[kind])):
        known = ", ".join(sorted(_KEYS[kind]))
        raise BadSource(shown, f"paginate= of kind {kind!r} has no {unknown[0]!r}; known: {known}")
    values: dict[str, Any] = {"kind": kind}
    for key, low in _NUMBERS.items():
        values[key] = _checked_number(shown, key, given.get(key), low)
    for key in ("field", "last", "more", "total", "pages"):
        if given.get(key) is not None:
            values[key] = _checked_way(shown, f"paginate= {key}", given[key], least=1)
    values["rel"] = _checked_text(shown, "rel", given.get("rel", "next"))
    values["place"] = _place(api, shown, given)
    for key in ("param", "size_param"):
        values[key] = _checked_param(shown, key, given.get(key), values["place"])
    _check_whole(shown, values)
    if values["start"] is None:
        values["start"] = 1 if kind == "page" else 0
    return Paging(**values)


def _check_whole(shown: str, values: Mapping[str, Any]) -> None:
    """What one key asks of another."""
    kind = values["kind"]
    if kind == "cursor":
        if ("field" in values) == ("last" in values):
            raise BadSource(
                shown, "paginate= of kind 'cursor' needs either field= (in the answer) or last= (in a record)"
            )
        if "last" in values and not values["param"]:
            raise BadSource(shown, "paginate= of kind 'cursor' with last= needs param=, where the cursor is sent")
    if kind in {"offset", "page"} and not values["param"]:
        raise BadSource(shown, f"paginate= of kind {kind!r} needs param=, where the number is sent")
    if (values["size"] is None) != (not values["size_param"]):
        raise BadSource(shown, "paginate= needs size= and size_param= together, or neither")


def _place(api: Api, shown: str, given: Mapping[str, Any]) -> str:
    """Where cursor, offset or page number are sent: in the query of a GET, in the body of a POST that has one."""
    place = given.get("in") or ("body" if api.method == "POST" and isinstance(api.body, Mapping) else "params")
    if place not in {"params", "body"}:
        raise BadSource(shown, f"paginate= in={place!r} must be 'params' or 'body'")
    if place == "body" and (api.method != "POST" or not isinstance(api.body, Mapping)):
        raise BadSource(shown, "paginate= in='body' needs method=\"POST\" and a body= that is a mapping")
    return str(place)


def _checked_param(shown: str, key: str, given: Any, place: str) -> Way:
    if given is None:
        return ()
    if place == "params":
        return (_checked_text(shown, key, given),)
    return _checked_way(shown, f"paginate= {key}", given, least=1)


def _checked_text(shown: str, key: str, given: Any) -> str:
    if not isinstance(given, str) or not given:
        raise BadSource(shown, f"paginate= {key}={given!r} must be text")
    return given


def _checked_number(shown: str, key: str, given: Any, low: int) -> int | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int) or given < low:
        raise BadSource(shown, f"paginate= {key}={given!r} must be a whole number of at least {low}")
    return given


def _checked_way(shown: str, name: str, given: Any, least: int = 0) -> Way:
    found = way(given) if isinstance(given, str | list | tuple) else None
    if found is None or len(found) < least or not all(isinstance(part, str) and part for part in found):
        raise BadSource(shown, f"{name}={given!r} must be keys with dots between, or a list of keys")
    return found


def _check_params(shown: str, params: Any) -> None:
    if params is None:
        return
    plain = str | int | float | bool | None
    if not isinstance(params, Mapping) or not all(isinstance(name, str) and name for name in params):
        raise BadSource(shown, f"params={params!r} must be a mapping of names to values")
    for name, value in params.items():
        if not all(isinstance(one, plain) for one in (value if isinstance(value, list | tuple) else [value])):
            raise BadSource(shown, f"params= {name}={value!r} must be text, a number, true or false, or a list of them")
    _check_json(shown, "params", params)


def _check_json(shown: str, name: str, value: Any) -> None:
    try:
        json.dumps(value, allow_nan=False, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise BadSource(shown, f"{name}= cannot be written as JSON: {error}") from None
