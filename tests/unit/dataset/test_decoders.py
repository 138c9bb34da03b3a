"""What ``decode=`` makes of bytes, in every format that has some."""

from __future__ import annotations

import io
import json
import sys
import tarfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image

from ingest.dataset import formats
from ingest.dataset.formats import decoders
from ingest.errors import DataError


def picture(kind: str, mode: str = "RGB", size: tuple[int, int] = (3, 2)) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 200 if mode == "L" else (200, 10, 10)).save(out, kind)
    return out.getvalue()


def npy(array: Any) -> bytes:
    out = io.BytesIO()
    numpy.save(out, array, allow_pickle=True)
    return out.getvalue()


def decoded(path: Path, decode: bool | Mapping[str, Callable[[bytes], Any]] = True) -> list[Any]:
    table = decoders.table(decode)
    with closing(formats.open_samples(formats.detect(path.name), path, "src")) as samples:
        numbers = range(len(samples))
        return [decoders.apply(table, samples, n, s) for n, s in zip(numbers, samples.take(numbers), strict=True)]


@pytest.fixture
def tar_of(tmp_path: Path) -> Callable[[Mapping[str, bytes]], Path]:
    def make(fields: Mapping[str, bytes]) -> Path:
        with tarfile.open(tmp_path / "a.tar", "w") as archive:
            for extension, body in fields.items():
                info = tarfile.TarInfo(f"k.{extension}")
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
        return tmp_path / "a.tar"

    return make


def test_the_fields_of_a_tar(tar_of: Callable[[Mapping[str, bytes]], Path]) -> None:
    array = npy(numpy.arange(3))
    path = tar_of({"txt": "é".encode(), "a.json": b'{"x": 1}', "cls": b"7\n", "npy": array, "mp3": b"raw"})
    (sample,) = decoded(path)
    assert sample["npy"].tolist() == [0, 1, 2]
    del sample["npy"]
    assert sample == {"__key__": "k", "__url__": "src", "txt": "é", "a.json": {"x": 1}, "cls": 7, "mp3": b"raw"}
    assert decoded(path, {"mp3": len, "cls": bytes})[0]["mp3"] == 3
    assert decoded(path, {"mp3": len, "cls": bytes})[0]["cls"] == b"7\n"
    assert decoders.table(False) == {}


def test_no_decoder_unpickles(tar_of: Callable[[Mapping[str, bytes]], Path]) -> None:
    path = tar_of({"npy": npy(numpy.array([object()], dtype=object))})
    with pytest.raises(DataError, match=r"a\.tar: src: sample 'k', field 'npy': .*allow_pickle"):
        decoded(path)


@pytest.mark.parametrize(
    ("extension", "kind"),
    [
        *(("jpg", "JPEG"), ("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WEBP"), ("bmp", "BMP"), ("gif", "GIF")),
        *(("tif", "TIFF"), ("tiff", "TIFF"), ("ppm", "PPM"), ("pgm", "PPM")),
    ],
)
def test_images_are_in_rgb_and_wholly_read(tmp_path: Path, extension: str, kind: str) -> None:
    path = tmp_path / f"a.{extension}"
    path.write_bytes(picture(kind, "L" if extension == "pgm" else "RGB"))
    (sample,) = decoded(path)
    image = sample["bytes"]
    assert (image.mode, image.size) == ("RGB", (3, 2)) and 190 < image.getpixel((0, 0))[0] < 210
    assert sample["path"] == str(path) and sample["__key__"] == "a"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if kind != "GIF" else b"GIF89a")
    with pytest.raises(DataError, match=rf"a\.{extension}: src: sample 'a', field 'bytes': "):
        decoded(path)


def test_an_image_of_more_pixels_than_pillow_takes(tmp_path: Path) -> None:
    path = tmp_path / "a.ppm"
    path.write_bytes(b"P6 20000 20000 255\n" + bytes(100))
    with pytest.raises(DataError, match=r"exceeds limit of .* pixels"):
        decoded(path)


def test_without_pillow_the_error_says_what_to_do(tmp_path: Path) -> None:
    """In a process of its own, in which there is none."""
    import subprocess

    path = tmp_path / "a.jpg"
    path.write_bytes(picture("JPEG"))
    code = (
        "import sys; sys.modules['PIL'] = None\n"
        "from pathlib import Path\n"
        "from ingest.dataset.formats import decoders, raw\n"
        f"samples = raw.open_raw(Path({str(path)!r}), 'src')\n"
        "sample = next(samples.take([0]))\n"
        "assert decoders.apply(decoders.table({'jpg': bytes}), samples, 0, dict(sample)) == sample\n"
        "decoders.apply(decoders.table(True), samples, 0, sample)\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode and "ImportError: decoding images needs Pillow: pip install pillow" in ran.stderr
    assert 'decode={"jpg": function}' in ran.stderr


def test_what_is_no_dict_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('[1]\n{"jpg": "text"}\n3\n')
    assert decoded(path) == [json.loads(line) for line in path.read_text().splitlines()]
