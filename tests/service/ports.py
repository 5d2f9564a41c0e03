"""A control port that really listens, with tokens of every kind, for tests."""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa

from pipeline.jobs.summary import describe
from pipeline.service.config import service_config
from pipeline.service.listening import control_port
from pipeline.service.running import running
from pipeline.service.state import ControlState
from pipeline.service.token_book import TokenBook, TokenRequest
from pipeline.store.store import Store, open_store
from schemas.episode import Episode
from schemas.errors import LogFailedError
from schemas.puts import puts_of

SCOPES = ("push", "pull", "curate", "admin")


@dataclass(frozen=True)
class Port:
    """A control port, and who may use it."""

    url: str
    client: httpx.Client
    state: ControlState
    texts: dict[str, str]
    """Texts of tokens by scope, and of one that expired and one that was revoked."""

    @property
    def store(self) -> Store:
        return self.state.store

    def ask(self, method: str, path: str, who: str | None = "admin", **more: Any) -> httpx.Response:
        headers = dict(more.pop("headers", {}))
        if who is not None:
            headers.setdefault("authorization", f"Bearer {self.texts[who]}")
        answer = self.client.request(method, path, headers=headers, **more)
        self.client.cookies.clear()
        return answer


def episode(name: str, seed: int = 0, length: int = 12) -> Episode:
    rng = np.random.default_rng([seed, *name.encode()])
    return Episode(
        name,
        {"observations": rng.normal(size=(length + 1, 4)).astype(np.float32)},
        rng.normal(size=(length, 2)).astype(np.float32),
        rng.normal(size=length).astype(np.float32),
        terminated=True,
        task="push" if seed % 2 else "reach",
        kind="rollout",
    )


def body_of(one: Episode, producer: str = "actor-1", **changes: Any) -> bytes:
    """An episode as the Arrow stream that `POST /v1/rollouts` takes."""
    sink = io.BytesIO()
    puts = list(puts_of(one, producer=producer, epoch=time.time_ns(), put_bytes=512))
    options = pa.ipc.IpcWriteOptions(compression=changes.pop("compression", None))
    with pa.ipc.new_stream(sink, puts[0].rows.schema, options=options) as writer:
        for put in puts:
            header = put.header.model_copy(update=changes)
            writer.write_batch(put.rows, custom_metadata={"penstock": header.encoded()})
    return sink.getvalue()


ARROW = {"content-type": "application/vnd.apache.arrow.stream"}


def tokens(book: TokenBook) -> dict[str, str]:
    """Makes a token of every kind."""
    texts = {}
    for scope in SCOPES:
        texts[scope] = book.create(TokenRequest(name=f"has-{scope}", scopes=(scope,)))[1]
    gone, texts["revoked"] = book.create(TokenRequest(name="gone", scopes=("admin",)))
    book.revoke(gone.id)
    past = TokenBook(book.path, now=lambda: dt.datetime.now(dt.UTC) - dt.timedelta(days=2))
    wanted = TokenRequest(name="old", scopes=("admin",), expires_in=dt.timedelta(days=1))
    texts["expired"] = past.create(wanted)[1]
    return texts


@contextlib.contextmanager
def service_in(
    folder: Path,
    *,
    describe: Callable[..., dict[str, Any]] = describe,
    is_filled: bool = True,
    **settings: Any,
) -> Iterator[Port]:
    """A service over a store with some episodes in a folder; nothing is sealed unless asked."""
    store = open_store(folder / "store", create=True)
    if is_filled:
        store.append([episode(f"e{k}", k) for k in range(10)], "first")
    given = {"wal": folder / "wal", "seal_every": 3600, "disk_reserve_bytes": 0}
    given |= {"http_port": 0, **settings}
    failures: list[LogFailedError] = []
    config = service_config(given)
    with running(store, config, describe, failures.append) as state, control_port(state) as url:
        texts = {} if state.book is None else tokens(state.book)
        with httpx.Client(base_url=url, timeout=60) as client:
            yield Port(url, client, state, texts)
    assert failures == []
