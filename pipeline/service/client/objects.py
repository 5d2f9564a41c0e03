"""A store behind a service, for a learner that reaches nothing else of it: to read, and no more.

It has the verbs of `pipeline.store.objects.Objects`, so what opens a store opens this one, at
`grpc://HOST:PORT`: versions have the same ids, files are held against the same checksums. What a
run reads is told to the service, which remembers it as if the run had written it down itself.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import pyarrow.flight as fl

from pipeline.service.client.connecting import Addresses
from pipeline.service.client.faults import WIRE, error_of
from pipeline.service.client.pulling import Pulls
from pipeline.service.client.settings import ClientSettings, token_text
from schemas.errors import AccessDeniedError, NotFoundError, UsageError
from schemas.pulls import NamesTicket, ObjectTicket, PullStream

RUNS = "refs/runs/"
OPTIONS = ("token", "tls_root_certs", "retry_seconds")


class ServiceObjects:
    """Objects of the store that a service serves.

    Args:
        url: `grpc://HOST:PORT` or `grpc+tls://HOST:PORT`.
        options: `token` (by default that of the environment), `tls_root_certs` and
            `retry_seconds`, for how long a service that is away is waited for.

    Raises:
        UsageError: for other options.
        ConfigError: if the address is none.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/")
        self._options = dict(options or {})
        wrong = sorted(self._options.keys() - set(OPTIONS))
        if wrong:
            raise UsageError(f"Expected options of {', '.join(OPTIONS)}, came {wrong[0]!r}.")
        settings = {name: self._options[name] for name in OPTIONS[1:] if name in self._options}
        if "tls_root_certs" in settings:
            settings["tls_root_certs"] = Path(settings["tls_root_certs"])
        self._settings = ClientSettings(**settings)
        self._addresses = Addresses(
            self.url, self._settings, token_text(self._options.get("token"))
        )
        self._pulls = Pulls(self._addresses, self._settings, PullStream(answers="objects"))

    def __reduce__(self) -> tuple[object, ...]:
        # Connections do not travel: every process makes its own.
        return (type(self), (self.url, self._options))

    def __repr__(self) -> str:
        return f"ServiceObjects({self.url!r})"  # options may hold a token

    def read(self, key: str) -> bytes:
        """See `Objects.read`."""
        try:
            rows = self._pulls.objects(ObjectTicket(key=key))
        except NotFoundError:
            raise FileNotFoundError(f"no object {self.url}/{key}") from None
        return b"".join(memoryview(data) for _, data in rows)

    def exists(self, key: str) -> bool:
        """See `Objects.exists`."""
        try:
            self._pulls.objects(ObjectTicket(key=key, only_whether=True))
        except NotFoundError:
            return False
        return True

    def names(self, prefix: str) -> Iterator[str]:
        """See `Objects.names`."""
        yield from [name for name, _ in self._pulls.objects(NamesTicket(prefix=prefix))]

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """See `Objects.put_if_absent`: of what a run reads alone, which the service puts down.

        Returns:
            False: what is there then is to be read.
        """
        if not key.startswith(RUNS):
            self._refuse()
        client, at = self._addresses.connect()
        try:
            options = self._addresses.options(self._settings.connect_seconds)
            list(client.do_action(fl.Action("refer", data), options))
        except WIRE as error:
            self._addresses.failed(at)
            raise error_of(error) from None
        finally:
            client.close()
        return False

    def settle(self, key: str) -> None:
        """See `Objects.settle`: the service does before it remembers what a run reads."""

    def put(self, files: Mapping[str, bytes]) -> None:
        """Refused."""
        self._refuse()

    def overwrite(self, key: str, data: bytes) -> None:
        """Refused."""
        self._refuse()

    def entries(self, prefix: str) -> Iterator[Any]:
        """Refused: whoever looks after a store does so where it is."""
        self._refuse()

    def now(self) -> dt.datetime:
        """Refused."""
        self._refuse()

    def delete(self, key: str) -> None:
        """Refused."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise AccessDeniedError(
            "Expected to read of a store behind a service, came something that changes it; open "
            "the store itself for that, push episodes, or use the control port.",
            where=self.url,
        )
