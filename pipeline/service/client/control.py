"""What actors and learners ask a service's control port for: policies, and where things stand.

It needs nothing but the standard library. Every call has its time, and every failure is an error of
our tree: a service that is away is `TransientError` or `OutOfTimeError`, never silence.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.flight as fl

from pipeline.service.client.connecting import SCHEMES, Addresses
from pipeline.service.client.faults import WIRE, error_of, error_of_kind
from pipeline.service.client.outbox import Offset
from pipeline.service.client.settings import (
    AckLevel,
    ClientSettings,
    producer_name,
    root_certs,
    root_certs_path,
    token_text,
)
from pipeline.service.client.steps import check_pushed
from schemas.episode import Episode
from schemas.errors import (
    BusyError,
    ConfigError,
    OutOfTimeError,
    TransientError,
    UntrustedError,
)
from schemas.online import Heartbeat
from schemas.puts import puts_of
from schemas.rollouts import HEADER_KEY
from schemas.tracing import HEADER

MAX_ANSWER = 64 << 20
MAX_POLICY = 256 << 20
_HTTP = ("http", "https")
_ARROW = "application/vnd.apache.arrow.stream"


@dataclass(frozen=True)
class ServiceAddresses:
    """Where both ports of a service are."""

    data: str
    """`grpc://HOST:PORT` or `grpc+tls://HOST:PORT`."""
    control: str
    """`http://HOST:PORT` or `https://HOST:PORT`."""


@dataclass(frozen=True)
class PolicyFile:
    """A policy that a run published."""

    step: int
    """Updates that made it."""
    data: bytes
    """A safetensors file."""


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follows nothing: the answer is an error then."""


