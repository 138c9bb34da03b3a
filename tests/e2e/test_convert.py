"""``convert=`` through the whole service: what a job gets is what the steps made, once, or an error that says why."""

from __future__ import annotations

import gzip
import io
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ingest.client import Client
from ingest.dataset import formats
from ingest.errors import JobFailed, UsageError
from tests.servers.http import Origin
from tests.servers.node import Service, running_service
from tests.unit.converting import tar_of, zip_of

TREE = [("b.txt", b"b"), ("a/ü.txt", b"u"), ("a/x.bin", b"x" * 5000)]
PROJECT = Path(__file__).parents[2]

OPERATORS = """
def upper(files, work, *, times=1):
    for file in files:
        with work.create(file.name) as out:
            out.write(file.path.read_bytes().upper() * times)

def endless(files, work):
    while True:
        work.check()
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A data node on which an operator has installed a distribution with steps."""
    root = tmp_path_factory.mktemp("convert")
    site = root / "site"
    made = site / "operators_steps-1.dist-info"
    made.mkdir(parents=True)
    (site / "operators_steps.py").write_text(OPERATORS)
    (made / "METADATA").write_text("Metadata-Version: 2.1\nName: operators-steps\nVersion: 1\n")
    lines = "x-upper = operators_steps:upper\nx-endless = operators_steps:endless\n"
    (made / "entry_points.txt").write_text("[ingest.steps]\n" + lines)
    config = "[limits]\nconnect_s = 0.5\nstall_s = 1\nsoft_s = 2\nhard_s = 30\n"
    with running_service(root, config=config, PYTHONPATH=os.pathsep.join([str(PROJECT), str(site)])) as started:
        yield started


@pytest.fixture
def client(service: Service) -> Client:
    return service.client()


def test_an_archive_becomes_its_files(client: Client, service: Service, origin: Origin, tmp_path: Path) -> None:
    urls = [origin.put("/one.tar.gz", tar_of(TREE, "w:gz")), origin.put("/two.zip", zip_of(TREE))]
    job = client.submit(urls, convert=["unpack"], into=tmp_path / "out")
    assert job.wait(timeout=30).state == "done", job.failures()
    files = job.files()
    wanted = [f"{stem}/{name}" for stem in ("one", "two") for name, _ in TREE]
    assert [os.path.relpath(str(file.into), tmp_path / "out") for file in files] == wanted
    assert [file.path.read_bytes() for file in files] == [body for _, body in TREE] * 2
    assert [file.index for file in files] == [(0, 0)] * 3 + [(1, 0)] * 3
    assert [file.source for file in files] == [urls[0]] * 3 + [urls[1]] * 3
    assert len(list(job.as_completed(timeout=5))) == 6 and service.scratch() == []
    # Whoever asks for the same finds it; whoever asks for something else does not.
    asked = origin.count()
    again = client.submit(urls, convert={"step": "unpack", "max_files": 20_000})
    assert again.wait(timeout=30).state == "done" and origin.count() == asked
    assert [file.path for file in again.files()] == [file.path for file in files] and again.files()[0].reused
    plain = client.fetch(urls, timeout=30)
    assert [path.name for path in plain] == ["one.tar.gz", "two.zip"]


def test_what_is_unchanged_is_not_converted_again(client: Client, origin: Origin) -> None:
    url = origin.put("/same.gz", gzip.compress(b"same"))
    first = client.submit(url, convert="decompress", fresh_s=0)
    second = client.submit(url, convert="decompress", fresh_s=0)
    assert [job.wait(timeout=30).state for job in (first, second)] == ["done"] * 2
    third = client.submit(url, convert="decompress", fresh_s=0)
    third.wait(timeout=30)
    assert third.files()[0].reused and third.files()[0].path == first.files()[0].path
    origin.put("/same.gz", gzip.compress(b"another"))
    assert client.fetch(url, convert="decompress", fresh_s=0, timeout=30)[0].read_bytes() == b"another"
    assert first.files()[0].path.read_bytes() == b"same", "a path never changes what it holds"


def test_the_bytes_that_came_are_verified_and_not_those_that_were_made(client: Client, origin: Origin) -> None:
    import hashlib

    import ingest

    packed = gzip.compress(b"verified")
    url = origin.put("/v.gz", packed)
    digest = f"sha256:{hashlib.sha256(packed).hexdigest()}"
    source = ingest.Source(url, digest=digest, size=len(packed))
    (file,) = client.submit(source, convert="decompress").files(timeout=30)
    assert file.path.read_bytes() == b"verified" and file.size == 8
    assert file.digest == f"sha256:{hashlib.sha256(b'verified').hexdigest()}"
    wrong = ingest.Source(url, digest=f"sha256:{hashlib.sha256(b'verified').hexdigest()}")
    job = client.submit(wrong, convert="decompress", attempts=1)
    assert job.wait(timeout=30).state == "failed" and job.failures()[0].error == "DigestMismatch"


def test_a_table_on_the_way_and_its_samples(client: Client, origin: Origin) -> None:
    text = "id,zip\n" + "".join(f"{n},{n:05}\n" for n in range(1000))
    url = origin.put("/t.csv.gz", gzip.compress(text.encode()))
    (file,) = client.submit(url, convert=["decompress", "parquet"]).files(timeout=30)
    table = pq.read_table(file.path)
    assert table.column("zip")[7].as_py() == "00007" and table.column("id")[7].as_py() == 7
    assert file.samples == 1000 and file.path.name == "t.parquet"


