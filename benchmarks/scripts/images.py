"""img2dataset into tars, without resizing: ``python images.py URLS.txt OUT``."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

from img2dataset import download
from say import Timed, say

if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr), Timed() as used:
        download(
            url_list=sys.argv[1],
            output_folder=sys.argv[2],
            output_format="webdataset",
            input_format="txt",
            processes_count=2,
            thread_count=16,
            resize_mode="no",
            skip_reencode=True,
            number_sample_per_shard=1_000,
            compute_hash="sha256",
            enable_wandb=False,
        )
    tars = list(Path(sys.argv[2]).glob("*.tar"))
    if not tars:
        raise SystemExit("img2dataset made no tar")
    say(used, files=len(tars), bytes=sum(tar.stat().st_size for tar in tars))
