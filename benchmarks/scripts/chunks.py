"""Write a folder in the format of litdata, with its own writer: ``python chunks.py FOLDER SAMPLES CHUNK_BYTES``."""

from __future__ import annotations

import random
import sys

import litdata as ld


def sample(number: int) -> dict[str, object]:
    return {"key": number, "content": random.Random(number).randbytes(100_000)}


if __name__ == "__main__":
    ld.optimize(
        fn=sample,
        inputs=list(range(int(sys.argv[2]))),
        output_dir=sys.argv[1],
        chunk_bytes=int(sys.argv[3]),
        num_workers=1,
    )
