"""Digests that are listed beside a file: which list, what a line of it says, and which line is the file's.

``resolve`` fetches the list by the fetcher of its own scheme; all else is pure.
"""

from __future__ import annotations

import dataclasses
import re
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit, urlunsplit

from ingest.errors import BadResponse, EgressDenied, FetchError, NodeUnfit, NotFound, Throttled, TooLarge
from ingest.model import FileSpec
from ingest.sources import DIGEST_BY_LENGTH, DIGEST_HEX
from ingest.store import Store
from ingest.store.scratch import Scratch
from workers.fetchers import fetcher_for
from workers.fetchers.base import Context

#: A list of ten thousand files is as large as this. What is larger is no list.
MAX_BYTES = 1 << 20

_HEX = r"[0-9A-Fa-f]{32,128}"
_BSD = re.compile(rf"([A-Za-z0-9-]+) ?\((.+)\) ?= ?({_HEX})")
_GNU = re.compile(rf"(\\?)(?:[A-Za-z0-9-]+:)?({_HEX})(?: [ *]|\t+| +)(.+)")
_BARE = re.compile(rf"(?:[A-Za-z0-9-]+:)?({_HEX})")
_ESCAPES = {r"\\": "\\", r"\n": "\n", r"\r": "\r"}
#: How those are named that are as long as others.
_NAMED = {"blake2b": "blake2b", "b2": "blake2b", "blake3": "blake3", "b3": "blake3"}


@dataclass(frozen=True)
class Line:
    """One digest of a list. ``name`` is None where it stands alone."""

    name: str | None
    algorithm: str
    value: str


class Checksums:
    """The lists that one claim needs, each fetched once. Used by several threads. ``context`` is a Transfer's."""

    def __init__(
        self,
        store: Store,
        context: Callable[[str, str | None], tuple[str | None, Context]],
        on_bytes: Callable[[int], None],
    ) -> None:
        self._store, self._context, self._on_bytes = store, context, on_bytes
        self._lock = threading.Lock()
        self._texts: dict[tuple[str, str | None], tuple[threading.Lock, list[str | FetchError]]] = {}

    def resolve(self, spec: FileSpec) -> FileSpec:
        """The spec with the digest that its list says; as it is where it has one, or no list. Raises FetchError: a
        list that is not there, or that does not name the file, is never passed over."""
        if spec.checksums is None or spec.digest is not None:
            return spec
        beside = spec.checksums == "beside"
        uri = beside_of(spec.uri) if beside else spec.checksums
        try:
            text = self._text(uri, self._profile(spec, uri))
        except FetchError as error:
            raise _about(spec, uri, error) from error
        return dataclasses.replace(spec, digest=digest_of(spec.uri, uri, text, alone=beside))

    def _text(self, uri: str, connection: str | None) -> str:
        with self._lock:
            lock, texts = self._texts.setdefault((uri, connection), (threading.Lock(), []))
        with lock:
            if not texts:
                try:
                    texts.append(self._fetch(uri, connection))
                except FetchError as error:  # a thousand files would wait for it, one after the other
                    texts.append(error)
        if isinstance(texts[0], FetchError):
            raise texts[0]
        return texts[0]

    def _fetch(self, uri: str, connection: str | None) -> str:
        name, context = self._context(uri, connection)
        fetcher = fetcher_for(uri.partition("://")[0].lower())
        scratch = None
        try:
            folder = self._store.root / "scratch"
            scratch = Scratch(folder, "checksums", uri, max_bytes=MAX_BYTES, on_bytes=self._on_bytes, keep=False)
            fetcher.fetch(FileSpec(0, 0, uri, connection=name), scratch, None, context)
            scratch.verify()
            return scratch.path.read_bytes().decode("utf-8-sig", "surrogateescape")
        except OSError as error:
            raise NodeUnfit(uri, f"the store at {self._store.root} failed: {error.strerror}") from error
        finally:
            if scratch is not None:
                scratch.close(discard=True)

    def _profile(self, spec: FileSpec, uri: str) -> str | None:
        """The file's own profile where it may be used for the list; else the one whose ``match`` fits, if any does."""
        if spec.uri.partition("://")[0] != uri.partition("://")[0]:
            return None
        try:
            return self._context(uri, spec.connection)[0]
        except EgressDenied:
            return None


def _about(spec: FileSpec, uri: str, error: FetchError) -> FetchError:
    """The same error, of the file whose list it is."""
    reason = f"its list of checksums, {uri}: {error.reason}"
    if isinstance(error, Throttled):
        return Throttled(spec.uri, reason, error.retry_after_s)
    if isinstance(error, TooLarge):
        return BadResponse(spec.uri, f"its list of checksums, {uri}, has more than {MAX_BYTES} bytes: it is none")
    return type(error)(spec.uri, *(error.details or (reason,)))


