"""What the bytes of an MDS column are, by the name of its encoding: the values that MosaicML's streaming 0.13 gives.

Two things are not as there: images stay the bytes of their file until ``decode=`` asks for more, and pickles are not
read, since reading one runs whatever is in it.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from functools import partial
from typing import Any, NamedTuple

_NUMBERS = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
#: The code of an array's dtype: eight times its bytes, with 0 for unsigned, 1 for signed and 2 for floating point.
_DTYPES = {8: "uint8", 9: "int8", 16: "uint16", 17: "int16", 18: "float16", 32: "uint32", 33: "int32", 34: "float32"}
_DTYPES |= {64: "uint64", 65: "int64", 66: "float64"}


class Value(NamedTuple):
    """``of(bytes)`` may raise ValueError, ArithmeticError, LookupError or ``struct.error``. ``kind``: how to decode
    what it gives; None is by the column's name, ``""`` not at all."""

    of: Callable[[bytes], Any]
    kind: str | None = ""


def value_of(encoding: str) -> Value:
    """ValueError for an encoding that is not read, ImportError without numpy where it takes that."""
    name, _, detail = encoding.partition(":")
    if name == "pkl":
        raise ValueError("it is pickled, and unpickling runs code that came with the data: columns= can leave it out")
    if name == "ndarray":
        return Value(_array(detail))
    if name in _NUMBERS:
        return Value(partial(_number, _numpy().dtype(name).newbyteorder("<")))
    if name not in _VALUES:
        known = ", ".join(sorted((*_VALUES, *_NUMBERS, "ndarray")))
        raise ValueError(f"encoding {encoding!r} is unknown; known are {known}")
    return _VALUES[name]


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        raise ImportError("numbers and arrays in MDS files need numpy: pip install numpy") from error
    return numpy


def _whole(data: bytes) -> int:
    (value,) = struct.unpack("<q", data)
    return int(value)


def _number(dtype: Any, data: bytes) -> Any:
    """A numpy scalar, of the size that it was written in."""
    (value,) = _numpy().frombuffer(data, dtype)
    return value


def _decimal(data: bytes) -> Decimal:
    try:
        return Decimal(data.decode())
    except InvalidOperation as error:
        raise ValueError(f"{data[:40]!r} is no decimal number") from error


def _array(detail: str) -> Callable[[bytes], Any]:
    """``""``, ``"int32"`` or ``"int32:3,4"``: what is not said for all is said by each."""
    dtype, _, shape = detail.partition(":")
    if dtype and dtype not in _NUMBERS:
        raise ValueError(f"arrays of {dtype!r}; known are {', '.join(_NUMBERS)}")
    _numpy()
    return partial(_array_of, dtype, tuple(int(size) for size in shape.split(",")) if shape else None)


def _array_of(dtype: str, shape: tuple[int, ...] | None, data: bytes) -> Any:
    numpy = _numpy()
    at = 0
    if not dtype:
        if data[0] not in _DTYPES:
            raise ValueError(f"an array of the unknown dtype {data[0]}")
        dtype, at = _DTYPES[data[0]], 1
    if shape is None:
        axes, code = data[at] >> 2, "BHIQ"[data[at] & 3]
        layout = struct.Struct(f"<{axes}{code}")
        shape = layout.unpack_from(data, at + 1)
        at += 1 + layout.size
    kind = numpy.dtype(dtype).newbyteorder("<")
    if math.prod(shape) * kind.itemsize != len(data) - at:
        raise ValueError(f"{len(data) - at} bytes for an array of {dtype} in the shape {shape}")
    # Out of a bytearray, since torch cannot share what may not be written to.
    return numpy.frombuffer(bytearray(memoryview(data)[at:]), kind).reshape(shape)


def _list(skipped: int, data: bytes) -> list[bytes]:
    """How many there are, their sizes, and all of them, one after the other."""
    (count,) = struct.unpack_from("<I", data, skipped)
    if 4 * count > len(data):
        raise ValueError(f"a list of {count} in {len(data)} bytes")
    sizes = struct.unpack_from(f"<{count}I", data, skipped + 4)
    at = skipped + 4 + 4 * count
    out = []
    for size in sizes:
        out.append(data[at : at + size])
        at += size
    if at != len(data):
        raise ValueError(f"a list that takes {at} of {len(data)} bytes")
    return out


def _as_it_is(data: bytes) -> bytes:
    return data


_VALUES = {
    "bytes": Value(_as_it_is, None),
    "str": Value(bytes.decode),
    "int": Value(_whole),
    "str_int": Value(lambda data: int(data.decode())),
    "str_float": Value(lambda data: float(data.decode())),
    "str_decimal": Value(_decimal),
    "json": Value(json.loads),
    "jpeg": Value(_as_it_is, "jpeg"),
    "png": Value(_as_it_is, "png"),
    "pil": Value(_as_it_is, "pil"),
    "list[jpeg]": Value(partial(_list, 4), "jpeg"),  # four bytes for a future that has not come
    "list[png]": Value(partial(_list, 4), "png"),
    "list[pil]": Value(partial(_list, 4), "pil"),
    "jpeg_array": Value(partial(_list, 0), "jpeg"),
    "jpegarray": Value(partial(_list, 0), "jpeg"),
}
