"""S3, served by nginx with listings written beforehand: one large object, several of 16 MB, many small ones."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks import data
from benchmarks.harness import Against, Case, Unavailable
from benchmarks.lab import Lab, Ours, emptied, fetched, tally
from benchmarks.peers import Command, package
from benchmarks.servers import find_nginx
from ingest import Client

_PAGE = 1000  # keys of a listing's page, as S3 has them

_CONFIG = """\
[connections.bench]
match = "s3://{bucket}/"
endpoint = "{url}"
anonymous = true
region = "us-east-1"
"""


@contextlib.contextmanager
def large(lab: Lab) -> Iterator[Case]:
    """Target 4: one object of the size of target 1's file."""

    def make(folder: Path) -> None:
        data.large(folder / "large.bin", lab.scale.large_mb)

    with _bucket(lab, "s3-large", make, f"one object of {lab.scale.large_mb} MB") as case:
        yield case


@contextlib.contextmanager
def middle(lab: Lab) -> Iterator[Case]:
    """Target 4: objects of 16 MB."""

    def make(folder: Path) -> None:
        for number in range(lab.scale.objects):
            data.large(folder / f"{number:03}.bin", 16)

    with _bucket(lab, "s3-middle", make, f"{lab.scale.objects} objects of 16 MB") as case:
        yield case


@contextlib.contextmanager
def small(lab: Lab) -> Iterator[Case]:
    """Target 4: objects of 20 KB, half as many as over HTTP."""
    count = lab.scale.small_files // 2

    def make(folder: Path) -> None:
        data.pictures(folder, count)

    with _bucket(lab, "s3-small", make, f"{count:,} objects of 20 KB") as case:
        yield case


@contextlib.contextmanager
def _bucket(lab: Lab, bucket: str, make: Callable[[Path], None], what: str) -> Iterator[Case]:
    """All of a bucket, by its prefix, as ``s5cmd cp s3://bucket/*`` has it."""
    if find_nginx() is None:
        raise Unavailable("nginx is not installed: apt-get install nginx-light")
    with lab.web() as (web, _):
        objects = lab.dir("www", bucket)
        make(objects)
        _list(objects, lab.dir("www", ".listings", bucket))
        size = tally(objects)
        many = size["bytes"] / size["files"] < 1e6
        out = lab.dir("s5cmd")

        def work(client: Client) -> Mapping[str, float]:
            return fetched(client, [f"s3://{bucket}/"])

        def s5cmd(python: Path) -> Command:
            program = python.with_name("s5cmd")
            options = f"--no-sign-request --endpoint-url {web.url} --log error"
            command = f"{program} {options} cp 's3://{bucket}/*' {out}/"
            return Command("s5cmd", ["sh", "-c", command], lab.folder / "peer.log", emptied(out), lambda: tally(out))

        with lab.service(_CONFIG.format(bucket=bucket, url=web.url)) as service:
            yield Case(
                bucket,
                4,
                f"{what} from S3 ({web.software})",
                (Ours(service, work), package("s5cmd", s5cmd)),
                (Against("s5cmd", 1.0), Against("s5cmd", None, "cpu_s")),
                size["files"] / 1000 if many else size["bytes"] / 1e9,
                "1,000 files" if many else "GB",
                lab.scale.rounds,
            )


def _list(objects: Path, listings: Path) -> None:
    """Answers to ListObjectsV2, a file each; a page's name is its continuation token."""
    names = sorted(os.listdir(objects))
    for at in range(0, max(len(names), 1), _PAGE):
        some, more = names[at : at + _PAGE], at + _PAGE < len(names)
        contents = "".join(
            f"<Contents><Key>{escape(name)}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
            f"<ETag>&quot;{_etag(objects / name)}&quot;</ETag><Size>{(objects / name).stat().st_size}</Size>"
            "<StorageClass>STANDARD</StorageClass></Contents>"
            for name in some
        )
        after = f"<NextContinuationToken>{at // _PAGE + 1}</NextContinuationToken>" if more else ""
        (listings / f"{at // _PAGE}.xml").write_text(
            '<?xml version="1.0" encoding="UTF-8"?>'
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{objects.name}</Name><Prefix></Prefix><KeyCount>{len(some)}</KeyCount><MaxKeys>{_PAGE}</MaxKeys>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{after}{contents}</ListBucketResult>"
        )


def _etag(path: Path) -> str:
    """As nginx makes it: time and size in hexadecimal."""
    about = path.stat()
    return f"{int(about.st_mtime):x}-{about.st_size:x}"
