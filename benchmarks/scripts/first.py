"""Seconds from nothing to the first batch, of shards that are far away:

    python first.py LIBRARY URL SHARDS CACHE

``URL/tar/000000.tar`` and so on are tars; ``URL/mds`` and ``URL/litdata`` are the same samples in the formats of two
peers, who ask for them by S3's GET. Libraries are loaded before the time begins.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from say import Timed, say, together

BATCH = 64
Start = Callable[[], Any]


def webdataset(url: str, shards: list[str], cache: str) -> Start:
    import webdataset as wds

    return lambda: wds.WebDataset(shards, shardshuffle=False)


def datasets(url: str, shards: list[str], cache: str) -> Start:
    import datasets as hf

    return lambda: hf.load_dataset("webdataset", data_files=shards, streaming=True, split="train")


def litdata(url: str, shards: list[str], cache: str) -> Start:
    import litdata as ld
    from litdata.streaming import downloader

    downloader._OBSTORE_AVAILABLE = False  # which refuses plain http, and cannot be told otherwise; then boto3 is asked
    keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any"}
    options = {"endpoint_url": url, "region_name": "us-east-1", **keys}
    return lambda: ld.StreamingDataset("s3://litdata/", cache_dir=cache, storage_options=options, shuffle=False)


def mosaicml_streaming(url: str, shards: list[str], cache: str) -> Start:
    from streaming import StreamingDataset

    os.environ |= {"S3_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "any", "AWS_SECRET_ACCESS_KEY": "any"}
    return lambda: StreamingDataset(remote="s3://mds", local=cache, shuffle=False, batch_size=BATCH)


def ingest(url: str, shards: list[str], cache: str) -> Start:
    from ingest import Client
    from ingest.dataset import StreamingDataset

    client = Client()
    client.workers()
    return lambda: StreamingDataset(client.submit(shards), batch_size=BATCH)


LIBRARIES: dict[str, Callable[[str, list[str], str], Start]] = {
    "webdataset": webdataset,
    "datasets": datasets,
    "litdata": litdata,
    "mosaicml-streaming": mosaicml_streaming,
    "ingest": ingest,
}


def main(library: str, url: str, shards: str, cache: str) -> None:
    from torch.utils.data import DataLoader

    if library == "ingest":
        sys.path.insert(0, str(Path(__file__).parents[2]))
    assert urlsplit(url).hostname == "127.0.0.1"
    start = LIBRARIES[library](url, [f"{url}/tar/{number:06}.tar" for number in range(int(shards))], cache)
    with Timed() as used:
        loader = DataLoader(start(), batch_size=BATCH, num_workers=0, collate_fn=together)
        batch = next(iter(loader))
    if len(batch) != BATCH:
        raise SystemExit(f"the first batch has {len(batch)} samples")
    say(used, samples=len(batch))
    sys.stdout.flush()
    os._exit(0)  # some go on fetching what nobody reads any more


if __name__ == "__main__":
    main(*sys.argv[1:])
