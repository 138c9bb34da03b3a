"""How what a partition asks for says that it is read at a moment which other partitions are read at too."""

from __future__ import annotations

import dataclasses

from ingest.model import FileSpec

#: Marks that it is to be read at a moment, and of which kind; and that moment.
PICTURE, MOMENT = "picture", "moment"


def wants_moment(spec: FileSpec) -> bool:
    """Whether it may be read at a shared moment only."""
    return spec.request is not None and PICTURE in spec.request


def is_pinned(spec: FileSpec) -> bool:
    """Whether it is known at which."""
    return spec.request is not None and MOMENT in spec.request


def pinned(spec: FileSpec, moment: str) -> FileSpec:
    """The spec with its moment: to the store another file than the same partition at any other moment."""
    return dataclasses.replace(spec, request={**(spec.request or {}), MOMENT: moment})
