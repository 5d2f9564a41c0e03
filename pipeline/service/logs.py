"""The server's own log: JSON lines on stderr, with whatever looks like a secret blacked out.

Every record goes through `redact`, those of other libraries and their tracebacks too, so that a
token reaches no log however it came into a message.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog

from pipeline.service.tokens import PREFIX
from schemas.errors import PenstockError
from schemas.plain import plain

HIDDEN = "***"
SECRET_KEYS = frozenset(
    {
        *("authorization", "proxy-authorization", "cookie", "set-cookie", "token", "secret"),
        *("password", "session", "x-api-key", "tls_key"),
    }
)
"""Fields whose values are never logged, whatever they hold."""
_TOKEN = re.compile(rf"({PREFIX}_[0-9a-f]{{12}})_[A-Za-z0-9_-]+")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}")
_COOKIE = re.compile(r"(?i)\b(penstock_session=)[^;\s\"']+")


def redact_text(text: str) -> str:
    """Returns a text without the secrets in it; of a token its prefix and id stay."""
    text = _TOKEN.sub(rf"\1_{HIDDEN}", text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    return _COOKIE.sub(rf"\1{HIDDEN}", text)


def redacted(value: Any) -> Any:
    """Returns a value without secrets, however deep they are; what is no plain value as text."""
    if isinstance(value, bytes | bytearray):
        value = bytes(value).decode("utf-8", "replace")
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {
            redact_text(str(name)): HIDDEN if str(name).lower() in SECRET_KEYS else redacted(item)
            for name, item in value.items()
        }
    if isinstance(value, list | tuple | set | frozenset):
        return [redacted(item) for item in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return redact_text(str(plain(value)))


def redact(_: Any, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """The structlog processor; the last before a line is written."""
    event.pop("color_message", None)  # uvicorn's event once more, with signs for a terminal
    clean: dict[str, Any] = redacted(event)
    return clean


def facts_of(error: PenstockError) -> dict[str, str]:
    """Returns what a line says of an error beside its event, which stays the same text."""
    return {"kind": error.kind, "why": error.message}


def log_to(stream: TextIO | None = None, level: int = logging.INFO) -> None:
    """Sends what structlog and the standard library log to one stream, stderr by default."""
    before: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
    ]
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*before, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                redact,
                structlog.processors.JSONRenderer(ensure_ascii=False),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    structlog.configure(
        processors=[*before, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