def test_an_archive_becomes_a_dataset(client: Client, origin: Origin) -> None:
    tree = [(f"{n:03}.{suffix}", b"%d" % n) for suffix in ("txt", "cls") for n in range(20)]
    url = origin.put("/set.zip", zip_of(tree))
    (file,) = client.submit(url, convert=["unpack:folder=false", "tar"]).files(timeout=30)
    assert file.path.name == "set.tar" and file.samples == 20
    assert list(formats.read(formats.by_name("tar"), file.path, url))[3] == {
        "__key__": "003",
        "__url__": url,
        "txt": b"3",
        "cls": b"3",
    }


def test_what_cannot_be_converted_fails_alone_and_leaves_nothing(
    client: Client, service: Service, origin: Origin
) -> None:
    urls = [
        origin.put("/good.gz", gzip.compress(b"good")),
        origin.put("/cut.gz", gzip.compress(os.urandom(5000))[:-100]),
        origin.put("/plain.gz", b"plain"),
        origin.put("/bomb.gz", gzip.compress(bytes(20 << 20))),
    ]
    job = client.submit(urls, convert="decompress")
    assert job.wait(timeout=30).state == "failed"
    assert [(f.index[0], f.error, f.attempts) for f in job.failures()] == [
        (1, "BadResponse", 1), (2, "BadResponse", 1), (3, "TooLarge", 1),
    ]  # fmt: skip
    assert [file.path.read_bytes() for file in job.files()] == [b"good"] and service.scratch() == []


def test_names_of_steps_are_checked_where_the_user_is(client: Client, origin: Origin) -> None:
    url = origin.put("/a.gz", gzip.compress(b"a"))
    for steps, words in (("nope", "known: decompress"), ({"step": "unpack", "x": 1}, "max_files")):
        with pytest.raises(UsageError, match=words):
            client.submit(url, convert=steps)
    with pytest.raises(UsageError, match="go together"):
        client.submit(url, convert="decompress", pack="tar")
    assert origin.count() == 0


def test_an_operators_step(client: Client, origin: Origin) -> None:
    url = origin.put("/shout.txt", b"shout")
    (path,) = client.fetch(url, convert={"step": "x-upper", "times": 2}, timeout=30)
    assert path.read_bytes() == b"SHOUTSHOUT"
    other = origin.put("/never.txt", b"x")
    with pytest.raises(JobFailed, match=r"x-nowhere' is not installed on this data node \(known: x-endless, x-upper\)"):
        client.fetch(other, convert="x-nowhere", timeout=30)
    assert origin.count("/never.txt") == 0, "nothing is fetched for a step that is not here"


def test_a_step_that_takes_longer_than_a_slice(client: Client, service: Service, origin: Origin) -> None:
    job = client.submit(origin.put("/slow.txt", b"x"), convert="x-endless", attempts=1)
    assert job.wait(timeout=60).state == "failed"
    (failure,) = job.failures()
    assert failure.error == "FetchTimeout" and "converting it took longer than the time slice" in failure.reason


def test_a_step_is_cancelled_with_its_job(client: Client, service: Service, origin: Origin) -> None:
    from tests.servers.node import until

    url = origin.put("/cancelled.txt", b"x")
    before = set(service.scratch())
    job = client.submit(url, convert="x-endless", attempts=100)
    until(lambda: origin.count("/cancelled.txt"), "it is being converted")
    job.cancel()
    assert job.wait(timeout=30).state == "cancelled"
    # As of any download that is cancelled, what came may be taken up by the next job that wants it; no more than that.
    assert len([path for path in set(service.scratch()) - before if path.suffix == ".part"]) <= 1


def test_command_line(service: Service, origin: Origin) -> None:
    url = origin.put("/cli.zip", zip_of(TREE))
    done = service.run("fetch", url, "--convert", "unpack:folder=false", "--convert", "tar:name=all.tar")
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).name == "all.tar"
    wrong = service.run("submit", url, "--convert", "unpack:max_fils=1")
    assert wrong.returncode == 2 and "max_files" in wrong.stderr


def test_what_a_query_gives_is_converted_too(service: Service, origin: Origin, tmp_path: Path) -> None:
    import sqlite3
    import tarfile
    from contextlib import closing

    import ingest

    with closing(sqlite3.connect(tmp_path / "d.db")) as db:
        db.execute("CREATE TABLE t (id INTEGER)")
        db.executemany("INSERT INTO t VALUES (?)", [(n,) for n in range(100)])
        db.commit()
    root = tmp_path / "own"
    root.mkdir()
    config = f'[connections.db]\nurl = "sqlite:///{tmp_path}/d.db"\n'
    with running_service(root, config=config) as own:
        (path,) = own.client().fetch(ingest.Sql("db", table="t"), convert="tar", timeout=60)
        with tarfile.open(path) as tar:
            (member,) = tar.getmembers()
            body = tar.extractfile(member)
            assert body is not None and pq.read_table(io.BytesIO(body.read())).num_rows == 100
