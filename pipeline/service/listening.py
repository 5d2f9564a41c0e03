"""The control port as a thread of a process: it listens when the context begins."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import uvicorn

from pipeline.service.control import control_app, server_config
from pipeline.service.state import ControlState
from schemas.errors import ConfigError, UsageError


@contextlib.contextmanager
def control_port(state: ControlState) -> Iterator[str]:
    """Serves the control port while the context lasts; yields its URL.

    Raises:
        UsageError: if the address cannot be had.
        ConfigError: if the certificate is none.
    """
    config = state.config
    server = uvicorn.Server(_loaded(state))
    with _listener(config.host, config.http_port) as listener:
        thread = threading.Thread(
            target=server.run, args=([listener],), name="control port", daemon=True
        )
        thread.start()
        try:
            url = f"{config.scheme}://{_shown(config.host)}:{listener.getsockname()[1]}"
            state.addresses["control"] = url
            yield url
        finally:
            server.should_exit = True
            thread.join()


def _loaded(state: ControlState) -> uvicorn.Config:
    """Reads certificates here: in the thread nobody would hear of it."""
    found = server_config(control_app(state), state.config)
    try:
        found.load()
    except (OSError, ValueError) as error:  # an SSLError is an OSError
        raise ConfigError(
            f"Expected a certificate and its key in PEM, came {error}.",
            where=str(state.config.tls_cert),
        ) from error
    return found


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host.strip("[]"), port), family=family)
    except OSError as error:
        raise UsageError(
            f"Expected a free port to listen at, came {host}:{port}: {error.strerror or error}; "
            f"name another with --http-port.",
            where=f"{host}:{port}",
        ) from error


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host
