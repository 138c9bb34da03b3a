"""The main job over HTTP, end to end: a real Redis, a real worker, a real origin. Nothing is patched."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from pathlib import Path

import pytest

import ingest
from ingest.app import app_for
from tests.servers.http import Origin, endless, file, flaky, slow_start, status
from tests.servers.node import Service, running_service, until
from tests.unit.converting import zip_of


def sha(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def body(seed: int, size: int = 20_000) -> bytes:
    return hashlib.sha256(str(seed).encode()).digest() * (size // 32)


def test_files_come_with_path_size_digest_source_and_node(service: Service, origin: Origin) -> None:
    urls = [origin.put(f"/f{n}.bin", body(n)) for n in range(5)]
    job = service.client().submit(urls, name="first")
    got = {f.source: f for f in job.as_completed(timeout=30)}
    assert set(got) == set(urls)
    for n, url in enumerate(urls):
        file_ = got[url]
        assert file_.path.is_absolute() and file_.path.read_bytes() == body(n)
        assert (file_.size, file_.digest, file_.node) == (len(body(n)), sha(body(n)), "n1")
        assert file_.path.name == f"f{n}.bin"
    status_ = job.status()
    assert (status_.state, status_.files_done, status_.bytes, status_.name) == ("done", 5, 5 * len(body(0)), "first")
    assert service.scratch() == []


def test_paths_are_in_source_order_and_duplicates_repeat(service: Service, origin: Origin) -> None:
    for n in range(12):
        origin.put(f"/d-{n:02}.bin", body(n))
    order = [
        origin.url("/d-{07..09}.bin"),
        origin.url("/d-01.bin"),
        origin.url("/d-07.bin"),
        origin.url("/d-{00..02}.bin"),
    ]
    paths = service.client().fetch(order, timeout=30)
    assert [p.name for p in paths] == [f"d-{n:02}.bin" for n in (7, 8, 9, 1, 7, 0, 1, 2)]


def test_one_bad_source_among_many_fails_alone(service: Service, origin: Origin) -> None:
    urls = [origin.put(f"/m{n}.bin", body(n, 320)) for n in range(300)]
    urls.insert(117, origin.url("/missing.bin"))
    client = service.client()
    job = client.submit(urls)
    assert job.wait(timeout=60).state == "failed"
    assert len(job.files()) == 300
    (failure,) = job.failures()
    assert (failure.source, failure.error, failure.attempts) == (origin.url("/missing.bin"), "NotFound", 1)
    with pytest.raises(ingest.JobFailed) as raised:
        client.fetch([urls[0], urls[117]], timeout=30)
    assert [f.source for f in raised.value.files] == [urls[0]] and "404" in str(raised.value)


def test_same_path_on_two_hosts_and_same_base_name_are_two_files(service: Service, origin: Origin) -> None:
    with Origin() as other:
        a, b, c = (
            origin.put("/x/data.tar", b"one"),
            origin.put("/y/data.tar", b"two"),
            other.put("/x/data.tar", b"three"),
        )
        paths = service.client().fetch([a, b, c], timeout=30)
    assert [p.read_bytes() for p in paths] == [b"one", b"two", b"three"]
    assert [p.name for p in paths] == ["data.tar"] * 3


def test_transient_failures_are_retried_and_counted(service: Service, origin: Origin) -> None:
    origin.on("/shaky.bin", flaky(2, status(503), file(body(1))))
    job = service.client().submit(origin.url("/shaky.bin"))
    (got,) = job.files(timeout=40)
    assert got.path.read_bytes() == body(1)
    assert job.status().retries == 2 and origin.count("/shaky.bin") == 3


def test_a_permanent_failure_is_not_retried(service: Service, origin: Origin) -> None:
    origin.on("/secret.bin", status(403))
    job = service.client().submit(origin.url("/secret.bin"))
    job.wait(timeout=30)
    assert job.failures()[0].error == "AccessDenied" and origin.count("/secret.bin") == 1


def test_a_given_digest_is_verified(service: Service, origin: Origin) -> None:
    good, bad = body(1), body(2)
    url = origin.put("/digest.bin", good)
    client = service.client()
    for algorithm in ("sha256", "md5", "sha1", "sha512"):
        digest = f"{algorithm}:{hashlib.new(algorithm, good).hexdigest()}"
        assert client.fetch(ingest.Source(url, digest=digest), timeout=30)[0].read_bytes() == good
    other = origin.put("/other.bin", bad)
    job = client.submit(ingest.Source(other, digest=sha(good)))
    job.wait(timeout=40)
    (failure,) = job.failures()
    assert failure.error == "DigestMismatch" and sha(bad) in failure.reason and failure.attempts == 2
    assert not list(Path(service.env["INGEST_STORE"]).rglob("other.bin")) and service.scratch() == []


def test_retry_runs_just_what_failed(service: Service, origin: Origin) -> None:
    good = [origin.put(f"/r{n}.bin", body(n)) for n in range(3)]
    later = origin.url("/later.bin")
    job = service.client().submit([*good, later])
    assert job.wait(timeout=30).state == "failed"
    before = origin.count()
    origin.on("/later.bin", slow_start(0.5, file(b"now")))
    assert job.retry().failures() == [], "what is tried again has not failed"
    assert job.wait(timeout=30).state == "done"
    assert job.failures() == [] and len(job.files()) == 4 and origin.count() == before + 1


def test_two_jobs_at_once_make_one_request_a_source_and_a_third_none(service: Service, origin: Origin) -> None:
    urls = []
    for n in range(50):
        origin.on(f"/shared{n}.bin", slow_start(0.05, file(body(n))))
        urls.append(origin.url(f"/shared{n}.bin"))
    client = service.client()
    jobs = [client.submit(urls), client.submit(list(reversed(urls)))]
    for job in jobs:
        assert job.wait(timeout=60).state == "done"
    assert sorted(f.digest for f in jobs[0].files()) == sorted(f.digest for f in jobs[1].files())
    assert origin.count() == 50
    third = client.submit(urls)
    assert third.wait(timeout=30).state == "done" and all(f.reused for f in third.files())
    assert origin.count() == 50


def test_what_is_not_fresh_is_asked_for_once_and_not_sent_again(service: Service, origin: Origin) -> None:
    url = origin.put("/cond.bin", body(3))
    client = service.client()
    first = client.fetch(url, timeout=30)
    assert client.fetch(url, timeout=30, fresh_s=0) == first
    assert [a.headers.get("If-None-Match") is not None for a in origin.asked("/cond.bin")] == [False, True]
    origin.put("/cond.bin", body(4))
    (changed,) = client.fetch(url, timeout=30, fresh_s=0)
    assert changed != first[0] and changed.read_bytes() == body(4) and first[0].read_bytes() == body(3)


def test_the_same_key_is_the_same_job(service: Service, origin: Origin) -> None:
    url = origin.put("/key.bin", b"k")
    client = service.client()
    job = client.submit(url, key="run-7")
    assert client.submit(url, key="run-7").id == job.id
    assert client.submit(url, key="run-8").id != job.id
    with pytest.raises(ingest.UsageError, match="run-7"):
        client.submit(origin.url("/other.bin"), key="run-7")


def test_attach_before_during_and_after(service: Service, origin: Origin) -> None:
    gate = threading.Event()

    def slow(to: object) -> None:
        gate.wait(20)
        file(b"late")(to)  # type: ignore[arg-type]

    origin.on("/late.bin", slow)
    job = service.client().submit([origin.put("/early.bin", b"early"), origin.url("/late.bin")])
    other = service.client().job(job.id)
    stream = other.as_completed(timeout=30)
    assert next(stream).path.read_bytes() == b"early"
    with pytest.raises(ingest.WaitTimeout) as raised:
        job.wait(timeout=0.3)
    assert isinstance(raised.value, TimeoutError) and job.id in str(raised.value)
    gate.set()
    assert next(stream).path.read_bytes() == b"late" and list(stream) == []
    assert len(service.client().job(job.id).paths()) == 2


def test_into_leads_not_into_the_store(service: Service, origin: Origin, tmp_path: Path) -> None:
    store = service.root / "store"
    (tmp_path / "link").symlink_to(store)
    url, packed = origin.put("/a", b"a"), origin.put("/store.zip", zip_of([("index/mine", b"{}")]))
    asked: list[tuple[str, Path, str | None]] = [(url, store, None), (url, store / "index" / "00", None)]
    for uri, into, convert in [*asked, (url, tmp_path / "link" / "x", None), (packed, service.root, "unpack")]:
        job = service.client().submit(uri, into=into, convert=convert)
        assert job.wait(timeout=30).state == "failed"
        (failure,) = job.failures()
        assert failure.error == "EgressDenied" and "is in the store of node" in failure.reason
    assert not (store / "a").exists() and not (store / "index" / "mine").exists()


def test_into_makes_the_files_appear_under_their_names(service: Service, origin: Origin, tmp_path: Path) -> None:
    target = tmp_path / "into"
    origin.put("/p/../out.txt", b"3")  # the origin decodes the path before it looks
    urls = [origin.put("/p/one.txt", b"1"), origin.put("/q/one.txt", b"2"), origin.url("/p/%2e%2e%2fout.txt")]
    paths = service.client().fetch(urls, into=target, timeout=30)
    assert [p.read_bytes() for p in paths] == [b"1", b"2", b"3"]
    assert all(p.parent == target for p in paths) and "one.txt" in {p.name for p in paths[:2]} and len(set(paths)) == 3
    assert service.client().fetch(urls, into=target, timeout=30) == paths


def test_cancel_stops_what_has_not_begun_and_interrupts_what_has(service: Service, origin: Origin) -> None:
    origin.on("/endless.bin", endless())
    waiting = [origin.put(f"/w{n}.bin", b"w") for n in range(200)]
    job = service.client().submit([origin.url("/endless.bin")] * 8 + waiting)
    until(lambda: job.status().bytes > 0, "the endless download has begun")
    begun = time.monotonic()
    job.cancel()
    assert job.wait(timeout=20).state == "cancelled"
    assert time.monotonic() - begun < 10
    assert {f.error for f in job.failures()} <= {"Cancelled"}
    until(lambda: service.scratch() == [], "nothing is left in scratch")


def test_cancel_spares_what_another_job_waits_for(service: Service, origin: Origin) -> None:
    gate = threading.Event()
    data = body(9, 3_000_000)

    def slow(to: object) -> None:
        to.head(200, {"Content-Length": str(len(data))})  # type: ignore[attr-defined]
        for at in range(0, len(data), 100_000):
            to.send(data[at : at + 100_000])  # type: ignore[attr-defined]
            gate.wait(0.1)

    origin.on("/both.bin", slow)
    client = service.client()
    first = client.submit(origin.url("/both.bin"))
    until(lambda: first.status().bytes > 0, "the download has begun")
    second = client.submit(origin.url("/both.bin"))
    until(lambda: "another job is fetching" in second.status().waiting_for, "the second waits for the first")
    first.cancel()
    gate.set()
    assert second.files(timeout=30)[0].path.read_bytes() == data
    assert origin.count("/both.bin") == 1


def test_results_for_those_who_know_only_celery(service: Service, origin: Origin) -> None:
    job = service.client().submit([origin.put(f"/c{n}.bin", body(n)) for n in range(3)] + [origin.url("/none.bin")])
    job.wait(timeout=30)
    code = """
