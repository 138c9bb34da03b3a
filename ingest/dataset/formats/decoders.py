"""From bytes to values, by extension: of a tar's field, of a raw file, or what an MDS column says. Nothing here runs
code that came with the data: no pickle.

Sound and video stay bytes: which library and which rate is the training code's choice.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Mapping
from typing import Any

from ingest.dataset.formats.base import Samples, damaged

Decoder = Callable[[bytes], Any]


def _text(data: bytes) -> str:
    return data.decode("utf-8")


def _npy(data: bytes) -> Any:
    import numpy

    return numpy.load(io.BytesIO(data), allow_pickle=False)


def _npz(data: bytes) -> dict[str, Any]:
    with _npy(data) as arrays:
        return dict(arrays)


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "decoding images needs Pillow: pip install pillow, or say for each extension what to do with the bytes, "
            'decode={"jpg": function}; {"jpg": bytes} leaves them as they are'
        ) from error
    return Image


def _image(data: bytes) -> Any:
    """A PIL image in RGB, wholly read: of several frames the first, turned as it was stored."""
    with _pillow().open(io.BytesIO(data)) as image:
        return image.convert("RGB")


def _pixels(data: bytes) -> Any:
    """What MosaicML's ``pil`` encoding wrote: width, height, length of the mode's name, that name, and the pixels."""
    width, height, length = struct.unpack_from("<III", data)
    mode, pixels = data[12 : 12 + length].decode(), data[12 + length :]
    if not width * height:
        raise ValueError(f"an image of {width} × {height} pixels")
    return _pillow().frombytes(mode, (width, height), pixels).convert("RGB")


_IMAGES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "ppm", "pgm")

#: What ``decode=True`` does: the last part of a field's extension → its decoder. Fields that are not here stay bytes.
DECODERS: Mapping[str, Decoder] = {
    "txt": _text,
    "text": _text,
    "transcript": _text,
    "json": json.loads,
    "jsonl": lambda data: [json.loads(line) for line in data.splitlines() if line.strip()],
    "cls": int,
    "cls2": int,
    "index": int,
    "count": int,
    "npy": _npy,
    "npz": _npz,
    **dict.fromkeys(_IMAGES, _image),
    "pil": _pixels,
}


def table(decode: bool | Mapping[str, Decoder]) -> Mapping[str, Decoder]:
    """The decoders that ``decode=`` asks for: none, the table above, or that table with the user's on top."""
    if isinstance(decode, bool):
        return DECODERS if decode else {}
    return {**DECODERS, **decode}


def apply(decoders: Mapping[str, Decoder], samples: Samples, number: int, sample: Any) -> Any:
    """Decode the fields of sample ``number`` in place, as far as they are bytes, or lists of bytes.

    Raises :class:`~ingest.errors.DataError` naming sample and field, ImportError where a library is missing.
    """
    if not isinstance(sample, dict):
        return sample
    for field, data in sample.items():
        decoder = decoders.get(samples.kind(field) or "")
        if decoder is None or not isinstance(data, bytes | list):
            continue
        try:
            sample[field] = decoder(data) if isinstance(data, bytes) else [decoder(each) for each in data]
        except ImportError:
            raise
        except Exception as error:  # a user's decoder may raise anything: it is named and raised again
            which = f"sample {sample['__key__']!r}" if "__key__" in sample else f"sample {number}"
            raise damaged(samples.path, samples.source, f"{which}, field {field!r}", error) from error
    return sample