def beside_of(uri: str) -> str:
    """``https://h/a.tar?v=1`` → ``https://h/a.tar.sha256?v=1``; an S3 version is of another object."""
    scheme = uri.partition("://")[0].lower()
    if scheme in {"http", "https"}:
        parts = urlsplit(uri)
        return urlunsplit(parts._replace(path=f"{parts.path}.sha256", fragment=""))
    return f"{uri.partition('?versionId=')[0] if scheme == 's3' else uri}.sha256"


def digest_of(uri: str, listed_at: str, text: str, *, alone: bool = False) -> str:
    """``"sha256:<hex>"`` that a list says of the file at ``uri``. ``alone``: the list is of that file and no other,
    whatever name it gives it. Raises NotFound where it says nothing, BadResponse where it says several things."""
    lines = list(parse(text, algorithm_of(listed_at)))
    fitting = _fitting(uri, listed_at, lines)
    if not fitting and (alone or all(line.name is None for line in lines)):
        fitting = lines
    values = {(line.algorithm, line.value) for line in fitting}
    # SHA-256 is made of every file anyway, and of the others the longest says most.
    best = max(values, key=lambda each: (each[0] == "sha256", len(each[1])), default=None)
    if best is None:
        raise NotFound(uri, f"its list of checksums, {listed_at}, names {len(lines)} files, and not this one")
    if sum(algorithm == best[0] for algorithm, _ in values) > 1:
        raise BadResponse(uri, f"its list of checksums, {listed_at}, has several digests for that name")
    return ":".join(best)


def _fitting(uri: str, listed_at: str, lines: list[Line]) -> list[Line]:
    """The lines of the file: by its path from the list's folder, else by the longest end of its path that a line
    has."""
    path, folder = _path(uri), _path(listed_at).rpartition("/")[0] + "/"
    names = {id(line): (line.name or "").removeprefix("./").lstrip("/") for line in lines}
    same_place = uri.partition("://")[0] == listed_at.partition("://")[0] and path.startswith(folder)
    if same_place and (exact := [line for line in lines if names[id(line)] == path.removeprefix(folder)]):
        return exact
    ends = [line for line in lines if names[id(line)] and f"/{path}".endswith("/" + names[id(line)])]
    if not ends:  # a list may have been made in another tree
        base = path.rpartition("/")[2]
        ends = [line for line in lines if names[id(line)].rpartition("/")[2] == base]
        return ends
    longest = max(len(names[id(line)]) for line in ends)
    return [line for line in ends if len(names[id(line)]) == longest]


def _path(uri: str) -> str:
    scheme, _, rest = uri.partition("://")
    if scheme.lower() in {"http", "https"}:
        return unquote(urlsplit(uri).path).lstrip("/")
    rest = rest.partition("?versionId=")[0].partition("/")[2]
    return unquote(rest) if scheme.lower() == "file" else rest


def algorithm_of(listed_at: str) -> str | None:
    """What the name of a list says that it holds: ``SHA256SUMS``, ``a.tar.md5``, ``b2sums.txt`` …"""
    name = _path(listed_at).rpartition("/")[2].lower().replace("-", "")
    for word, algorithm in [*((each, each) for each in DIGEST_HEX if each != "crc32c"), *_NAMED.items()]:
        if name.endswith(f".{word}") or name.startswith(f"{word}sum"):
            return algorithm
    return None


def parse(text: str, named: str | None = None) -> Iterator[Line]:
    """The digests of a list as GNU's and BSD's tools write it, or of one that stands alone. What is no such line (a
    signature, a comment, a heading) is left out."""
    for raw in text.splitlines():
        line = raw.strip()
        if found := _BSD.fullmatch(line):
            yield from _line(found[2], found[3], found[1].lower().replace("sha2-", "sha").replace("-", ""))
        elif found := _GNU.fullmatch(line):
            name = re.sub(r"\\[\\nr]", lambda each: _ESCAPES[each[0]], found[3]) if found[1] else found[3]
            yield from _line(name, found[2], named)
        elif found := _BARE.fullmatch(line):
            yield from _line(None, found[1], named)


def _line(name: str | None, value: str, algorithm: str | None) -> Iterator[Line]:
    """If that many digits can be a digest: of the algorithm that is named where that is as long, else of the usual."""
    algorithm = _NAMED.get(algorithm or "", algorithm)
    if DIGEST_HEX.get(algorithm or "") != len(value):
        algorithm = DIGEST_BY_LENGTH.get(len(value))
    if algorithm:
        yield Line(name, algorithm, value.lower())