import sys
from celery import Celery
app = Celery(); app.config_from_object("celeryconfig")
for task in sys.argv[1:]:
    try: print(app.AsyncResult(task).get(timeout=10)["paths"][0])
    except Exception as error: print(type(error).__name__)
"""
    project = str(Path(__file__).parents[2])
    found = service.python(f"import sys; sys.argv[1:] = {job.task_ids()!r}; sys.path.insert(0, {project!r})\n{code}")
    lines = found.stdout.splitlines()
    assert lines[3] == "NotFound", found.stderr
    assert [Path(line).read_bytes() for line in lines[:3]] == [body(n) for n in range(3)]


def test_the_plain_task(service: Service, origin: Origin, tmp_path: Path) -> None:
    url = origin.put("/plain.bin", b"plain")
    task = app_for(service.settings).signature("ingest.download", (url,), {"into": str(tmp_path / "here")})
    (path,) = task.delay().get(timeout=10)["paths"]
    assert Path(path) == tmp_path / "here" / "plain.bin" and Path(path).read_bytes() == b"plain"
    bad = app_for(service.settings).signature("ingest.download", (origin.url("/gone.bin"),)).delay()
    with pytest.raises(ingest.PermanentFetchError, match="404"):
        bad.get(timeout=10)
    wrong = app_for(service.settings).signature("ingest.download", ("nonsense",)).delay()
    with pytest.raises(ingest.BadSource, match="no scheme"):
        wrong.get(timeout=10)


def test_what_arrived_of_a_shard_is_seen_before_the_rest_is_tried_again(service: Service, origin: Origin) -> None:
    gate = threading.Event()

    def later(to: object) -> None:
        (file(b"second") if gate.is_set() else status(503))(to)  # type: ignore[arg-type]

    origin.on("/second.bin", later)
    job = service.client().submit([origin.put("/first.bin", b"first"), origin.url("/second.bin")], shard_files=2)
    assert job.task_ids() == [f"{job.id}.0"]
    stream = job.as_completed(timeout=30)
    assert next(stream).path.read_bytes() == b"first"
    gate.set()
    assert next(stream).path.read_bytes() == b"second" and list(stream) == []
    assert origin.count("/first.bin") == 1


def test_ctrl_c_while_submitting_says_which_job_had_begun(tmp_path: Path) -> None:
    with running_service(tmp_path, workers=0) as empty:
        client = empty.client()

        def interrupt() -> None:
            until(client.jobs, "it has begun")
            os.kill(os.getpid(), signal.SIGINT)

        presser = threading.Thread(target=interrupt)
        presser.start()
        with pytest.raises(KeyboardInterrupt) as stopped:
            client.submit("http://127.0.0.1:9/{0..50000000}", require_node=False, placement="any")  # minutes of work
        presser.join()
        (job,) = client.jobs()
        assert f"ingest cancel {job.id}" in stopped.value.__notes__[0]
