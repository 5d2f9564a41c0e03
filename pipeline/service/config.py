"""What a service is told at its start, checked once; what would lay it open is refused."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from schemas.document import Document
from schemas.errors import ConfigError, UsageError

MIB = 1 << 20
GIB = 1 << 30


class ServiceConfig(Document):
    """Settings of one server."""

    wal: Path
    """Folder of the write-ahead log, on a disk of this machine."""
    host: str = "127.0.0.1"
    """Where both ports listen."""
    port: int = Field(default=8815, ge=0, le=65535)
    """Of the data; 0 takes a free one."""
    http_port: int = Field(default=8816, ge=0, le=65535)
    """Of control, health, metrics and pages; 0 takes a free one."""
    token_file: Path | None = None
    """The first token's text; by default `token` in the log's folder. None with `no_token`."""
    no_token: bool = False
    """Let everyone in who reaches the ports: on loopback alone."""
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allowed_hosts: tuple[str, ...] = ()
    """Names besides its own that browsers may know the control port by."""
    branch: str = "main"
    """Where rollouts become versions."""
    new_spec: str | None = None
    """Name of the spec that rollouts join which fit none of the branch's."""
    seal_every: float = Field(default=5.0, gt=0)
    """Seconds after which what was pushed becomes a version."""
    seal_bytes: int = Field(default=64 * MIB, ge=1)
    """Bytes after which it does so earlier."""
    max_unsealed_bytes: int = Field(default=8 * GIB, ge=1)
    """Of the log; above it pushes are refused until some is sealed."""
    disk_reserve_bytes: int = Field(default=GIB, ge=0)
    """Room on the log's disk below which pushes are refused."""
    compact_every: float = Field(default=300.0, gt=0)
    """Seconds between two looks whether small parts can be joined."""
    drain_seconds: float = Field(default=10.0, gt=0)
    """How long open streams have to end when the server is told to."""
    max_streams: int = Field(default=256, ge=1)
    """Open streams of all tokens together."""
    max_body_bytes: int = Field(default=64 * MIB, ge=1)
    """Of one HTTP request that carries an episode."""
    max_buffered_bytes: int = Field(default=512 * MIB, ge=1)
    """Of all such requests that are on their way in."""
    max_json_bytes: int = Field(default=MIB, ge=1)
    """Of any other HTTP request."""
    header_seconds: float = Field(default=10.0, gt=0)
    """How long the headers of an HTTP request may take to arrive."""
    max_connections: int = Field(default=512, ge=1)
    """Of the control port."""
    request_seconds: float = Field(default=60.0, gt=0)
    """How long an HTTP request may take to arrive, and how long its answer."""
    session_seconds: int = Field(default=12 * 3600, ge=1)
    """How long a browser stays signed in."""

    @property
    def scheme(self) -> Literal["http", "https"]:
        """Of the control port."""
        return "https" if self.tls_cert is not None else "http"

    @property
    def token_path(self) -> Path | None:
        """Where the first token's text is; None for a service without tokens."""
        return None if self.no_token else token_place(self.wal, self.token_file)


def service_config(settings: Mapping[str, Any]) -> ServiceConfig:
    """Returns the settings of a server, checked; those that are None take their defaults.

    Raises:
        ConfigError: if one does not validate, or if others than this machine's users could reach
            the ports without TLS and a token.
    """
    try:
        config = ServiceConfig.model_validate(
            {name: value for name, value in settings.items() if value is not None}
        )
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise ConfigError(
            f"Expected settings of a service, came {name} = {first['input']!r}: {first['msg']}."
        ) from None
    if (config.tls_cert is None) != (config.tls_key is None):
        raise ConfigError("Expected --tls-cert together with --tls-key, came one of them.")
    for file in (config.tls_cert, config.tls_key):
        if file is not None and not file.is_file():
            raise ConfigError("Expected a file of --tls-cert and --tls-key.", where=str(file))
    if config.no_token and config.token_file is not None:
        raise ConfigError("Expected either --token-file or --no-token, came both.")
    if config.port and config.port == config.http_port:
        raise ConfigError(f"Expected two ports, came {config.port} for both.")
    if not is_loopback(config.host):
        _check_public(config)
    return config


def log_folder(store: str, wal: Path | None) -> Path:
    """Returns where the log of a server is: the folder that is named, else `wal` in its store.

    Raises:
        UsageError: if none is named and the store is on no disk of this machine.
    """
    if wal is not None:
        return wal
    if "://" in store:
        raise UsageError(
            f"Expected --wal DIR, a folder on a disk of this machine, for the store at {store}: "
            f"its log cannot be there."
        )
    return Path(store) / "wal"


def token_place(wal: Path, token_file: Path | None) -> Path:
    """Returns where a server keeps its first token; the book of its tokens lies beside it."""
    return token_file or wal / "token"


def is_loopback(host: str) -> bool:
    """True if only processes of this machine reach an address; names but localhost may lead out."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _check_public(config: ServiceConfig) -> None:
    lacks = [
        *(["--tls-cert and --tls-key"] if config.tls_cert is None else []),
        *(["tokens (leave out --no-token)"] if config.no_token else []),
    ]
    if lacks:
        raise ConfigError(
            f"Expected a loopback address such as 127.0.0.1, or {' and '.join(lacks)}, came "
            f"--host {config.host}: others on the network could read tokens and data."
        )
