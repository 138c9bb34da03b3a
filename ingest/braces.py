"""Brace ranges and patterns in URIs: ``{000..127}``, ``{a,b}``, and telling whether a URI is a glob or a prefix.

Expanding needs nobody's answer, so it is done where the user is; listing a glob or prefix is the planner's work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence

from ingest.errors import BadSource

#: More than this from one line of text is a slip of the keyboard, or belongs into a manifest.
MAX_VALUES = 10**8

_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?", re.ASCII)
_LETTERS = re.compile(r"([a-z])\.\.([a-z])(?:\.\.(-?\d+))?|([A-Z])\.\.([A-Z])(?:\.\.(-?\d+))?", re.ASCII)
_NO_LITERAL = r"write a brace that is part of a name as \{"


class _Words:
    """The alternatives of one brace group, or a literal piece as a group of one."""

    def __init__(self, words: list[str]) -> None:
        self._words = words
        self.count = len(words)

    def __iter__(self) -> Iterator[str]:
        return iter(self._words)


class _Numbers:
    """The values of a numeric range, zero-padded to ``width``; made one by one, so that 10^8 of them cost nothing."""

    def __init__(self, values: range, width: int) -> None:
        self._values, self._width = values, width
        self.count = (values.stop - 1 - values.start) // values.step + 1  # len() cannot say more than sys.maxsize

    def __iter__(self) -> Iterator[str]:
        return (f"{value:0{self._width}d}" for value in self._values)


_Piece = _Words | _Numbers


def expand_braces(uri: str) -> Iterator[str]:
    """Every URI that the braces of ``uri`` stand for, the leftmost changing slowest; ``uri`` itself where it has none.

    ``{000..127}`` keeps its width, ``{0..10..2}`` has a step, ``{a..f}`` counts letters, ``{a,,c}`` lists (an
    alternative may be empty), ``\\{`` and ``\\}`` are literal. Raises :class:`BadSource` at the call, not later.
    """
    if _is_plain(uri):
        return iter((uri,))
    pieces = _parse(uri)
    _check_count(uri, pieces)
    return _product(pieces)


def count_braces(uri: str) -> int:
    """How many URIs ``expand_braces`` would give, without making them. Raises as it does."""
    return 1 if _is_plain(uri) else _check_count(uri, _parse(uri))


def is_pattern(uri: str) -> bool:
    """Whether ``uri`` has to be listed: ``*``, ``?`` or ``[`` in its path, or a trailing ``/``.

    Over http a ``?`` begins the query, in which nothing is a pattern.
    """
    if not (uri.endswith("/") or "*" in uri or "?" in uri or "[" in uri or "#" in uri):
        return False  # nearly all of a long list; the rest of the question is four times as much work
    scheme, _, rest = uri.partition("://")
    if scheme.lower() in {"http", "https"}:
        rest = rest.partition("#")[0].partition("?")[0]
    _, slash, path = rest.partition("/")
    return slash != "" and (path == "" or path[-1] == "/" or "*" in path or "?" in path or "[" in path)


def _is_plain(uri: str) -> bool:
    """As nearly all of a long list are, each of which is looked at several times."""
    return "{" not in uri and "\\" not in uri


def _parse(uri: str) -> list[_Piece]:
    """The URI as a row of pieces, literals and brace groups."""
    pieces: list[_Piece] = []
    literal: list[str] = []
    at = 0
    while at < len(uri):
        if uri[at : at + 2] in {r"\{", r"\}"}:
            literal.append(uri[at + 1])
            at += 2
        elif uri[at] == "{":
            end = uri.find("}", at)
            body = uri[at + 1 : end]
            if end < 0:
                raise BadSource(uri, f"the brace at character {at + 1} is not closed; close it, or {_NO_LITERAL}")
            if "{" in body:
                raise BadSource(uri, "braces inside braces; write the inner ones out")
            pieces += [_Words(["".join(literal)]), _alternatives(uri, body)]
            literal = []
            at = end + 1
        else:
            literal.append(uri[at])
            at += 1
    return [*pieces, _Words(["".join(literal)])]


def _alternatives(uri: str, body: str) -> _Piece:
    if "," in body:
        found = body.split(",")
        if not any(found):
            raise BadSource(uri, f"{{{body}}} has only empty alternatives; write {{a,b}}")
        return _Words(found)
    if numbers := _RANGE.fullmatch(body):
        first, last = int(numbers[1]), int(numbers[2])
        padded = any(re.match(r"-?0\d", end) for end in (numbers[1], numbers[2]))
        width = max(len(numbers[1]), len(numbers[2])) if padded else 0
        return _Numbers(_range(uri, body, first, last, numbers[3]), width)
    if letters := _LETTERS.fullmatch(body):
        low, high, step = (letters[1], letters[2], letters[3]) if letters[1] else (letters[4], letters[5], letters[6])
        return _Words([chr(code) for code in _range(uri, body, ord(low), ord(high), step)])
    if not body:
        raise BadSource(uri, f"empty braces; write {{a,b}} or {{0..9}}, or {_NO_LITERAL}")
    raise BadSource(uri, f"{{{body}}} is neither a range nor a list; write {{0..9}} or {{a,b}}, or {_NO_LITERAL}")


def _range(uri: str, body: str, first: int, last: int, step: str | None) -> range:
    by = int(step) if step is not None else 1
    if by < 1:
        raise BadSource(uri, f"{{{body}}}: the step must be 1 or more")
    if last < first:
        raise BadSource(uri, f"{{{body}}} ends before it starts; write the smaller end first")
    return range(first, last + 1, by)


def _check_count(uri: str, pieces: list[_Piece]) -> int:
    count = math.prod(piece.count for piece in pieces)
    if count > MAX_VALUES:
        raise BadSource(uri, f"stands for {count:,} URIs, more than {MAX_VALUES:,}; cut it up, or use a Manifest")
    return count


def _product(pieces: Sequence[_Piece]) -> Iterator[str]:
    """Like itertools.product, which would first make a tuple of every range."""
    if not pieces:
        yield ""
        return
    for head in pieces[0]:
        for tail in _product(pieces[1:]):
            yield head + tail
