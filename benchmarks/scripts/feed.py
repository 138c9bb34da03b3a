"""Read all samples of a folder once, through a DataLoader, with one library:

    python feed.py LIBRARY KIND FOLDER WORKERS SAMPLES [JOB]

A sample is a mapping; what is in it must be there as values: the contents' lengths are added up.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from say import Timed, say, together

BATCH = 64


def webdataset(kind: str, folder: Path, job: str) -> Any:
    import webdataset as wds

    urls = [str(file) for file in sorted(folder.glob("*.tar"))]
    return wds.WebDataset(urls, shardshuffle=False, empty_check=False)


def datasets(kind: str, folder: Path, job: str) -> Any:
    import datasets as hf

    loader = {"tar": "webdataset", "parquet": "parquet", "jsonl": "json"}[kind]
    files = [str(file) for file in sorted(folder.glob(f"*.{kind}"))]
    return hf.load_dataset(loader, data_files=files, streaming=True, split="train")


def litdata(kind: str, folder: Path, job: str) -> Any:
    import litdata as ld
    from litdata.streaming.item_loader import ParquetLoader

    ld.index_parquet_dataset(str(folder), num_workers=2)
    return ld.StreamingDataset(str(folder), item_loader=ParquetLoader(), shuffle=False)


def mosaicml_streaming(kind: str, folder: Path, job: str) -> Any:
    from streaming import StreamingDataset

    return StreamingDataset(local=str(folder), shuffle=False, batch_size=BATCH)


def ingest(kind: str, folder: Path, job: str) -> Any:
    from ingest import Client
    from ingest.dataset import StreamingDataset

    return StreamingDataset(Client().job(job), batch_size=BATCH)


LIBRARIES: dict[str, Callable[[str, Path, str], Any]] = {
    "webdataset": webdataset,
    "datasets": datasets,
    "litdata": litdata,
    "mosaicml-streaming": mosaicml_streaming,
    "ingest": ingest,
}


def main(library: str, kind: str, folder: str, workers: str, samples: str, job: str = "") -> None:
    from torch.utils.data import DataLoader

    if library == "ingest":
        sys.path.insert(0, str(Path(__file__).parents[2]))
    dataset = LIBRARIES[library](kind, Path(folder), job)
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=int(workers), collate_fn=together)
    field = "bin" if kind == "tar" else "content"
    with Timed() as used:
        found = size = 0
        for batch in loader:
            found += len(batch)
            size += sum(len(sample[field]) for sample in batch)
    if found != int(samples):
        raise SystemExit(f"{found} samples came of {samples}")
    say(used, samples=found, bytes=size)


if __name__ == "__main__":
    main(*sys.argv[1:])
