"""The ``ingest`` command as people type it: each command, with --json and without, and each slip of the hand. What goes
wrong is a line on stderr and an exit status, never a traceback."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from ingest.embedded import RedisServer
from ingest.embedded.ports import LOOPBACK, free_port
from tests.servers.http import Origin, file
from tests.servers.node import Service, running_service, until

INGEST = [sys.executable, "-c", "from ingest.cli import main; main()"]
Done = subprocess.CompletedProcess[str]


def ok(done: Done, status: int = 0) -> str:
    """What it printed, once it is certain that it ended as it should."""
    assert done.returncode == status, (done.args, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr + done.stdout
    return done.stdout


def refused(done: Done, status: int, *words: str) -> None:
    """It says what is wrong in a few lines on stderr, and nothing on stdout."""
    assert ok(done, status) == ""
    for word in words:
        assert word in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) <= 5, done.stderr


class Answers:
    """One process that runs commands one after the other, as ``main`` does: one for each would take a minute."""

    CODE = """
import contextlib, io, json, sys
from ingest.cli import run
for line in sys.stdin:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run(json.loads(line))
    print(json.dumps([status, out.getvalue(), err.getvalue()]), flush=True)
"""

    def __init__(self, service: Service) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.CODE], env=service.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def __call__(self, *command: str) -> Done:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"a traceback: {command}"
        return subprocess.CompletedProcess(command, *json.loads(answer))

    def end(self) -> None:
        self.process.communicate(timeout=10)
        assert self.process.returncode == 0


@pytest.fixture(scope="module")
def cli(service: Service) -> Iterator[Answers]:
    made = Answers(service)
    yield made
    made.end()


@pytest.fixture(scope="module")
def nobody(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Answers]:
    """Where there is a Redis, and no data node."""
    impatient = "[limits]\nnode_grace_s = 1\n"
    with running_service(tmp_path_factory.mktemp("nobody"), workers=0, config=impatient) as started:
        made = Answers(started)
        yield made
        made.end()


# -- wrong usage ---------------------------------------------------------------------------------------------------

SHA = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("submit gopher://host/x", "scheme 'gopher' is unknown"),
        ("submit htps://host/x", "scheme 'htps' is unknown"),
        ("submit just-a-name", "has no scheme"),
        ("submit http://[::1/x", "not a URI"),
        ("submit http://host:port/x", "not a URI"),
        ("submit http:///x", "has no host"),
        ("submit", "empty"),
        ("fetch", "give at least one URI"),
        ("submit http://host/a-{9..1}.tar", "{9..1}"),
        ("submit http://host/a-{1..999999999999}.tar", "Manifest"),
        ("submit http://host/*.tar", "HTTP cannot list"),
        ("submit http://me:secret-word@host/x", "[connections.NAME]"),
        ("submit --connection nosuch http://host/x", "connection 'nosuch' is unknown"),
        ("submit --digest sha256:abc http://host/x", "sha256 has 64 hexadecimal digits, this has 3"),
        ("submit --digest crc99:abc http://host/x", "ALGORITHM:HEX"),
        (f"submit --digest {SHA} http://host/x http://host/y", "exactly one URI"),
        (f"submit --digest {SHA} http://host/{{1..2}}", "belongs to one file"),
        ("submit --shard-files 0 http://host/x", "shard_files"),
        ("submit --fresh -1 http://host/x", "fresh_s"),
        ("submit --placement= http://host/x", "placement"),
        ("submit --into= http://host/x", "into"),
        ("fetch --timeout 0 http://host/x", "above 0"),
        ("fetch --timeout nan http://host/x", "above 0"),
        ("fetch --timeout soon http://host/x", "not a valid float"),
        ("watch --timeout 0 j1", "0"),
        ("fetch --nonsense http://host/x", "--nonsense"),
        ("fetsch http://host/x", "No such command"),
        ("submit --placement=a+node http://host/x", "placement"),
        ("failures", "Missing argument"),
        ("status a b", "unexpected extra argument"),
        ("store nonsense", "No such command"),
    ],
)
def test_wrong_usage_is_status_2(cli: Answers, command: str, said: str) -> None:
    done = cli(*command.split(" "))
    refused(done, 2, said)
    assert "secret-word" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("INGEST_REDIS_URL", "http://127.0.0.1", "not a Redis URL"),
        ("INGEST_REDIS_URL", "unix:///tmp/redis.sock", "not a Redis URL"),
        ("INGEST_CONFIG", "/no/such.toml", "/no/such.toml is not a file"),
        ("INGEST_CONFIG", "/etc/passwd", "/etc/passwd"),
        ("INGEST_NODE", "a node", "'a node'"),
        ("INGEST_CONCURRENCY", "1", "at least 2"),
    ],
)
def test_a_wrong_environment_is_status_2(service: Service, variable: str, value: str, said: str) -> None:
    refused(service.run("status", **{variable: value}), 2, said, variable if variable != "INGEST_CONFIG" else "")


@pytest.mark.parametrize("command", ["status", "failures", "watch", "retry", "cancel"])
def test_an_unknown_job_is_status_1(cli: Answers, command: str) -> None:
    refused(cli(command, "j0123456789abcdef"), 1, "no job 'j0123456789abcdef' in the ledger")


def test_help_and_version_need_no_service(cli: Answers, service: Service) -> None:
    nowhere = {"INGEST_REDIS_URL": f"redis://{LOOPBACK}:{free_port()}/0"}
    told = ok(service.run("--help", **nowhere))
    for name in ("up", "demo", "fetch", "submit", "status", "watch", "failures", "retry", "cancel", "nodes", "doctor"):
        assert f"\n  {name} " in told
        assert ok(cli(name, "--help")).startswith(f"Usage: ingest {name}")
    assert ok(service.run("--version", **nowhere)).startswith("ingest")


# -- nobody there --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "nodes", "submit http://host/x", "watch"])
def test_no_redis_there_is_status_1_at_once(service: Service, command: str) -> None:
    url = f"redis://:secret-word@{LOOPBACK}:{free_port()}/0"
    begun = time.monotonic()
    service.run("--version")
    middle = time.monotonic()
    done = service.run(*command.split(), INGEST_REDIS_URL=url)
    refused(done, 1, "no ledger at redis://127.0.0.1", "`ingest up`", "INGEST_REDIS_URL")
    start_s = middle - begun  # of a command at all, on a machine that may be busy
    assert "secret-word" not in done.stderr and time.monotonic() - middle < 2 * start_s + 3


def test_fetch_does_not_replace_a_redis_that_is_elsewhere_or_refuses(service: Service, tmp_path: Path) -> None:
    elsewhere = f"redis://127.0.0.2:{free_port()}/0"
    refused(service.run("fetch", "http://host/x", INGEST_REDIS_URL=elsewhere), 1, f"no ledger at {elsewhere}")
    with RedisServer(tmp_path / "redis", append_only=False, password="right-word") as theirs:
        url = theirs.url.replace("right-word", "wrong-word")
        for verb in ("fetch", "submit"):
            done = service.run(verb, "http://host/x", INGEST_REDIS_URL=url)
            refused(done, 1, "it refuses", str(theirs.port))
            assert "wrong-word" not in done.stderr


def test_doctor_without_redis(service: Service) -> None:
    done = service.run("doctor", INGEST_REDIS_URL=f"redis://{LOOPBACK}:{free_port()}/0")
    assert "BAD" in ok(done, 1) and "ingest up" in done.stdout


def test_no_data_node_alive(nobody: Answers) -> None:
    for verb in ("submit", "fetch"):
        refused(nobody(verb, "http://host/x"), 1, "no data node is alive", "celery -A workers worker")
    refused(nobody("nodes"), 1, "no data node is alive")
    assert json.loads(ok(nobody("nodes", "--json"), 1)) == []
    assert "no data node is alive" in ok(nobody("doctor"), 1)
    job = ok(nobody("submit", "--queue", f"http://{LOOPBACK}:1/x")).strip()
    assert "no data node is alive" in ok(nobody("status", job))
    refused(nobody("watch", "--timeout", "0.5", job), 1, "is not finished after 0.5 s", "no data node is alive")
    assert ok(nobody("cancel", job)) == f"{job} cancelled\n"


# -- what works ----------------------------------------------------------------------------------------------------


def test_a_job_from_submit_to_retry(cli: Answers, origin: Origin) -> None:
    urls = [origin.put("/a.jsonl", b'{"n": 1}\n{"n": 2}\n'), origin.put("/b.bin", b"bb")]
    later = origin.url("/later.bin")
    job = json.loads(ok(cli("submit", "--json", "--name", "my job", "--key", "k1", *urls, later)))["job"]
    assert ok(cli("submit", "--key", "k1", *urls, later)).strip() == job
    watched = cli("watch", job)
    assert "failed: 2 of 3 files, 1 failed" in ok(watched, 1)
    lines = [json.loads(line) for line in ok(cli("watch", "--json", job), 1).splitlines()]
    assert lines[-1]["state"] == "failed" and lines[-1]["files_done"] == 2

    status = json.loads(ok(cli("status", "--json", job)))
    assert (status["id"], status["name"], status["state"], status["files"]) == (job, "my job", "failed", 3)
    assert "2 of 3, 1 failed" in ok(cli("status", job))
    assert json.loads(ok(cli("status", "--json")))[0]["id"] == job
    assert any(line.split()[:4] == [job, "my", "job", "failed"] for line in ok(cli("status")).splitlines())

    (failure,) = json.loads(ok(cli("failures", "--json", job), 1))
    assert (failure["source"], failure["error"], failure["attempts"]) == (later, "NotFound", 1)
    assert later in ok(cli("failures", job), 1)

    origin.put("/later.bin", b"now")
    assert job in ok(cli("retry", job))
    assert "done: 3 of 3 files" in ok(cli("watch", job))
    assert ok(cli("failures", job)) == "" and json.loads(ok(cli("failures", "--json", job))) == []
    assert "done" in ok(cli("cancel", job)), "too late: it is over, and stays so"


def test_fetch_prints_the_paths_in_order(cli: Answers, origin: Origin, tmp_path: Path) -> None:
    urls = [origin.put(f"/p{n}.bin", b"%d" % n) for n in range(3)]
    paths = ok(cli("fetch", *reversed(urls))).splitlines()
    assert [Path(p).read_bytes() for p in paths] == [b"2", b"1", b"0"] and all(os.path.isabs(p) for p in paths)
    into = ok(cli("fetch", "--into", str(tmp_path / "here"), origin.url("/p{0..2}.bin"))).splitlines()
    assert into == [str(tmp_path / "here" / f"p{n}.bin") for n in range(3)]
    listed = origin.put("/list.txt", "\n".join(urls).encode())
    found = json.loads(ok(cli("fetch", "--json", "--manifest", listed)))
    assert [f["path"] for f in found["files"]] == paths[::-1] and found["failures"] == []
    assert {"source", "size", "digest", "node"} <= found["files"][0].keys()


def test_fetch_prints_what_came_and_says_what_did_not(cli: Answers, origin: Origin, tmp_path: Path) -> None:
    good, bad, empty = origin.put("/good.bin", b"good"), origin.url("/bad.bin"), f"file://{tmp_path}/none-*"
    done = cli("fetch", bad, good, empty)
    assert Path(ok(done, 1).strip()).read_bytes() == b"good"
    said = done.stderr.splitlines()
    assert len(said) == 2 and bad in said[0] and "404" in said[0] and empty in said[1] and "NothingMatched" in said[1]
    found = ok(cli("fetch", "--json", good, bad), 1)
    assert [f["source"] for f in json.loads(found)["failures"]] == [bad]


def test_fetch_that_takes_too_long_says_that_the_job_goes_on(cli: Answers, origin: Origin) -> None:
    gate = Gate()
    origin.on("/slow.bin", gate)
    done = cli("fetch", "--timeout", "0.5", origin.url("/slow.bin"))
    refused(done, 1, "is not finished after 0.5 s", "it goes on")
    gate.open.set()


def test_nodes_doctor_and_store(cli: Answers, service: Service, origin: Origin) -> None:
    url = origin.put("/kept.jsonl", b"{}\n{}\n")
    path = Path(ok(cli("fetch", url)).strip())
    (node,) = json.loads(ok(cli("nodes", "--json")))
    assert node["node"] == "n1" and node["pid"] == service.workers[0].process.pid
    assert "n1" in ok(cli("nodes"))
    findings = json.loads(ok(cli("doctor", "--json")))
    assert {f["level"] for f in findings} <= {"ok", "warn"} and any("node n1" in f["what"] for f in findings)
    assert "ok" in ok(cli("doctor"))

    records = [json.loads(line) for line in ok(cli("store", "ls", "--json")).splitlines()]
    (mine,) = [r for r in records if r["uri"] == url]
    assert mine["path"] == str(path) and mine["samples"] == 2 and mine["size"] == 6
    assert url in ok(cli("store", "ls"))
    usage = json.loads(ok(cli("store", "du", "--json")))
    assert usage["files"] == len(records) and usage["bytes"] == sum(r["size"] for r in records)
    assert f"{len(records)} files" in ok(cli("store", "du"))

    assert "as they should be" in ok(cli("store", "verify"))
    path.chmod(0o644)
    path.write_bytes(b"{}\n[]\n")
    refused(cli("store", "verify"), 1, url, str(path.name))
    (damage,) = json.loads(ok(cli("store", "verify", "--json"), 1))["damaged"]
    assert damage["uri"] == url
    refused(cli("store", "verify", "--remove"), 1, "removed")
    assert not path.exists() and json.loads(ok(cli("store", "verify", "--json")))["damaged"] == []
    again = Path(ok(cli("fetch", url)).strip())
    assert again.read_bytes() == b"{}\n{}\n" and origin.count("/kept.jsonl") == 2


def test_a_store_that_is_none(service: Service, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    for verb in ("ls", "verify"):
        refused(
            service.run("store", verb, INGEST_STORE=str(tmp_path / "file")), 1, str(tmp_path / "file"), "INGEST_STORE"
        )
    assert "INGEST_STORE" in ok(service.run("doctor", INGEST_STORE=str(tmp_path / "none")))
    worker = service.start_worker("n9", ready=False, INGEST_STORE=str(tmp_path / "file"))
    assert worker.process.wait(30) != 0
    said = worker.log.read_text()
    assert "Traceback" not in said and f"{tmp_path}/file" in said and "INGEST_STORE" in said


# -- pipes, signals and a service of its own -----------------------------------------------------------------------


@pytest.mark.parametrize("command", ["status", "nodes --json", "store ls --json", "doctor"])
def test_a_reader_that_goes_away_is_no_news(service: Service, origin: Origin, command: str) -> None:
    service.client().fetch(origin.put("/x.bin", b"x"), timeout=30)
    read, write = os.pipe()
    os.close(read)
    with open(write, "wb") as gone:
        done = subprocess.run(
            [*INGEST, *command.split()],
            env=service.env,
            stdout=gone,
            stderr=subprocess.PIPE,
            text=True,
            timeout=30,
            check=False,
        )
    assert done.stderr == "" and done.returncode in {0, 1}


def test_ctrl_c_ends_the_fetch_and_the_job_goes_on(service: Service, origin: Origin) -> None:
    gate = Gate()
    origin.on("/long.bin", gate)
    process = subprocess.Popen(
        [*INGEST, "fetch", origin.url("/long.bin")], env=service.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    until(lambda: gate.asked.is_set(), "the download has begun")
    client = service.client()
    job = client.jobs(1)[0]
    until(lambda: client.ledger.meta(job.id)["sealed"] == "1", "all of it is submitted")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (130, "") and "Traceback" not in err
    assert job.id in err and "goes on" in err
    assert job.status().state == "running"
    gate.open.set()
    assert job.wait(timeout=30).state == "done"


def test_fetch_starts_a_service_of_its_own_and_leaves_no_process(
    service: Service, origin: Origin, tmp_path: Path
) -> None:
    url, bad = origin.put("/own.bin", b"own"), origin.url("/own-missing.bin")
    with own_fetch(service, tmp_path, url, bad) as (process, family):
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1 and Path(out.strip()).read_bytes() == b"own"
        assert "starting one for this command" in err and "own-missing.bin" in err and "Traceback" not in err
        assert len(family) > 2
        until(lambda: not alive(family), f"nothing is left of {family}", 5)


@pytest.mark.long
def test_ctrl_c_in_a_service_of_its_own_leaves_no_process(service: Service, origin: Origin, tmp_path: Path) -> None:
    gate = Gate()
    origin.on("/own-long.bin", gate)
    with own_fetch(service, tmp_path, origin.url("/own-long.bin")) as (process, family):
        until(lambda: gate.asked.is_set(), "the download has begun", 60)
        process.send_signal(signal.SIGINT)
        gate.open.set()  # the worker ends what is short, and need not hand it back
        out, err = process.communicate(timeout=40)
        assert (process.returncode, out) == (130, "") and "Traceback" not in err
        assert "goes on" not in err, "its service is gone, and so is the job"
        until(lambda: not alive(family), f"nothing is left of {family}", 5)


@pytest.mark.long
def test_a_service_of_its_own_that_cannot_start_says_why(service: Service, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no directory")
    url = f"redis://{LOOPBACK}:{free_port()}/0"
    done = service.run("fetch", f"http://{LOOPBACK}:1/x", INGEST_REDIS_URL=url, INGEST_STORE=str(tmp_path / "file"))
    refused(done, 1, "worker:", f"{tmp_path}/file", "INGEST_STORE")


class Gate:
    """An origin's file that is begun, and comes when it is let: ``asked`` says that somebody waits for it."""

    def __init__(self) -> None:
        self.open, self.asked = threading.Event(), threading.Event()

    def __call__(self, to: Any) -> None:
        self.asked.set()
        while not self.open.is_set() and to.wait(0.05):
            pass
        file(b"at last")(to)


@contextmanager
def own_fetch(service: Service, store: Path, *urls: str) -> Iterator[tuple[subprocess.Popen[str], dict[int, float]]]:
    """``ingest fetch`` where no service answers, and the processes of its family by pid, as they are found."""
    env = {**service.env, "INGEST_REDIS_URL": f"redis://{LOOPBACK}:{free_port()}/0", "INGEST_STORE": str(store / "s")}
    process = subprocess.Popen(
        [*INGEST, "fetch", *urls], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    family: dict[int, float] = {}
    over = threading.Event()

    def look() -> None:
        while process.poll() is None and not over.wait(0.1):
            try:
                for child in psutil.Process(process.pid).children(recursive=True):
                    family[child.pid] = child.create_time()
            except psutil.NoSuchProcess:
                continue

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield process, family
    finally:
        over.set()
        watcher.join()
        if process.poll() is None:
            process.terminate()
            process.communicate(timeout=40)


def alive(family: dict[int, float]) -> list[int]:
    """Those that still run, and are the same process."""
    found = []
    for pid, created in family.items():
        try:
            process = psutil.Process(pid)
            if process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE:
                found.append(pid)
        except psutil.NoSuchProcess:
            continue
    return found
