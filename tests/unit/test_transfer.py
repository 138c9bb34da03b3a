"""Where a profile's credentials may go, and where ``into=`` may write: decided on the data node, before any request."""

from __future__ import annotations

from pathlib import Path

import pytest

from ingest.errors import EgressDenied, PermanentFetchError
from ingest.model import FileSpec, JobOptions
from ingest.sections import Connection, StoreLimits
from ingest.settings import Settings
from ingest.store import Store
from workers.node import Node
from workers.transfer import Transfer


class Quiet:
    """A control that never interrupts."""

    def advance(self, size_bytes: int) -> None: ...

    def resumed(self, size_bytes: int) -> None: ...


def transfer(
    tmp_path: Path, into: Path | None = None, roots: tuple[str, ...] = (), **profiles: dict[str, str]
) -> Transfer:
    connections = {name: Connection(name, values) for name, values in profiles.items()}
    limits = StoreLimits(root=tmp_path / "store")
    settings = Settings(store=limits, connections=connections, file_roots=roots)
    options = JobOptions(into=str(into) if into else None)
    return Transfer(Node(settings, Store.open(limits), "w"), options, Quiet())  # type: ignore[arg-type]


def spec(uri: str, connection: str | None = None) -> FileSpec:
    return FileSpec(0, 0, uri, connection=connection)


def test_a_profile_goes_where_its_match_says_and_nowhere_else(tmp_path: Path) -> None:
    t = transfer(tmp_path, corp={"match": "https://data.corp/", "bearer": "t"})
    assert t.resolve(spec("https://data.corp/a")).connection == "corp"
    assert t.resolve(spec("https://data.corp/a", "corp")).connection == "corp"
    assert t.resolve(spec("https://elsewhere/a")).connection is None
    for uri in ("https://elsewhere/a", "http://data.corp/a", "https://data.corp.evil.com/a"):
        with pytest.raises(EgressDenied, match=r"https://data\.corp/ only"):
            t.resolve(spec(uri, "corp"))


def test_http_credentials_without_a_match_go_nowhere(tmp_path: Path) -> None:
    t = transfer(tmp_path, loose={"bearer": "t"}, s3={"endpoint": "http://127.0.0.1:1"})
    with pytest.raises(EgressDenied, match="add match"):
        t.resolve(spec("https://host/a", "loose"))
    assert t.resolve(spec("s3://bucket/a", "s3")).connection == "s3", "an S3 profile speaks to its own endpoint"


def test_an_unknown_profile_names_the_node_and_the_cure(tmp_path: Path) -> None:
    with pytest.raises(PermanentFetchError, match=r"\[connections.nope\]"):
        transfer(tmp_path).resolve(spec("https://host/a", "nope"))


def test_into_stays_within_the_files_roots(tmp_path: Path) -> None:
    root = tmp_path / "allowed"
    root.mkdir()
    (tmp_path / "way-out").symlink_to(root)
    source = root / "x.txt"
    source.write_text("x")
    for into, fine in (
        (root / "deep", True),
        (tmp_path / "way-out" / "d", True),
        (tmp_path / "other", False),
        (root / ".." / "o", False),
    ):
        t = transfer(tmp_path, into, (str(root),))
        if fine:
            assert t.fetch(spec(f"file://{source}"))[0].into == str(into / "x.txt")
        else:
            with pytest.raises(EgressDenied, match=r"\[files\] roots"):
                t.fetch(spec(f"file://{source}"))
