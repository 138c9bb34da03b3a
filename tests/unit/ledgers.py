"""What the tests of the ledger share: a ledger in a real Redis, units to put into it, and what must hold of it at any
time."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise

from ingest.ledger import Claim, NewUnit, Result, WorkLedger
from ingest.ledger.redis import text
from ingest.model import TERMINAL_JOB, TERMINAL_SHARD, Failure, FileRecord, FileSpec, JobOptions
from ingest.sections import Retry
from ingest.settings import Settings
from ingest.sources import Source

QUEUE, PLANS = "ingest.fetch", "ingest.plan"
OPTIONS = JobOptions()
DEATHS = 3  # after so many a unit is quarantined


def connect(url: str) -> WorkLedger:
    """The ledger of a Redis that this empties."""
    ledger = WorkLedger(Settings(ledger_url=url, broker_url=url, result_url=url, retry=Retry(deliveries=DEATHS)))
    ledger.redis.flushdb()
    return ledger


def shards(first: int, last: int, *, source: int = 0, files: int = 1, queue: str = QUEUE) -> list[NewUnit]:
    """Shards whose parts are numbered on from ``first``."""
    return [
        NewUnit.shard([FileSpec(source, n * files + k, f"https://host/{n}-{k}") for k in range(files)], queue)
        for n in range(first, last)
    ]


def plan(index: int = 0) -> NewUnit:
    return NewUnit.plan(Source("s3://bucket/*"), index, PLANS)


def submit(
    ledger: WorkLedger, count: int, *, seal: bool = True, queue: str = QUEUE, options: JobOptions = OPTIONS
) -> str:
    job = ledger.create(options, None).job
    for start in range(0, count, 400):
        assert ledger.add(job, "", start, 0, shards(start, min(count, start + 400), queue=queue)) == "ok"
    if seal:
        ledger.seal(job)
    return job


def claim(
    ledger: WorkLedger, worker: str = "w1", pid: str = "1:1", most: int = 1000, queues: tuple[str, ...] = (QUEUE,)
) -> Claim:
    found = ledger.claim(worker, pid, most, queues)
    assert found is not None
    return found


def file(part: int = 0, size: int = 10) -> FileRecord:
    return FileRecord(0, part, f"https://host/{part}", f"data/{part}", size, "sha256:aa", "store", "n1", "v1")


def done(parts: int = 1, size: int = 10) -> Result:
    return Result(tuple(file(n, size) for n in range(parts)))


def failed(unit: str) -> Result:
    return Result((), (Failure("https://host/0", "NotFound", "404", 1, unit),))


def expire(ledger: WorkLedger, unit: str) -> None:
    """Let the lease of a unit run out, as if its worker had not been heard for as long as that takes."""
    ledger.tick(0, 900)  # the ledger was not away: it does not give everybody more time
    ledger.redis.zadd(ledger.key("leases"), {unit: 1}, xx=True)
    ledger.tick(0, 900)


def ripen(ledger: WorkLedger, unit: str) -> None:
    """Let the delay of a unit be over."""
    ledger.redis.zadd(ledger.key("delayed"), {unit: 1}, xx=True)


def state(ledger: WorkLedger, unit: str) -> str:
    job, _, number = unit.rpartition(".")
    (record,) = ledger.units(job, [number])
    return record.state if record else "gone"


def happened(ledger: WorkLedger, job: str, *kinds: str) -> list[tuple[str, str, str]]:
    """(kind, number, state) of a job's events, in order."""
    events = [e for _, e in ledger.events(job, "0-0", 0, 1_000_000)]
    return [(e["k"], e["n"], e["s"]) for e in events if not kinds or e["k"] in kinds]


