"""An upload: under which name a published file goes, and whether it has to. How is the place's: ``s3``,
``filesystems``."""

from __future__ import annotations

from workers.destinations.base import Local, Place, Taken
from workers.fetchers.base import Context


def deliver(file: Local, into: str, name: tuple[str, ...], tag: str, context: Context) -> str:
    """Make ``file`` appear under ``into``; gives its URI. What is there already is not uploaded again.

    A different object that has the name is left alone: ours gets ``tag`` in its name, as in a local directory. Raises a
    FetchError about ``into``, and what interrupts the work.
    """
    place = _place(into, context)
    stem, dot, suffix = name[-1].partition(".")
    plain, tagged = "/".join(name), "/".join((*name[:-1], f"{stem}-{tag}{dot}{suffix}"))
    found = {}
    for target in (plain, tagged):
        found[target] = place.holds(target, file)
        if found[target]:
            return place.uri(target)
    if found[plain] is None:
        try:
            place.put(plain, file, fresh=True)
            return place.uri(plain)
        except Taken:  # somebody else brought something there at this moment
            if place.holds(plain, file):
                return place.uri(plain)
    # By its tag this name is ours: what is there is an earlier version of the same source.
    place.put(tagged, file, fresh=False)
    return place.uri(tagged)


def _place(into: str, context: Context) -> Place:
    if into.startswith("s3://"):
        from workers.destinations.s3 import Bucket

        return Bucket(into, context)
    from workers.destinations.filesystems import Folder

    return Folder(into, context)
