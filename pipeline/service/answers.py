"""How the control port answers: plain JSON, and errors that do not say where the server lives."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from fastapi import Response

from schemas.errors import BusyError, PenstockError, TransientError, UsageError
from schemas.plain import plain

STATUS = {
    "not_found": 404,
    "name_taken": 409,
    "unscored": 409,
    "id_conflict": 409,
    "resend": 409,
    "files_expired": 410,
    "too_large": 413,
    "bad_put": 422,
    "bad_episode": 422,
    "spec_mismatch": 422,
    "untrusted": 422,  # a policy that is none; damage of the store has a kind of its own
    "unauthenticated": 401,
    "forbidden": 403,
    "busy": 429,
    "lock_held": 503,
    "timeout": 504,
    "disk_full": 507,
    "bad_config": 500,
    "missing_extra": 500,
    "no_permission": 502,
}
"""HTTP status of errors by kind; of others by class: 400, 503 or 500."""
RETRY_SECONDS = 1.0
_PART = r"[^\s/'\"`,;:()\[\]{}<>|]"
_PATH = re.compile(rf"(?<![\w.)\]/:])/(?=[^\s\d])(?:{_PART}+/)*({_PART}*)")
_URL = re.compile(r"\b[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"`,;()\[\]{}<>|]*")


def json_answer(value: Any, status: int = 200) -> Response:
    """Returns a value as a JSON answer; NaN and infinities as null."""
    return Response(
        json.dumps(plain(value), ensure_ascii=True, allow_nan=False),
        status_code=status,
        media_type="application/json",
    )


def error_answer(error: PenstockError) -> Response:
    """Returns an error as an answer, without a path of this machine."""
    where = None if error.where is None else place(error.where)
    answer = json_answer(
        {"error": {"kind": error.kind, "message": scrub(error.message), "where": where}},
        status_of(error),
    )
    if isinstance(error, BusyError | TransientError):
        wait = error.retry_after if isinstance(error, BusyError) else RETRY_SECONDS
        answer.headers["retry-after"] = str(max(1, math.ceil(wait)))
    if error.kind == "unauthenticated":
        answer.headers["www-authenticate"] = 'Bearer realm="penstock"'
    return answer


def status_of(error: PenstockError) -> int:
    """Returns the HTTP status of an error."""
    if error.kind in STATUS:
        return STATUS[error.kind]
    if isinstance(error, UsageError):
        return 400
    return 503 if isinstance(error, TransientError) else 500


def bug_answer(request_id: str) -> Response:
    """Returns what a client learns of an error that is none of our tree."""
    message = f"The service met a fault of its own; its log says more of the request {request_id}."
    return json_answer({"error": {"kind": "bug", "message": message, "where": None}}, 500)


def scrub(text: str) -> str:
    """Returns a message with absolute paths and URLs cut to their last names."""
    return _PATH.sub(r"\1", _URL.sub(lambda found: _last(found[0]), text))


def place(where: str) -> str:
    """Returns the last name of where an error happened."""
    return _last(where) if where.startswith("/") or "://" in where else scrub(where)


def _last(text: str) -> str:
    return text.split("?")[0].rstrip("/").rpartition("/")[2]
