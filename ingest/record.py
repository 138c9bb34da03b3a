"""What every noun is made of: a frozen dataclass with a compact JSON form; lists of them as compressed bytes.

No I/O here.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, TypeVar

#: Version of every record and message; readers accept what they know and ignore fields that they do not.
VERSION = 1

T = TypeVar("T", bound="Record")


# mypy takes the hash of a record for that of its class: hence what its callers have to ignore.
@cache
def _fields(cls: type) -> dict[str, Any]:
    """The fields of a record and their defaults: looked up once, for lists of millions."""
    return {f.name: f.default for f in dataclasses.fields(cls)}


class Record:
    """A frozen dataclass with a compact JSON form: fields that hold their default are left out."""

    __slots__ = ()

    def to_json(self) -> dict[str, Any]:
        out = {}
        for name, default in _fields(type(self)).items():  # type: ignore[arg-type]
            value = getattr(self, name)
            if value is not default and value != default:
                out[name] = list(value) if isinstance(value, tuple) else value
        return out

    @classmethod
    def from_json(cls: type[T], data: Mapping[str, Any]) -> T:
        names = _fields(cls)  # type: ignore[arg-type]
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in data.items() if k in names})


def pack(records: Iterable[Record]) -> bytes:
    """Records as compressed JSON, the form in which lists of files travel (about 12 bytes for a URL of a regular
    list)."""
    return pack_json([r.to_json() for r in records])


def pack_json(data: Any) -> bytes:
    return zlib.compress(
        json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass"), 6
    )


def unpack_json(data: bytes) -> Any:
    return json.loads(zlib.decompress(data).decode("utf-8", "surrogatepass"))


def unpack(cls: type[T], data: bytes) -> list[T]:
    return [cls.from_json(item) for item in unpack_json(data)]