class ControlClient:
    """Calls the control port of one service.

    Args:
        address: of either port: `http://HOST:PORT` or `grpc://HOST:PORT`, or with TLS. The other
            port is asked for.
        token: by default that of the environment variable PENSTOCK_TOKEN, if there is one.
        settings: how long a call may take, and who signed the certificate.

    Raises:
        ConfigError: if the address is none, or the file of the authority.
    """

    def __init__(
        self, address: str, token: str | None = None, settings: ClientSettings | None = None
    ) -> None:
        scheme = urlsplit(address).scheme
        if scheme not in (*SCHEMES, *_HTTP) or urlsplit(address).hostname is None:
            raise ConfigError(
                f"Expected the address of a service, such as grpc://127.0.0.1:8815 or "
                f"http://127.0.0.1:8816, came {address!r}."
            )
        self.address = address.rstrip("/")
        self._token = token_text(token)
        self._settings = settings or ClientSettings()
        self._found: ServiceAddresses | None = None
        roots = root_certs(self._settings)
        tls = ssl.create_default_context(cadata=None if roots is None else roots.decode())
        # Neither a proxy nor another place is told the token.
        self._opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=tls), _Stay()
        )

    def addresses(self) -> ServiceAddresses:
        """Returns the addresses of both ports; the service is asked once.

        Raises:
            TransientError: if it does not answer.
        """
        if self._found is None:
            scheme = urlsplit(self.address).scheme
            has_tls = scheme in ("https", "grpc+tls")
            if scheme in _HTTP:
                other = self._beside("grpc+tls" if has_tls else "grpc", self.status(), "data")
                self._found = ServiceAddresses(other, self.address)
            else:
                other = self._beside("https" if has_tls else "http", self._asked(), "control")
                self._found = ServiceAddresses(self.address, other)
        return self._found

    def status(self) -> dict[str, Any]:
        """Returns the state of the service: its store's id, its log, its ports."""
        return self._json("GET", "/v1/status")

    def head(self, branch: str = "main") -> dict[str, Any]:
        """Returns the newest version of a branch: `version, number, branch, episodes, steps`.

        Raises:
            NotFoundError: if there is no such branch.
        """
        found: dict[str, Any] = self._json("GET", f"/v1/versions?ref={branch}&limit=1")
        return dict(found["versions"][0])

    def push(
        self, episode: Episode, *, ack: AckLevel | None = None, timeout: float | None = None
    ) -> Offset:
        """Sends a whole episode over HTTP, where Flight does not pass; as safe as `ack` says.

        It is sent again while the service is away or has no room; it is in a version once all the
        same.

        Args:
            episode: without videos.
            ack: how safe; that of the settings by default.
            timeout: seconds for which it is sent again; by default `retry_seconds`.

        Raises:
            IdConflictError, SpecMismatchError, EpisodeError, PutError, TooLargeError: if it is
                refused.
            UnauthenticatedError, ForbiddenError: if the token is.
            TransientError, BusyError, OutOfTimeError: if it takes longer; push it again.
        """
        settings = self._settings if ack is None else replace(self._settings, ack=ack)
        check_pushed(episode)
        body = _body(episode, settings)
        path = f"/v1/rollouts?ack={settings.ack}"
        seconds = settings.retry_seconds if timeout is None else timeout
        until = time.monotonic() + (float("inf") if seconds is None else seconds)
        pause = settings.backoff_seconds
        while True:
            try:
                data, _ = self._call("POST", path, body, _ARROW, seconds=settings.ack_seconds)
                told = json.loads(data)
                return Offset(int(told["offset"]), str(told["server"]))
            except (TransientError, BusyError, OutOfTimeError) as error:
                pause = max(pause, getattr(error, "retry_after", 0.0))
                if time.monotonic() + pause > until:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, settings.max_backoff_seconds)

    def beat(self, run: str, beat: Heartbeat) -> dict[str, Any]:
        """Says where a learner is; returns where the log stands."""
        return self._json("POST", f"/v1/learners/{run}", beat.model_dump_json().encode())

    def policies(self) -> dict[str, int]:
        """Returns the runs that publish policies, and the newest step of each."""
        found: dict[str, int] = self._json("GET", "/v1/policies")["policies"]
        return found

    def policy(self, run: str, after: int = -1) -> PolicyFile | None:
        """Returns a run's newest policy; None if it has none of a later step.

        Raises:
            NotFoundError: if the run never published any.
            UntrustedError: if it did not arrive as it was sent.
        """
        data, headers = self._call("GET", f"/v1/policies/{run}?after={after}", most=MAX_POLICY)
        if not data:
            return None
        if hashlib.sha256(data).hexdigest() != headers.get("x-penstock-sha256"):
            raise UntrustedError("Expected a policy as it was sent, came another; ask again.")
        return PolicyFile(int(headers["x-penstock-step"]), data)

    def publish(self, run: str, step: int, data: bytes) -> None:
        """Publishes a run's policy, a safetensors file; needs the scope `curate`."""
        self._call("PUT", f"/v1/policies/{run}/{step}", data, "application/octet-stream")

    def curate(self, ref: str, exclude: Sequence[str], branch: str, message: str) -> str:
        """Commits a version without some episodes; needs the scope `curate`.

        Args:
            ref: of what.
            exclude: ids of the episodes.
            branch: where to.
            message: of the version.

        Returns:
            The new version's id.
        """
        asked = {"ref": ref, "exclude": list(exclude), "branch": branch, "message": message}
        return str(self._json("POST", "/v1/curate", json.dumps(asked).encode())["version"])

    def store_options(self) -> dict[str, Any]:
        """Returns the `storage_options` that open the service's store at its data address."""
        roots = root_certs_path(self._settings)
        given = {"token": self._token, "tls_root_certs": None if roots is None else str(roots)}
        return {name: value for name, value in given.items() if value is not None}

    # -- within --------------------------------------------------------------------------------

    def _beside(self, scheme: str, status: dict[str, Any], name: str) -> str:
        port = status.get("ports", {}).get(name)
        if port is None:
            raise TransientError(
                f"Expected a service with a {name} port, came one without; it may be starting.",
                where=self.address,
            )
        host = urlsplit(self.address).hostname or ""
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def _asked(self) -> dict[str, Any]:
        """The state of the service, by its data port."""
        known = Addresses(self.address, self._settings, self._token)
        client, _ = known.connect()
        try:
            options = known.options(self._settings.connect_seconds)
            (answer,) = client.do_action(fl.Action("status", b""), options)
            found: dict[str, Any] = json.loads(answer.body.to_pybytes())
        except WIRE as error:
            raise error_of(error) from None
        finally:
            client.close()
        return found

    def _json(self, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
        data, _ = self._call(method, path, body, "application/json")
        found = json.loads(data)
        return dict(found)

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        kind: str = "application/json",
        most: int = MAX_ANSWER,
        seconds: float | None = None,
    ) -> tuple[bytes, dict[str, str]]:
        seconds = self._settings.connect_seconds if seconds is None else seconds
        is_http = urlsplit(self.address).scheme in _HTTP
        url = (self.address if is_http else self.addresses().control) + path
        headers = {} if self._token is None else {"authorization": f"Bearer {self._token}"}
        if self._settings.traceparent is not None:
            headers[HEADER] = self._settings.traceparent
        if body is not None:
            headers["content-type"] = kind
        request = urllib.request.Request(url, body, headers, method=method)
        try:
            with self._opener.open(request, timeout=seconds) as answer:
                data = answer.read(most + 1)
                told = {name.lower(): value for name, value in answer.headers.items()}
            # Of half an answer, and of half its headers, urllib says nothing.
            length = told.get("content-length", "0" if answer.status == 204 else str(most))
            if len(data) < min(int(length), most):
                raise ConnectionError("the connection ended amid an answer")
        except urllib.error.HTTPError as error:
            raise self._refusal(error) from None
        except TimeoutError:
            raise OutOfTimeError(
                f"Expected an answer within {seconds:g} s, came none; look whether the service "
                f"runs.",
                where=url,
            ) from None
        except (OSError, ValueError, HTTPException) as error:  # a URLError is an OSError
            if not is_http:
                self._found = None  # it may have come back with other ports
            raise TransientError(_silence(error), where=url) from None
        if len(data) > most:
            raise UntrustedError(f"Expected an answer of at most {most:,} bytes, came more.")
        return data, told

    def _refusal(self, error: urllib.error.HTTPError) -> Exception:
        with contextlib.closing(error):
            try:
                said = json.loads(error.read(1 << 16))["error"]
                kind, message = str(said["kind"]), str(said["message"])
            except (ValueError, KeyError, TypeError, OSError):
                return TransientError(f"The service answered {error.code}.", where=self.address)
            wait = error.headers.get("retry-after", "")
            return error_of_kind(kind, message, float(wait) if wait.isdigit() else None)


def _silence(error: Exception) -> str:
    """Returns the sentence on a service that did not answer: why, and what to do."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, ssl.SSLCertVerificationError):
        return (
            f"Expected a certificate that is trusted here, came: {reason.verify_message}; name the "
            f"authority that signed it by --tls-ca, tls_root_certs or PENSTOCK_TLS_CA."
        )
    return f"Expected a service that answers, came: {reason}; check the address, and that it runs."


def _body(episode: Episode, settings: ClientSettings) -> bytes:
    """Returns an episode as the Arrow stream that the control port takes: an epoch of its own."""
    producer, epoch = producer_name(settings), time.time_ns()
    puts = puts_of(episode, producer=producer, epoch=epoch, put_bytes=settings.put_bytes)
    first = next(puts)
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, first.rows.schema) as stream:
        for put in (first, *puts):
            stream.write_batch(put.rows, custom_metadata={HEADER_KEY: put.header.encoded()})
    return sink.getvalue()
