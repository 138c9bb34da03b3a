"""Write a folder in the format of mosaicml-streaming, with its own writer: ``python mds.py FOLDER SHARD_BYTES``. The
samples come on standard input, a line of JSON each."""

from __future__ import annotations

import json
import sys

from streaming import MDSWriter

if __name__ == "__main__":
    columns = {"key": "int", "label": "int", "content": "str"}
    with MDSWriter(out=sys.argv[1], columns=columns, size_limit=int(sys.argv[2])) as out:
        for line in sys.stdin:
            out.write(json.loads(line))
