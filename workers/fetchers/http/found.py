"""What an HTTP answer says of its bytes beside them: digests, a type that cannot be right, an encoding. No I/O here.

Digests given by the user are not for here: where there is one, it alone decides.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from urllib.parse import unquote, urlsplit

from ingest.errors import BadResponse
from ingest.model import FileSpec
from ingest.sections import Http
from ingest.store.scratch import Scratch
from workers.fetchers.http.answers import Headers, content_coding
from workers.logs import log

#: Algorithm as headers write it → as we do, with its length in bytes; the best first: SHA-256 is made of every file
#: anyway, and MD5 and CRC only tell damage from none. What is not here is not looked at.
_ALGORITHMS = {
    "sha-256": ("sha256", 32),
    "sha256": ("sha256", 32),
    "sha-512": ("sha512", 64),
    "sha-384": ("sha384", 48),
    "sha": ("sha1", 20),
    "sha1": ("sha1", 20),
    "crc32c": ("crc32c", 4),
    "md5": ("md5", 16),
}
_RANK = [name for name, _ in _ALGORITHMS.values()]
#: A name begins where no letter of one is before it: else 64 KiB of letters take minutes.
_STRUCTURED = re.compile(r"(?<![a-z0-9*_.-])([a-z0-9*_.-]+)\s*=\s*:([A-Za-z0-9+/]*={0,2}):")
_LEGACY = re.compile(r"(?:^|,)\s*([A-Za-z0-9-]+)\s*=\s*([A-Za-z0-9+/]+={0,2})\s*(?=,|$)")
#: Files that no HTML page can be.
_DATA = {
    "arrow", "avi", "bin", "bz2", "ckpt", "csv", "feather", "flac", "gguf", "gz", "h5", "hdf5", "jpeg", "jpg",
    "json", "jsonl", "lz4", "mat", "mp3", "mp4", "msgpack", "ndjson", "npy", "npz", "onnx", "parquet", "pickle",
    "pkl", "png", "pt", "pth", "rar", "safetensors", "snappy", "sqlite", "tar", "tfrecord", "tgz", "tsv", "wav",
    "webm", "webp", "xz", "zarr", "zip", "zst", "7z",
}  # fmt: skip
_HTML = {"text/html", "application/xhtml+xml"}


def judge(spec: FileSpec, http: Http, headers: Headers) -> None:
    """Before a byte is kept: whether it can be the file. A body that is encoded although identity was asked for is
    stored as it is sent, and that is said. Raises BadResponse for an HTML page where data was meant."""
    if coding := content_coding(headers):
        log.info("file.encoded", extra={"source": spec.uri, "reason": f"Content-Encoding: {coding[:40]}"})
    if spec.digest is None and http.refuse_html:
        _refuse_html(spec.uri, headers)


def _refuse_html(uri: str, headers: Headers) -> None:
    """It is a login page, or an error that calls itself a success."""
    kind = headers.get("Content-Type", "").partition(";")[0].strip().lower()
    _, dot, suffix = unquote(urlsplit(uri).path).rpartition("/")[2].lower().rpartition(".")
    if kind in _HTML and dot and suffix in _DATA:
        raise BadResponse(
            uri,
            f"an HTML page (a login page?) where a .{suffix} was expected; if that is what the file is, give its "
            "digest, or set [http] refuse_html = false in ingest.toml on the data node",
        )


def expect(spec: FileSpec, scratch: Scratch, status: int, headers: Headers) -> None:
    """Have the bytes compared with the best digest that the answer states of the whole file, if it states any that
    can be made here. It must be known before the bytes are; ``Scratch.verify`` compares."""
    for digest in stated(status, headers) if spec.digest is None else ():
        try:
            return scratch.expect(digest)
        except ImportError:  # google-crc32c: the next best will do, or none
            continue


def stated(status: int, headers: Headers) -> list[str]:
    """``"sha512:<hex>"`` … of the whole file as it is sent, the best first.

    ``Repr-Digest`` is of the representation, ``Content-Digest`` of what this answer carries of it (RFC 9530), with the
    content coding where there is one. ``Digest`` (RFC 3230) and ``Content-MD5`` should be the same, but what encodes
    on the fly often forgets them. What clouds say is of the object as it is stored.
    """
    whole, plain = status != 206, not content_coding(headers)
    found = list(_structured(headers.get("Repr-Digest", "")))
    if whole:
        found += _structured(headers.get("Content-Digest", ""))
    if plain:
        found += _listed(headers.get("Digest", ""))
    if plain and whole:
        found += _one("md5", headers.get("Content-MD5", ""))
        found += _amazon(headers)
    if _is_stored(headers):
        found += _listed(headers.get("x-goog-hash", ""))
    return sorted(dict.fromkeys(found), key=lambda digest: _RANK.index(digest.partition(":")[0]))


def _structured(text: str) -> Iterator[str]:
    for name, value in _STRUCTURED.findall(text):
        yield from _one(name, value)


def _listed(text: str) -> Iterator[str]:
    for name, value in _LEGACY.findall(text):
        yield from _one(name.lower(), value)


def _amazon(headers: Headers) -> Iterator[str]:
    """The checksum of a multipart upload may be of the parts' checksums: then it ends in their number."""
    if headers.get("x-amz-checksum-type", "").upper() != "COMPOSITE":
        for name in ("sha256", "sha1", "crc32c"):
            yield from _one(name, headers.get(f"x-amz-checksum-{name}", ""))


def _is_stored(headers: Headers) -> bool:
    """Whether what Google's storage sends is the object as it is stored: it unpacks one that is stored as gzip."""
    stored = headers.get("x-goog-stored-content-encoding", "identity").strip().lower()
    return stored == (content_coding(headers) or "identity")


def _one(name: str, value: str) -> Iterator[str]:
    """A digest in base64, if it is of a kind that we know, and of its length."""
    if name not in _ALGORITHMS:
        return
    algorithm, size = _ALGORITHMS[name]
    try:
        raw = base64.b64decode(value.strip(), validate=True)
    except (binascii.Error, ValueError):
        return
    if len(raw) == size:
        yield f"{algorithm}:{raw.hex()}"
