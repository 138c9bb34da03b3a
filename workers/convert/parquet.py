"""``parquet``: CSV, TSV or JSON Lines become Parquet (zstd), in flat memory and without losing a digit.

What the columns are is found out by reading all of the file first: ``csvs`` and ``lines`` do, each for its format.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ingest.errors import BadResponse
from workers.convert import csvs, lines
from workers.convert.plain import kind_of
from workers.convert.tables import Wanted
from workers.convert.work import File, Work
from workers.parquet import write

#: suffix → format. What a file holds is not guessed from its bytes: a CSV of one column looks like anything.
_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_ONE_FILE = 1 << 62


def parquet(
    files: Sequence[File], work: Work, *, format: str | None, delimiter: str | None, header: bool,
    columns: Sequence[str] | None, types: dict[str, str] | None, nulls: Sequence[str], row_group_rows: int, others: str,
) -> None:  # fmt: skip
    """See docs/sources.md."""
    for file in files:
        base, dot, suffix = file.name.rpartition(".")
        kind = format or _SUFFIXES.get(dot + suffix.lower())
        if kind is None and others == "keep":
            work.keep(file)
            continue
        _check(work, file, kind)
        wanted = Wanted(work.uri, file.name, tuple(columns) if columns else None, types or {}, work.check)
        schema: Any
        if kind == "jsonl":
            schema, batches = lines.read(file.path, wanted)
        else:
            letter = delimiter or ("\t" if kind == "tsv" else ",")
            schema, batches = csvs.read(file.path, wanted, delimiter=letter, header=header, nulls=nulls)
        name = (base if base and dot + suffix.lower() in _SUFFIXES else file.name) + ".parquet"
        with work.create(name) as out:
            write(schema, batches, out, name=name, group_rows=row_group_rows, file_bytes=_ONE_FILE)


def _check(work: Work, file: File, kind: str | None) -> None:
    with open(file.path, "rb") as head:
        packed = kind_of(head.read(8))
    if packed:
        raise BadResponse(work.uri, f"{file.name} is packed with {packed}: convert=['decompress', 'parquet']")
    if kind is None:
        raise BadResponse(
            work.uri,
            f"{file.name} has none of the suffixes {', '.join(_SUFFIXES)}: say format='csv', 'tsv' or 'jsonl'; "
            "others='keep' leaves other files as they are",
        )
