"""ConnectorX and pyarrow: a table to one Parquet file with zstd, with its digest: ``python table.py URL ROWS OUT``."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import connectorx as cx
import pyarrow.parquet as pq
from say import Timed, say

if __name__ == "__main__":
    url, rows, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]) / "table.parquet"
    with Timed() as used:
        table = cx.read_sql(url, "SELECT * FROM samples", partition_on="id", partition_num=4, return_type="arrow")
        pq.write_table(table, out, compression="zstd")
        with out.open("rb") as file:
            hashlib.file_digest(file, "sha256")
    if table.num_rows != rows:
        raise SystemExit(f"{table.num_rows} rows came of {rows}")
    say(used, rows=table.num_rows, bytes=out.stat().st_size)
