"""From bytes to values, by the extension of a tar field. Nothing here runs code that came with the data: no pickle.

Images and sound stay bytes: which library, which size and which colours is the training code's choice.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ingest.dataset.formats.base import damaged

Decoder = Callable[[bytes], Any]


def _text(data: bytes) -> str:
    return data.decode("utf-8")


def _npy(data: bytes) -> Any:
    import numpy

    return numpy.load(io.BytesIO(data), allow_pickle=False)


def _npz(data: bytes) -> dict[str, Any]:
    with _npy(data) as arrays:
        return dict(arrays)


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
}


def table(decode: bool | Mapping[str, Decoder]) -> Mapping[str, Decoder]:
    """The decoders that ``decode=`` asks for: none, the table above, or that table with the user's on top."""
    if isinstance(decode, bool):
        return DECODERS if decode else {}
    return {**DECODERS, **decode}


def apply(decoders: Mapping[str, Decoder], sample: Any, path: Path, source: str) -> Any:
    """Decode the fields of a tar sample in place. Raises :class:`~ingest.errors.DataError` naming sample and field."""
    for field, data in sample.items():
        decoder = decoders.get(field.rpartition(".")[2])
        if decoder is not None and isinstance(data, bytes):
            try:
                sample[field] = decoder(data)
            except Exception as error:  # a user's decoder may raise anything: it is named and raised again
                raise damaged(path, source, f"sample {sample['__key__']!r}, field {field!r}", error) from error
    return sample
