"""Who did what, when, and what came of it: a file of JSON lines (mode 0600) beside the log.

One line for each request that changes something, and for each that was refused for want of a right.
Query strings, bodies and headers are never written.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import re
import threading
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import unquote

from pipeline.service.logs import redact_text

MAX_BYTES = 64 << 20
"""A longer file is moved to `NAME.1`, in the place of the one before."""
MAX_TEXT = 256
_PEER = re.compile(r"ipv[46]:\[?(?P<address>[^\]]*?)\]?:\d+")


@dataclass(frozen=True)
class Deed:
    """One request and its outcome."""

    request: str
    """Its id, as the answer and the log name it."""
    client: str
    """Address it came from, without a port; `-` where it is not known."""
    token: str | None
    """Id of the token; None if there was none."""
    name: str | None
    """Whose it is."""
    method: str
    path: str
    status: int
    kind: str | None
    """Of the error; None if it was done."""


def address_of(peer: str) -> str:
    """Returns the address in gRPC's name of the other side, such as `ipv4:127.0.0.1:59476`."""
    found = _PEER.fullmatch(unquote(peer))
    return found["address"] if found else peer


class AuditLog:
    """The file; safe to use from several threads. One server writes to it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def write(self, deed: Deed) -> None:
        """Appends one line."""
        now = dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds")
        said = {
            name: redact_text(value[:MAX_TEXT]) if isinstance(value, str) else value
            for name, value in asdict(deed).items()
        }
        line = json.dumps({"time": now, **said}).encode() + b"\n"
        with self._lock:
            handle = os.open(
                self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600
            )
            try:
                os.write(handle, line)
                is_full = os.fstat(handle).st_size > MAX_BYTES
            finally:
                os.close(handle)
            if is_full:
                self._path.replace(self._path.with_name(f"{self._path.name}.1"))
