"""The fault suite's oracle sees what it is there for: of a rig that is well, one thing at a time is made wrong."""

from __future__ import annotations

import dataclasses
import re
import time
from pathlib import Path
from typing import Any

import pytest

from ingest.errors import WaitTimeout
from tests.faults import oracle
from tests.faults.load import Asked, exactly
from tests.faults.rig import SHORT_LEASES, Rig, running_rig
from tests.servers.node import until


def done(rig: Rig) -> Asked:
    job = rig.client().submit(rig.load.http("well", 1000), placement="any")
    asked = rig.load.follow(job, [exactly("well", 1000)])
    until(lambda: asked.waited, "it is done")
    assert not oracle.judge(rig).complaints, "all is well"
    return asked


def test_what_is_wrong_with_an_answer_or_an_end(tmp_path: Path) -> None:
    with running_rig(tmp_path, name="oracle", workers=1, config=SHORT_LEASES, judged=False) as rig:
        asked = done(rig)
        assert isinstance(asked.answer, list)
        timeout = WaitTimeout(asked.job.id, 150.0, "0 of 1 files are there")  # which speaks of files
        other = [dataclasses.replace(asked.answer[0], digest="sha256:00")]
        made_wrong: dict[str, dict[str, Any]] = {
            r"stuck: .*1 files, 6 s after its waiter's deadline": {"answered": asked.deadline + oracle.LATE_S + 1},
            r"stuck: .*not answered, \d+ s after": {"answer": None, "answered": None, "deadline": time.monotonic()},
            r"stuck: .*its waiter was told WaitTimeout.*, and it is done": {"answer": timeout},
            r"lost: .* is done, not one of \('cancelled',\)": {"ends": ("cancelled",)},
            r"wrong: .*its waiter was given other files": {"answer": other},
            r"wrong: .*is not what its origin has": {"right": [exactly("another", 1000)]},
            r"wrong: .*1 files of 2 sources": {"right": [exactly("well", 1000)] * 2},
        }
        for said, wrong in made_wrong.items():
            rig.load.asked[:] = [dataclasses.replace(asked, **wrong)]
            complaints = oracle.judge(rig).complaints
            assert len(complaints) == 1 and re.search(said, complaints[0]), (said, complaints)
        rig.load.asked[:] = [asked]
        assert not oracle.judge(rig).complaints
        ledger = rig.client().ledger
        ledger.redis.zadd(ledger.key("due", "ingest.fetch.nobody"), {"j0000000000000000.7": 1})
        assert any("due or leased that no job has" in said for said in oracle.judge(rig).other)


@pytest.mark.parametrize("swept", [True, pytest.param(False, marks=pytest.mark.long)], ids=["swept", "not swept"])
def test_what_is_left_in_scratch(tmp_path: Path, swept: bool) -> None:
    """What its nodes sweep is none of its business; what they do not sweep is."""
    with running_rig(tmp_path, name="left", workers=1, config=SHORT_LEASES, judged=False, swept_s=2) as rig:
        done(rig)
        left = tmp_path / "store" / "scratch" / f"{'a' * 40}.b.part"
        left.write_bytes(b"x") if swept else left.mkdir()
        complaints = oracle.judge(rig).complaints
        assert bool(complaints) == left.exists() != swept
        assert swept or (len(complaints) == 1 and left.name in complaints[0])
