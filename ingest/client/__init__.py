"""What training code calls: ``Client`` to submit and attach, ``Job`` to follow, ``LocalFile`` to read.

``submission`` cuts sources into shards, ``follow`` waits for a job's events, ``reader`` gives a job in its global
order, ``distributed`` one job for all ranks of a run.
"""

from ingest.client.client import Client
from ingest.client.distributed import distributed_job
from ingest.client.files import LocalFile
from ingest.client.job import Job
from ingest.client.reader import JobReader, ShardEnd, ShardLayout

__all__ = ["Client", "Job", "JobReader", "LocalFile", "ShardEnd", "ShardLayout", "distributed_job"]
