"""``convert=``: which steps there are, what each may be told, and the one form in which a request carries them.

No step runs here, and none is loaded: a request names steps, and a data node has them (``workers/convert``). Equal
requests have equal forms, so that what one job converted is found by the next.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ingest.errors import UsageError

#: What an operator installs has such a name. The client cannot know it, nor what it may be told.
CUSTOM_PREFIX = "x-"
_CUSTOM = re.compile(r"x-[a-z0-9][a-z0-9._-]{0,60}")
#: A request travels with every job, and is part of a key in the store.
_MOST_STEPS, _MOST_TEXT = 16, 16 << 10
#: What ``max_files`` may be raised to.
_MOST_FILES = 200_000
#: What a column may be made to, in :func:`column_type`'s words.
COLUMN_TYPES = ("string", "int64", "float64", "bool", "date", "timestamp", "timestamptz")
_DECIMAL = re.compile(r"decimal\(\s*(\d{1,2})\s*,\s*(\d{1,2})\s*\)")
_MOST_DIGITS = 76

Check = Callable[[Any], Any]


@dataclass(frozen=True)
class _Parameter:
    """``check`` gives the value in its one form, or raises ValueError saying what it must be."""

    check: Check
    default: Any = None


def _count(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value < 1 << 63:
        raise ValueError("a whole number, 1 or more")
    return value


def _files(value: Any) -> int:
    """Each is an entry of the job's result, in memory wherever that is."""
    if _count(value) > _MOST_FILES:
        raise ValueError(f"at most {_MOST_FILES}")
    return int(value)


def _ratio(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= 1e9:
        raise ValueError("a number, 1 or more")
    return int(value) if value == int(value) else float(value)


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("true or false")
    return value


def _one_of(*words: str) -> Check:
    def check(value: Any) -> str:
        if value not in words or not isinstance(value, str):
            raise ValueError(f"one of {', '.join(words)}")
        return value

    return check


def _letter(value: Any) -> str:
    if not isinstance(value, str) or len(value) != 1 or not value.isascii() or value in '"\r\n\0':
        raise ValueError("one ASCII character")
    return value


def _texts(value: Any) -> list[str]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
        raise ValueError("a list of texts")
    if len(set(value)) != len(value):
        raise ValueError("a list in which nothing is twice")
    return list(value)


def _types(value: Any) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise ValueError("a table of column and type")
    return {str(name): column_type(kind) for name, kind in sorted(value.items())}


def column_type(text: Any) -> str:
    """The name of a column's type in its one form: one of COLUMN_TYPES, or ``decimal(P,S)``. Raises ValueError."""
    if text in COLUMN_TYPES:
        return str(text)
    found = _DECIMAL.fullmatch(text) if isinstance(text, str) else None
    if found is None or not 0 <= int(found[2]) <= int(found[1]) <= _MOST_DIGITS or int(found[1]) < 1:
        raise ValueError(f"of types {', '.join(COLUMN_TYPES)} or decimal(P,S)")
    return f"decimal({int(found[1])},{int(found[2])})"


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or "/" in value or "\\" in value:
        raise ValueError("the name of a file")
    return value


#: step → what it may be told. What each means is in docs/sources.md.
STEPS: dict[str, dict[str, _Parameter]] = {
    "decompress": {
        "max_bytes": _Parameter(_count),
        "max_ratio": _Parameter(_ratio, 1000),
        "others": _Parameter(_one_of("error", "keep"), "error"),
    },
    "unpack": {
        "max_files": _Parameter(_files, 20_000),
        "max_bytes": _Parameter(_count),
        "max_ratio": _Parameter(_ratio, 1000),
        "max_depth": _Parameter(_count, 32),
        "max_path": _Parameter(_count, 1024),
        "folder": _Parameter(_flag, True),
        "others": _Parameter(_one_of("error", "skip"), "error"),
    },
    "parquet": {
        "format": _Parameter(_one_of("csv", "tsv", "jsonl")),
        "delimiter": _Parameter(_letter),
        "header": _Parameter(_flag, True),
        "columns": _Parameter(_texts),
        "types": _Parameter(_types),
        "nulls": _Parameter(_texts, [""]),
        "row_group_rows": _Parameter(_count, 65_536),
        "others": _Parameter(_one_of("error", "keep"), "error"),
    },
    "tar": {"name": _Parameter(_name)},
}


def as_steps(given: str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]] | None) -> tuple[dict[str, Any], ...]:
    """What a user passes as ``convert=``, in its one form: ``{"step": name, …}`` with what differs from the default, by
    name. Raises :class:`UsageError` naming what is known.

    A step is a name, a mapping ``{"step": "unpack", "max_files": 1000}``, or a text ``"unpack:max_files=1000"``.
    """
    if given is None:
        return ()
    if isinstance(given, str | Mapping):
        given = [given]
    if not isinstance(given, Sequence):
        raise UsageError(f"convert={given!r} is no list of steps; known: {', '.join(STEPS)}")
    steps = tuple(_step(one) for one in given)
    if len(steps) > _MOST_STEPS or len(json.dumps(steps)) > _MOST_TEXT:
        raise UsageError(f"convert= has more than {_MOST_STEPS} steps, or more than {_MOST_TEXT} bytes of parameters")
    return steps


