"""From the steps that a request names to functions: ours, and those that this node's operator has installed.

An operator's step is an entry point of the group ``ingest.steps``, named as it is asked for (``x-…``); it is loaded
here, on the data node, when first asked for. No code comes with a request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

from ingest.errors import MissingExtra, PermanentFetchError, Unsupported, UsageError
from ingest.steps import CUSTOM_PREFIX, as_steps, parameters
from workers.convert.work import Step

GROUP = "ingest.steps"
#: step → module:function. What a step needs is imported when it is asked for.
_OURS = {
    "decompress": "workers.convert.decompress:decompress",
    "unpack": "workers.convert.unpack:unpack",
    "parquet": "workers.convert.parquet:parquet",
    "tar": "workers.convert.tars:tar",
}


def resolve(uri: str, given: Sequence[Mapping[str, Any]]) -> list[tuple[str, Callable[..., None], dict[str, Any]]]:
    """(name, step, all its parameters) of each. Raises what a request that cannot be done fails with, before anything
    is fetched for it."""
    try:
        steps = as_steps(given)  # once more: whoever wrote the request may have been of another version
    except UsageError as error:
        raise Unsupported(uri, f"this data node does not do that: {error}") from error
    return [(step["step"], _step(uri, step["step"]), parameters(step)) for step in steps]


def _step(uri: str, name: str) -> Step:
    if not name.startswith(CUSTOM_PREFIX):
        try:
            return _load(_OURS[name])
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] in {"ingest", "workers"}:
                raise
            raise MissingExtra(uri, error.name or str(error)) from error
    found = _installed().get(name)
    if found is None:
        known = f"known: {', '.join(sorted(_installed()))}" if _installed() else "none is installed"
        raise Unsupported(uri, f"step {name!r} is not installed on this data node ({known}); restart it after that")
    try:
        step = found.load()
    except Exception as error:  # what an operator's module raises when it is imported is his
        raise PermanentFetchError(
            uri, f"step {name!r} is installed as {found.value} and cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not callable(step):
        raise PermanentFetchError(uri, f"step {name!r} is installed as {found.value}, which is not a function")
    return cast(Step, step)


@cache
def _load(target: str) -> Step:
    module, _, name = target.partition(":")
    return cast(Step, getattr(import_module(module), name))


@cache
def _installed() -> Mapping[str, Any]:
    return {found.name: found for found in entry_points(group=GROUP)}
