"""From an answer's text to JSON Lines: each record as the server wrote it, without the white space. Pure.

Numbers are never computed with: a record's text is cut out of the answer, so that digits, exponents and escapes stay.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ingest.apis import Way

#: Media types whose every line is a record.
_LINES = re.compile(r"application/(x-)?(ndjson|jsonl|jsonlines|json-lines)|application/stream\+json", re.IGNORECASE)
_SPACE = re.compile(r"[ \t\n\r]*")
#: A string, or what is between two of them and no white space.
_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[^" \t\n\r]+')
_HTML = re.compile(r"\s*<(!doctype|html|head|body|\?xml|!--)", re.IGNORECASE)


class NotRecords(ValueError):
    """The answer is not what was asked for; the text says what it is. ``cut``: it may have been cut off."""

    def __init__(self, reason: str, *, cut: bool = False) -> None:
        super().__init__(reason)
        self.cut = cut


class Number(str):
    """A number of the answer, as it was written."""

    def whole(self) -> int | None:
        """Its value, if it is one of a size that can be counted."""
        return int(self) if len(self) < 1000 and re.fullmatch(r"-?\d+", self) else None


@dataclass
class Page:
    """The records of one answer as JSON Lines, how many, the last one, and what was found at the other ways."""

    lines: bytearray = field(default_factory=bytearray)
    count: int = 0
    last: Any = None
    found: dict[Way, Any] = field(default_factory=dict)

    def add(self, text: str, value: Any) -> None:
        self.lines += "".join(_TOKEN.findall(text)).encode("utf-8")
        self.lines += b"\n"
        self.count += 1
        self.last = value


def decode(body: bytes | bytearray, headers: Mapping[str, str]) -> str:
    """The text of an answer. JSON is UTF-8 (RFC 8259 §8.1), whatever is said beside it; what is not, is read as the
    charset that the header names. Raises :class:`NotRecords`."""
    found = re.search(r"charset=[\"']?([\w.:-]+)", headers.get("Content-Type", ""), re.IGNORECASE)
    charset = found[1] if found else ""
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        at = error.start
    try:
        if charset and codecs.lookup(charset).name not in {"utf-8", "ascii"}:
            return body.decode(charset)
    except (LookupError, UnicodeError, ValueError):
        pass
    raise NotRecords(f"the answer is not UTF-8 (byte {at}), nor the charset that it names ({charset[:20] or 'none'})")


def read(
    text: str, headers: Mapping[str, str], records: Way, wanted: Collection[Way] = (), optional: bool = False
) -> Page:
    """The page that an answer is; ``optional`` records may be missing, if what they would be in is there. Raises
    :class:`NotRecords` naming what was there instead."""
    page = Page()
    try:
        if _LINES.match(headers.get("Content-Type", "").strip()):
            _read_lines(text, records, page)
        else:
            _Reader(text, records, wanted, page).read(optional)
    except json.JSONDecodeError as error:
        _explain(text, error)
    except RecursionError:
        raise NotRecords("the answer is nested too deeply") from None
    return page


def _explain(text: str, error: json.JSONDecodeError) -> None:
    rest = text[error.pos : error.pos + 6].strip()
    if not text.strip():
        raise NotRecords("the answer is empty, where JSON was expected", cut=True)
    if _HTML.match(text):
        raise NotRecords("the answer is an HTML or XML page, where JSON was expected: a login or error page?")
    cut = "Unterminated" in error.msg or any(word.startswith(rest) for word in ("true", "false", "null", "-"))
    what = "ends in the middle of it" if cut else f"{error.msg} at character {error.pos}"
    raise NotRecords(f"the answer is not JSON: {what}", cut=cut)


def _read_lines(text: str, records: Way, page: Page) -> None:
    if records:
        raise NotRecords(f"the answer is JSON Lines, where every line is a record; records={'.'.join(records)!r}")
    at, number = 0, 0
    while at < len(text):
        end = text.find("\n", at)
        end = len(text) if end < 0 else end
        start, at, number = _skip(text, at), end + 1, number + 1
        if start >= end:
            continue
        value, stop = _DECODER.raw_decode(text, start)
        if stop > end or _skip(text, stop) < end:
            raise NotRecords(f"line {number} of the answer is not one value")
        page.add(text[start:stop], value)


def _skip(text: str, at: int) -> int:
    """The next place that is no white space."""
    found = _SPACE.match(text, at)
    return found.end() if found else at


class _Reader:
    """Goes through one JSON text, a record at a time, and keeps what is wanted: there is never the tree of a page."""

    def __init__(self, text: str, records: Way, wanted: Collection[Way], page: Page) -> None:
        self.text, self.records, self.page = text, records, page
        self._wanted = set(wanted)
        self._inner = {way[:depth] for way in {records, *wanted} for depth in range(len(way))}
        #: What was at the records' way, or on the way to it.
        self._seen: dict[Way, str] = {}

    def read(self, optional: bool) -> None:
        start = self._skip(0)
        whole = not self.records and self.text[start : start + 1] != "["
        if whole:  # one record, or one value to a line
            end = self._whole(start)
        else:
            end = self._skip(self._value(start, ()))
        if end != len(self.text):
            if whole and isinstance(self.page.last, dict) and "\n" in self.text[start:end]:
                self.page.__init__()  # type: ignore[misc]
                return _read_lines(self.text, (), self.page)
            raise json.JSONDecodeError("Extra data", self.text, end)
        if not whole:
            self._check_found(optional)

    def _whole(self, start: int) -> int:
        value, end = _DECODER.raw_decode(self.text, start)
        if not isinstance(value, dict):
            raise NotRecords(f"the answer is {kind(value)}, where a list or an object was expected")
        self.page.add(self.text[start:end], value)
        for way in self._wanted:
            if (found := lookup(value, way)) is not MISSING:
                self.page.found[way] = found
        return self._skip(end)

    def _value(self, at: int, way: Way) -> int:
        opening = self.text[at : at + 1]
        if way == self.records and opening == "[":
            self._seen[way] = "a list"
            return self._list(at)
        if way in self._inner and opening == "{":
            self._seen[way] = "an object"
            if way in self._wanted:
                self.page.found[way] = {}
            return self._object(at, way)
        value, end = _DECODER.raw_decode(self.text, at)
        self._seen[way] = kind(value)
        if way in self._wanted:
            self.page.found[way] = value
        return end

    def _object(self, at: int, way: Way) -> int:
        seen = set()
        at = self._skip(at + 1)
        if self.text[at : at + 1] == "}":
            return at + 1
        while True:
            if self.text[at : at + 1] != '"':
                raise json.JSONDecodeError("Expecting property name enclosed in double quotes", self.text, at)
            key, at = _DECODER.raw_decode(self.text, at)
            if key in seen:
                raise _twice(key)
            seen.add(key)
            at = self._value(self._after(at, ":"), (*way, key))
            at = self._skip(at)
            if self.text[at : at + 1] == "}":
                return at + 1
            at = self._after(at, ",")

    def _list(self, at: int) -> int:
        at = self._skip(at + 1)
        if self.text[at : at + 1] == "]":
            return at + 1
        while True:
            value, end = _DECODER.raw_decode(self.text, at)
            self.page.add(self.text[at:end], value)
            at = self._skip(end)
            if self.text[at : at + 1] == "]":
                return at + 1
            at = self._after(at, ",")

    def _after(self, at: int, mark: str) -> int:
        at = self._skip(at)
        if self.text[at : at + 1] != mark:
            raise json.JSONDecodeError(f"Expecting {mark!r} delimiter", self.text, at)
        return self._skip(at + 1)

    def _skip(self, at: int) -> int:
        return _skip(self.text, at)

    def _check_found(self, optional: bool) -> None:
        there = self._seen.get(self.records)
        if there in {"a list", "null"}:  # null is how some servers write a list without items
            return
        name = ".".join(self.records)
        if there:
            raise NotRecords(f"records={name!r} is {there}, where a list was expected")
        depth = max(d for d in range(len(self.records)) if self.records[:d] in self._seen)
        parent = ".".join(self.records[:depth]) or "the answer"
        what = self._seen[self.records[:depth]]
        if optional and depth == len(self.records) - 1 and what == "an object":
            return
        raise NotRecords(f"records={name!r} is not there: {parent} is {what} without {self.records[depth]!r}")


class _Missing:
    pass


MISSING = _Missing()


def lookup(value: Any, way: Way) -> Any:
    """What is at the end of the way, or MISSING."""
    for key in way:
        if not isinstance(value, dict) or key not in value:
            return MISSING
        value = value[key]
    return value


def kind(value: Any) -> str:
    """A word for what a parsed value is."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, Number):
        return "a number"
    if isinstance(value, str):
        return "text"
    return "an object" if isinstance(value, dict) else "a list"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _twice(key)
            seen.add(key)
    return made


def _twice(key: str) -> NotRecords:
    return NotRecords(f"the key {key[:60]!r} is twice in one object of the answer: readers differ on which one counts")


def _no_constant(name: str) -> Any:
    raise NotRecords(f"the answer has {name} in it, which is not JSON")


#: Strict, and with numbers as they are written.
_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=Number, parse_int=Number, parse_constant=_no_constant
)
