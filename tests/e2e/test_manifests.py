"""Manifests through the whole service: every format over HTTP and from the disk of whoever submits, and the command."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

import ingest
from tests.servers.http import Origin
from tests.servers.node import Service, running_service

COLUMNS = {"uri_column": "url", "digest_column": "sha256", "size_column": "bytes"}


def rows_of(origin: Origin, count: int = 5) -> tuple[list[dict[str, Any]], list[bytes]]:
    bodies = [f"sample {n}".encode() for n in range(count)]
    return [
        {"url": origin.put(f"/s/{n}", body), "sha256": hashlib.sha256(body).hexdigest(), "bytes": len(body)}
        for n, body in enumerate(bodies)
    ], bodies


def as_csv(rows: list[dict[str, Any]], delimiter: str = ",") -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def as_parquet(rows: list[dict[str, Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), out, row_group_size=2)
    return out.getvalue()


def as_jsonl(rows: list[dict[str, Any]]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


FORMATS: dict[str, Callable[[list[dict[str, Any]]], bytes]] = {
    "l.csv": as_csv,
    "l.tsv": lambda rows: as_csv(rows, "\t"),
    "l.csv.gz": lambda rows: gzip.compress(as_csv(rows)),
    "l.jsonl.zst": lambda rows: zstandard.ZstdCompressor().compress(as_jsonl(rows)),
    "l.parquet": as_parquet,
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("where", ["at a URI", "here"])
def test_every_format_with_digests_and_sizes(
    service: Service, origin: Origin, tmp_path: Path, name: str, where: str
) -> None:
    rows, bodies = rows_of(origin)
    rows[3]["sha256"] = "0" * 64
    data = FORMATS[name](rows)
    (tmp_path / name).write_bytes(data)
    uri = origin.put(f"/{name}", data) if where == "at a URI" else str(tmp_path / name)
    job = service.client().submit(ingest.Manifest(uri, **COLUMNS))  # type: ignore[arg-type]
    assert job.wait(timeout=30).state == "failed"
    assert [f.path.read_bytes() for f in job.files()] == [*bodies[:3], bodies[4]]
    (failure,) = job.failures()
    assert failure.error == "DigestMismatch" and failure.source == rows[3]["url"]
    first = 1 if name in {"l.jsonl.zst", "l.parquet"} else 2
    assert [f.index for f in job.files()] == [(0, first + n) for n in (0, 1, 2, 4)], "a file's place is its row"


def test_a_list_here_is_one_source_among_others_in_order(service: Service, origin: Origin, tmp_path: Path) -> None:
    urls = [origin.put(f"/o/{n}", b"%d" % n) for n in range(600)]
    (tmp_path / "list.txt").write_text("\n".join(urls[1:599]))
    client = service.client()
    job = client.submit([urls[0], ingest.Manifest(tmp_path / "list.txt"), urls[599]])  # type: ignore[arg-type]
    assert [f.path.read_bytes() for f in job.files(timeout=60)] == [b"%d" % n for n in range(600)]
    assert max(job.status().shards.values()) == 60, "cut as if the files had been named: ten a shard"
    assert int(client.ledger.meta(job.id)["plan_next"]) == 0, "nobody else had to read it"


def test_what_is_wrong_with_a_list_here_is_said_here_and_nothing_is_submitted(service: Service, tmp_path: Path) -> None:
    client = service.client()
    before = len(client.jobs())
    path = tmp_path / "list.txt"
    cases = [
        ("https://h/a\n" + "nonsense\n" * 9, r"line 2: .*no scheme.*; and 4 more"),
        ("", "lists nothing"),
        ("https://me:hunter2@h/a\n", "a password in a URI"),
    ]
    for content, why in cases:
        path.write_text(content)
        with pytest.raises(ingest.BadSource, match=why) as caught:
            client.submit(ingest.Manifest(str(path)))
        assert str(path) in str(caught.value) and "hunter2" not in str(caught.value)
    for uri, why in ((str(tmp_path), "not a regular file"), (f"{tmp_path}/none", "No such file.*no scheme")):
        with pytest.raises(ingest.BadSource, match=why):
            client.submit(ingest.Manifest(uri))
    path.with_suffix(".csv").write_text("url\nhttps://h/a\n")
    with pytest.raises(ingest.BadSource, match=r"no column 'uri'; its columns: 'url'"):
        client.submit(ingest.Manifest(str(path.with_suffix(".csv"))))
    assert len(client.jobs()) == before


def test_a_key_is_of_what_a_list_here_says(service: Service, origin: Origin, tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_text(origin.put("/k/1", b"1"))
    client, manifest = service.client(), ingest.Manifest(str(path))
    job = client.submit(manifest, key="same")
    assert client.submit(manifest, key="same").id == job.id
    path.write_text(origin.put("/k/2", b"2"))
    with pytest.raises(ingest.UsageError, match="asks for other sources"):
        client.submit(manifest, key="same")


def test_the_command_takes_a_path_and_the_names_of_columns(service: Service, origin: Origin) -> None:
    rows, bodies = rows_of(origin)
    (service.root / "mine.tsv").write_bytes(as_csv(rows, "\t"))
    columns = ("--uri-column", "url", "--digest-column", "sha256", "--size-column=bytes")
    done = service.run("fetch", "--manifest", "mine.tsv", *columns)
    assert [Path(line).read_bytes() for line in done.stdout.split()] == bodies and done.returncode == 0, done.stderr
    done = service.run("submit", "--manifest", "mine.tsv")
    assert done.returncode == 2 and "its columns: 'url', 'sha256', 'bytes'" in done.stderr
    done = service.run("submit", "https://h/a", "--uri-column", "url")
    assert done.returncode == 2 and "--uri-column goes with --manifest" in done.stderr


@pytest.mark.long
def test_a_long_list_is_planned_while_a_few_are_open(tmp_path: Path) -> None:
    """Files on the node's disk, so that what is measured is the ledger: it never holds more than the planner may be
    ahead."""
    for n in range(300):
        (tmp_path / f"f{n}").write_text(str(n))
    lines = [f"file://{tmp_path}/f{n}" for n in range(300)]
    lines[150] = "nonsense"
    (tmp_path / "list.txt").write_text("\n".join(lines))
    with running_service(tmp_path, config="[limits]\nplan_ahead = 30\n[store]\nfsync = false\n") as service:
        client = service.client()
        job = client.submit(ingest.Manifest(f"file://{tmp_path}/list.txt"), shard_files=1)
        most = 0
        while (meta := client.ledger.meta(job.id))["state"] not in {"done", "failed"}:
            most = max(most, int(meta["open"]))
            client.ledger.events(job.id, "$", 100)
        assert job.wait(timeout=5).state == "failed" and most <= 30 + 200
        assert [f.path.read_text() for f in job.files()] == [str(n) for n in range(300) if n != 150]
        (failure,) = job.failures()
        assert "line 151" in failure.reason
        assert "goes on when some are done" in service.workers[0].log.read_text()
