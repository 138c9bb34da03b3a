"""A large file over several connections: every byte of one version in its place, whatever the server does to ranges."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ingest import errors
from ingest.model import FileSpec
from ingest.sections import Http, Limits
from ingest.settings import Settings
from ingest.store.scratch import Scratch
from tests.servers import http as server
from tests.servers.http import Origin
from tests.servers.http.ranged import Answer, Ranged, content, digest_of
from workers.fetchers.base import Context, Fetched, Interrupted
from workers.fetchers.http import HttpFetcher
from workers.fetchers.http.ranges import Download, RangesRefused

MB = 1 << 20
SIZE = 6 * MB + 12_345
#: Small ranges, so that a small file has many of them.
HTTP = Http(ranges=4, range_bytes=256 << 10, ranges_from_bytes=1 * MB, chunk_bytes=64 << 10)
QUICK = Limits(connect_s=1.0, stall_s=2.0)


class Case:
    """A fetcher, an origin and scratch files in one folder: what one attempt leaves, the next one takes up."""

    def __init__(self, root: Path, origin: Origin) -> None:
        self.root, self.origin = root, origin
        self.fetcher = HttpFetcher()
        self.url = origin.url("/large.bin")
        self.told = 0

    def serve(self, behaviour: Callable[[server.Handler], None]) -> None:
        self.origin.on("/large.bin", behaviour)

    def scratch(self, **options: Any) -> Scratch:
        def count(size: int) -> None:
            self.told += size

        options.setdefault("on_bytes", count)
        if digest := options.pop("digest", None):
            options["algorithms"] = frozenset({digest.partition(":")[0]})
        return Scratch(self.root, "key", self.url, fsync=False, **options)

    def fetch(self, scratch: Scratch, http: Http = HTTP, **fields: Any) -> Fetched:
        context = Context(Settings(http=http, limits=QUICK))
        try:
            found = self.fetcher.fetch(FileSpec(0, 0, self.url, **fields), scratch, None, context)
        finally:
            assert threads() == [], "nothing works on after fetch"
        assert found is not None
        return found

    def gets(self, size: int = SIZE, http: Http = HTTP, **fields: Any) -> Scratch:
        """A whole attempt that must succeed."""
        scratch = self.scratch(digest=fields.get("digest"))
        self.fetch(scratch, http, **fields)
        right(scratch, size)
        scratch.close(discard=True)
        return scratch

    def fails(self, kind: type[BaseException], http: Http = HTTP, **fields: Any) -> Any:
        """A whole attempt that must fail; what it left stays."""
        scratch = self.scratch(digest=fields.get("digest"))
        with pytest.raises(kind) as caught:
            self.fetch(scratch, http, **fields)
        scratch.close(discard=False)
        return caught.value


def right(scratch: Scratch, size: int = SIZE) -> None:
    data = scratch.path.read_bytes()
    assert len(data) == scratch.size == size and data == content(0, size)
    assert scratch.digest() == "sha256:" + hashlib.sha256(data).hexdigest()


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "http-range"]


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Case]:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    with Origin() as origin:
        yield Case(tmp_path, origin)


def on_range(*numbers: int) -> Callable[[Callable[[Answer], None]], Callable[[Answer], None]]:
    """A twist of the ranges of those numbers only, counted from 0; of all without any."""

    def only(twist: Callable[[Answer], None]) -> Callable[[Answer], None]:
        seen = iter(range(1 << 30))

        def maybe(answer: Answer) -> None:
            if answer.is_range and (next(seen) in numbers or not numbers):
                twist(answer)

        return maybe

    return only


def header(name: str, text: str | None) -> Callable[[Answer], None]:
    def twist(answer: Answer) -> None:
        answer.headers.pop(name, None)
        if text is not None:
            answer.headers[name] = text

    return twist


def slow(**fields: Any) -> Ranged:
    """Slow enough for several connections to be of use, whatever else the machine does."""
    return Ranged(SIZE, rate=6 * MB, **fields)


class TestSeveral:
    def test_the_bytes_are_right_and_the_first_answer_is_used(self, case: Case) -> None:
        large = slow()
        case.serve(large)
        scratch = case.gets()
        first, *others = large.answers
        assert first == (200, 0, SIZE) and len(others) > 3 and {status for status, _, _ in others} == {206}
        assert large.peak >= 2 and case.told == SIZE
        # What the first one had not sent when it was stopped was sent by others, and little of it twice.
        assert large.sent < SIZE + 4 * MB
        assert scratch.journal is not None and scratch.journal.validator == '"v1"'

    def test_ranges_are_asked_for_in_the_version_of_the_first(self, case: Case) -> None:
        case.serve(slow())
        case.gets()
        for asked in case.origin.log[1:]:
            assert asked.headers["If-Range"] == '"v1"' and asked.headers["Accept-Encoding"] == "identity"

    def test_a_redirect_is_followed_once(self, case: Case) -> None:
        case.origin.on("/elsewhere", slow())
        case.serve(server.redirect("/elsewhere"))
        case.gets()
        assert case.origin.count("/large.bin") == 1 and case.origin.count("/elsewhere") > 3

    @pytest.mark.parametrize("http", [Http(ranges=1, ranges_from_bytes=0), Http(ranges_from_bytes=SIZE + 1)])
    def test_only_where_they_are_wanted(self, case: Case, http: Http) -> None:
        case.serve(slow())
        case.gets(http=http)
        assert case.origin.count() == 1

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("ETag", None), ("ETag", 'W/"v1"'), ("ETag", "v1"), ("Accept-Ranges", None), ("Accept-Ranges", "none"),
            ("Content-Encoding", "br"),
        ],
    )  # fmt: skip
    def test_never_without_a_strong_validator_and_ranges(self, case: Case, name: str, text: str | None) -> None:
        case.serve(slow(twist=header(name, text)))
        case.gets()
        assert case.origin.count() == 1

    def test_never_without_a_length(self, case: Case) -> None:
        case.serve(
            server.chunked(*[content(n * MB, (n + 1) * MB) for n in range(3)], etag='"v1"', accept_ranges="bytes")
        )
        case.gets(3 * MB)
        assert case.origin.count() == 1

    def test_more_than_allowed_is_said_before_it_comes(self, case: Case) -> None:
        large = slow()
        case.serve(large)
        scratch = case.scratch(max_bytes=SIZE - 1)
        with pytest.raises(errors.TooLarge, match=str(SIZE)):
            case.fetch(scratch)
        assert scratch.size == 0 and case.origin.count() == 1
        scratch.close(discard=True)

    def test_digests_of_several_kinds_are_right(self, case: Case) -> None:
        case.serve(slow())
        scratch = case.scratch(algorithms=frozenset({"md5"}))
        case.fetch(scratch)
        assert scratch.digest("md5") == "md5:" + hashlib.md5(content(0, SIZE)).hexdigest()
        scratch.close(discard=True)


class TestHowMany:
    def test_more_where_each_connection_is_limited(self, case: Case) -> None:
        large = Ranged(16 * MB, rate=1.5 * MB)
        case.serve(large)
        case.gets(16 * MB, Http(ranges=8, range_bytes=MB, ranges_from_bytes=MB))
        assert large.peak > 2, "it was measured, and more were opened"

    def test_the_next_file_begins_with_as_many_as_were_of_use(self, case: Case) -> None:
        case.serve(Ranged(16 * MB, rate=1.5 * MB))
        case.gets(16 * MB, Http(ranges=8, range_bytes=MB, ranges_from_bytes=MB))
        quick = Ranged(2 * MB, rate=1.5 * MB)  # too short to be measured
        case.serve(quick)
        case.gets(2 * MB, Http(ranges=8, range_bytes=256 << 10, ranges_from_bytes=MB))
        assert quick.peak > 3
        assert case.fetcher.learned.of_use("http://elsewhere/large.bin") == 2, "of another origin nothing is known"

    def test_no_more_where_they_only_share(self, case: Case) -> None:
        large = Ranged(16 * MB, total_rate=4 * MB)
        case.serve(large)
        case.gets(16 * MB, Http(ranges=8, range_bytes=MB, ranges_from_bytes=MB))
        assert large.peak <= 5, "two, then four for a try, while the first of the two may just be ending"

    @pytest.mark.parametrize("most", [1, 2, 3])
    def test_a_server_that_limits_connections_is_obeyed(self, case: Case, most: int) -> None:
        large = Ranged(6 * MB, rate=1.5 * MB, most=most)
        case.serve(large)
        case.gets(6 * MB)
        refused = sum(1 for asked in case.origin.log) - len(large.answers)
        assert refused <= 2, "what was refused is not asked for again"

    def test_a_process_has_no_more_than_that_in_all(self, case: Case) -> None:
        files = [Ranged(4 * MB, rate=MB) for _ in range(3)]
        http = Http(ranges=2, range_bytes=256 << 10, ranges_from_bytes=MB)
        urls = [case.origin.on(f"/{n}.bin", each) for n, each in enumerate(files)]
        lent: list[int] = []

        def one(n: int) -> None:
            scratch = Scratch(
                case.root,
                f"key{n}",
                urls[n],
                fsync=False,
                on_bytes=lambda _: lent.append(case.fetcher.spare.lent),
            )
            context = Context(Settings(http=http, limits=QUICK))
            case.fetcher.fetch(FileSpec(0, 0, urls[n]), scratch, None, context)
            right(scratch, 4 * MB)
            scratch.close(discard=True)

        workers = [threading.Thread(target=one, args=(n,)) for n in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
        assert max(lent) == 2 and threads() == []

    def test_connections_are_kept_from_file_to_file(self, case: Case) -> None:
        case.serve(slow())
        for _ in range(2):
            case.gets()
        # The first answer of each file is not read to its end, and its connection is lost; those of ranges are not.
        assert len({asked.client for asked in case.origin.log}) < len(case.origin.log) / 2


class TestMisbehaviour:
    """Each ends in the exact bytes over one connection, or in the typed error."""

    @pytest.mark.parametrize(
        "twist",
        [
            header("Content-Range", None),
            header("Content-Range", f"bytes 0-{MB}/{SIZE}"),
            header("Content-Range", "bytes 262144-524286/" + str(SIZE)),
            header("Content-Range", "bytes 262144-524287/" + str(SIZE + 1)),
            header("Content-Range", "bytes 262144-524287/*"),
            header("Content-Range", "nonsense"),
            header("ETag", None),
            header("ETag", 'W/"v1"'),
            header("Content-Encoding", "gzip"),
        ],
        ids=["none", "overlaps", "short", "total", "star", "nonsense", "no-tag", "weak-tag", "encoded"],
    )
    def test_a_range_that_is_not_what_was_asked_for(self, case: Case, twist: Callable[[Answer], None]) -> None:
        large = slow(twist=on_range()(twist))
        case.serve(large)
        case.gets()
        assert [status for status, _, _ in large.answers].count(200) == 1, "the first answer went on alone"
        before = case.origin.count()
        case.gets()
        assert case.origin.count() == before + 1, "the next file is not tried that way"

    def test_it_goes_on_alone_from_between_two_pieces_too(self, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
        """The refusal is dealt with when the first answer has just claimed the last byte of a piece."""
        claimed, refused = threading.Event(), threading.Event()
        judge, go_alone = Download._judge, Download._go_alone

        def judged(*args: Any) -> None:
            assert claimed.wait(10)
            judge(*args)

        def dealt_with(download: Download, why: RangesRefused) -> None:
            refused.set()  # under the lock that the first answer needs to go on
            go_alone(download, why)

        large = slow(twist=on_range()(header("ETag", None)))
        case.serve(large)
        scratch = case.scratch()
        place = scratch.place

        def hold(offset: int, data: memoryview) -> None:
            if (offset + len(data)) % HTTP.range_bytes == 0:
                claimed.set()
                assert refused.wait(10)
            place(offset, data)

        monkeypatch.setattr(Download, "_judge", judged)
        monkeypatch.setattr(Download, "_go_alone", dealt_with)
        monkeypatch.setattr(scratch, "place", hold)
        case.fetch(scratch)
        right(scratch)
        assert [status for status, _, _ in large.answers].count(200) == 1
        scratch.close(discard=True)

    def test_who_lies_once_is_believed_in_nothing(self, case: Case) -> None:
        """What had come by ranges before is dropped, and brought by the first answer, which was waiting meanwhile."""
        number = iter(range(1 << 30))

        def twist(answer: Answer) -> None:
            if not answer.is_range:
                answer.late = 1.0
            elif next(number) < 3:
                answer.shift = 1000
            else:
                answer.headers["Content-Range"] = f"bytes 0-9/{SIZE}"

        large = slow(twist=twist)
        case.serve(large)
        case.gets()
        assert [each[0] for each in large.answers].count(200) == 1

    @pytest.mark.parametrize("status", [200, 400, 412, 416, 501])
    def test_no_range_at_all(self, case: Case, status: int) -> None:
        def twist(answer: Answer) -> None:
            answer.status, answer.start, answer.end = status, 0, SIZE
            answer.headers["Content-Length"] = str(SIZE if status == 200 else 0)

        large = slow(twist=on_range()(twist))
        case.serve(large)
        case.gets()
        assert large.answers[0][0] == 200

    def test_the_first_has_ended_when_a_range_lies(self, case: Case) -> None:
        """Then nothing that came by ranges is kept, and all is asked for once more in one piece."""
        case.serve(slow(twist=on_range(9)(header("Content-Range", f"bytes 0-9/{SIZE}"))))
        case.gets()
        assert [asked for asked in case.origin.log[1:] if "Range" not in asked.headers]

    @pytest.mark.parametrize("number", [0, 3])
    def test_it_changes_between_ranges(self, case: Case, number: int) -> None:
        case.serve(slow(twist=on_range(number)(header("ETag", '"v2"'))))
        error = case.fails(errors.SourceChanged)
        assert '"v1"' in error.reason and '"v2"' in error.reason
        assert [*case.root.iterdir()] == [], "nothing of the mixture is kept"

    def test_it_is_another_one_in_full(self, case: Case) -> None:
        def twist(answer: Answer) -> None:
            answer.status, answer.start, answer.end = 200, 0, SIZE
            answer.headers |= {"ETag": '"v2"', "Content-Length": str(SIZE)}

        case.serve(slow(twist=on_range(1)(twist)))
        case.fails(errors.SourceChanged)

    @pytest.mark.parametrize("how", ["cut", "reset"])
    def test_a_connection_breaks_off(self, case: Case, how: str) -> None:
        def twist(answer: Answer) -> None:
            answer.cut, answer.reset = 100_000, how == "reset"

        case.serve(slow(twist=on_range(0)(twist)))
        case.gets()

    def test_the_first_connection_breaks_off(self, case: Case) -> None:
        def twist(answer: Answer) -> None:
            if answer.number == 0:
                answer.cut = MB

        case.serve(slow(twist=twist))
        case.gets()

    def test_all_break_off_and_the_next_attempt_brings_the_rest(self, case: Case) -> None:
        def twist(answer: Answer) -> None:
            answer.cut = 100_000

        large = slow(twist=twist)
        case.serve(large)
        case.fails(errors.Truncated)
        before, large.twist = large.sent, lambda answer: None
        assert before >= 100_000
        case.gets()
        assert large.sent < SIZE + 2 * MB

    def test_a_range_is_silent(self, case: Case) -> None:
        """The others bring its bytes."""
        large = slow()
        seen: list[bool] = []

        def one_is_silent(to: server.Handler) -> None:
            if "Range" in to.headers and not seen:
                seen.append(True)
                return server.silent()(to)
            return large(to)

        case.serve(one_is_silent)
        case.gets()
        assert seen

    @pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
    def test_further_connections_are_refused(self, case: Case, status: int) -> None:
        def twist(answer: Answer) -> None:
            answer.status, answer.headers = status, {"Content-Length": "0"}

        large = slow(twist=on_range()(twist))
        case.serve(large)
        case.gets()
        assert large.answers[0] == (200, 0, SIZE)

    def test_wrong_bytes_under_a_right_header_are_found_by_the_digest(self, case: Case) -> None:
        """Nobody else could tell; here only that the digest is of the bytes that are there."""

        def twist(answer: Answer) -> None:
            answer.shift = 1000

        case.serve(slow(twist=on_range()(twist)))
        scratch = case.scratch()
        case.fetch(scratch)
        assert scratch.digest() == "sha256:" + hashlib.sha256(scratch.path.read_bytes()).hexdigest()
        assert scratch.digest() != digest_of(SIZE)
        scratch.close(discard=True)


class TestStopping:
    @pytest.mark.parametrize("why", ["cancelled", "slice", "stopping"])
    def test_at_once_and_with_all_that_came(self, case: Case, why: str) -> None:
        large = Ranged(SIZE, rate=MB)
        case.serve(large)
        stop = threading.Event()

        def told(size: int) -> None:
            case.told += size
            if case.told > SIZE // 3:
                stop.set()
            if stop.is_set():
                raise Interrupted(why)

        scratch = case.scratch(on_bytes=told)
        with pytest.raises(Interrupted, match=why):
            case.fetch(scratch)
        scratch.close(discard=False)
        before = large.sent
        case.gets()
        assert large.sent - before < SIZE * 2 // 3 + 2 * MB, "what had come was not sent again"

    def test_a_disk_that_is_full_ends_it(self, case: Case) -> None:
        case.serve(slow())
        scratch = case.scratch()
        place = scratch.place

        class Full(Scratch):
            def place(self, offset: int, data: bytes | memoryview) -> None:
                if offset > MB:
                    raise OSError(28, "No space left on device")
                place(offset, data)

        scratch.__class__ = Full
        with pytest.raises(OSError, match="No space"):
            case.fetch(scratch)
        scratch.close(discard=True)

    def test_silent_connections_are_let_go(self, case: Case) -> None:
        large = slow()

        def silent_ranges(to: server.Handler) -> None:
            return server.silent()(to) if "Range" in to.headers else large(to)

        case.serve(silent_ranges)
        begun = time.monotonic()
        case.gets()
        assert time.monotonic() - begun < 30


class TestGoingOn:
    def test_only_what_is_missing_is_asked_for(self, case: Case) -> None:
        large = Ranged(SIZE)
        case.serve(large)
        scratch = case.scratch()
        scratch.note('"v1"', SIZE)
        scratch.reserve(SIZE)
        for start, end in ((0, MB), (2 * MB, 3 * MB), (5 * MB, SIZE)):
            scratch.place(start, content(start, end))
        scratch.close(discard=False)
        case.gets(http=Http(ranges=1, range_bytes=8 * MB))
        assert [each[1:] for each in large.answers] == [(MB, 2 * MB), (3 * MB, 5 * MB)]

    def test_all_is_there_and_was_not_published(self, case: Case) -> None:
        large = Ranged(SIZE)
        case.serve(large)
        scratch = case.scratch()
        scratch.note('"v1"', SIZE)
        scratch.reserve(SIZE)
        scratch.place(MB, content(MB, SIZE))
        scratch.place(0, content(0, MB))
        scratch.close(discard=False)
        case.gets()
        assert [status for status, _, _ in large.answers] == [416]

    def partial(self, case: Case, etag: str = '"v1"', size: int = SIZE) -> None:
        scratch = case.scratch()
        scratch.note(etag, size)
        scratch.reserve(size)
        scratch.place(0, content(0, 3 * MB))
        scratch.place(4 * MB, content(4 * MB, 5 * MB))
        scratch.close(discard=False)

    @pytest.mark.parametrize("status", [200, 400, 412, 416, 501])
    def test_if_range_is_refused(self, case: Case, status: int) -> None:
        self.partial(case)
        large = Ranged(SIZE, twist=on_range()(lambda answer: refuse(answer, status)))
        case.serve(large)
        case.gets()
        first, *others = [each[0] for each in large.answers]
        assert first == status and (status == 200 or 200 in others)

    def test_it_is_another_version_by_now(self, case: Case) -> None:
        self.partial(case, '"v0"')
        large = Ranged(SIZE)
        case.serve(large)
        case.gets(http=Http())
        assert large.answers == [(200, 0, SIZE)]

    def test_another_validator_and_the_digest_is_known(self, case: Case) -> None:
        """A mirror, or another machine behind a load balancer: the digest will tell."""
        self.partial(case, '"v0"')
        large = Ranged(SIZE)
        case.serve(large)
        case.gets(http=Http(), digest=digest_of(SIZE))
        assert [each for each in large.answers if each[0] == 206] == [(206, 3 * MB, 4 * MB), (206, 5 * MB, SIZE)]

    def test_what_is_mixed_is_of_no_use_without_the_digest(self, case: Case) -> None:
        self.partial(case, '"v0"')
        large = Ranged(SIZE, twist=on_range()(lambda answer: setattr(answer, "cut", 1000)))
        case.serve(large)
        case.fails(errors.Truncated, Http(), digest=digest_of(SIZE))
        large.answers.clear()
        large.twist = lambda answer: None
        case.gets(http=Http())
        assert large.answers == [(200, 0, SIZE)]


def refuse(answer: Answer, status: int) -> None:
    answer.status, answer.start, answer.end = status, 0, SIZE
    answer.headers["Content-Length"] = str(SIZE if status == 200 else 0)
    answer.headers.pop("Content-Range", None)
