"""Whether the packages of the `service` extra are there, asked before any of them is imported."""

from __future__ import annotations

import importlib.util

from schemas.errors import missing_extra

PACKAGES = ("fastapi", "uvicorn", "structlog", "prometheus_client", "jinja2")


def check_installed() -> None:
    """Makes sure that a service can be started.

    Raises:
        MissingExtraError: naming the first package that is missing, and how to install it.
    """
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise missing_extra("service", name)
