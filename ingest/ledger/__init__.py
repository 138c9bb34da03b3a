"""The state of jobs and shards in Redis: who holds what, what is due, what is done, what failed and why.

``redis`` holds the connection and runs the scripts beside it (``*.lua``, one transition each, on the shared ones);
``jobs`` is what a submitter and a reader need, ``work`` what a worker needs, ``records`` the values that both take and
give; ``pictures`` is sources that are read as one, ``space`` what a store holds and who reads which job, ``connect``
the connections.
"""

from ingest.ledger.jobs import JobLedger
from ingest.ledger.pictures import Cursor, Picture, Taken, Wish
from ingest.ledger.records import (
    BATCH,
    Begun,
    Created,
    NewUnit,
    UnitRecord,
    WorkerInfo,
    batched,
    fit,
    new_id,
    numbers_of,
)
from ingest.ledger.redis import Ledger
from ingest.ledger.work import Claim, Result, Settled, Tick, WorkLedger

__all__ = [
    "BATCH",
    "Begun",
    "Claim",
    "Created",
    "Cursor",
    "JobLedger",
    "Ledger",
    "NewUnit",
    "Picture",
    "Result",
    "Settled",
    "Taken",
    "Tick",
    "UnitRecord",
    "Wish",
    "WorkLedger",
    "WorkerInfo",
    "batched",
    "fit",
    "new_id",
    "numbers_of",
]
