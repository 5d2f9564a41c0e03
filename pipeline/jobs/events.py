"""What happens in a job, as log records with fields; a front door decides who reads them."""

from __future__ import annotations

import logging
from typing import Any

FIELDS = "penstock"
"""Attribute of a log record that holds the fields."""
logger = logging.getLogger("pipeline.jobs")


def tell(event: str, **fields: Any) -> None:
    """Logs one event: `started`, `source listed`, `unit done`, `committed`, `refused`, ..."""
    logger.info(event, extra={FIELDS: fields})
