"""Settings of a client."""

from __future__ import annotations

import os
import re
import secrets
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from schemas.errors import ConfigError
from schemas.rollouts import is_producer
from schemas.tracing import traceparent_of

TOKEN_VARIABLE = "PENSTOCK_TOKEN"
TLS_CA_VARIABLE = "PENSTOCK_TLS_CA"
"""The authority's file where no setting names one, for processes that others start."""
AckLevel = Literal["received", "durable", "store"]
_LANE = ":99"
"""What a client adds to its producer's name for each further layout of its episodes."""


@dataclass(frozen=True)
class ClientSettings:
    """How a client behaves."""

    producer: str | None = None
    """Who sends: `STREAM:NAME` or a name, of letters, digits and `._:-`. Two clients at a time must
    not share one. By default a name of this machine and some random digits."""
    ack: AckLevel = "durable"
    """When an episode counts as pushed: when the service has it, when it would outlive a crash, or
    when it is in a version."""
    window: int = 64
    """Puts on their way that are not acknowledged."""
    put_bytes: int = 256 << 10
    """About how much one put holds."""
    buffer_bytes: int = 256 << 20
    """Of what is not acknowledged, all kept in memory to be sent again; then adding waits."""
    retry_seconds: float | None = 60.0
    """After its end, how long an episode is sent again and again; None for ever."""
    ack_seconds: float = 30.0
    """Without any acknowledgement for so long, the client connects anew, elsewhere if it can."""
    connect_seconds: float = 10.0
    """How long one call may take that is no stream."""
    keepalive_seconds: float = 10.0
    """How soon a connection is probed that went silent; it is given up after half of that again."""
    backoff_seconds: float = 0.05
    """Before the second try; doubled each time, up to `max_backoff_seconds`, and up to half more by
    chance, so that clients do not come back all at once."""
    max_backoff_seconds: float = 5.0
    tls_root_certs: Path | None = None
    """The authority that signed the service's certificate, in PEM; by default that of the
    environment variable PENSTOCK_TLS_CA, else the system's."""
    traceparent: str | None = None
    """Of W3C's Trace Context: goes with every call, into the service's log."""
    seed: int | None = None
    """Of the chance in the pauses."""

    def __post_init__(self) -> None:
        if self.traceparent is not None and traceparent_of(self.traceparent) is None:
            raise ConfigError(
                f"Expected a traceparent such as 00-<32 hex digits>-<16 hex digits>-01, came "
                f"{self.traceparent!r:.100}."
            )
        if self.ack not in get_args(AckLevel):
            raise ConfigError(
                f"Expected ack as one of {', '.join(get_args(AckLevel))}, came {self.ack!r:.100}."
            )
        if self.producer is not None and not is_producer(f"{self.producer}{_LANE}"):
            raise ConfigError(
                f"Expected a producer of at most {128 - len(_LANE)} letters, digits and ._:-, that "
                f"begins with a letter or digit, came {self.producer!r:.100}."
            )
        numbers = {"window": self.window, "put_bytes": self.put_bytes}
        wrong = [name for name, value in numbers.items() if value < 1]
        if wrong or self.buffer_bytes < self.put_bytes:
            raise ConfigError(
                f"Expected window and put_bytes of at least 1, and buffer_bytes that hold a put, "
                f"came window={self.window}, put_bytes={self.put_bytes} and "
                f"buffer_bytes={self.buffer_bytes}; set buffer_bytes to put_bytes at least."
            )


def producer_name(settings: ClientSettings) -> str:
    """Returns the name that a client sends under."""
    if settings.producer is not None:
        return settings.producer
    host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64].lstrip("._-") or "actor"
    return f"{host}-{os.getpid()}-{secrets.token_hex(4)}"


def token_text(token: str | None) -> str | None:
    """Returns the token that is given, else the one of the environment, else None."""
    text = token if token is not None else os.environ.get(TOKEN_VARIABLE)
    return text.strip() if text else None


def root_certs_path(settings: ClientSettings) -> Path | None:
    """Returns the file of the authority that is given, else that of the environment, else None."""
    given = settings.tls_root_certs or os.environ.get(TLS_CA_VARIABLE)
    return Path(given) if given else None


def root_certs(settings: ClientSettings) -> bytes | None:
    """Returns the authority whose certificates are trusted, in PEM; None for the system's.

    Raises:
        ConfigError: if its file cannot be read, or holds no certificate.
    """
    path = root_certs_path(settings)
    return None if path is None else checked_certs(path)


def checked_certs(path: Path) -> bytes:
    """Returns what a file of certificates holds.

    Raises:
        ConfigError: if it cannot be read, or holds none.
    """
    try:
        found = path.read_bytes()
        # A private key beside the certificate would pass, too, but nothing that is no certificate.
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=found.decode("ascii"))
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        says = "none" if isinstance(error, ssl.SSLError | ValueError) else error.strerror
        raise ConfigError(
            f"Expected a file of certificates in PEM, came: {says}; name that of the authority "
            f"that signed the service's certificate.",
            where=str(path),
        ) from None
    return found
