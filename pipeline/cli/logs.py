"""Logs of a job on stderr: JSON lines for machines, nothing but progress for people."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import logging
import sys
from collections.abc import Iterator
from typing import Any

NAMES = ("pipeline", "connectors")


class JsonLines(logging.Formatter):
    """One JSON object per record: time, level, event, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        from pipeline.jobs.events import FIELDS
        from schemas.plain import plain

        line: dict[str, Any] = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        return json.dumps(plain(line), ensure_ascii=False)


@contextlib.contextmanager
def job_logs(log_format: str | None) -> Iterator[bool]:
    """Logs JSON lines while the context lasts, if asked to or nobody watches; yields whether."""
    if log_format == "text" or (log_format is None and sys.stderr.isatty()):
        yield False
        return
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield True
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate
