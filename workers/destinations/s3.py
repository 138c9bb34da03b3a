"""S3 as a destination: one PUT, or parts side by side for a large file. Every byte goes with a digest, and the object
that is there afterwards is asked for its own.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded

from ingest.errors import AccessDenied, FetchError, NotFound, TooLarge, UploadFailed
from workers.destinations.base import Local, Slice, Taken
from workers.fetchers.base import Context, Interrupted
from workers.fetchers.s3.answers import Answer, Elsewhere, edge
from workers.fetchers.s3.client import Profile, client_for, elsewhere, here

#: Larger files go in parts: as large as this, or so large that there are not more parts than S3 takes.
PART_BYTES = 32 << 20
_MOST_PARTS, _MOST_PART_BYTES = 10_000, 5 << 30
_PARALLEL = 4
_MD5 = re.compile(r'"([0-9a-f]{32})"')
_PARTS_MD5 = re.compile(r'"([0-9a-f]{32}-\d+)"')
#: Our own word on an object's content, for services whose ETag is no MD5.
_SHA256 = "ingest-sha256"


class Bucket:
    """A prefix of a bucket."""

    def __init__(self, into: str, context: Context) -> None:
        self._into, self._context = into, context
        self._bucket, _, self._prefix = into.partition("://")[2].partition("/")
        self._profile = Profile.of(context)

    def uri(self, name: str) -> str:
        return self._into + name

    def holds(self, name: str, file: Local) -> bool | None:
        head = self._head(name, file)
        return None if head is None else _is_same(head, file)

    def put(self, name: str, file: Local, *, fresh: bool) -> None:
        etag = self._put_parts(name, file, fresh) if file.size > PART_BYTES else self._put_whole(name, file, fresh)
        head = self._head(name, file)
        if head is None or head["ContentLength"] != file.size or head["ETag"] != etag or not _is_same(head, file):
            found = "nothing" if head is None else f"{head['ContentLength']} bytes with ETag {head['ETag']}"
            if head is not None and head["ETag"] == etag:  # what we wrote; if not, somebody else's
                self._call(file, "delete_object", Key=self._prefix + name)
            raise UploadFailed(
                self._into, f"{self.uri(name)} holds {found} after {file.size} bytes were sent; nothing is left of it"
            )

    def _put_whole(self, name: str, file: Local, fresh: bool) -> str:
        with Slice(file, 0, file.size) as body:
            done = self._call(
                file,
                "put_object",
                Key=self._prefix + name,
                Body=body,
                ContentLength=file.size,
                ContentMD5=_base64(file.md5),
                Metadata={_SHA256: file.sha256},
                **_if_fresh(fresh),
            )
        return str(done["ETag"])

    def _put_parts(self, name: str, file: Local, fresh: bool) -> str:
        size = part_bytes(file.size)
        if size > _MOST_PART_BYTES:
            raise TooLarge(self._into, f"{file.size} bytes are more than an object of S3 can have")
        key = self._prefix + name
        begun = self._call(file, "create_multipart_upload", Key=key, Metadata={_SHA256: file.sha256})
        upload = begun["UploadId"]

        def send(number: int) -> dict[str, Any]:
            start, end = number * size, min(file.size, (number + 1) * size)
            md5 = file.md5_of(start, end)
            with Slice(file, start, end) as body:
                done = self._call(
                    file,
                    "upload_part",
                    Key=key,
                    UploadId=upload,
                    PartNumber=number + 1,
                    Body=body,
                    ContentLength=end - start,
                    ContentMD5=_base64(md5),
                )
            return {"PartNumber": number + 1, "ETag": done["ETag"]}

        pool = ThreadPoolExecutor(_PARALLEL, thread_name_prefix="upload")
        try:
            parts = list(pool.map(send, range(-(-file.size // size))))
            done = self._call(
                file,
                "complete_multipart_upload",
                Key=key,
                UploadId=upload,
                MultipartUpload={"Parts": parts},
                **_if_fresh(fresh),
            )
            return str(done["ETag"])
        except BaseException:
            pool.shutdown(cancel_futures=True)  # a part that comes after the end would stay, and cost
            with suppress(Exception):  # what was the matter is said already
                client_for(here(self._profile, self._bucket)).abort_multipart_upload(
                    Bucket=self._bucket, Key=key, UploadId=upload
                )
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    def _head(self, name: str, file: Local) -> dict[str, Any] | None:
        try:
            return dict(self._call(file, "head_object", Key=self._prefix + name, ChecksumMode="ENABLED"))
        except NotFound as error:
            if "bucket" in error.reason:
                raise
            return None
        except AccessDenied:
            # Without the right to list, S3 denies what is not there. A PUT will tell.
            if self._may_list(file):
                raise
            return None

    def _may_list(self, file: Local) -> bool:
        try:
            self._call(file, "list_objects_v2", MaxKeys=1, Prefix=self._prefix)
        except AccessDenied:
            return False
        return True

    def _call(self, file: Local, operation: str, **asked: Any) -> Any:
        """One request, followed to the bucket's region. Raises a FetchError about the destination, :class:`Taken`, and
        what interrupts the work, which a client library takes for a broken connection."""
        for last in (False, True):
            stopped: BaseException | None = None
            refused = 0
            try:
                with edge(self._into, self._context):
                    try:
                        function: Callable[..., Any] = getattr(client_for(here(self._profile, self._bucket)), operation)
                        return function(Bucket=self._bucket, **asked)
                    except SoftTimeLimitExceeded as error:
                        stopped = error
                        raise
                    except Exception as error:
                        refused = _refusal(error)
                        raise
            except Elsewhere as found:
                if last or not elsewhere(self._profile, self._bucket, found.region):
                    raise found.error from None
                if "Body" in asked:
                    asked["Body"].seek(0)
            except FetchError:
                if stopped is not None:
                    raise Interrupted("slice") from None
                file.check()
                if refused == 412:
                    raise Taken from None
                if refused == 501 and "IfNoneMatch" in asked:  # a server that knows no conditions
                    del asked["IfNoneMatch"]
                    return self._call(file, operation, **asked)
                raise
        raise AssertionError("the loop above returns or raises")


def part_bytes(size: int) -> int:
    """How large the parts of a file of that size are: the same for everybody, so that ETags can be compared."""
    parts = -(-size // _MOST_PARTS)
    return max(PART_BYTES, -(-parts // PART_BYTES) * PART_BYTES)


def etag_of(file: Local) -> str:
    """The ETag that S3 gives a file that was uploaded as we do it, without its quotes."""
    if file.size <= PART_BYTES:
        return file.md5
    size = part_bytes(file.size)
    digests = [bytes.fromhex(file.md5_of(at, min(file.size, at + size))) for at in range(0, file.size, size)]
    return f"{hashlib.md5(b''.join(digests), usedforsecurity=False).hexdigest()}-{len(digests)}"


def _is_same(head: Mapping[str, Any], file: Local) -> bool:
    """Whether an object is that file: by its SHA-256, else by an ETag that is one of its content, else by what we said
    of it when we uploaded it."""
    if head["ContentLength"] != file.size:
        return False
    stated = head.get("ChecksumSHA256")
    if stated and "-" not in stated and head.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT":
        return bool(stated == _base64(file.sha256))
    ours: bool = head.get("Metadata", {}).get(_SHA256) == file.sha256
    if "kms" in str(head.get("ServerSideEncryption")) or head.get("SSECustomerAlgorithm"):
        return ours  # its ETag says nothing of its content
    etag = str(head.get("ETag"))
    if whole := _MD5.fullmatch(etag):
        return whole[1] == file.md5 or (ours and file.size > PART_BYTES)
    if parts := _PARTS_MD5.fullmatch(etag):
        return parts[1] == etag_of(file) or (ours and not parts[1].endswith(f"-{_parts_of(file)}"))
    return ours


def _parts_of(file: Local) -> int:
    return -(-file.size // part_bytes(file.size))


def _if_fresh(fresh: bool) -> dict[str, str]:
    return {"IfNoneMatch": "*"} if fresh else {}


def _base64(hexadecimal: str) -> str:
    return base64.b64encode(bytes.fromhex(hexadecimal)).decode()


def _refusal(error: Exception) -> int:
    answer = Answer.of(error)
    if answer.code == "ConditionalRequestConflict":
        return 412
    return 501 if answer.code == "NotImplemented" else answer.status
