"""What an S3 endpoint's answer means: try again, not there, not allowed, or never.

Only here are status codes and botocore's exceptions told apart, so that no refusal is ever taken
for "there is no such object": a store would then believe in an older head than it has.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import aiohttp
import botocore.exceptions as boto

from schemas.errors import AccessDeniedError, NotFoundError, PenstockError, UsageError

PASSING_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})
"""Answers that a later try may not meet. 409 says that another conditional request is under way,
not that the object exists."""
PASSING_CODES = frozenset(
    {"InternalError", "RequestTimeout", "ServiceUnavailable", "SlowDown", "Throttling"}
)
PASSING_ERRORS = (
    TimeoutError,
    ConnectionError,
    asyncio.TimeoutError,
    aiohttp.ClientError,
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
)
CREDENTIALS = frozenset(
    {
        "AuthorizationHeaderMalformed",
        "ExpiredToken",
        "InvalidAccessKeyId",
        "InvalidToken",
        "RequestTimeTooSkewed",
        "SignatureDoesNotMatch",
        "TokenRefreshRequired",
    }
)
NEEDS = {
    "get_object": "s3:GetObject on it, and s3:ListBucket on the bucket, without which an object "
    "that is not there is refused like one that is",
    "head_object": "s3:GetObject on it, and s3:ListBucket on the bucket, without which an object "
    "that is not there is refused like one that is",
    "list_objects_v2": "s3:ListBucket on the bucket",
    "put_object": "s3:PutObject on it",
    "delete_object": "s3:DeleteObject on it",
}
"""The permission each request needs."""


@dataclass(frozen=True)
class Answer:
    """An endpoint's refusal."""

    status: int
    code: str
    message: str

    def __str__(self) -> str:
        code = self.code if self.code and self.code != str(self.status) else ""
        return " ".join(filter(None, (str(self.status), code, self.message)))


def answer_of(error: BaseException) -> Answer | None:
    """Returns the answer that an error of s3fs or botocore was made from, if there was one."""
    at: BaseException | None = error
    while at is not None:
        if isinstance(at, boto.ClientError):
            said = at.response.get("Error", {})
            meta = at.response.get("ResponseMetadata", {})
            return Answer(
                status=int(meta.get("HTTPStatusCode", 0)),
                code=str(said.get("Code", "")),
                message=str(said.get("Message", "")),
            )
        at = at.__cause__
    return None


def is_passing(error: BaseException) -> bool:
    """True if the same request may succeed a moment later, or may have succeeded already."""
    answer = answer_of(error)
    if answer is not None:
        return answer.status in PASSING_STATUSES or answer.code in PASSING_CODES
    # A body that is not what the protocol says was cut on its way.
    return isinstance(error, PASSING_ERRORS) or type(error).__name__ == "ResponseParserError"


def is_missing(answer: Answer) -> bool:
    """True if there is no such object; a missing bucket is another matter."""
    return answer.status == 404 and answer.code != "NoSuchBucket"


def is_taken(answer: Answer) -> bool:
    """True if a creation was refused because the object exists."""
    return answer.status == 412


def is_unconditional(answer: Answer) -> bool:
    """True if an endpoint says that it knows no conditional writes."""
    return answer.status == 501 or answer.code == "NotImplemented"


def refusal(error: BaseException, request: str, where: str) -> PenstockError | None:
    """Returns the typed error for a request that will never succeed, or None if it is a bug.

    Args:
        error: what s3fs or botocore raised.
        request: the request by botocore's name.
        where: the object's URL.
    """
    answer = answer_of(error)
    if answer is None:
        return _before_any_request(error, where)
    if answer.code == "NoSuchBucket":
        return NotFoundError("Expected a bucket, came none; make it first.", where=where)
    if answer.status in (401, 403) or answer.code in CREDENTIALS:
        if answer.code in CREDENTIALS:
            todo = "check the credentials, the region and this machine's clock"
        else:
            todo = f"the request needs {NEEDS[request]}; docs/object-stores.md has a policy"
        return AccessDeniedError(
            f"Expected leave for {request}, came the refusal {answer}; {todo}.", where=where
        )
    return UsageError(
        f"Expected the endpoint to answer {request}, came {answer}; check the URL, the region and "
        f"the endpoint's settings.",
        where=where,
    )


def _before_any_request(error: BaseException, where: str) -> PenstockError | None:
    """Returns the error for what botocore could not even ask."""
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return AccessDeniedError(
            "Expected credentials in the environment, a profile or storage_options, came none; "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE.",
            where=where,
        )
    if isinstance(error, boto.BotoCoreError | ValueError):
        return UsageError(f"Could not ask the endpoint: {error}", where=where)
    return None