def parameters(step: Mapping[str, Any]) -> dict[str, Any]:
    """All parameters of a step in its one form, the defaults too."""
    told = {name: value for name, value in step.items() if name != "step"}
    return {name: known.default for name, known in STEPS.get(step["step"], {}).items()} | told


def _step(given: Any) -> dict[str, Any]:
    if isinstance(given, str):
        given = _parse(given)
    if not isinstance(given, Mapping) or not isinstance(given.get("step"), str):
        raise UsageError(f"{given!r} is no step; write a name, or {{'step': name, …}}; known: {', '.join(STEPS)}")
    name = given["step"]
    told = {key: value for key, value in given.items() if key != "step"}
    if name.startswith(CUSTOM_PREFIX):
        return {"step": name, **_custom(name, told)}
    if name not in STEPS:
        raise UsageError(
            f"step {name!r} is unknown; known: {', '.join(STEPS)}, and what an operator installs: {CUSTOM_PREFIX}NAME"
        )
    known = STEPS[name]
    made = {}
    for key in sorted(told, key=str):
        if key not in known:
            raise UsageError(f"step {name!r} has no parameter {key!r}; known: {', '.join(known)}")
        if told[key] is None:
            continue
        try:
            value = known[key].check(told[key])
        except ValueError as error:
            raise UsageError(f"step {name!r}: {key}={told[key]!r} must be {error}") from None
        if value != known[key].default:
            made[key] = value
    return {"step": name, **made}


def _custom(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    if not _CUSTOM.fullmatch(name):
        raise UsageError(f"step {name!r}: an operator's step is x- and letters a-z, digits, '.', '_' or '-'")
    try:
        made: dict[str, Any] = json.loads(json.dumps(told, sort_keys=True, allow_nan=False))
    except (TypeError, ValueError):
        raise UsageError(f"step {name!r}: its parameters must be what JSON can hold, not {dict(told)!r}") from None
    if not all(key.isidentifier() for key in made):
        raise UsageError(f"step {name!r}: its parameters must have names that are identifiers, not {sorted(made)}")
    return made


def _parse(text: str) -> Mapping[str, Any]:
    """``"unpack:max_files=1000,folder=false"``, or JSON, as a mapping. A value that is no JSON is text."""
    if text.lstrip().startswith("{"):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise UsageError(f"step {text[:80]!r} is not JSON: {error}") from None
        return found if isinstance(found, dict) else {}
    name, _, rest = text.partition(":")
    made: dict[str, Any] = {"step": name.strip()}
    for pair in filter(None, rest.split(",")):
        key, equals, value = pair.partition("=")
        if not equals or key.strip() in made:
            raise UsageError(f"step {text!r}: write it as STEP:key=value,key=value, each key once, or as JSON")
        try:
            made[key.strip()] = json.loads(value)
        except ValueError:
            made[key.strip()] = value.strip()
    return made