def check(ledger: WorkLedger, *jobs: str) -> None:
    """What holds after every transition of these jobs, which are all that this ledger has."""
    redis, key = ledger.redis, ledger.key
    where: Counter[str] = Counter()
    due = {text(q): redis.zrange(q, 0, -1) for q in redis.scan_iter(key("due", "*"))}
    scores = {text(u): s for q in due for u, s in redis.zrange(q, 0, -1, withscores=True)}
    now = ledger.now_ms()
    for units in due.values():
        where.update(map(text, units))
    delayed, leases = (set(map(text, redis.zrange(key(name), 0, -1))) for name in ("delayed", "leases"))
    held = {text(u): w.rpartition(":")[2] for w in map(text, redis.scan_iter(key("held", "*"))) for u in redis.hkeys(w)}
    assert max(where.values(), default=1) == 1, "a unit is due in two queues"
    seen = set()
    for job in jobs:
        meta, records = ledger.meta(job), list(ledger.all_units(job))
        raw = {text(n): json.loads(r) for n, r in redis.hgetall(key("job", job, "shard")).items()}
        for record in records:
            unit = record.unit
            seen.add(unit)
            places = (unit in where, unit in delayed, unit in leases, record.state in TERMINAL_SHARD)
            assert sum(places) == 1, f"{unit} is {record.state} and in {places}"
            assert (record.state == "leased") == (unit in leases) == (unit in held), unit
            assert (record.state == "due") == (places[0] or places[1]), unit
            assert not places[0] or unit.encode() in due[key("due", record.queue)], f"{unit} is in another queue"
            if record.state == "leased":
                assert held[unit] == record.worker
        for n, r in raw.items():
            if r.get("nt", 0) > now and (unit := f"{job}.{n}") in scores:
                assert scores[unit] == (r["nd"] << 40) + r["nq"] - (1 << 52), f"{unit} is needed, and not where it is"
        _check_job(ledger, job, meta, raw)
    assert set(where) | delayed | leases | set(held) <= seen, "something is due or leased that no job has"


def _check_job(ledger: WorkLedger, job: str, meta: dict[str, str], raw: dict[str, dict[str, object]]) -> None:
    states = {n: str(record["s"]) for n, record in raw.items()}
    real = Counter(s for n, s in states.items() if not n.startswith("p"))
    told = {k[2:]: int(v) for k, v in meta.items() if k.startswith("c:") and v != "0"}
    assert told == dict(real), "counts of states"
    gone = {n for n, record in raw.items() if "gn" in record}
    assert int(meta.get("gone", 0)) == len(gone) and all(states[n] not in TERMINAL_SHARD for n in gone)
    open_units = [n for n, s in states.items() if s not in TERMINAL_SHARD and n not in gone]
    assert int(meta["open"]) == len(open_units), "what is fetched again was over once"
    assert int(meta["plans"]) == sum(n.startswith("p") for n in open_units)
    given_up = "given_up" in meta
    assert int(meta["failed"]) == sum(s in {"failed", "quarantined"} for s in states.values()) + given_up
    if "error" not in meta or given_up:
        assert int(meta.get("stopped", 0)) == sum(s == "cancelled" for s in states.values())
    for field, short in (("files_done", "fd"), ("files_failed", "ff"), ("bytes", "by")):
        assert int(meta[field]) == sum(int(r.get(short, 0)) for r in raw.values()), field  # type: ignore[call-overload]
    assert (meta["state"] in TERMINAL_JOB) == (meta["sealed"] == "1" and not open_units), (
        f"{meta['state']} with {len(open_units)} open"
    )
    events = happened(ledger, job)
    kinds = ("shard", "there", "again", "gone")
    ends, there, again, went = (Counter(n for k, n, _ in events if k == kind) for kind in kinds)
    for n, s in states.items():
        assert ends[n] - again[n] == (s in TERMINAL_SHARD or n in gone), f"events of {job}.{n}"
        assert went[n] - there[n] == (n in gone), f"events of {job}.{n}"
        assert went[n] + again[n] == raw[n].get("an", 0), "how often its end was taken back"
    ended = [(k, s if k == "end" else "") for k, _, s in events if k in {"shard", "again", "end"}]
    assert (meta["state"] in TERMINAL_JOB) == (ended[-1:] == [("end", meta["state"])]), f"the end is said last: {ended}"
    # Twice only where something of it was gone afterwards, and could not be had again.
    twice = [(a[1], b[1]) for a, b in pairwise(ended) if a[0] == b[0] == "end"]
    assert set(twice) <= {("done", "failed")}, f"and once: {ended}"
    expires = ledger.redis.zscore(ledger.key("expire"), job) is not None
    assert expires == (meta["state"] in TERMINAL_JOB) == ("finished" in meta)
    live = {text(n) for n in ledger.redis.hkeys(ledger.key("job", job, "live"))}
    assert all(states[n] == "leased" for n in live), "bytes of a unit that nobody works on"
