"""Every kind of source through the whole service: S3, PostgreSQL, SQLite, files and manifests, with profiles that work
and profiles that do not."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sqlite3
import tarfile
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from celery.result import AsyncResult

import ingest
from ingest.app import app_for
from ingest.model import FileSpec, source_key
from tests.servers.http import Origin
from tests.servers.node import Service, running_service
from tests.servers.postgres import PostgresServer, postgres_server
from tests.servers.s3 import S3Server, s3_server

#: Whatever is secret in a profile below; none of it may be seen anywhere.
SECRETS = ("pg-Wrong-Pass-77", "s3-Wrong-Secret-77", "http-Wrong-Bearer-77", "http-Right-Bearer-77", "pg-Right-Pass-77")
ROWS = 101
POSTGRES = (
    f"CREATE TABLE samples AS SELECT i AS id, 'caption ' || i AS caption, (i * 0.01)::numeric(20,10) AS price "
    f"FROM generate_series(1, {ROWS - 1}) AS i",
    "INSERT INTO samples VALUES (NULL, NULL, 12345678.0123456789)",
    "CREATE TABLE nothing (id int, word text)",
    "CREATE ROLE reader LOGIN PASSWORD 'pg-Right-Pass-77'",
    "GRANT SELECT ON samples TO reader",
)


@dataclass(frozen=True)
class World:
    """The service, and what it can reach."""

    service: Service
    s3: S3Server
    postgres: PostgresServer
    http: Origin
    sqlite: Path

    def client(self) -> ingest.Client:
        return self.service.client()

    def fail(self, *sources: Any) -> list[ingest.Failure]:
        job = self.client().submit(list(sources))
        assert job.wait(timeout=60).state == "failed"
        return job.failures()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    root = tmp_path_factory.mktemp("sources")
    with s3_server() as s3, postgres_server() as postgres, Origin() as http:
        postgres.execute(*POSTGRES)
        postgres.want_password("reader")
        with closing(sqlite3.connect(root / "a b.sqlite")) as db:
            db.execute("CREATE TABLE words (id INTEGER, word TEXT)")
            db.executemany("INSERT INTO words VALUES (?, ?)", [(n, f"w{n}") for n in range(40)] + [(None, "lost")])
            db.commit()
        with running_service(root, config=_config(s3, postgres, http, root)) as service:
            yield World(service, s3, postgres, http, root / "a b.sqlite")


def _config(s3: S3Server, postgres: PostgresServer, http: Origin, root: Path) -> str:
    as_reader = postgres.url.replace("postgres:@", "reader@")
    profiles: dict[str, dict[str, Any]] = {
        "lake": s3.profile(match="s3://"),
        "s3-wrong": {"endpoint": s3.endpoint, "key": "AKIANOBODY", "secret": "s3-Wrong-Secret-77"},
        "pg": {"url": postgres.url},
        "pg-reader": {"url": as_reader, "password": "pg-Right-Pass-77"},
        "pg-wrong": {"url": as_reader, "password": "pg-Wrong-Pass-77"},
        "lite": {"url": f"sqlite:///{root}/a%20b.sqlite"},
        "site": {"bearer": "http-Right-Bearer-77", "match": http.url("/private/")},
        "site-wrong": {"bearer": "http-Wrong-Bearer-77", "match": http.url("/")},
    }
    lines = ["[retry]", "base_s = 0.1"]
    for name, values in profiles.items():
        lines += [f"[connections.{name}]", *(f"{key} = {json.dumps(value)}" for key, value in values.items())]
    return "\n".join(lines)


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def column(paths: list[Path], name: str) -> list[Any]:
    return [value for path in paths for value in pq.read_table(path)[name].to_pylist()]


def tar_of(samples: int) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for n in range(samples):
            for suffix in ("txt", "cls"):
                info = tarfile.TarInfo(f"sample-{n:03}.{suffix}")
                info.size = 3
                tar.addfile(info, io.BytesIO(b"abc"))
    return out.getvalue()


def parquet_of(rows: int) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table({"id": list(range(rows))}), out)
    return out.getvalue()


def jsonl_of(rows: int) -> bytes:
    return b"".join(b'{"n": %d}\n' % n for n in range(rows))


# -- S3 ------------------------------------------------------------------------------------------------------------


def test_s3_object_prefix_and_glob(world: World) -> None:
    objects = {f"train/{n}.bin": b"%d" % n * 100 for n in range(5)} | {"train/deep/x.txt": b"deep", "trainer": b"no"}
    etags = world.s3.put("lake-data", objects)
    client = world.client()
    (one,) = client.submit(
        ingest.Source("s3://lake-data/train/3.bin", digest=sha(objects["train/3.bin"]), size=100)
    ).files(timeout=30)
    assert one.path.read_bytes() == b"3" * 100 and one.version == etags["train/3.bin"]
    job = client.submit("s3://lake-data/train/")
    files = job.files(timeout=30)
    assert [f.source for f in files] == sorted(f"s3://lake-data/{key}" for key in objects if key.startswith("train/"))
    assert [f.path.read_bytes() for f in files] == [objects[f.source.partition("data/")[2]] for f in files]
    names = [p.name for p in client.fetch("s3://lake-data/train/[0-2].b*", timeout=30)]
    assert names == ["0.bin", "1.bin", "2.bin"]
    assert job.status().files == 6 and not job.failures()


def test_s3_globs_and_prefixes_with_braces(world: World) -> None:
    world.s3.put("lake-braces", {f"{a}/{n}.bin": f"{a}{n}".encode() for a in "abc" for n in range(2)})
    job = world.client().submit(["s3://lake-braces/{c,a}/*.bin", "s3://lake-braces/{b,z}/"])
    assert job.wait(timeout=30).state == "failed"
    assert [(f.index, f.path.read_text()) for f in job.files()] == [
        ((0, 0), "c0"), ((0, 1), "c1"), ((0, 2), "a0"), ((0, 3), "a1"),
    ]  # fmt: skip
    (failure,) = job.failures()
    assert failure.error == "NothingMatched" and failure.source == "s3://lake-braces/{b,z}/"


def test_s3_prefix_into_keeps_the_folders_below_it(world: World, tmp_path: Path) -> None:
    world.s3.put("lake-tree", {"p/a.bin": b"a", "p/q/a.bin": b"qa"})
    paths = world.client().fetch("s3://lake-tree/p/", into=tmp_path / "out", timeout=30)
    assert [p.relative_to(tmp_path / "out").as_posix() for p in paths] == ["a.bin", "q/a.bin"]


def test_s3_odd_keys_are_found_by_a_prefix(world: World) -> None:
    keys = ["odd/a b", "odd/a%20b", "odd/ü/ñ", "odd/a#b", "odd/a?b", "odd/a+b", "odd/a[1]*", "odd/{1..3}", "odd/a//b"]
    world.s3.put("odd-keys", {key: key.encode() for key in keys})
    files = world.client().submit("s3://odd-keys/odd/").files(timeout=30)
    assert sorted(f.path.read_text() for f in files) == sorted(keys)
    assert len({f.path for f in files}) == len(keys)


def test_s3_failures_are_those_of_their_sources_alone(world: World) -> None:
    world.s3.put("good-bucket", {"here": b"here"})
    world.s3.put("closed-bucket", {"secret": b"s"})
    deny = {"Effect": "Deny", "Principal": "*", "Action": "s3:*", "Resource": ["arn:aws:s3:::closed-bucket/*"]}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [deny]})
    world.s3.client.put_bucket_policy(Bucket="closed-bucket", Policy=policy)
    job = world.client().submit([
        "s3://closed-bucket/secret", "s3://good-bucket/here", "s3://no-such-bucket/x", "s3://no-such-bucket/x/",
        "s3://good-bucket/nothing-here/", "s3://good-bucket/*.tar", "s3://good-bucket/gone",
        ingest.Source("s3://good-bucket/here", digest=sha(b"other")),
    ])  # fmt: skip
    assert job.wait(timeout=60).state == "failed"
    assert [(f.index[0], f.error) for f in job.failures()] == [
        (0, "AccessDenied"), (2, "NotFound"), (3, "NotFound"), (4, "NothingMatched"), (5, "NothingMatched"),
        (6, "NotFound"), (7, "DigestMismatch"),
    ]  # fmt: skip
    assert [f.path.read_bytes() for f in job.files()] == [b"here"]
    reasons = {f.index[0]: f.reason for f in job.failures()}
    assert "[connections.lake]" in reasons[0] and "good-bucket" in reasons[4] + reasons[5]


def test_nothing_matched_is_raised_where_it_is_all_there_is(world: World) -> None:
    world.s3.put("good-bucket", {"here": b"here"})
    with pytest.raises(ingest.JobFailed, match=r"s3://good-bucket/empty/.*NothingMatched"):
        world.client().fetch("s3://good-bucket/empty/", timeout=30)


# -- SQL -----------------------------------------------------------------------------------------------------------


def test_postgres_table_in_four_partitions(world: World) -> None:
    sql = ingest.Sql("pg", table="samples", partition_on="id", partitions=4)
    job = world.client().submit(sql)
    files = job.files(timeout=60)
    assert [f.index for f in files] == [(0, 0), (0, 1), (0, 2), (0, 3)] and job.status().shards == {"done": 4}
    ids = column([f.path for f in files], "id")
    assert sorted(ids, key=lambda i: i or 0) == [None, *range(1, ROWS)]
    assert sum(f.samples or 0 for f in files) == ROWS
    price = dict(zip(ids, column([f.path for f in files], "price"), strict=True))
    assert price[None] == Decimal("12345678.0123456789") and price[7] == Decimal("0.0700000000")
    assert all(type(p) is Decimal for p in price.values())


def test_postgres_query_empty_table_and_unknown_table(world: World) -> None:
    client = world.client()
    query = ingest.Sql("pg", query="SELECT id, caption FROM samples WHERE id <= 3 ORDER BY id")
    empty = ingest.Sql("pg", table="nothing", partition_on="id", partitions=3)
    job = client.submit([query, empty, ingest.Sql("pg", table="no_such"), ingest.Sql("pg", query="SELEKT 1")])
    job.wait(timeout=60)
    first, second = job.files()
    assert pq.read_table(first.path).to_pylist() == [{"id": n, "caption": f"caption {n}"} for n in (1, 2, 3)]
    assert second.samples == 0 and pq.read_schema(second.path).names == ["id", "word"]
    unknown, syntax = job.failures()
    assert unknown.error == "NotFound" and "no_such" in unknown.reason and unknown.source == "sql://pg/no_such"
    assert syntax.error == "BadResponse" and "syntax error" in syntax.reason and syntax.index == (3, 0)


def test_two_queries_over_one_connection_are_two_files(world: World) -> None:
    a, b = (ingest.Sql("pg", query=f"SELECT {n} AS n") for n in (1, 2))
    paths = world.client().fetch([a, b], timeout=30)
    assert column(paths, "n") == [1, 2] and len(set(paths)) == 2


def test_sqlite_with_null_keys_and_in_partitions(world: World) -> None:
    sql = ingest.Sql("lite", table="words", partition_on="id", partitions=4)
    paths = world.client().fetch(sql, timeout=30)
    assert len(paths) == 4
    assert sorted(column(paths, "word")) == sorted([*(f"w{n}" for n in range(40)), "lost"])
    (failure,) = world.fail(ingest.Sql("lite", table="no_such"))
    assert failure.error == "NotFound" and "no_such" in failure.reason


# -- files and manifests -------------------------------------------------------------------------------------------


def test_files_single_and_glob(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "my data"
    folder.mkdir()
    for n in range(3):
        (folder / f"part {n}.bin").write_bytes(b"%d" % n)
    single, globbed = f"file://{folder}/part 1.bin", f"file://{folder}/*.bin"
    paths = world.client().fetch([single, globbed], timeout=30)
    assert [p.read_bytes() for p in paths] == [b"1", b"0", b"1", b"2"]
    assert not set(paths) & set(folder.iterdir())
    errors = {f.index[0]: f.error for f in world.fail(single, f"file://{folder}/none.bin", f"file://{folder}/*.tar")}
    assert errors == {1: "NotFound", 2: "NothingMatched"}


@pytest.mark.parametrize("kind", ["txt", "jsonl", "csv"])
def test_a_manifest_over_http(world: World, kind: str) -> None:
    data = [f"{kind} {n}".encode() for n in range(4)]
    urls = [world.http.put(f"/{kind}/{n}.bin", body) for n, body in enumerate(data)]
    digests = [sha(body) for body in data]
    digests[2] = sha(b"not this")
    if kind == "txt":
        text = "# a comment\n\n" + "\r\n".join(urls) + "\n"
    elif kind == "jsonl":
        text = "\n".join(json.dumps({"uri": u, "digest": d}) for u, d in zip(urls, digests, strict=True))
    else:
        out = io.StringIO()
        csv.writer(out).writerows([("digest", "uri", "size"), *((d, u, 5) for u, d in zip(urls, digests, strict=True))])
        text = out.getvalue()
    job = world.client().submit(ingest.Manifest(world.http.put(f"/list.{kind}", text.encode())))
    job.wait(timeout=40)
    # A file's place is its line: in a txt two lines come before the first, in a csv its header.
    first = {"txt": 3, "jsonl": 1, "csv": 2}[kind]
    bad = [] if kind == "txt" else [2]
    assert [(f.index, f.error) for f in job.failures()] == [((0, first + n), "DigestMismatch") for n in bad]
    expected = {(0, first + n): body for n, body in enumerate(data) if n not in bad}
    assert {f.index: f.path.read_bytes() for f in job.files()} == expected


def test_bad_lines_of_a_manifest_fail_alone(world: World) -> None:
    good = world.http.put("/good.bin", b"good")
    lines = [
        "nonsense",
        good,
        "https://me:pa55-word@ok.example/a",
        "gopher://x/y",
        "http://[::1/a",
        f"{good}\x01",
        good,
    ]
    url = world.http.put("/half-bad.txt", "\n".join(lines).encode())
    job = world.client().submit(ingest.Manifest(url))
    assert job.wait(timeout=30).state == "failed"
    assert [f.path.read_bytes() for f in job.files()] == [b"good", b"good"]
    failures = {f.index[1]: f for f in job.failures()}
    assert sorted(failures) == [1, 3, 4, 5, 6] and "pa55" not in str(failures)
    assert "line 1" in failures[1].reason and "has no scheme" in failures[1].reason
    assert "a password in a URI" in failures[3].reason and "gopher" in failures[4].reason + failures[4].source


@pytest.mark.parametrize(
    ("text", "name", "error", "reason"),
    [
        (b"\xff\xfe\x00", "x.txt", "BadResponse", "not a readable txt manifest"),
        (b"", "y.txt", "NothingMatched", "matched nothing"),
        (b'{"uri": "http', "z.jsonl", "BadResponse", "not a readable jsonl manifest"),
        (b"url\nhttp://127.0.0.1/x\n", "z.csv", "BadResponse", "Manifest(uri_column="),
    ],
)
def test_a_manifest_that_cannot_be_read(world: World, text: bytes, name: str, error: str, reason: str) -> None:
    url = world.http.put(f"/bad/{name}", text)
    (failure,) = world.fail(ingest.Manifest(url), world.http.put("/good.bin", b"good"))
    assert (failure.source, failure.error) == (url, error) and reason in failure.reason


# -- all of them ---------------------------------------------------------------------------------------------------


def test_one_job_of_everything_in_source_order(world: World, tmp_path: Path) -> None:
    world.s3.put("mixed", {"m/a.tar": tar_of(3), "m/b.parquet": parquet_of(17), "m/c.jsonl": jsonl_of(5)})
    (tmp_path / "local.txt").write_bytes(b"local")
    listed = world.http.put("/listed.bin", b"listed")
    sources = [
        world.http.put("/first.bin", b"first"),
        "s3://mixed/m/*",
        ingest.Sql("pg", table="samples", partition_on="id", partitions=2),
        f"file://{tmp_path}/*.txt",
        ingest.Manifest(world.http.put("/all.txt", listed.encode())),
        ingest.Sql("lite", query="SELECT 1 AS one"),
        world.http.put("/last.bin", b"last"),
    ]
    job = world.client().submit(sources, name="mixed")
    files = job.files(timeout=60)
    assert [f.index for f in files] == [
        (0, 0), (1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (3, 0), (4, 1), (5, 0), (6, 0),
    ]  # fmt: skip
    assert not job.failures()
    samples = [f.samples for f in files]
    assert samples[:4] == [None, 3, 17, 5] and (samples[4] or 0) + (samples[5] or 0) == ROWS and samples[8] == 1
    assert [files[n].path.read_bytes() for n in (0, 6, 7, 9)] == [b"first", b"local", b"listed", b"last"]
    assert sorted(f.index for f in job.as_completed(timeout=10)) == [f.index for f in files]
    assert job.status().bytes == sum(f.size for f in files)


def test_a_shard_leaves_a_manifest_in_the_store(world: World) -> None:
    url, bad = world.http.put("/kept.jsonl", jsonl_of(4)), world.http.url("/not-kept")
    job = world.client().submit([url, bad], shard_files=2)
    job.wait(timeout=30)
    store = Path(world.service.env["INGEST_STORE"])
    (path,) = (store / "manifests" / job.id).iterdir()
    record = json.loads(path.read_text())
    (file,), (failure,) = record["files"], record["failures"]
    (there,) = job.files()
    assert store / file["path"] == there.path
    assert (file["uri"], file["size"], file["digest"]) == (url, there.size, sha(jsonl_of(4)))
    assert file["version"] == there.version and file["samples"] == 4 and failure["error"] == "NotFound"
    assert (record["job"], record["shard"]) == (job.id, "0")


# -- credentials ---------------------------------------------------------------------------------------------------


def test_a_profile_by_name_and_by_match(world: World) -> None:
    def guarded(to: Any) -> None:
        right = to.headers.get("Authorization") == "Bearer http-Right-Bearer-77"
        to.head(200 if right else 401, {"Content-Length": "2"})
        to.send(b"in" if right else b"no")

    inside, other = world.http.on("/private/x", guarded), world.http.on("/private/y", guarded)
    outside = world.http.on("/public/x", guarded)
    client = world.client()
    (by_match,) = client.submit(inside).files(timeout=30)
    (by_name,) = client.submit(ingest.Source(other, connection="site")).files(timeout=30)
    assert by_match.path.read_bytes() == by_name.path.read_bytes() == b"in"
    denied, astray = world.fail(outside, ingest.Source(outside, connection="site"))
    assert denied.error == "AccessDenied" and "401" in denied.reason and "[connections.site-wrong]" in denied.reason
    assert astray.error == "EgressDenied" and "site" in astray.reason, "a profile's secret goes where its match says"
    rows = ingest.Sql("pg-reader", query="SELECT count(*) AS n FROM samples")
    assert column(client.fetch(rows, timeout=30), "n") == [ROWS]


def test_another_profile_does_not_see_the_file_of_the_first(world: World) -> None:
    def guarded(to: Any) -> None:
        right = to.headers.get("Authorization") == "Bearer http-Right-Bearer-77"
        to.head(200 if right else 403, {"Content-Length": "4"})
        to.send(b"mine" if right else b"nope")

    url = world.http.on("/private/mine", guarded)
    client = world.client()
    (mine,) = client.submit(url).files(timeout=30)
    assert mine.path.read_bytes() == b"mine"
    (failure,) = world.fail(ingest.Source(url, connection="site-wrong"))
    assert failure.error == "AccessDenied" and "[connections.site-wrong]" in failure.reason
    again = ingest.Source(url, connection="site")
    assert client.fetch(again, timeout=30) == [mine.path], "a name and a match that lead to one profile are one file"
    assert source_key(url, "site") == source_key(FileSpec(0, 0, url, connection="site").uri, "site")


def test_a_wrong_password_is_denied_and_no_secret_is_seen_anywhere(world: World) -> None:
    def denied(to: Any) -> None:
        to.head(401, {"Content-Length": "0", "WWW-Authenticate": "Bearer"})

    world.s3.put("guarded", {"k": b"x"})
    world.client().fetch("s3://guarded/k", timeout=30)
    switch(world.s3, "0")  # from now on moto looks at who asks
    try:
        sources = [
            ingest.Sql("pg-wrong", table="samples"),
            ingest.Source("s3://guarded/k", connection="s3-wrong"),
            ingest.Source("s3://guarded/", connection="s3-wrong"),
            ingest.Source(world.http.on("/wrong", denied), connection="site-wrong"),
        ]
        job = world.client().submit(sources)
        assert job.wait(timeout=60).state == "failed"
    finally:
        switch(world.s3, "inf")
    failures = job.failures()
    assert [f.error for f in failures] == ["AccessDenied"] * 4
    for failure, name in zip(failures, ("pg-wrong", "s3-wrong", "s3-wrong", "site-wrong"), strict=True):
        assert f"[connections.{name}]" in failure.reason
    results = [
        str(AsyncResult(task, app=app_for(world.service.settings)).get(timeout=10, propagate=False))
        for task in job.task_ids()
    ]
    shown = world.service.run("failures", job.id, "--json")
    told = [str(failures), repr(job), repr(world.service.settings), *results, shown.stdout, shown.stderr]
    told += [world.service.workers[0].log.read_text(), *everything_in_redis(world.client())]
    told += [p.read_text(errors="replace") for p in Path(world.service.env["INGEST_STORE"]).rglob("*.json")]
    for secret in SECRETS:
        assert not [text for text in told if secret in text], secret


def switch(s3: S3Server, count: str) -> None:
    request = urllib.request.Request(
        f"{s3.endpoint}/moto-api/reset-auth", data=count.encode(), headers={"Content-Type": "text/plain"}
    )
    urllib.request.urlopen(request, timeout=10).close()


def everything_in_redis(client: ingest.Client) -> Iterator[str]:
    """Every value of every key, also what is compressed, as text."""
    redis = client.ledger.redis
    readers = {
        b"string": lambda k: [redis.get(k)],
        b"hash": lambda k: [*redis.hgetall(k).items()],
        b"list": lambda k: redis.lrange(k, 0, -1),
        b"set": redis.smembers,
        b"zset": lambda k: redis.zrange(k, 0, -1),
        b"stream": redis.xrange,
    }
    seen = 0
    for key in redis.scan_iter(count=1000):
        yield key.decode(errors="replace")
        for value in readers.get(redis.type(key), lambda k: [])(key):  # one may have expired meanwhile
            parts = value if isinstance(value, tuple) else (value,)
            for part in parts:
                seen += 1
                yield str(part)
                if isinstance(part, bytes) and part[:1] == b"\x78":
                    yield zlib.decompress(part).decode(errors="replace")
    assert seen > 50, "this looked at nothing"
