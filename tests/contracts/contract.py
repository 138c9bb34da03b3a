"""What every fetcher keeps to, as tests to inherit. A kind of source says how a file gets there; the promises are here.

class HttpCase(FetcherCase):
    def put(self, name, data): ...

class TestContract(HttpCase, CutContract):
    pass
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest import errors
from ingest.model import FileSpec
from ingest.sections import Connection
from ingest.settings import Settings
from ingest.store.scratch import Scratch
from workers.fetchers.base import Context, Fetched, Fetcher, Interrupted, Known

#: Two and a bit of the 1 MB blocks that everything is read in.
SOME_MB = hashlib.shake_128(b"some").digest((2 << 20) + 12_345)


class FetcherCase:
    """The means: scratch files, and fetching with what can be said of every fetch. No test in here."""

    fetcher: Fetcher
    tmp: Path

    #: Names that a file may have at this kind of origin.
    odd_names: tuple[str, ...] = (
        "a b.txt", "ü-ñ-漢字.bin", "100%.txt", "a#b?c.txt", "a&b=c;d+e.txt", "'q\".txt", "-rf", "a%20b.txt", "x" * 180,
    )  # fmt: skip

    # -- to be said by the kind ------------------------------------------------------------------------------------

    def put(self, name: str, data: bytes) -> FileSpec:
        """A file of that name (replacing an earlier one), and how to ask for it."""
        raise NotImplementedError

    def missing(self) -> FileSpec:
        """How to ask for a file that is not there."""
        raise NotImplementedError

    def truncated(self, name: str, data: bytes, at: int) -> FileSpec:
        """A file of which only ``at`` bytes come, though all were announced."""
        raise NotImplementedError

    def endless(self) -> FileSpec:
        """A file that never ends."""
        raise NotImplementedError

    def context(self, **values: Any) -> Context:
        """Settings and profile that reach the origin."""
        return Context(Settings(), Connection("contract", values) if values else None)

    def expected(self, data: bytes) -> bytes:
        """What is in the scratch file after ``put(name, data)`` was fetched."""
        return data

    # -- for the tests of a kind -----------------------------------------------------------------------------------

    @pytest.fixture(autouse=True)
    def _scratches(self, tmp_path: Path) -> Iterator[None]:
        self.tmp = tmp_path
        self._open: list[Scratch] = []
        yield
        for scratch in self._open:
            scratch.close(discard=True)

    def scratch(
        self,
        *,
        keep: bool = False,
        max_bytes: int = 1 << 30,
        on_bytes: Callable[[int], None] = lambda n: None,
        algorithms: frozenset[str] = frozenset(),
    ) -> Scratch:
        """A fresh scratch file, closed and removed when the test ends."""
        folder = self.tmp / "scratch"
        folder.mkdir(exist_ok=True)
        made = Scratch(folder, "key", "x://", keep=keep, max_bytes=max_bytes, on_bytes=on_bytes, algorithms=algorithms)
        self._open.append(made)
        return made

    def fetch(
        self, spec: FileSpec, known: Known | None = None, context: Context | None = None
    ) -> tuple[bytes, Fetched]:
        """Fetch anew: the bytes, and what the fetcher said of them."""
        scratch = self.scratch()
        fetched = self.fetcher.fetch(spec, scratch, known, context or self.context())
        assert fetched is not None, "the fetcher says that nothing has changed"
        data = scratch.path.read_bytes()
        assert scratch.size == len(data)
        assert scratch.digest() == "sha256:" + hashlib.sha256(data).hexdigest()
        return data, fetched

    def fails(self, spec: FileSpec, kind: type[errors.FetchError], context: Context | None = None) -> errors.FetchError:
        """Fetch what must fail; the error, which names the source."""
        with pytest.raises(kind) as caught:
            self.fetcher.fetch(spec, self.scratch(), None, context or self.context())
        assert caught.value.uri == spec.uri
        assert caught.value.reason
        return caught.value


class FetcherContract(FetcherCase):
    """The promises: bytes, names, limits, errors, interruption, conditional requests."""

    def test_bytes_are_right(self) -> None:
        data, _ = self.fetch(self.put("some.bin", SOME_MB))
        assert data == self.expected(SOME_MB)

    def test_empty_file(self) -> None:
        data, _ = self.fetch(self.put("empty.bin", b""))
        assert data == self.expected(b"")

    def test_odd_names(self) -> None:
        specs = {name: self.put(name, name.encode()) for name in self.odd_names}
        for name, spec in specs.items():
            assert self.fetch(spec)[0] == self.expected(name.encode()), name

    def test_missing_is_not_found(self) -> None:
        self.fails(self.missing(), errors.NotFound)

    def test_more_than_allowed_is_too_large(self) -> None:
        spec = self.put("large.bin", SOME_MB)
        scratch = self.scratch(max_bytes=len(self.expected(SOME_MB)) - 1)
        with pytest.raises(errors.TooLarge):
            self.fetcher.fetch(spec, scratch, None, self.context())

    def test_just_what_is_allowed_is_not_too_large(self) -> None:
        spec = self.put("large.bin", SOME_MB)
        scratch = self.scratch(max_bytes=len(self.expected(SOME_MB)))
        assert self.fetcher.fetch(spec, scratch, None, self.context()) is not None

    def test_interruption_passes_through(self) -> None:
        spec = self.put("large.bin", SOME_MB)

        def stop(count: int) -> None:
            raise Interrupted("cancelled")

        with pytest.raises(Interrupted) as caught:
            self.fetcher.fetch(spec, self.scratch(on_bytes=stop), None, self.context())
        assert caught.value.why == "cancelled"

    def test_every_byte_is_reported(self) -> None:
        reported: list[int] = []
        scratch = self.scratch(on_bytes=reported.append)
        self.fetcher.fetch(self.put("some.bin", SOME_MB), scratch, None, self.context())
        assert sum(reported) == scratch.size == len(self.expected(SOME_MB))

    def test_unchanged_is_not_fetched_again(self) -> None:
        spec = self.put("same.bin", SOME_MB)
        data, fetched = self.fetch(spec)
        known = Known(fetched.version or "sha256:of-the-content", len(data), fetched.validator)
        scratch = self.scratch()
        assert self.fetcher.fetch(spec, scratch, known, self.context()) is None
        assert scratch.size == 0

    def test_changed_is_fetched(self) -> None:
        data, fetched = self.fetch(self.put("changing.bin", SOME_MB))
        known = Known(fetched.version or "sha256:of-the-content", len(data), fetched.validator)
        other = SOME_MB[::-1]
        assert self.fetch(self.put("changing.bin", other), known)[0] == self.expected(other)


class CutContract(FetcherContract):
    """For origins whose answer can break off on the way, or never end: they also say ``truncated`` and ``endless``."""

    @pytest.mark.parametrize("at", [0, 1, len(SOME_MB) // 2, len(SOME_MB) - 1])
    def test_cut_off_is_truncated(self, at: int) -> None:
        error = self.fails(self.truncated("cut.bin", SOME_MB, at), errors.Truncated)
        assert isinstance(error, errors.TransientFetchError)

    def test_endless_is_too_large(self) -> None:
        spec = self.endless()
        scratch = self.scratch(max_bytes=8 << 20)
        with pytest.raises(errors.TooLarge):
            self.fetcher.fetch(spec, scratch, None, self.context())
        assert scratch.size <= 8 << 20
