"""Many small files as few: a packed shard's samples become tars or Parquet files of a target size. ``shard`` fetches
them, ``spool`` keeps what has come, ``samples`` says what is written of each, ``writers`` write."""

from workers.pack.shard import pack_shard

__all__ = ["pack_shard"]
