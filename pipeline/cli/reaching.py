"""How commands reach a service: `--token-file`, and `--tls-ca` for an authority of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", help="Of the service; else PENSTOCK_TOKEN."),
]


def _trust(path: Path | None) -> Path | None:
    """Trusts an authority in this process and in those that it starts: actors, readers."""
    if path is None:
        return None
    import os

    from pipeline.service.client.settings import TLS_CA_VARIABLE, checked_certs

    checked_certs(path)
    os.environ[TLS_CA_VARIABLE] = str(path.absolute())
    return path


TlsCa = Annotated[
    Path | None,
    typer.Option(
        "--tls-ca",
        metavar="FILE",
        callback=_trust,
        help="Authority that signed a service's certificate, PEM; else PENSTOCK_TLS_CA.",
    ),
]


def read_token(file: Path | None) -> str | None:
    """Returns the text of a token file; None where no file is given.

    Raises:
        UsageError: if it cannot be read.
    """
    if file is None:
        return None
    from schemas.errors import UsageError

    try:
        return file.read_text("ascii").strip()
    except (OSError, ValueError) as error:
        says = getattr(error, "strerror", None) or "one that is no text"
        raise UsageError(
            f"Expected a file with the text of a token, came: {says}; look at --token-file.",
            where=str(file),
        ) from None
