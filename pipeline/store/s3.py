"""Objects in S3 and in what speaks its protocol, through s3fs.

s3fs brings the connection: credentials from the environment, profiles or `storage_options`,
endpoints, encryption and requester-pays settings. The requests are made here one by one, because a
store needs to know of each whether it was refused, unanswered or done: a commit is one `PutObject`
with `If-None-Match: *`, never a multipart upload.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urlsplit

from fsspec.asyn import sync
from s3fs import S3FileSystem

from pipeline.store import answers, layout
from pipeline.store.objects import Entry
from pipeline.store.patience import Patience
from pipeline.store.remote import RemoteObjects
from schemas.errors import ConditionalWritesError, PenstockError, UntrustedError, UsageError

T = TypeVar("T")
PART_BYTES = 64 << 20
"""Data files of twice this size and more are uploaded in parts of it."""
AT_ONCE = 16
"""Requests under way at the same time."""
ONE_TRY = {"retries": {"mode": "standard", "total_max_attempts": 1}}
"""Trying again is our business: a hidden second try would hide that the first had an effect."""
ONLY_REQUIRED = {
    "request_checksum_calculation": "when_required",
    "response_checksum_validation": "when_required",
}
_AWS = re.compile(r"(\A|\.)(amazonaws\.com(\.cn)?|api\.aws)\Z")


class S3Objects(RemoteObjects):
    """Objects below `s3://bucket/prefix`; one connection per process."""

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any] | None = None,
        *,
        single_writer: bool = False,
        patience: Patience | None = None,
    ) -> None:
        super().__init__(url, options or {}, single_writer=single_writer)
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self._folder = f"{prefix}/" if prefix else ""
        self._patience = patience or Patience()
        self._connection: tuple[int, S3FileSystem] | None = None

    @property
    def place(self) -> str:
        """See `RemoteObjects.place`."""
        return f"{self._fs().s3.meta.endpoint_url} {self.bucket}"

    # -- reading -------------------------------------------------------------------------------

    def read(self, key: str) -> bytes:
        """See `Objects.read`."""
        return self._run(lambda fs: self._get(fs, key))

    def exists(self, key: str) -> bool:
        """See `Objects.exists`."""
        try:
            self._run(lambda fs: self._call(fs, "head_object", key))
        except FileNotFoundError:
            return False
        return True

    def names(self, prefix: str) -> Iterator[str]:
        """See `Objects.names`."""
        folder = f"{self._folder}{prefix}/"
        for page in self._pages(folder, Delimiter="/"):
            for below in page.get("CommonPrefixes", ()):
                yield below["Prefix"][len(folder) : -1]
            for found in page.get("Contents", ()):
                if found["Key"] != folder:  # some tools make an object for a folder
                    yield found["Key"][len(folder) :]

    def entries(self, prefix: str) -> Iterator[Entry]:
        """See `Objects.entries`."""
        for page in self._pages(f"{self._folder}{prefix}/" if prefix else self._folder):
            for found in page.get("Contents", ()):
                key = found["Key"][len(self._folder) :]
                yield Entry(key, found["Size"], found["LastModified"].astimezone(dt.UTC))

    def now(self) -> dt.datetime:
        """See `Objects.now`: the `Date` of an answer, to the second."""
        answer = self._run(lambda fs: self._call(fs, "head_object", layout.STORE))
        told = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
        if told is None:
            raise UntrustedError(
                "Expected an answer with a date, came one without.", where=self.url
            )
        return parsedate_to_datetime(told).astimezone(dt.UTC)

    # -- writing -------------------------------------------------------------------------------

    def create(self, key: str, data: bytes) -> bool:
        """See `RemoteObjects.create`."""
        if self._run(lambda fs: self._create(fs, key, data)):
            return True
        # Perhaps it is ours: an earlier try that went unanswered may have been the one that won.
        # (We need not know of that try: aiohttp repeats a PUT by itself when a connection breaks.)
        try:
            return self.read(key) == data
        except FileNotFoundError:
            return False

    def write_all(self, files: Mapping[str, bytes]) -> None:
        """See `RemoteObjects.write_all`."""
        self._run(lambda fs: self._put_all(fs, files))

    def delete(self, key: str) -> None:
        """See `Objects.delete`."""
        self._run(lambda fs: self._call(fs, "delete_object", key))

    # -- requests ------------------------------------------------------------------------------

    async def _get(self, fs: S3FileSystem, key: str) -> bytes:
        async def once() -> bytes:
            answer = await fs._call_s3("get_object", **self._named(key))
            async with answer["Body"] as body:
                data: bytes = await body.read()
                return data

        return await self._ask("get_object", key, once)

    async def _create(self, fs: S3FileSystem, key: str, data: bytes) -> bool:
        async def once() -> bool:
            try:
                await fs._call_s3("put_object", **self._named(key), Body=data, IfNoneMatch="*")
            except Exception as error:
                answer = answers.answer_of(error)
                if answer is not None and answers.is_taken(answer):
                    return False
                if answer is not None and answers.is_unconditional(answer):
                    raise ConditionalWritesError(
                        f"the endpoint knows no conditional writes ({answer})",
                        where=self._where(key),
                    ) from error
                raise
            return True

        return await self._ask("put_object", key, once)

    async def _put_all(self, fs: S3FileSystem, files: Mapping[str, bytes]) -> None:
        free = asyncio.Semaphore(AT_ONCE)

        async def put(key: str, data: bytes) -> None:
            async def once() -> None:
                if len(data) < 2 * PART_BYTES:
                    await fs._call_s3("put_object", **self._named(key), Body=data)
                else:
                    path = f"{self.bucket}/{self._folder}{key}"
                    await fs._pipe_file(path, data, chunksize=PART_BYTES)

            async with free:
                await self._ask("put_object", key, once)

        async with asyncio.TaskGroup() as group:
            for key, data in files.items():
                group.create_task(put(key, data))

    async def _call(self, fs: S3FileSystem, request: str, key: str) -> dict[str, Any]:
        async def once() -> dict[str, Any]:
            answer: dict[str, Any] = await fs._call_s3(request, **self._named(key))
            return answer

        return await self._ask(request, key, once)

    def _pages(self, prefix: str, **arguments: str) -> Iterator[dict[str, Any]]:
        """Yields the pages of a listing."""
        asked = {"Bucket": self.bucket, "Prefix": prefix, **arguments}
        while True:
            page = self._run(partial(self._list, asked=asked))
            yield page
            if not page.get("IsTruncated"):
                return
            asked = {**asked, "ContinuationToken": page["NextContinuationToken"]}

    async def _list(self, fs: S3FileSystem, asked: Mapping[str, str]) -> dict[str, Any]:
        async def once() -> dict[str, Any]:
            page: dict[str, Any] = await fs._call_s3("list_objects_v2", **asked)
            return page

        below = asked["Prefix"].removeprefix(self._folder)
        return await self._ask("list_objects_v2", below, once)

    async def _ask(self, request: str, key: str, once: Callable[[], Awaitable[T]]) -> T:
        where = self._where(key)
        try:
            return await self._patience.ask(once, answers.is_passing, where)
        except PenstockError:
            raise
        except Exception as error:
            answer = answers.answer_of(error)
            if answer is not None and answers.is_missing(answer):
                raise FileNotFoundError(f"no object {where}") from None
            refusal = answers.refusal(error, request, where)
            if refusal is None:
                raise
            raise refusal from error

    def _named(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": f"{self._folder}{key}"}

    def _where(self, key: str) -> str:
        return f"{self.url}/{key}"

    # -- connection ----------------------------------------------------------------------------

    def _run(self, work: Callable[[S3FileSystem], Coroutine[Any, Any, T]]) -> T:
        """Does work on fsspec's event loop; any thread may ask."""
        fs = self._fs()
        try:
            done: T = sync(fs.loop, work, fs)
        except BaseExceptionGroup as group:  # of a task group: the first says what happened
            first = group.exceptions[0]
            raise first from first.__cause__
        return done

    def _fs(self) -> S3FileSystem:
        """Returns this process's connection: a forked child must not use its parent's."""
        if self._connection is None or self._connection[0] != os.getpid():
            self._connection = (os.getpid(), self._connect())
        return self._connection[1]

    def _connect(self) -> S3FileSystem:
        try:
            return connect(self._options)
        except TypeError as error:
            raise UsageError(
                f"Expected storage_options that s3fs knows, came others: {error}.", where=self.url
            ) from error
        except Exception as error:
            refusal = answers.refusal(error, "connect", self.url)
            if refusal is None:
                raise
            raise refusal from error


def connect(options: Mapping[str, Any]) -> S3FileSystem:
    """Returns a file system of one's own that is connected.

    Endpoints other than AWS's often refuse the checksums that newer clients add to every request;
    there they are left out unless the options or the profile ask for them.

    Args:
        options: arguments of `s3fs.S3FileSystem`.
    """
    given = dict(options)
    config = {**ONE_TRY, "max_pool_connections": AT_ONCE, **given.pop("config_kwargs", {})}
    fs = S3FileSystem(**given, config_kwargs=config, skip_instance_cache=True)
    fs.connect()
    if not is_aws(fs.s3.meta.endpoint_url) and not set(ONLY_REQUIRED) & set(config):
        given = {**given, "session": fs.session}
        config = {**config, **ONLY_REQUIRED}
        fs = S3FileSystem(**given, config_kwargs=config, skip_instance_cache=True)
        fs.connect()
    fs.retries = 1
    return fs


def is_aws(endpoint: str) -> bool:
    """True for Amazon's own endpoints."""
    return bool(_AWS.search(urlsplit(endpoint).hostname or ""))
